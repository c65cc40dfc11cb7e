"""CAGrad: near the mean gradient, the direction that serves the worst-served task best."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gramian import normalized, require
from .weightings import GramianWeighting


__all__ = ["CAGrad"]

# Below it, relative to all gradients, a direction is the rounding error of a float64 Gramian. TorchJD's own default of
# 1e-4 makes the update zero as soon as one gradient is 10 000 times smaller than the others.
SMALLEST = 1e-8


class CAGrad(GramianWeighting):
    r"""
    The direction within a ball around the mean gradient $g_0$ that maximizes the least decrease of any loss
    (*Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS 2021, arXiv 2110.14048, Algorithm 1):

    $$d = g_0 + \frac{c \|g_0\|}{\|g_w\|} g_w, \qquad
    w = \arg\min_{w \ge 0, \, \sum w = 1} g_w \cdot g_0 + c \|g_0\| \|g_w\|, \qquad g_w = \sum_t w_t g_t .$$

    It is near a mean of the gradients, not a sum. The problem is solved by TorchJD with CLARABEL, to about 1e-8, where
    the authors' code and LibMTL use SLSQP and stop at about 1e-4; needs `hf-dbmtl[solvers]`. The weights are the same
    for all gradients times one number. Where $g_w$ vanishes, at a Pareto stationary point, the update is zero.

    Args:
        c (`float`, *optional*, defaults to 0.5):
            The radius of the ball relative to $\|g_0\|$, zero or more: 0 is the mean gradient, and from 1 on no task is
            opposed, as in MGDA. The paper takes 0.4 or 0.5.
        rescale (`int`, *optional*, defaults to 1):
            What $d$ is divided by: 1 (`0`, the paper's algorithm, and TorchJD), $1 + c^2$ (`1`, the default of the
            authors' code and LibMTL) or $1 + c$ (`2`, theirs too).
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant"})
    paper = "Conflict-Averse Gradient Descent for Multi-task Learning, arXiv 2110.14048"

    def __init__(self, c: float = 0.5, rescale: int = 1):
        require("cvxpy", "cagrad")
        require("clarabel", "cagrad")
        from torchjd.aggregation import CAGradWeighting

        if not 0.0 <= c < float("inf"):
            raise ValueError(f"`c` must be a finite number, zero or more, and is {c}: 0.5 is the default.")
        if rescale not in (0, 1, 2):
            raise ValueError(f"`rescale` must be 0, 1 or 2, and is {rescale!r}.")
        self.c = c
        self.rescale = rescale
        if c >= 1.0:
            self.holds = CAGrad.holds | {"non_conflicting"}
        self._weighting = CAGradWeighting(c=c, norm_eps=SMALLEST)

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        divisor = (1.0, 1.0 + self.c**2, 1.0 + self.c)[self.rescale]
        if not gramian.diagonal().any():
            return torch.full_like(gramian.diagonal(), 1.0 / (len(tasks) * divisor))
        try:
            found = self._weighting(normalized(gramian)[0])
        except Exception as error:  # of several packages, each with exceptions of its own
            raise ValueError(
                f"CLARABEL found no solution for `cagrad` in balanced step {step}, for gradients of the tasks "
                f"{list(tasks)} with the products {gramian.tolist()}: {error}"
            ) from error
        return found / divisor
