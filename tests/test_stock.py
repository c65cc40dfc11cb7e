"""One task with equal weighting is the stock Trainer, bit for bit: whatever else a run needs is left as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import LENGTH, TASKS, VOCAB, flat, tiny_dataset, tiny_model
from torch import Tensor, nn
from transformers import BertTokenizer, Trainer, TrainingArguments

from hf_dbmtl import MultiTaskTrainer, MultiTaskTrainingArguments


SHARED = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "weight_decay": 0.1,
    "max_grad_norm": 0.0,  # the default of ours
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "use_cpu": True,
}


class OneTask(nn.Module):
    """A task of a model with several, as the stock Trainer wants it: without a name."""

    accepts_loss_kwargs = False  # the loss is a mean, which the Trainer is to divide by the number of micro-batches

    def __init__(self, model: nn.Module, task: str):
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, input_ids=None, attention_mask=None, features=None, labels=None) -> dict[str, Tensor]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "features": features, "labels": labels}
        outputs = self.model(task=self.task, **{key: value for key, value in given.items() if value is not None})
        return {"loss": outputs["loss"], "logits": outputs["logits"]}


class UserModule(nn.Module):
    """A module of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.ReLU(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict({"price": nn.Linear(6, 1)})

    def forward(self, task: str, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.heads[task](self.trunk(features)).squeeze(-1)
        return {"loss": (logits - labels).square().mean(), "logits": logits}


def encoder_model(task: str) -> nn.Module:
    return tiny_model({task: TASKS[task]}, dropout=0.1, dtype=torch.float32)


def user_module(task: str) -> nn.Module:
    torch.manual_seed(0)
    return UserModule()


def user_rows(rows: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, 3, generator=generator)
    return Dataset.from_dict({"features": features.tolist(), "labels": features.sum(-1).tolist()})


def rows_of_many_lengths(rows: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, LENGTH + 1, (rows,), generator=generator).tolist()
    ids = [torch.randint(5, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    masks = [[1] * length for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": [sum(row) % 3 for row in ids]})


def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB - 5))]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def all_tokens_labelled(rows: int) -> Dataset:
    """Equal counts in all micro-batches, without which the stock Trainer weighs tokens unequally."""
    dataset = tiny_dataset(TASKS["topic"], rows)
    return dataset.map(lambda row: {"labels": [token % 5 for token in row["input_ids"]]}, remove_columns=["labels"])


@dataclass
class Run:
    """A finished run: its weights and what else a further step would depend on, and what it logged."""

    weights: dict[str, Tensor]
    state: dict[str, Any]
    losses: list[float]


def finished(trainer: Trainer, resume: str | None = None) -> Run:
    trainer.train(resume_from_checkpoint=resume)
    weights = {name.removeprefix("model."): value for name, value in trainer.model.state_dict().items()}
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert len(records) == trainer.state.global_step > 1
    state: dict[str, Any] = {
        f"optimizer {i} {name}": value
        for i, values in trainer.optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    state["learning rates"] = trainer.lr_scheduler.get_last_lr()
    state["random numbers"] = torch.get_rng_state()
    for key in ("step", "epoch", "learning_rate", "grad_norm"):
        state[f"logged {key}"] = [record[key] for record in records]
    return Run(weights, state, [record["loss"] for record in records])


def run_stock(folder: Path, data: Dataset, task: str, make=encoder_model, resume=None, kind=Trainer, **options) -> Run:
    processing_class = options.pop("processing_class", None)
    args = TrainingArguments(str(folder), **{**SHARED, **options})
    return finished(
        kind(OneTask(make(task), task), args, train_dataset=data, processing_class=processing_class), resume
    )


def run_ours(folder: Path, data: Dataset, task: str, make=encoder_model, resume=None, **options) -> Run:
    processing_class = options.pop("processing_class", None)
    args = MultiTaskTrainingArguments(str(folder), balancer="ew", **{**SHARED, **options})
    trainer = MultiTaskTrainer(make(task), args, train_dataset={task: data}, processing_class=processing_class)
    return finished(trainer, resume)


def differences(a: Run, b: Run) -> list[str]:
    """What is not the same to the last bit."""
    pairs = [(a.weights, b.weights), (a.state, b.state)]
    assert all(one.keys() == other.keys() for one, other in pairs)
    return [key for one, other in pairs for key in one if not same(one[key], other[key])]


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


TOPIC = {"task": "topic"}
RUNS: dict[str, tuple[Dataset, dict[str, Any]]] = {
    "the last batch is short": (tiny_dataset(TASKS["topic"], 18), TOPIC),
    "4 accumulated, the last window is one short batch": (
        tiny_dataset(TASKS["topic"], 18),
        {**TOPIC, "gradient_accumulation_steps": 4},
    ),
    "3 accumulated, the last window has two": (
        tiny_dataset(TASKS["topic"], 20),
        {**TOPIC, "gradient_accumulation_steps": 3},
    ),
    "the last batch is dropped": (
        tiny_dataset(TASKS["topic"], 18),
        {**TOPIC, "gradient_accumulation_steps": 4, "dataloader_drop_last": True},
    ),
    "clipped": (
        tiny_dataset(TASKS["topic"], 16),
        {**TOPIC, "gradient_accumulation_steps": 4, "max_grad_norm": 1.0, "num_train_epochs": 3},
    ),
    "grouped by length": (
        rows_of_many_lengths(20),
        {
            **TOPIC,
            "gradient_accumulation_steps": 2,
            "train_sampling_strategy": "group_by_length",
            "processing_class": tokenizer(),
        },
    ),
    "in sequence, by a worker": (
        tiny_dataset(TASKS["topic"], 16),
        {**TOPIC, "train_sampling_strategy": "sequential", "dataloader_num_workers": 1},
    ),
    "another data seed": (tiny_dataset(TASKS["topic"], 16), {**TOPIC, "data_seed": 7}),
    "bfloat16": (tiny_dataset(TASKS["topic"], 16), {**TOPIC, "bf16": True, "gradient_accumulation_steps": 4}),
    "tokens, equally many": (all_tokens_labelled(16), {"task": "tags", "gradient_accumulation_steps": 4}),
    "multi-label": (tiny_dataset(TASKS["traits"], 18), {"task": "traits"}),
    "regression, adafactor, cosine": (
        tiny_dataset(TASKS["score"], 16),
        {"task": "score", "optim": "adafactor", "lr_scheduler_type": "cosine", "gradient_accumulation_steps": 4},
    ),
    "a user's module": (
        user_rows(20),
        {"task": "price", "make": user_module, "gradient_accumulation_steps": 3},
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_stock_trainers(name: str, tmp_path: Path) -> None:
    data, options = RUNS[name]
    ours, stock = run_ours(tmp_path / "ours", data, **options), run_stock(tmp_path / "stock", data, **options)
    assert differences(ours, stock) == []
    if "gradient_accumulation_steps" in options:  # the stock Trainer adds the parts up in float32
        assert ours.losses == pytest.approx(stock.losses, rel=1e-6)
    else:
        assert ours.losses == stock.losses


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_resumed_run_is_the_stock_trainers(accumulation: int, tmp_path: Path) -> None:
    data = tiny_dataset(TASKS["topic"], 18)
    options = {"task": "topic", "gradient_accumulation_steps": accumulation, "save_strategy": "steps", "save_steps": 1}
    runs = {"ours": run_ours, "stock": run_stock}
    whole = {name: run(tmp_path / name, data, **options) for name, run in runs.items()}
    assert differences(whole["ours"], whole["stock"]) == []
    in_an_epoch, at_its_end = {1: (2, 5), 4: (1, 2)}[accumulation]
    for step in (in_an_epoch, at_its_end):
        resumed = {
            name: run(tmp_path / f"{name}-{step}", data, resume=str(tmp_path / name / f"checkpoint-{step}"), **options)
            for name, run in runs.items()
        }
        assert differences(resumed["ours"], resumed["stock"]) == [], f"resumed after step {step}"
        assert differences(resumed["ours"], whole["ours"]) == [], f"resumed after step {step}"


def test_another_seed_would_show(tmp_path: Path) -> None:
    """The control: other rows and other dropout."""
    data = tiny_dataset(TASKS["topic"], 16)
    ours, stock = run_ours(tmp_path, data, "topic", seed=43), run_stock(tmp_path, data, "topic")
    assert {*ours.weights} - {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"} <= {*differences(ours, stock)}


def test_a_loss_not_divided_would_show(tmp_path: Path) -> None:
    """The control: micro-batches added up where they are to be averaged."""

    class Sum(Trainer):
        loss_is_scaled_for_ga = True

    data, options = tiny_dataset(TASKS["topic"], 16), {"task": "topic", "gradient_accumulation_steps": 4}
    assert differences(run_ours(tmp_path, data, **options), run_stock(tmp_path, data, kind=Sum, **options))


def exact_model(task: str) -> nn.Module:
    return tiny_model({task: TASKS[task]}, dtype=torch.float32)


@pytest.mark.parametrize(("task", "rows"), [("topic", 18), ("tags", 16)])
def test_where_the_stock_trainer_is_not_exact(task: str, rows: int, tmp_path: Path) -> None:
    """
    Micro-batches with different numbers of items are where the two part: the stock Trainer averages their means, here
    every item weighs the same, as it does for both where the batch comes in one piece.
    """
    data = tiny_dataset(TASKS[task], rows)
    options = {"task": task, "make": exact_model, "train_sampling_strategy": "sequential", "optim": "sgd"}
    pieces = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    whole = flat(run_stock(tmp_path, data, **options, per_device_train_batch_size=12).weights.values())
    ours = flat(run_ours(tmp_path, data, **options, **pieces).weights.values())
    stock = flat(run_stock(tmp_path, data, **options, **pieces).weights.values())
    way = (whole - flat(exact_model(task).state_dict().values())).norm()
    assert (ours - whole).norm() / way < 1e-5
    assert (stock - whole).norm() / way > 1e-2
