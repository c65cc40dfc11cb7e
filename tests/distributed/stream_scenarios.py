"""Runs on datasets without a length, on one process or several, stopped and gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoint_scenarios import ROWS, STOP
from distributed_cases import ShardedTrainer, world_size
from helpers import arguments, tiny_data, tiny_model, train
from torch.distributed import get_rank, is_initialized

from hf_dbmtl import MultiTaskTrainer


def run(folder: Path, layout: str, saved_by: str = "") -> dict[str, Any]:
    """
    Five steps, of which each takes as many rows whatever the number of processes; the rows run out before.

    Args:
        folder (`Path`):
            Where all runs have theirs.
        layout (`str`):
            `"ddp"` or `"fsdp"`.
        saved_by (`str`, *optional*):
            The number of processes of the run whose checkpoint is gone on with.
    """
    processes = world_size()
    own = folder / f"streams-{layout}-{processes}{f'-of-{saved_by}' if saved_by else ''}"
    args = arguments(
        own,
        per_device_train_batch_size=ROWS // processes // 2,
        gradient_accumulation_steps=2,
        max_steps=5,
        save_strategy="steps",
        save_steps=STOP,
        fsdp=layout == "fsdp",
        consistency_check_steps=2,
    )
    data = tiny_data(rows=3 * ROWS - 1, missing=0.2)
    _, steps = train(
        tiny_model(dtype=torch.float64, seed=1 if saved_by else 0),
        args,
        {task: rows.to_iterable_dataset(2).shuffle(seed=5, buffer_size=4) for task, rows in data.items()},
        resume=str(folder / f"streams-{layout}-{saved_by}" / f"checkpoint-{STOP}") if saved_by else None,
        trainer=ShardedTrainer if layout == "fsdp" else MultiTaskTrainer,
    )
    torch.save(steps, own / f"steps-{get_rank() if is_initialized() else 0}.pt")
    return {"steps": len(steps)}
