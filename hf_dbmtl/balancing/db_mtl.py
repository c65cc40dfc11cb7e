r"""
DB-MTL, *Dual-Balancing for Multi-Task Learning* (arXiv 2308.12029), part by part, in the order of its Algorithm 1:

    for every task t:
        g_t  =  ∇_θ log(ℓ_t + ε)                              `Log`       balances the losses' scales
        ĝ_t  ←  β_k ĝ_t + (1 - β_k) g_t,   β_k = β / k^decay  `EMA`       smooths the gradient over time
    g̃    =  α Σ_t ĝ_t / (‖ĝ_t‖ + ε),    α = max_t ‖ĝ_t‖       `MaxNorm`   balances the gradients' magnitudes
    θ    ←  θ - η g̃,                                          (the optimizer)
    ψ_t  ←  ψ_t - η ∇_{ψ_t} log(ℓ_t + ε)                      heads: the log gradient, neither smoothed nor normalised

Each part is one of the three independent choices that make a method, so that the paper's ablation is four names:
`"ew"` (none), `"log"`, `"max_norm"` and `"db_mtl"`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any, TypeVar

import torch
from torch import Tensor

from .part import Part
from .transforms import LossTransform
from .vectors import Vector
from .weightings import NormWeighting


__all__ = ["EMA", "EPSILON", "Log", "MaxNorm"]

PAPER = "Dual-Balancing for Multi-Task Learning, arXiv 2308.12029"
EPSILON = 1e-8  # the paper's, in the logarithm and in the norm

V = TypeVar("V", bound=Vector)


class Log(LossTransform):
    r"""
    $\phi(\ell) = \log(\ell + \epsilon)$, whose derivative $1 / (\ell + \epsilon)$ makes the scale of a loss immaterial
    (paper, section 3.1). A loss of zero is what $\epsilon$ is for; a negative one has no logarithm and is refused.
    """

    holds = frozenset({"permutation_equivariant", "loss_scale_invariant"})
    paper = PAPER

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return 1.0 / (loss + EPSILON)

    def check(self, task: str, loss: float) -> None:
        if loss < 0:
            raise ValueError(
                f"Task '{task}': its loss is {loss:g}, and the logarithm that this balancer takes of it needs a loss of "
                "zero or more. Add a constant to the loss, or choose a balancer without `log` (such as 'ema+max_norm')."
            )


class EMA(Part):
    r"""
    An exponential moving average of every task's gradient, $\hat g_t \leftarrow \beta_k \hat g_t + (1 - \beta_k) g_t$
    with $\beta_k = \beta / k^{decay}$ (paper, Algorithm 1, line 6). It starts from zero and is not bias-corrected.

    $k = 1, 2, \dots$ counts the steps of the run that were balanced, skipped ones left out. The paper counts from 0, where
    $\beta / k^{decay}$ is undefined; its authors' code counts from 1, as here.

    Args:
        beta (`float`, *optional*, defaults to 0.9):
            $\beta$ in [0, 1). 0 keeps no memory at all.
        decay (`float`, *optional*, defaults to 0.5):
            The exponent of $k$, zero or more. The defaults $0.9 / \sqrt k$ lie in the good region of the paper's study
            (its figure 5), whose worst point is the default of the authors' code, a constant 0.9 (`decay=0`).
        ema_dtype (`str` or `torch.dtype`, *optional*):
            The type in which the averages are kept, such as `"bfloat16"` to halve their memory. By default float32, and
            float64 for float64 parameters.
    """

    needs = "coordinates"
    holds = frozenset({"rotation_invariant", "permutation_equivariant", "coordinate_state"})
    paper = PAPER
    memory = "a gradient per task"

    def __init__(self, beta: float = 0.9, decay: float = 0.5, ema_dtype: str | torch.dtype | None = None):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"`beta` must be in [0, 1), and is {beta}: 0 keeps no memory, 0.9 is the default.")
        if not decay >= 0.0:
            raise ValueError(f"`decay` must be zero or more, and is {decay}: beta_k = beta / k^decay.")
        if isinstance(ema_dtype, str):
            ema_dtype = getattr(torch, ema_dtype.removeprefix("torch."), ema_dtype)
        if ema_dtype is not None and not (isinstance(ema_dtype, torch.dtype) and ema_dtype.is_floating_point):
            raise ValueError(f"`ema_dtype` must name a floating point type such as 'bfloat16', and is {ema_dtype!r}.")
        self.beta = beta
        self.decay = decay
        self.dtype = ema_dtype
        self.rows: dict[str, Vector] = {}

    def blend(self, task: str, step: int) -> tuple[Vector, float] | None:
        """The average so far, and its share in the one of balanced step `step`; None where there is none yet."""
        row = self.rows.get(task)
        return None if row is None else (row, self._share(step))

    def _share(self, step: int) -> float:
        return self.beta / step**self.decay

    def update(self, task: str, gradient: V, step: int, blended: bool = False) -> tuple[V, float]:
        """
        Takes the `gradient` of the `task` in, at balanced step `step` (from 1), unless it is not finite. It is used up: the
        average is formed in its place, where it is not yet `blended` (see `blend`), and the two change places.

        Returns:
            `tuple[V, float]`: the average and its norm. Where the norm is not finite the average stays as it was.
        """
        row: Any = self.rows.get(task)
        if row is None:
            row = self.rows[task] = gradient.new_zero(self.dtype)
        if not blended:
            gradient.lerp_(row, self._share(step))
        norm = gradient.norm()
        if math.isfinite(norm):
            row.hold_(gradient)
            norm = norm if self.dtype is None else row.norm()
        return row, norm

    def vectors(self) -> dict[str, dict[str, Vector]]:
        return {"ema": dict(self.rows)}

    def load_vectors(self, vectors: Mapping[str, dict[str, Vector]]) -> None:
        # copies, kept in the type asked for: so are entries that a later step adds
        self.rows = {task: row.new_zero(self.dtype).add_(row) for task, row in vectors.get("ema", {}).items()}


class MaxNorm(NormWeighting):
    r"""
    $w_t = \alpha / (\|\hat g_t\| + \epsilon)$: every gradient is brought to the norm $\alpha$, by default that of the
    largest, $\alpha = \max_t \|\hat g_t\|$ (paper, Algorithm 1, lines 7 and 8). The update is a sum over the tasks
    present, not a mean, as in the paper.

    Args:
        alpha (`str` or `float`, *optional*, defaults to `"max"`):
            `"max"`, `"min"`, `"mean"` or `"median"` of the norms, `"1/T"` for the number of tasks present, or a positive
            constant: the choices of the paper's figure 6.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "scale_invariant"})
    paper = PAPER

    STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
        "max": max,
        "min": min,
        "mean": fmean,
        "median": median,
        "1/T": lambda norms: 1.0 / len(norms),
    }

    def __init__(self, alpha: str | float = "max"):
        known = alpha in self.STATISTICS if isinstance(alpha, str) else 0.0 < alpha < float("inf")
        if not known:
            raise ValueError(f"`alpha` must be one of {list(self.STATISTICS)} or a positive number, and is {alpha!r}.")
        self.alpha = alpha
        if alpha not in ("max", "min", "mean", "median"):
            self.holds = MaxNorm.holds | {"loss_scale_invariant"}  # unit vectors, and nothing else of the gradients

    def unit(self, norm: float, task: str = "") -> float:
        return 1.0 / (norm + EPSILON)

    def scale(self, norms: Sequence[float]) -> float:
        return self.STATISTICS[self.alpha](norms) if isinstance(self.alpha, str) else float(self.alpha)
