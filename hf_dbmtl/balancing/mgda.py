"""MGDA: the shortest convex combination of the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gramian import Equilibrated, nonnegative_least_squares
from .weightings import GramianWeighting


__all__ = ["MGDA", "shortest"]

NORMALIZATIONS = ("none", "l2", "loss", "loss+")


class MGDA(GramianWeighting):
    r"""
    The point of least norm in the convex hull of the gradients, which no task's gradient opposes; it is zero where the
    tasks are at a Pareto stationary point (*Multi-Task Learning as Multi-Objective Optimization*, NeurIPS 2018, arXiv
    1810.04650, equation 3; Désidéri 2012):

    $$d = \sum_t \lambda_t \frac{g_t}{s_t}, \qquad
    \lambda = \arg\min \Big\| \sum_t \lambda_t \frac{g_t}{s_t} \Big\|
    \ \text{ with } \lambda \ge 0, \ \sum_t \lambda_t = 1.$$

    The point is computed exactly. The authors' code, LibMTL and TorchJD stop a Frank-Wolfe iteration early, the first
    two with weights of 0.999 and 0.001 where the exact ones are 1 and 0. With `"none"` the weights are the same for all
    gradients times one number. A task whose gradient is zero makes the update zero: the tasks are at a stationary
    point.

    Args:
        normalization (`str`, *optional*, defaults to `"none"`):
            $s_t$: `"none"` (1, the paper's), `"l2"` ($\|g_t\|$), `"loss"` ($\ell_t$, not transformed) or `"loss+"`
            ($\ell_t \|g_t\|$), as in the authors' code.
        combine (`str`, *optional*, defaults to `"normalized"`):
            What $\lambda$ weighs: the normalized gradients $g_t / s_t$ (`"normalized"`, as in LibMTL: the update is the
            point itself), or the gradients $g_t$ (`"raw"`, as in the authors' code).
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "non_conflicting"})
    paper = "Multi-Task Learning as Multi-Objective Optimization, arXiv 1810.04650"

    def __init__(self, normalization: str = "none", combine: str = "normalized"):
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"`normalization` must be one of {list(NORMALIZATIONS)}, and is {normalization!r}.")
        if combine not in ("normalized", "raw"):
            raise ValueError(f"`combine` must be 'normalized' or 'raw', and is {combine!r}.")
        self.normalization = normalization
        self.combine = combine
        self.reads_losses = normalization in ("loss", "loss+")
        if combine == "raw" and normalization != "none":
            self.holds = MGDA.holds - {"non_conflicting"}
        elif normalization == "l2":
            self.holds = MGDA.holds | {"scale_invariant", "loss_scale_invariant"}

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        known = Equilibrated(gramian)
        sizes = torch.ones_like(known.norms)
        if self.reads_losses:
            _check_positive(tasks, losses, self.normalization)
            sizes = sizes.new_tensor(losses)
        if self.normalization in ("l2", "loss+"):
            sizes = sizes * known.safe
        weights = shortest(known, known.norms / sizes)
        return weights if self.combine == "raw" else weights / sizes


def shortest(known: Equilibrated, norms: Tensor) -> Tensor:
    r"""
    The weights of the shortest vector in the convex hull of vectors with the cosines of `known` and the given norms.

    It is a problem of non-negative least squares, which an active set method solves exactly: the minimum of $\|A v\|^2
    + (r^T v - 1)^2$ over $v \ge 0$ is at a multiple of the minimum of $\|A v\|$ with $r^T v = 1$, since along a ray $v
    = c p$ with $r^T p = 1$ it is $a / (1 + a)$ with $a = \|A p\|^2$. Here $v_t = \lambda_t n_t$, $A$ has the unit
    vectors for columns, and $r_t \propto 1 / n_t$.
    """
    zero = norms == 0
    if zero.any():
        return zero.to(norms) / zero.sum()
    ratios = norms.min() / norms
    system = torch.cat([known.factor(), ratios[None]])
    target = torch.zeros(len(system), dtype=system.dtype)
    target[-1] = 1.0
    weights = ratios * nonnegative_least_squares(system, target, "mgda")
    return weights / weights.sum()


def _check_positive(tasks: Sequence[str], losses: Sequence[float], normalization: str) -> None:
    for task, loss in zip(tasks, losses):
        if not loss > 0:
            raise ValueError(
                f"Task '{task}': its loss is {loss:g}, and `mgda` with normalization='{normalization}' divides its "
                "gradient by it, which must be positive. Choose 'none' or 'l2'."
            )
