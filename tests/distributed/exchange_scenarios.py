"""What processes exchange and keep: bytes and buffers counted, BatchNorm, evaluation, and runs that come apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from datasets import Dataset
from distributed_cases import DTYPES, SIZES, ShardedTrainer, odd_model, shared_data
from helpers import TASKS, arguments, distance, flat, tiny_data, tiny_dataset, tiny_model, train
from scenes import MAPS, model_of, scenes
from test_buffers import Normed
from test_faults import Poisoned
from torch import nn
from torchjd.aggregation import GradDrop
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.gradients.flat import Layout
from hf_dbmtl.gradients.traffic import CollectiveBytes


class Count(TrainerCallback):
    """Counts what is exchanged from the beginning of a step to the optimizer."""

    def __init__(self) -> None:
        self.traffic: list[CollectiveBytes] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.traffic.append(CollectiveBytes())
        self.traffic[-1].__enter__()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pass

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.traffic[-1].__exit__(None, None, None)


def _counted(folder: Path, layout: str, balancer: str, accumulation: int) -> dict[str, Any]:
    sharded = layout == "fsdp"
    args = arguments(
        folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        balancer=balancer,
        max_steps=2,
        logging_strategy="no",
        fsdp=sharded,
    )
    count, empty, rows = Count(), [], []
    kind = ShardedTrainer if sharded else MultiTaskTrainer

    class Watched(kind):
        """Looks at what the balancer has taken, when it is about to be balanced."""

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            balance = self.balancer.balance

            def watched(*args: Any) -> Any:
                kept = self.balancer.memory.rows if self.balancer.memory else self.balancer._rows
                rows[:] = [row.tensors[0].numel() * row.tensors[0].element_size() for row in kept.values()]
                return balance(*args)

            with mock.patch.object(self.balancer, "balance", watched):
                return super().training_step(*args, **kwargs)

        def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
            return 0.0  # the stock Trainer's, for its log

    original = Layout.empty

    def counting(layout: Layout) -> torch.Tensor:
        flat = original(layout)
        empty.append(flat.numel() * flat.element_size())
        return flat

    with mock.patch.object(Layout, "empty", counting):
        model = odd_model(DTYPES["float32"])
        data = tiny_data(rows=40)
        trainer = Watched(model=model, args=args, train_dataset=data, callbacks=[count])
        trainer.train()
    last = count.traffic[-1]
    names = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
    layers = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return {
        "sizes": {name: last.sizes[name] for name in names},
        "volumes": {name: last.volume(name) for name in names},
        "calls": {name: last.calls[name] for name in names},
        "rows": rows,
        "buffers": empty,
        "shapes": [list(parameter.shape) for parameter in trainer.gradients.shared.values()],
        "heads": sum(parameter.numel() for parameter in trainer.gradients.heads.values()),
        "parameters": len(layers),
    }


def counted(folder: Path) -> dict[str, Any]:
    return {
        f"{layout} {balancer} {accumulation}": _counted(folder, layout, balancer, accumulation)
        for layout in ("ddp", "fsdp")
        for balancer, accumulation in (("db_mtl", 1), ("db_mtl", 2), ("log+pcgrad", 1), ("ew", 1), ("ew", 2))
    }


def averaged_buffers(folder: Path) -> dict[str, Any]:
    """Every process normalises rows of its own; what is saved and evaluated is the mean."""
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, 3, generator=generator)
    features[:, 0] += torch.arange(16)
    data = {task: Dataset.from_dict({"features": features.tolist()}) for task in "ab"}
    seen: dict[str, list] = {}

    class Watched(MultiTaskTrainer):
        def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            seen["before"] = self.model.trunk[1].running_mean.tolist()
            super()._save_checkpoint(*args, **kwargs)
            seen["after"] = self.model.trunk[1].running_mean.tolist()

    args = arguments(folder / "buffers", per_device_train_batch_size=4, save_strategy="epoch", max_steps=2)
    trainer = Watched(model=Normed(), args=args, train_dataset=data, eval_dataset=data)
    trainer.train()
    seen["counted"] = trainer.model.trunk[1].num_batches_tracked.item()
    trainer.model.trunk[1].running_var.add_(rank)
    trainer.evaluate()
    seen["evaluated"] = trainer.model.trunk[1].running_var.tolist()
    return seen


def evaluated(folder: Path) -> dict[str, Any]:
    """Sets whose last batches are filled up; of one task even the first."""
    data = {
        task: tiny_dataset(TASKS[task], rows, seed, 0.3)
        for seed, (task, rows) in enumerate(zip(TASKS, (10, 13, 3, 16), strict=True))
    }
    found = {}
    for name, kind in {"ddp": MultiTaskTrainer, "fsdp": ShardedTrainer}.items():
        args = arguments(folder, per_device_eval_batch_size=4, fsdp=name == "fsdp", learning_rate=0.0, max_steps=1)
        trainer = kind(model=tiny_model(), args=args, train_dataset=tiny_data(rows=24), eval_dataset=data)
        if name == "fsdp":
            trainer.train()
        found[name] = {key: value for key, value in trainer.evaluate().items() if key.endswith("_loss")}
        found[f"{name}, shared"] = metrics_of(trainer.evaluate(shared_data(13)))
    args = arguments(folder, per_device_eval_batch_size=2)
    found["maps"] = metrics_of(MultiTaskTrainer(model_of(MAPS), args).evaluate({"scenes": some_maps()}))
    return found


def some_maps() -> Dataset:
    """Of depth, batches of two on one process have none while those of the other do."""
    rows = scenes(MAPS, rows=9, missing=0.0)
    depth = [None if row in (2, 3, 8) else one for row, one in enumerate(rows["depth"][:])]
    return rows.remove_columns("depth").add_column("depth", depth)


def metrics_of(found: dict[str, float]) -> dict[str, float]:
    """What an evaluation found, without what tells of its speed."""
    return {
        key: one
        for key, one in found.items()
        if not key.endswith(("epoch", "runtime", "per_second", "preparation_time"))
    }


class PoisonedOnOne(Poisoned):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        self.value = math.nan if self.args.process_index == 0 else 1.0
        return super().compute_loss(*args, **kwargs)


def poisoned(folder: Path) -> dict[str, Any]:
    """Under DDP: the step is skipped by all, or all of them end."""
    args = arguments(folder, per_device_train_batch_size=4)
    trainer, steps = train(tiny_model(), args, tiny_data(rows=24), trainer=type("Kind", (PoisonedOnOne,), {}))
    found: dict[str, Any] = {
        "updates": [len(step["update"]) for step in steps],
        "balanced": trainer.balancer.steps,
        "weights": flat(trainer.model.parameters()).sum().item(),
    }
    strict = arguments(folder, per_device_train_batch_size=4, non_finite_strategy="raise")
    try:
        train(tiny_model(), strict, tiny_data(rows=24), trainer=type("Kind", (PoisonedOnOne,), {}))
    except FloatingPointError as error:
        found["raised"] = str(error)
    return found


class Contradicting(MultiTaskTrainer):
    """One process takes the loss of a task for that of no items."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["return_outputs"] = True
        loss, outputs = super().compute_loss(*args, **kwargs)
        if self.args.process_index == 1 and args[1]["task"] == "score":
            outputs["num_items"] = outputs["num_items"] * 0
        return loss, outputs


def contradicted(folder: Path) -> dict[str, str]:
    """With every task's gradient apart, and in one sum."""
    found = {}
    for balancer in ("db_mtl", "ew"):
        args = arguments(folder, per_device_train_batch_size=4, balancer=balancer, max_steps=1)
        try:
            train(tiny_model(), args, tiny_data(rows=24), trainer=Contradicting)
        except ValueError as error:
            found[balancer] = str(error)
    return found


def frozen_heads(folder: Path) -> dict[str, Any]:
    """Without a parameter of a head there is nothing of them to add up."""
    steps = {}
    for accumulation in (1, 2):
        model = tiny_model()
        model.heads.requires_grad_(False)
        options = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
        trainer, steps[accumulation] = train(model, arguments(folder, **options), tiny_data(rows=24))
    torch.save(steps[1], folder / f"frozen_heads-{dist.get_rank()}.pt")
    return {"heads": len(trainer.gradients.heads), "distance": distance(steps[1], steps[2])}


def cards(folder: Path) -> dict[str, bool]:
    """One process writes the card."""
    own = folder / f"card-{dist.get_rank()}"
    trainer = MultiTaskTrainer(model=tiny_model(), args=arguments(own), train_dataset=tiny_data(rows=8))
    own.mkdir(exist_ok=True)
    trainer.create_model_card()
    return {"written": (own / "README.md").exists()}


def refused(folder: Path) -> dict[str, str]:
    """What one process alone would not be refused."""
    found = {}
    for name, options in {"fsdp": {"fsdp": True}, "aggregator": {"balancer": GradDrop(), "max_steps": 1}}.items():
        try:
            train(tiny_model(), arguments(folder, per_device_train_batch_size=4, **options), tiny_data(rows=8))
        except ValueError as error:
            found[name] = str(error)
    return found


def _error(folder: Path, data: dict, callbacks: Any = (), **options: Any) -> str:
    args = arguments(folder, per_device_train_batch_size=4, **options)
    try:
        train(tiny_model(), args, data, callbacks=list(callbacks))
    except RuntimeError as error:
        return str(error)
    return ""


class Drift(TrainerCallback):
    """Changes one bit of one parameter on one process."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 1 and args.process_index == 1:
            bias = model.heads["topic"].linear.bias.detach()
            bias[0] = math.nextafter(bias[0].item(), math.inf)


def come_apart(folder: Path) -> dict[str, Any]:
    rank = dist.get_rank()
    same = tiny_data(rows=24)
    other_size = {**same, "score": tiny_dataset(TASKS["score"], 24 + rank, 1)}
    other_rows = {**same, "score": tiny_dataset(TASKS["score"], 24, 1 + rank)}
    as_tensors = {task: dataset.with_format("torch") for task, dataset in other_rows.items()}
    return {
        "same": _error(folder, same, consistency_check_steps=1),
        "size": _error(folder, other_size),
        "rows": _error(folder, other_rows, consistency_check_steps=10),
        "rows, as tensors": _error(folder, as_tensors, consistency_check_steps=10),
        "rows, unchecked": _error(folder, other_rows),
        "drift": _error(folder, same, [Drift()], consistency_check_steps=1),
        "drift, unchecked": _error(folder, same, [Drift()]),
    }


def compiled(folder: Path, layout: str) -> dict[str, Any]:
    runs = []
    for options in ({"torch_compile_backend": "aot_eager"}, {}):
        args = arguments(folder, per_device_train_batch_size=4, max_steps=2, fsdp=layout == "fsdp", **options)
        environment = {} if options else dict.fromkeys(("ACCELERATE_DYNAMO_BACKEND",), "no")
        with mock.patch.dict("os.environ", environment):
            kind = ShardedTrainer if layout == "fsdp" else MultiTaskTrainer
            trainer, steps = train(tiny_model(), args, tiny_data(rows=24), trainer=kind)
        runs.append(steps)
        if options:
            compiled = trainer.model.encoder._compiled_call_impl is not None
    return {"compiled": compiled, "distance": distance(*runs)}


assert set(SIZES) == set(TASKS)
