"""MoCo: tracked gradients, and weights that descend towards the least norm of their combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .vectors import Vector
from .weightings import CoordinateWeighting


__all__ = ["MoCo"]

EPSILON = 1e-8  # the authors' code's, in the norm


class MoCo(CoordinateWeighting):
    r"""
    Multi-objective gradient correction tracks every task's gradient and lets the weights follow the least norm of the
    combination slowly (*Mitigating Gradient Bias in Multi-objective Learning: A Provably Convergent Approach*, ICLR
    2023, arXiv 2210.12624, Algorithm 1, equations 5 and 6):

    $$y_t \leftarrow y_t - \beta_k (y_t - g_t), \qquad
    \lambda \leftarrow \Pi\big(\lambda - \gamma_k (Y Y^\top + \rho I) \lambda\big), \qquad \sum_t \lambda_t y_t,$$

    with $\beta_k = \beta / k^{\beta\text{-decay}}$ and $\gamma_k = \gamma / k^{\gamma\text{-decay}}$ over the balanced
    steps $k = 1, 2, \dots$, $y$ from zero and $\lambda$ from $1/T$. The defaults are those of the authors' code, which
    LibMTL carries; it departs from the paper's Algorithm 1 in two places, each an option: `normalize` and
    `projection`.

    The tracked gradients are a memory of the method's own, so `ema+moco` is refused. A step without some of the tasks
    balances the tasks present among themselves, and leaves what is kept of the others.

    Args:
        beta (`float`, *optional*, defaults to 0.5):
            $\beta$ in (0, 1], how fast the tracked gradients follow.
        beta_decay (`float`, *optional*, defaults to 0.5):
            The exponent of $k$ in $\beta_k$, zero or more.
        gamma (`float`, *optional*, defaults to 0.1):
            $\gamma$, the step size of the weights, zero or more.
        gamma_decay (`float`, *optional*, defaults to 0.5):
            The exponent of $k$ in $\gamma_k$, zero or more.
        rho (`float`, *optional*, defaults to 0.0):
            $\rho$, what pulls the weights towards one another, zero or more.
        normalize (`bool`, *optional*, defaults to `True`):
            Whether $g / (\|g\| + \epsilon) \cdot \ell$ takes the place of the gradient $g$, with the loss $\ell$ as it
            is (not transformed), as in the authors' code. `False` is the paper's Algorithm 1.
        projection (`str`, *optional*, defaults to `"softmax"`):
            $\Pi$: `"softmax"` as in the authors' code, or `"simplex"`, the Euclidean projection of the paper's
            Algorithm 1.
    """

    needs = "gramian"
    holds = frozenset({"rotation_invariant", "permutation_equivariant", "scale_invariant", "coordinate_state"})
    paper = "Mitigating Gradient Bias in Multi-objective Learning, arXiv 2210.12624"
    memory = "a gradient and a weight per task"
    refuses = {
        "ema": "MoCo tracks the gradients itself, and a second average would only lag behind; set the `beta` of 'moco'"
    }

    def __init__(
        self,
        beta: float = 0.5,
        beta_decay: float = 0.5,
        gamma: float = 0.1,
        gamma_decay: float = 0.5,
        rho: float = 0.0,
        normalize: bool = True,
        projection: str = "softmax",
    ):
        if not 0.0 < beta <= 1.0:
            raise ValueError(f"`beta` must be in (0, 1], and is {beta}: 1 tracks nothing, 0.5 is the default.")
        for name, value in {"beta_decay": beta_decay, "gamma": gamma, "gamma_decay": gamma_decay, "rho": rho}.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a finite number, zero or more, and is {value}.")
        if projection not in ("softmax", "simplex"):
            raise ValueError(f"`projection` must be 'softmax' or 'simplex', and is {projection!r}.")
        self.beta, self.beta_decay = beta, beta_decay
        self.gamma, self.gamma_decay = gamma, gamma_decay
        self.rho = rho
        self.normalize = self.reads_losses = normalize
        if not normalize:
            self.holds = MoCo.holds - {"scale_invariant"}
        self.project = _project_onto_simplex if projection == "simplex" else lambda v: v.softmax(0)
        self.rows: dict[str, Vector] = {}

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.shares = torch.full((len(tasks),), 1.0 / len(tasks), dtype=torch.float64)

    def combine(
        self, rows: Mapping[str, Vector], losses: Sequence[float], step: int, task_weights: Sequence[float]
    ) -> tuple[Vector, dict[str, float]]:
        for (task, row), loss in zip(rows.items(), losses):
            if self.normalize:
                row.mul_(loss / (row.norm() + EPSILON))
            if task not in self.rows:
                self.rows[task] = row.new_zero()
            self.rows[task].lerp_(row, self.beta / step**self.beta_decay)
        first, *others = tracked = [self.rows[task] for task in rows]
        weights = self._descend(first.gramian(others), [self.tasks.index(task) for task in rows], step)
        update = first.new_zero()
        for row, weight, of_user in zip(tracked, weights, task_weights):
            update.add_(row, weight * of_user)
        return update, dict(zip(rows, weights))

    def _descend(self, gramian: Tensor, present: list[int], step: int) -> list[float]:
        """Steps the weights of the tasks present, which share among themselves what they had together."""
        together = self.shares[present].sum()
        weights = self.shares[present] / together if together > 0 else torch.full_like(gramian[0], 1.0 / len(present))
        slope = gramian @ weights + self.rho * weights
        weights = self.project(weights - self.gamma / step**self.gamma_decay * slope)
        self.shares[present] = weights * together
        return weights.tolist()

    def state_dict(self) -> dict[str, Tensor]:
        return {"shares": self.shares.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.shares = state["shares"].clone()

    def vectors(self) -> dict[str, dict[str, Vector]]:
        return {"tracked": dict(self.rows)}

    def load_vectors(self, vectors: Mapping[str, dict[str, Vector]]) -> None:
        self.rows = dict(vectors.get("tracked", {}))


def _project_onto_simplex(point: Tensor) -> Tensor:
    """The nearest point whose entries are zero or more and sum to one."""
    point = point - point.max()  # changes nothing, and keeps the one in sight beside large numbers
    ordered = point.sort(descending=True).values
    shifts = (ordered.cumsum(0) - 1) / torch.arange(1, len(point) + 1, dtype=point.dtype)
    return (point - shifts[ordered > shifts][-1]).clamp(min=0)
