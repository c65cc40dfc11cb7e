"""What is run on one, two and four processes: the same steps on the same rows, cut differently."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from helpers import arguments, tiny_data, tiny_model, train
from torch import Tensor


ROWS = 8  # of each task in a step, over all processes and micro-batches
BALANCERS: dict[str, dict[str, Any]] = {
    "db_mtl": {"balancer": "db_mtl"},
    "db_mtl_beta0": {"balancer": "db_mtl", "balancer_kwargs": {"beta": 0.0}},
    "ew": {"balancer": "ew"},
    "log": {"balancer": "log"},
    "max_norm": {"balancer": "max_norm", "balancer_kwargs": {"alpha": "mean"}},
    "frozen": {"freeze_encoder": True},  # nothing is shared
    "famo": {"balancer": "famo", "balancer_kwargs": {"optimizer": "sgd", "learning_rate": 1.0}},  # looks again
    "stch": {"balancer": "stch", "balancer_kwargs": {"mu": 5.0}},
    "graddrop": {"balancer": "graddrop"},  # draws by coordinate
    "moco": {"balancer": "moco"},  # a memory of its own, and the Gramian
    "excess_mtl": {"balancer": "excess_mtl", "balancer_kwargs": {"step_size": 1.0}},  # state by coordinate
    "moml": {
        "balancer": "moml",
        "balancer_kwargs": {"optimizer": "sgd", "learning_rate": 0.1},
    },  # tunes on validation data
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
ACCUMULATIONS = (1, 2)

CASES = {
    f"{balancer}.{dtype}.{accumulation}": (balancer, dtype, accumulation)
    for balancer in BALANCERS
    for dtype in DTYPES
    for accumulation in ACCUMULATIONS
    if dtype == "float64" or balancer not in ("graddrop", "moco", "excess_mtl")  # to keep the time down
}


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def run_case(name: str, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Trains on this process and returns what every step came to, and the losses logged."""
    balancer, dtype, accumulation = CASES[name]
    args = arguments(
        folder / name,
        per_device_train_batch_size=ROWS // world_size() // accumulation,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=1e-3,
        **BALANCERS[balancer],
    )
    # 20 rows do not fill three steps of 8, and with a fifth of the labels gone some process lacks some task now and then
    validation = tiny_data(rows=10, seed=70) if balancer == "moml" else None
    data = tiny_data(rows=20, missing=0.2)
    trainer, steps = train(tiny_model(dtype=DTYPES[dtype]), args, data, validation_dataset=validation)
    tensors = {f"{step} {key}": value for step, content in enumerate(steps) for key, value in content.items()}
    tensors["weights"] = torch.cat([value.detach().double().reshape(-1) for value in trainer.model.parameters()])
    record = {"losses": [record["loss"] for record in trainer.state.log_history if "loss" in record]}
    return tensors, record
