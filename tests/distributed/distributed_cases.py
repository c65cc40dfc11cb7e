"""What is run on one, two and four processes: the same steps on the same rows, cut differently."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from helpers import TASKS, VOCAB, arguments, tiny_data, tiny_dataset, train
from torch import Tensor
from transformers import BertConfig, BertModel

from hf_dbmtl import MultiTaskModel, MultiTaskTrainer
from hf_dbmtl.gradients import LocalGradients


ROWS = 16  # of each task in a step, on average, over all processes and micro-batches
SIZES = {"topic": 40, "score": 40, "traits": 24, "tags": 5}  # dealt in proportion: two rows of the last in a step
BALANCERS: dict[str, dict[str, Any]] = {
    "db_mtl": {"balancer": "db_mtl"},
    "db_mtl_beta0": {"balancer": "db_mtl", "balancer_kwargs": {"beta": 0.0}},
    "log+pcgrad": {"balancer": "log+pcgrad"},
    "cagrad": {"balancer": "cagrad"},
    "uw": {"balancer": "uw", "balancer_kwargs": {"learning_rate": 0.1}},
    "graddrop": {"balancer": "graddrop"},  # draws by coordinate
    # not of the matrix
    "ew": {"balancer": "ew"},
    # no norms are wanted: one backward pass of a micro-batch and one sum over the processes for all tasks
    "ew_plain": {"balancer": "ew", "logging_strategy": "no"},
    "uw_plain": {"balancer": "uw", "balancer_kwargs": {"learning_rate": 0.1}, "logging_strategy": "no"},
    "log": {"balancer": "log"},
    "max_norm": {"balancer": "max_norm", "balancer_kwargs": {"alpha": "mean"}},
    "frozen": {"freeze_encoder": True},  # nothing is shared
    "famo": {"balancer": "famo", "balancer_kwargs": {"optimizer": "sgd", "learning_rate": 1.0}},  # looks again
    "stch": {"balancer": "stch", "balancer_kwargs": {"mu": 5.0}},
    "moco": {"balancer": "moco"},  # a memory of its own, and the Gramian
    "excess_mtl": {"balancer": "excess_mtl", "balancer_kwargs": {"step_size": 1.0}},  # state by coordinate
    "moml": {
        "balancer": "moml",
        "balancer_kwargs": {"optimizer": "sgd", "learning_rate": 0.1},
    },  # tunes on validation data
    # the mistakes to be caught
    "wrong_local": {"balancer": "db_mtl"},
    "wrong_logs": {"balancer": "ema+max_norm"},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
INPUTS = ("separate", "shared")  # a dataset per task, or one forward pass for all but one of them


@dataclass(frozen=True)
class Case:
    """
    One run.

    Attributes:
        layout (`str`): `"ddp"` or `"fsdp"`; of one process `"ddp"` is no wrapper at all.
        balancer (`str`): one of `BALANCERS`.
        dtype (`str`): one of `DTYPES`.
        accumulation (`int`): the micro-batches of a step.
        inputs (`str`): one of `INPUTS`.
    """

    layout: str
    balancer: str
    dtype: str = "float64"
    accumulation: int = 1
    inputs: str = "separate"

    def __str__(self) -> str:
        return f"{self.layout}-{self.balancer}-{self.dtype}-{self.accumulation}-{self.inputs}"

    @classmethod
    def named(cls, name: str) -> Case:
        layout, balancer, dtype, accumulation, inputs = name.split("-")
        return cls(layout, balancer, dtype, int(accumulation), inputs)

    @property
    def bound(self) -> float:
        """How far the case may be from one process on the whole batch (G2)."""
        if self.dtype == "float32":
            return 5e-6
        return 1e-8 if self.balancer == "cagrad" else 1e-10


MATRIX_BALANCERS = list(BALANCERS)[:6]
MATRIX = [Case(*cell) for cell in itertools.product(("ddp", "fsdp"), MATRIX_BALANCERS, DTYPES, (1, 2, 4), INPUTS)]


def _thin() -> Iterable[Case]:
    """Every method that treats processes in a way of its own, each in one way or two."""
    for balancer in BALANCERS:
        if not balancer.startswith("wrong"):
            yield Case("ddp", balancer, accumulation=2)
    for balancer in ("db_mtl", "db_mtl_beta0", "log+pcgrad", "graddrop", "famo", "excess_mtl", "moml", "ew_plain"):
        yield Case("fsdp", balancer)
    for balancer in ("db_mtl", "ew", "famo", "moml", "ew_plain"):
        yield Case("ddp", balancer, accumulation=2, inputs="shared")
    yield Case("fsdp", "db_mtl", inputs="shared")
    for balancer in ("log+pcgrad", "uw_plain"):
        yield Case("fsdp", balancer, accumulation=2, inputs="shared")
    for layout in ("ddp", "fsdp"):
        yield Case(layout, "db_mtl", "float32")
        yield Case(layout, "db_mtl", accumulation=1 if layout == "ddp" else 2)


THIN = list(dict.fromkeys(_thin()))
WRONG = [Case("ddp", "wrong_local"), Case("ddp", "wrong_logs")]


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def odd_model(dtype: torch.dtype) -> MultiTaskModel:
    """A model whose number of shared parameters no number of processes divides."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=11,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    return MultiTaskModel.from_encoder(BertModel(config), dict(TASKS), pooling="mean").to(dtype)


class ShardedTrainer(MultiTaskTrainer):
    """accelerate shards on GPUs only, and falls back to DDP elsewhere: here it is told that there are some."""

    def create_accelerator_and_postprocess(self) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()


class LocalTrainer(MultiTaskTrainer):
    """A mistake to be caught: every process balances its own gradients, and the updates are averaged."""

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        scheduler = super().create_scheduler(*args, **kwargs)
        self.gradients = AveragedGradients(self.gradients.shared, self.gradients.heads)
        return scheduler


class AveragedGradients(LocalGradients):
    def write(self, *args: Any, **kwargs: Any) -> None:
        super().write(*args, **kwargs)
        for parameter in self.heads.values():  # of which a process may lack the task
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in (*self.shared.values(), *self.heads.values()):
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


class MeanOfLogsTrainer(MultiTaskTrainer):
    """Another: the logarithm of the loss of every process's micro-batch."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        loss = torch.where(loss > 0, (loss + 1e-8).log(), loss)
        return (loss, outputs) if return_outputs else loss


TRAINERS = {"fsdp": ShardedTrainer, "wrong_local": LocalTrainer, "wrong_logs": MeanOfLogsTrainer}


def shared_data(rows: int = 40, seed: int = 0) -> dict[str, Dataset]:
    """A group of tasks, the last of which has a label in two rows of a step or none, and a small dataset beside it."""
    columns = {task: tiny_dataset(TASKS[task], rows, seed + i, 0.2)["labels"][:] for i, task in enumerate(TASKS)}
    columns["tags"] = [label if row % 8 == 0 else None for row, label in enumerate(columns["tags"])]
    inputs = tiny_dataset(TASKS["topic"], rows, seed).remove_columns("labels")
    group = {**inputs.to_dict(), **{task: columns[task] for task in ("topic", "traits", "tags")}}
    return {"group": Dataset.from_dict(group), "score": tiny_dataset(TASKS["score"], 5, seed + 1)}


def run_case(case: Case, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains on this process and returns what every step came to, and the losses logged."""
    args = arguments(
        folder / str(case),
        per_device_train_batch_size=ROWS // world_size() // case.accumulation,
        gradient_accumulation_steps=case.accumulation,
        mixing="proportional",
        learning_rate=1e-3,
        fsdp=case.layout == "fsdp",
        **BALANCERS[case.balancer],
    )
    validation = tiny_data(rows=2 * ROWS, seed=70) if case.balancer == "moml" else None
    # with a fifth of the labels gone, item counts differ even where rows do not
    data = {task: tiny_dataset(TASKS[task], rows, seed, 0.2) for seed, (task, rows) in enumerate(SIZES.items())}
    if case.balancer.endswith("_plain"):  # a task that most steps lack
        labels = [label if row == 0 else None for row, label in enumerate(data["score"]["labels"][:])]
        data["score"] = data["score"].remove_columns("labels").add_column("labels", labels)
    if case.inputs == "shared":
        data = shared_data()
        validation = validation and {"group": shared_data(2 * ROWS, seed=70)["group"], "score": validation["score"]}
    kind = TRAINERS.get(case.balancer) or TRAINERS.get(case.layout, MultiTaskTrainer)
    trainer, steps = train(odd_model(DTYPES[case.dtype]), args, data, validation_dataset=validation, trainer=kind)
    tensors = {f"{step} {key}": value for step, content in enumerate(steps) for key, value in content.items()}
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    record = {
        "losses": losses,
        "gradients": type(trainer.gradients).__name__,
        "shared": sum(parameter.numel() for parameter in trainer.gradients.shared.values()),
    }
    return tensors, record
