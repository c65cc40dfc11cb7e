"""
One process of a run that is told to stop: the one with rank 1 receives SIGTERM in the second step.

    torchrun --nproc_per_node 2 tests/distributed/preempted.py FOLDER {told,alone,resumed}
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


os.environ.update(HF_HUB_OFFLINE="1", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from helpers import arguments, tiny_data, tiny_model
from safetensors.torch import save_file

from hf_dbmtl import MultiTaskTrainer, PreemptionCallback


def main(folder: Path, part: str) -> None:
    args = arguments(
        folder / ("alone" if part == "alone" else "told"),
        max_steps=4,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=100,
        optim="adamw_torch",
    )
    model = tiny_model(dropout=0.1, dtype=torch.float32)
    trainer = MultiTaskTrainer(model, args, train_dataset=tiny_data(rows=32), callbacks=[PreemptionCallback()])
    step = trainer.training_step

    def told(*given):
        if part == "told" and args.process_index == 1 and trainer.state.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(*given)

    trainer.training_step = told
    try:
        trainer.train(resume_from_checkpoint=part == "resumed" or None)
    except SystemExit as end:
        (folder / f"stopped-{args.process_index}").write_text(f"{end.code} {trainer.state.global_step}")
        return
    if args.process_index == 0:
        save_file(trainer.model.state_dict(), folder / f"{part}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
