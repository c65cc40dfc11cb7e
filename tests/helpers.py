"""Tiny models and data, and a callback that keeps what every step came to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import BertConfig, BertModel, PreTrainedModel, TrainerCallback

from hf_dbmtl import (
    Classification,
    MultiLabelClassification,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    Regression,
    TokenClassification,
)


TASKS = {
    "topic": Classification(num_labels=3),
    "score": Regression(),
    "traits": MultiLabelClassification(num_labels=4),
    "tags": TokenClassification(num_labels=5),
}
VOCAB, LENGTH = 30, 7
NEW = hasattr(PreTrainedModel, "activation_checkpointing_enable")
CHECKPOINTING = "activation_checkpointing" if NEW else "gradient_checkpointing"  # its name before transformers 5.23


def tiny_encoder(dropout: float = 0.0, seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.3,
    )
    return BertModel(config)


def tiny_model(tasks: dict | None = None, dropout: float = 0.0, dtype=torch.float64, seed: int = 0) -> MultiTaskModel:
    encoder = tiny_encoder(dropout, seed)
    return MultiTaskModel.from_encoder(encoder, dict(tasks or TASKS), pooling="mean").to(dtype)


def tiny_dataset(task: Any, rows: int, seed: int = 0, missing: float = 0.0) -> Dataset:
    """Random rows of one length with labels of the task's kind, a share of them missing."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, high: int) -> list:
        return torch.randint(high, shape, generator=generator).tolist()

    ids = draw(rows, LENGTH, high=VOCAB)
    if task.kind == "classification":
        labels = draw(rows, high=task.num_labels)
    elif task.kind == "token_classification":
        labels = draw(rows, LENGTH, high=task.num_labels)
        for row, kept in zip(labels, draw(rows, high=LENGTH)):  # from one labelled token to all: counts differ
            row[kept + 1 :] = [-100] * (LENGTH - kept - 1)
    elif task.kind == "multi_label_classification":
        labels = [[float(entry) for entry in row] for row in draw(rows, task.num_labels, high=2)]
    else:
        labels = (10 * torch.randn(rows, generator=generator)).tolist()
    gone = (torch.rand(rows, generator=generator) < missing).tolist()
    labels = [None if lost else label for lost, label in zip(gone, labels)]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * LENGTH] * rows, "labels": labels})


def tiny_data(tasks: dict | None = None, rows: int = 24, missing: float = 0.0, seed: int = 0) -> dict[str, Dataset]:
    tasks = tasks or TASKS
    return {name: tiny_dataset(task, rows, seed + i, missing) for i, (name, task) in enumerate(tasks.items())}


def arguments(folder: Path | str, **options: Any) -> MultiTaskTrainingArguments:
    """Plain SGD, no schedule, nothing saved, silent; `options` win."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return MultiTaskTrainingArguments(**{**defaults, **options})


class Recorder(TrainerCallback):
    """Keeps, for every step, the update, each head's gradient, the averages, and the losses."""

    def __init__(self) -> None:
        self.trainer: MultiTaskTrainer | None = None
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        gradients, memory = self.trainer.gradients, self.trainer.balancer.memory
        step = {"update": flat(p.grad for p in gradients.shared.values())}
        for name, parameter in gradients.heads.items():
            step[f"head {name}"] = flat([parameter.grad])
        for task, row in (memory.rows if memory else {}).items():
            step[f"ema {task}"] = flat(gradients.full(row))
        for key, value in self.trainer.step_log.means().items():  # of this step alone where each is logged
            if key.startswith("loss/"):
                step[key] = torch.tensor([value], dtype=torch.float64)
        self.steps.append(step)


def flat(tensors: Any) -> Tensor:
    """One vector, a copy, in float64; what is `None` is left out. Of what is sharded it is the whole, on every process."""
    whole = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    pieces = [tensor.detach().double().reshape(-1) for tensor in whole if tensor is not None]
    return torch.cat(pieces).clone() if pieces else torch.zeros(0, dtype=torch.float64)


def train(model: Any, args: MultiTaskTrainingArguments, data: dict[str, Any], resume: Any = None, **options: Any):
    """Trains and returns the trainer and what its steps came to."""
    recorder = Recorder()
    callbacks = [recorder, *options.pop("callbacks", [])]
    kind = options.pop("trainer", MultiTaskTrainer)
    recorder.trainer = kind(model=model, args=args, train_dataset=data, callbacks=callbacks, **options)
    recorder.trainer.train(resume_from_checkpoint=resume)
    return recorder.trainer, recorder.steps


def distance(a: list[dict[str, Tensor]], b: list[dict[str, Tensor]]) -> float:
    """The largest relative difference of any part of any step."""
    assert len(a) == len(b) > 0, f"{len(a)} steps against {len(b)}"
    worst = 0.0
    for one, other in zip(a, b):
        assert one.keys() == other.keys(), f"{one.keys() ^ other.keys()} only on one side"
        for key in one:
            assert one[key].shape == other[key].shape, key
            size = max(one[key].norm().item(), other[key].norm().item())
            worst = max(worst, (one[key] - other[key]).norm().item() / size if size else 0.0)
    return worst
