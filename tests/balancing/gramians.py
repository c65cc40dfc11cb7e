"""Weightings that look at the Gramian, called without a balancer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_dbmtl.balancing import GramianWeighting


def random_gradients(tasks: int, size: int, seed: int = 0, spread: float = 0.0) -> Tensor:
    """Gradients as rows, with norms that are `spread` apart."""
    generator = torch.Generator().manual_seed(seed)
    scales = (spread * torch.randn(tasks, 1, generator=generator, dtype=torch.float64)).exp()
    return scales * torch.randn(tasks, size, generator=generator, dtype=torch.float64)


def names(count: int) -> list[str]:
    return [f"t{i}" for i in range(count)]


def weigh(
    part: GramianWeighting,
    gradients: Tensor,
    losses: Sequence[float] | None = None,
    step: int = 1,
    tasks: Sequence[str] | None = None,
    setup: bool = True,
) -> Tensor:
    """The weights of the gradients in the rows, of tasks t0, t1, ... by default."""
    tasks = tasks or names(len(gradients))
    if setup:
        part.setup(tasks, 0)
    return part.weights(gradients @ gradients.T, tasks, losses or [1.0] * len(gradients), step)


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference relative to that of `expected`."""
    return ((found - expected).norm() / expected.norm()).item()
