"""UW: homoscedastic uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from .db_mtl import EPSILON
from .learned import Learned, check_not_negative
from .transforms import LossTransform


__all__ = ["UW"]


class UW(LossTransform):
    r"""
    Weights every loss by the homoscedastic uncertainty of its task, $\sum_t \frac12 e^{-s_t} \ell_t + \frac12 s_t$ with
    a learned log-variance $s_t$, from *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
    Semantics* (CVPR 2018, arXiv 1705.07115, section 3.2). The derivative is $\frac12 e^{-s_t}$, and heads carry it. A
    task that is absent from a step keeps its $s_t$.

    As in LibMTL and TorchJD the same formula serves every kind of loss. The paper's own, $\frac12 e^{-s}$ for a squared
    error and $e^{-s}$ for a cross-entropy, differs by a shift of $s$ only, which is learned anyway. Where $s_t$ falls
    below $\log \epsilon$, that of a loss below $\epsilon$ = 1e-8, the weight grows no further.

    Args:
        init (`float`, *optional*, defaults to 0.0):
            Where every $s_t$ starts. TorchJD takes 0 as well, LibMTL -0.5; the paper finds that it does not matter.
        learning_rate (`float`, *optional*, defaults to 0.0025):
            The learning rate of $s$. In the paper $s$ is learned together with the network, by the same optimizer; the
            default is a choice of this package.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            `"sgd"` or `"adam"`.
    """

    holds = frozenset({"permutation_equivariant"})
    known_before = True
    paper = "Multi-Task Learning Using Uncertainty to Weigh Losses, arXiv 1705.07115"
    memory = "a number per task"

    def __init__(self, init: float = 0.0, learning_rate: float = 2.5e-3, optimizer: str = "sgd"):
        if not math.isfinite(init):
            raise ValueError(f"`init` must be a finite number, the log-variance of every task at first, and is {init}.")
        self.init = init
        self.log_variance = Learned(learning_rate, optimizer)

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.log_variance.setup(tasks, self.init)

    def check(self, task: str, loss: float) -> None:
        check_not_negative(task, loss, "the uncertainty that `uw` learns for it would shrink without bound")

    def _factor(self, task: str) -> float:
        return 0.5 * math.exp(-max(self.log_variance[task], math.log(EPSILON)))

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return loss.new_full((), self._factor(task))

    def update(self, losses: Mapping[str, float]) -> None:
        self.log_variance.step({task: 0.5 - self._factor(task) * loss for task, loss in losses.items()})

    def state_dict(self) -> dict[str, Tensor]:
        return self.log_variance.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.log_variance.load_state_dict(state)
