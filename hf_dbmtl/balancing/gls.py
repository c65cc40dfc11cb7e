"""GLS: the geometric loss strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from torch import Tensor

from .db_mtl import EPSILON
from .learned import check_not_negative
from .transforms import LossTransform


__all__ = ["GLS"]


class GLS(LossTransform):
    r"""
    The geometric mean of the losses of the $n$ tasks present, $\prod_t \ell_t^{1/n}$, from *MultiNet++: Multi-Stream
    Feature Aggregation and Geometric Loss Strategy for Multi-Task Learning* (CVPR workshops 2019, arXiv 1904.08492).
    The derivative is $\frac{1}{n \ell_t} \prod_s \ell_s^{1/n}$, and heads carry it. A loss below $\epsilon$ = 1e-8
    counts as $\epsilon$, where LibMTL divides zero by zero; the mean is computed from logarithms, so that many small
    losses do not vanish in their product.
    """

    holds = frozenset({"permutation_equivariant"})
    paper = "MultiNet++, arXiv 1904.08492"
    coupled = True

    def check(self, task: str, loss: float) -> None:
        check_not_negative(task, loss, "a geometric mean needs losses of zero or more")

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return 1.0 / loss.clamp(min=EPSILON)

    def scale(self, losses: Mapping[str, float]) -> float:
        return math.exp(fmean(math.log(max(loss, EPSILON)) for loss in losses.values())) / len(losses)
