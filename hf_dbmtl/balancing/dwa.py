"""DWA: dynamic weight average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .db_mtl import EPSILON
from .learned import check_not_negative
from .transforms import LossTransform


__all__ = ["DWA"]

History = tuple[Tensor, Tensor, Tensor]


class DWA(LossTransform):
    r"""
    Weights every loss by how slowly it has been falling, from *End-to-End Multi-Task Learning with Attention* (CVPR
    2019, arXiv 1803.10704, section 3.3): with the average losses $L_t$ of the last period and $L'_t$ of the one before,

    $$w_t = K \frac{\exp(r_t / T)}{\sum_s \exp(r_s / T)}, \qquad r_t = L_t / L'_t .$$

    Heads carry the weight. It is 1 until the task has been there in two periods; such a task is not among the $K$. A
    task that is absent from a whole period keeps its averages.

    Args:
        temperature (`float`, *optional*, defaults to 2.0):
            $T$; the larger it is, the more equal are the weights.
        period (`int`, *optional*):
            The length of a period in balanced steps. By default a period is an epoch, as in the paper: then the weights
            stay 1 through the first two epochs, which a short fine-tuning run may not outlast.
    """

    holds = frozenset({"permutation_equivariant"})
    known_before = True
    paper = "End-to-End Multi-Task Learning with Attention, arXiv 1803.10704"
    memory = "three averages per task"

    def __init__(self, temperature: float = 2.0, period: int | None = None):
        if not temperature > 0.0:
            raise ValueError(f"`temperature` must be positive, and is {temperature}: 2.0 is the default.")
        if period is not None and period < 1:
            raise ValueError(f"`period` must be a number of steps, 1 or more, or None for an epoch, and is {period}.")
        self.temperature = temperature
        self.period = period

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        zeros = torch.zeros(len(tasks), dtype=torch.float64)
        self.older, self.newer = zeros.clone(), zeros.clone()  # averages of the last two periods with the task
        self.periods = zeros.clone()  # how many these were
        self.sum, self.count = zeros.clone(), zeros.clone()  # of the present period
        self.number = 0  # of the present period

    def begin(self, step: int, epoch: int = 0) -> None:
        self._number = epoch if self.period is None else (step - 1) // self.period
        self._weights: dict[str, float] | None = None

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        if self._weights is None:
            self._weights = dict(zip(self.tasks, self._weigh(*self._history()).tolist()))
        return loss.new_full((), self._weights[task])

    def _history(self) -> History:
        """The last two averages and the number of periods, as they are in the present step."""
        if self._number <= self.number:
            return self.older, self.newer, self.periods
        there = self.count > 0
        older = torch.where(there, self.newer, self.older)
        newer = torch.where(there, self.sum / self.count.clamp(min=1), self.newer)
        return older, newer, self.periods + there

    def _weigh(self, older: Tensor, newer: Tensor, periods: Tensor) -> Tensor:
        weights = torch.ones_like(older)
        known = periods >= 2
        rates = newer[known] / older[known].clamp(min=EPSILON)
        weights[known] = known.sum() * torch.softmax(rates / self.temperature, dim=0)
        return weights

    def check(self, task: str, loss: float) -> None:
        check_not_negative(task, loss, "`dwa` compares losses by their ratio")

    def update(self, losses: Mapping[str, float]) -> None:
        if self._number > self.number:  # only now: a skipped step leaves the state
            self.older, self.newer, self.periods = self._history()
            self.sum, self.count = torch.zeros_like(self.sum), torch.zeros_like(self.count)
            self.number = self._number
        for task, loss in losses.items():
            self.sum[self.tasks.index(task)] += loss
            self.count[self.tasks.index(task)] += 1

    def state_dict(self) -> dict[str, Tensor]:
        names = ("older", "newer", "periods", "sum", "count")
        return {name: getattr(self, name).clone() for name in names} | {"number": torch.tensor(self.number)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            for name in ("older", "newer", "periods", "sum", "count"):
                setattr(self, name, state[name].clone())
            self.number = int(state["number"])
