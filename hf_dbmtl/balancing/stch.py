"""STCH: smooth Tchebycheff scalarization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .db_mtl import EPSILON
from .learned import check_not_negative
from .transforms import LossTransform


__all__ = ["STCH"]

VARIANTS = ("paper", "official")


class STCH(LossTransform):
    r"""
    A smooth maximum of the losses, $\mu \log \sum_t \exp(\lambda_t (\ell_t - z^*_t) / \mu)$ with preferences $\lambda$
    and an ideal point $z^*$, from *Smooth Tchebycheff Scalarization for Multi-Objective Optimization* (ICML 2024, arXiv
    2402.19078). The derivative is $\lambda_t p_t$, $p = \mathrm{softmax}(\lambda (\ell - z^*) / \mu)$ over the tasks
    present, and heads carry it. So it is in the paper's definition and in TorchJD, the default here.

    `variant="official"` is what the authors' code for multi-task learning, and LibMTL, make of it: $n \mu \log \sum_t
    \exp(\log(\ell_t / \bar\ell_t) / \mu)$ over the $n$ tasks present, with the derivative $n p_t / \ell_t$, $p \propto
    (\ell_t / \bar\ell_t)^{1/\mu}$. $\bar\ell_t$ is the average loss in epoch number `warmup_epochs`; up to the end of
    that epoch the logarithms are summed (`log`). A loss below $\epsilon$ = 1e-8 counts as $\epsilon$ (1e-20 there).

    Args:
        mu (`float`, *optional*, defaults to 1.0):
            $\mu$; the smaller it is, the closer to the maximum.
        variant (`str`, *optional*, defaults to `"paper"`):
            `"paper"`, on the losses as they are, or `"official"`, on their logarithms relative to an average.
        preferences (`Mapping[str, float]`, *optional*):
            $\lambda_t$ of a task, 1/T where silent. For the paper's variant.
        ideal (`Mapping[str, float]`, *optional*):
            $z^*_t$ of a task, 0 where silent. For the paper's variant.
        warmup_epochs (`int`, *optional*, defaults to 4):
            For the official variant, the number of epochs before the one over which $\bar\ell$ is averaged. A run of
            fewer epochs than `warmup_epochs` + 2 never gets past the sum of logarithms.
    """

    holds = frozenset({"permutation_equivariant"})
    paper = "Smooth Tchebycheff Scalarization, arXiv 2402.19078"
    memory = "none; for the official variant an average per task"
    coupled = True

    def __init__(
        self,
        mu: float = 1.0,
        variant: str = "paper",
        preferences: Mapping[str, float] | None = None,
        ideal: Mapping[str, float] | None = None,
        warmup_epochs: int = 4,
    ):
        if not mu > 0.0:
            raise ValueError(f"`mu` must be positive, and is {mu}: the paper takes values from 0.01 to 1.")
        if variant not in VARIANTS:
            raise ValueError(f"`variant` must be one of {list(VARIANTS)}, and is {variant!r}.")
        if variant == "official" and (preferences or ideal):
            raise ValueError("`preferences` and `ideal` belong to variant='paper': the official code has neither.")
        for task, preference in (preferences or {}).items():
            if not preference > 0.0:
                raise ValueError(f"`preferences['{task}']` must be positive, and is {preference}.")
        self.mu = mu
        self.official = variant == "official"
        self.preferences, self.ideal = dict(preferences or {}), dict(ideal or {})
        self.warmup_epochs = warmup_epochs

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        for name, given in (("preferences", self.preferences), ("ideal", self.ideal)):
            for task in given:
                if task not in tasks:
                    raise ValueError(f"`{name}` names a task '{task}', and the tasks are {list(tasks)}.")
        self.sums = torch.zeros(2, len(tasks), dtype=torch.float64)  # of the losses, and of how many

    def begin(self, step: int, epoch: int = 0) -> None:
        self._epoch = epoch
        self._top = -math.inf  # the largest exponent so far, to which all are relative

    @property
    def _warming_up(self) -> bool:
        return self.official and self._epoch <= self.warmup_epochs

    def check(self, task: str, loss: float) -> None:
        if self.official:
            check_not_negative(task, loss, "variant='official' of `stch` takes its logarithm")

    def _exponent(self, task: str, loss: float) -> float:
        if not self.official:
            return self._preference(task) * (loss - self.ideal.get(task, 0.0)) / self.mu
        total, count = self.sums[:, self.tasks.index(task)].tolist()
        loss = max(loss, EPSILON)
        average = max(total / count, EPSILON) if count else loss  # a task that missed the epoch starts from where it is
        return math.log(loss / average) / self.mu

    def _preference(self, task: str) -> float:
        return self.preferences.get(task, 1.0 / len(self.tasks))

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        value = loss.item()
        inner = 1.0 / max(value, EPSILON) if self.official else self._preference(task)
        if self._warming_up:
            return loss.new_full((), inner)
        exponent = self._exponent(task, value)
        return loss.new_full((), inner * math.exp(exponent - max(exponent, self._top)))

    def rescale(self, task: str, loss: float) -> float:
        if self._warming_up:
            return 1.0
        before, self._top = self._top, max(self._top, self._exponent(task, loss))
        return math.exp(before - self._top) if before > -math.inf else 1.0

    def scale(self, losses: Mapping[str, float]) -> float:
        if self._warming_up:
            return 1.0
        total = math.fsum(math.exp(self._exponent(task, loss) - self._top) for task, loss in losses.items())
        return (len(losses) if self.official else 1.0) / total

    def update(self, losses: Mapping[str, float]) -> None:
        for task, loss in losses.items() if self.official else ():
            place = self.tasks.index(task)
            missed = self._epoch > self.warmup_epochs and self.sums[1, place] == 0
            if self._epoch == self.warmup_epochs or missed:
                self.sums[:, place] += torch.tensor([loss, 1.0], dtype=torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        return {"sum": self.sums[0].clone(), "count": self.sums[1].clone()} if self.official else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if "sum" in state:
            self.sums = torch.stack([state["sum"], state["count"]])
