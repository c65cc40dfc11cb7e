"""What FSDP2 has to get right beside the matrix. Each scenario runs on every process and returns what it saw."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from distributed_cases import ShardedTrainer, world_size
from helpers import CHECKPOINTING, TASKS, arguments, distance, flat, tiny_data, tiny_model, train
from test_faults import Poisoned
from test_user_module import Net, rows
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.gradients.sharded import ShardedGradients


class Trunk(nn.Module):
    """A trunk of two layers; the second of them may be left whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.second = nn.Linear(5, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.second(torch.tanh(self.first(features))))


class OwnNet(Net):
    """A user's module, which transformers knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = Trunk().double()


class LeavingOneWhole(ShardedTrainer):
    """Has FSDP leave a part of the encoder whole, by name."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.state.fsdp_plugin.ignored_modules = r"trunk\.second"


def user_rows() -> dict[str, Any]:
    # a tenth of the rows for the second task: a process of two has none in most steps
    return {"price": rows(40, 0, missing=0.2), "size": rows(4, 1)}


def of_a_users_module(
    folder: Path, kind: type[MultiTaskTrainer], resume: str | None = None, **options: Any
) -> tuple[MultiTaskTrainer, list[dict]]:
    sharded = issubclass(kind, ShardedTrainer)
    args = arguments(
        folder,
        per_device_train_batch_size=8 // (world_size() if sharded else 1),
        mixing="proportional",
        fsdp=sharded,
        **options,
    )
    return train(OwnNet(), args, user_rows(), resume, trainer=kind, shared_parameters=r"^trunk\.")


def users_module(folder: Path) -> dict[str, Any]:
    trainer, steps = of_a_users_module(folder, ShardedTrainer)
    torch.save(steps, folder / f"users_module-{dist.get_rank()}.pt")
    kinds = {name: isinstance(one, DTensor) for name, one in trainer.model.named_parameters()}
    return {"sharded": kinds, "heads": flat(trainer.gradients.heads.values()).tolist()}


def partly_whole(folder: Path) -> dict[str, Any]:
    """A shared parameter that FSDP leaves whole is counted once, and kept in slices."""
    own = folder / "partly_whole"
    trainer, steps = of_a_users_module(own, LeavingOneWhole, save_strategy="steps", save_steps=2)
    torch.save(steps, folder / f"partly_whole-{dist.get_rank()}.pt")
    _, resumed = of_a_users_module(folder, LeavingOneWhole, str(own / "checkpoint-2"))
    kinds = {name: isinstance(one, DTensor) for name, one in trainer.model.named_parameters()}
    held = [row.tensors[0].numel() for row in trainer.balancer.memory.rows.values()]
    return {"sharded": kinds, "held": held, "resumed": distance(steps[2:], resumed)}


class PoisonedOnOne(Poisoned, ShardedTrainer):
    """A NaN on the last process only."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.value = math.nan if self.args.process_index == self.args.world_size - 1 else 1.0
        return super().compute_loss(*args, **kwargs)


def skipped_step(folder: Path) -> dict[str, Any]:
    """A NaN on one process skips the step on all of them."""
    kind = type("Kind", (PoisonedOnOne,), {})
    args = arguments(folder, per_device_train_batch_size=8 // world_size(), fsdp=True)
    after: list[torch.Tensor] = []

    class Watched(kind):
        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            after.append(flat(self.model.parameters()))
            super()._maybe_log_save_evaluate(*args, **kwargs)

    trainer, steps = train(tiny_model(), args, tiny_data(rows=24), trainer=Watched)
    return {
        "moved": [not torch.equal(a, b) for a, b in zip(after, after[1:])],
        "updates": [len(step["update"]) for step in steps],
        "finite": bool(torch.isfinite(after[-1]).all()),
        "skipped": [record.get("skipped_steps") for record in trainer.state.log_history if "loss" in record],
        "balanced": trainer.balancer.steps,
    }


def other_arguments(folder: Path) -> dict[str, Any]:
    """The default optimizer (fused), clipping, a multiplied learning rate, checkpointing: as without FSDP."""
    found = {}
    for name, options in {
        "plain": {},
        "clipped and multiplied": {"max_grad_norm": 0.5, "heads_lr_multiplier": 3.0},
        "checkpointing": {CHECKPOINTING: True},
    }.items():
        records = []
        for kind in (ShardedTrainer, MultiTaskTrainer):
            args = arguments(
                folder / name,
                per_device_train_batch_size=8 // world_size(),
                fsdp=kind is ShardedTrainer,
                optim="adamw_torch_fused",
                optim_args="eps=0.1",
                max_steps=2,
                **options,
            )
            data = tiny_data(rows=16)
            trainer, steps = train(tiny_model(), args, data, trainer=kind, eval_dataset=data)
            metrics = trainer.evaluate()
            records.append((steps, flat(trainer.model.parameters()), metrics["eval_loss"]))
        (steps, weights, loss), (other_steps, other_weights, other_loss) = records
        found[name] = {
            "steps": distance(steps, other_steps),
            "weights": ((weights - other_weights).norm() / other_weights.norm()).item(),
            "loss": abs(loss / other_loss - 1),
            "sum": weights.sum().item(),
        }
    return found


def own_checkpointing(folder: Path) -> dict[str, Any]:
    """FSDP's own activation checkpointing puts wrappers into the names of parameters."""
    args = arguments(
        folder,
        per_device_train_batch_size=8 // world_size(),
        fsdp=True,
        fsdp_config={"activation_checkpointing": True},
    )
    trainer, steps = train(tiny_model(), args, tiny_data(rows=24), trainer=ShardedTrainer)
    plain = arguments(folder, per_device_train_batch_size=8 // world_size())
    _, other = train(tiny_model(), plain, tiny_data(rows=24))
    names = [name for name, _ in tiny_model().named_parameters() if not name.startswith("heads.")]
    wrapped = [name for name, _ in trainer.model.named_parameters() if "_checkpoint_wrapped_module" in name]
    return {
        "steps": distance(steps, other),
        "names": list(trainer.gradients.shared) == names,
        "wrapped": len(wrapped),
        "tasks": list(TASKS) == list(trainer.tasks),
    }


def refused(folder: Path) -> dict[str, str]:
    """Parameters that FSDP has placed otherwise than the Trainer lets it."""
    mesh = init_device_mesh("cpu", (world_size(),))
    rows, columns, whole = (
        {"weight": nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [place]))}
        for place in (Shard(0), Shard(1), Replicate())
    )
    found = {}
    for name, given in {"columns": (columns, {}), "whole": (whole, {}), "head": (rows, rows)}.items():
        try:
            ShardedGradients(*given)
        except ValueError as error:
            found[name] = str(error)
    return found
