"""Buffers that a forward pass changes: given back where a step is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from helpers import arguments, train
from test_faults import BAD_STEP
from torch import Tensor, nn

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.buffers import Buffers


class Normed(nn.Module):
    """A trunk with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
        self.heads = nn.ModuleDict({task: nn.Linear(5, 1) for task in ("a", "b")})

    def forward(self, task: str, features: Tensor) -> dict[str, Any]:
        return {"loss": self.heads[task](self.trunk(features)).square().mean()}


def normed_data(rows: int = 12) -> dict[str, Dataset]:
    generator = torch.Generator().manual_seed(0)
    return {task: Dataset.from_dict({"features": torch.randn(rows, 3, generator=generator).tolist()}) for task in "ab"}


class PoisonedInput(MultiTaskTrainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if inputs["task"] == "b" and self.state.global_step == BAD_STEP - 1:
            inputs["features"][0] = torch.nan
        return super().compute_loss(model, inputs, return_outputs)


def statistics(folder: Path) -> list[list[Tensor]]:
    seen = []

    class Watched(PoisonedInput):
        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            seen.append([buffer.clone() for buffer in self.model.buffers()])
            super()._maybe_log_save_evaluate(*args, **kwargs)

    args = arguments(folder, per_device_train_batch_size=4)
    train(Normed(), args, normed_data(), trainer=Watched)
    return seen


def test_a_skipped_step_gives_them_back(tmp_path: Path) -> None:
    before, bad, after = statistics(tmp_path)[:3]
    assert all(map(torch.equal, before, bad))
    assert all(torch.isfinite(buffer).all() for buffer in after)
    assert not torch.equal(after[0], bad[0])


def test_without_it_they_would_be_lost(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Buffers, "restore", lambda self: None)
    assert not torch.isfinite(statistics(tmp_path)[-1][0]).all()
