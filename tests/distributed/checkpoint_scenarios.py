"""Runs that are stopped after a step and go on, on as many processes or on another number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_cases import ShardedTrainer, world_size
from helpers import arguments, tiny_data, tiny_model, train

from hf_dbmtl import MultiTaskTrainer


ROWS = 8  # of each task in a step
STOP = 2  # of three steps in an epoch, and two epochs


def run(folder: Path, layout: str, resume: Path | None = None, **options: Any) -> tuple[MultiTaskTrainer, list[dict]]:
    processes = world_size()
    accumulation = 2 if processes < 4 else 1
    args = arguments(
        folder,
        per_device_train_batch_size=ROWS // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        optim_args="eps=0.1",
        save_strategy="steps",
        save_steps=1,
        fsdp=layout == "fsdp",
        **options,
    )
    return train(
        tiny_model(dtype=torch.float64, seed=0 if resume is None else 1),
        args,
        tiny_data(rows=3 * ROWS - 1, missing=0.2),
        resume=None if resume is None else str(resume),
        trainer=ShardedTrainer if layout == "fsdp" else MultiTaskTrainer,
    )


def save(folder: Path, layout: str) -> dict[str, Any]:
    """A run that is not interrupted, with a checkpoint after every step."""
    trainer, steps = run(folder / f"{layout}-{world_size()}", layout)
    return _kept(folder / f"{layout}-{world_size()}", trainer, steps)


def resume(folder: Path, layout: str, saved_by: str, stop: str = str(STOP)) -> dict[str, Any]:
    """What comes after a checkpoint that some number of processes have saved."""
    checkpoint = folder / f"{layout}-{saved_by}" / f"checkpoint-{stop}"
    own = folder / f"{layout}-{saved_by}-{world_size()}-{stop}"
    return _kept(own, *run(own, layout, checkpoint))


def resume_without_skipping(folder: Path, layout: str, saved_by: str) -> dict[str, Any]:
    """The control: the epoch begins anew."""
    checkpoint = folder / f"{layout}-{saved_by}" / f"checkpoint-{STOP}"
    own = folder / f"{layout}-{saved_by}-anew"
    return _kept(own, *run(own, layout, checkpoint, ignore_data_skip=True))


def _kept(folder: Path, trainer: MultiTaskTrainer, steps: list[dict]) -> dict[str, Any]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(steps, folder / f"steps-{rank}.pt")
    return {"balanced": trainer.balancer.steps, "steps": trainer.state.global_step}
