"""RLW: random loss weighting."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from .transforms import LossTransform


__all__ = ["RLW"]


class RLW(LossTransform):
    r"""
    Random weights, drawn anew in every step: $w = \mathrm{softmax}(z)$, $z_t \sim N(0, 1)$, from *Reasonable
    Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning* (TMLR 2022, arXiv 2111.10603, the normal
    distribution of its algorithm 2). They sum to 1, so that a step is 1/T as long as that of equal weighting, and heads
    carry them.

    The draw of a task is a function of the seed, the balanced step and the task's name: neither the order of the tasks
    nor a skipped step changes it. The weights of a step are those of all tasks, whether all are present or not.
    """

    holds = frozenset({"permutation_equivariant", "random"})
    known_before = True
    paper = "Reasonable Effectiveness of Random Weighting, arXiv 2111.10603"

    def begin(self, step: int, epoch: int = 0) -> None:
        self._step = step
        self._weights: dict[str, float] | None = None

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        if self._weights is None:
            draws = torch.stack([self._draw(name) for name in self.tasks])
            self._weights = dict(zip(self.tasks, draws.softmax(0).tolist()))
        return loss.new_full((), self._weights[task])

    def _draw(self, task: str) -> Tensor:
        generator = self.generator(self._step, zlib.crc32(task.encode()))
        return torch.randn((), generator=generator, dtype=torch.float64)
