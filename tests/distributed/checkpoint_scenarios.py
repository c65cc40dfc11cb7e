"""Runs that are stopped after a step and go on, on as many processes or on another number of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_cases import ShardedTrainer, world_size
from helpers import arguments, distance, tiny_data, tiny_model, train

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.manifest import MANIFEST_NAME


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
        save_strategy="steps",
        fsdp=layout == "fsdp",
        **{"save_steps": 2, "optim": "adamw_torch", "optim_args": "eps=0.1", **options},
    )
    # No task reaches its pooler, which is trainable all the same: the optimizer has no state for it.
    model = tiny_model(dtype=torch.float64, seed=0 if resume is None else 1)
    return train(
        model,
        args,
        tiny_data(rows=3 * ROWS - 1, missing=0.2),
        resume=None if resume is None else str(resume),
        trainer=ShardedTrainer if layout == "fsdp" else MultiTaskTrainer,
    )


def save(folder: Path, layout: str) -> dict[str, Any]:
    """A run that is not interrupted, with a checkpoint after every other step."""
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


def keeps_nothing(folder: Path) -> dict[str, Any]:
    """Stopped and resumed with an optimizer without any state, whose learning rate falls."""
    options = {"optim": "sgd", "optim_args": None, "max_steps": 3}
    _, whole = run(folder / "sgd", "fsdp", **options)
    trainer, resumed = run(folder / "sgd-resumed", "fsdp", folder / "sgd" / "checkpoint-2", **options)
    found = {"distance": distance(whole[2:], resumed), "control": distance(whole[1:2], resumed)}
    return {**found, "rates": [record["learning_rate"] for record in trainer.state.log_history if "loss" in record]}


def unreadable(folder: Path) -> dict[str, Any]:
    """The file of the optimizer is cut short, in a checkpoint without a list of its files: only one process reads it."""
    checkpoint = folder / "sgd" / "checkpoint-2"
    if dist.get_rank() == 0:
        (checkpoint / MANIFEST_NAME).unlink()
        whole = (checkpoint / "optimizer.bin").read_bytes()
        (checkpoint / "optimizer.bin").write_bytes(whole[: len(whole) // 2])
    dist.barrier()
    try:
        run(folder / "unreadable", "fsdp", checkpoint, optim="sgd", optim_args=None, max_steps=3)
    except ValueError as error:
        return {"refused": str(error)}
    return {}


def _kept(folder: Path, trainer: MultiTaskTrainer, steps: list[dict]) -> dict[str, Any]:
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.save(steps, folder / f"steps-{rank}.pt")
    there = {id(parameter) for parameter in trainer.optimizer.state}
    stateless = [name for name, parameter in trainer.model.named_parameters() if id(parameter) not in there]
    return {"balanced": trainer.balancer.steps, "steps": trainer.state.global_step, "stateless": stateless}
