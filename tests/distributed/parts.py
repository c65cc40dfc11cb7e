"""What the group of two processes runs, by the file that looks at it."""

from __future__ import annotations

from distributed_cases import THIN, WRONG


CHECKPOINTS = (
    *(f"checkpoint_scenarios:{what}" for what in ("save:ddp", "save:fsdp", "resume:ddp:2", "resume:fsdp:2")),
    "checkpoint_scenarios:keeps_nothing",
    "checkpoint_scenarios:unreadable",
)
SHARDED = tuple(
    f"sharded_scenarios:{name}"
    for name in ("users_module", "partly_whole", "skipped_step", "other_arguments", "own_checkpointing", "refused")
)
EXCHANGE = tuple(
    f"exchange_scenarios:{name}"
    for name in (
        *("counted", "averaged_buffers", "evaluated", "poisoned", "contradicted", "frozen_heads", "cards", "refused"),
        "come_apart",
    )
)
STREAMS = tuple(f"stream_scenarios:{run}" for run in ("run:ddp", "run:fsdp", "run:ddp:2"))
PARTS: dict[str, tuple[str, ...]] = {
    "test_layouts": tuple(map(str, (*THIN, *WRONG))),
    "test_checkpoints": CHECKPOINTS,
    "test_sharded": SHARDED,
    "test_exchange": EXCHANGE,
    "test_streamed_layouts": STREAMS,
}
