"""IMTL-L: the loss side of impartial multi-task learning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from .db_mtl import EPSILON
from .learned import Learned, check_not_negative
from .transforms import LossTransform


__all__ = ["IMTLL"]


class IMTLL(LossTransform):
    r"""
    Brings every loss to the scale of 1, $\sum_t e^{s_t} \ell_t - s_t$ with a learned $s_t$, from *Towards Impartial
    Multi-task Learning* (ICLR 2021, section 3.2). The derivative is $e^{s_t}$, and heads carry it. With $s_t$ at its
    optimum $-\log \ell_t$ this is the log transform (DB-MTL, proposition 3.1). A task that is absent from a step keeps
    its $s_t$. Where $s_t$ exceeds $-\log \epsilon$, that of a loss below $\epsilon$ = 1e-8, the weight grows no
    further.

    Args:
        init (`float`, *optional*, defaults to 0.0):
            Where every $s_t$ starts.
        learning_rate (`float`, *optional*, defaults to 0.0025):
            The learning rate of $s$. In the paper $s$ is learned together with the network, by the same optimizer; here
            the value is that of `uw`. A step of SGD is as long as the loss is large: give less where losses go into the
            thousands, or take Adam.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            `"sgd"` or `"adam"`.
    """

    holds = frozenset({"permutation_equivariant"})
    known_before = True
    paper = "Towards Impartial Multi-task Learning, ICLR 2021"
    memory = "a number per task"

    def __init__(self, init: float = 0.0, learning_rate: float = 2.5e-3, optimizer: str = "sgd"):
        if not math.isfinite(init):
            raise ValueError(f"`init` must be a finite number, the scale s that every task starts with, and is {init}.")
        self.init = init
        self.log_scale = Learned(learning_rate, optimizer)

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.log_scale.setup(tasks, self.init)

    def check(self, task: str, loss: float) -> None:
        check_not_negative(task, loss, "the scale that `imtl_l` learns for it would grow without bound")

    def _factor(self, task: str) -> float:
        return math.exp(min(self.log_scale[task], -math.log(EPSILON)))

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return loss.new_full((), self._factor(task))

    def update(self, losses: Mapping[str, float]) -> None:
        self.log_scale.step({task: self._factor(task) * loss - 1.0 for task, loss in losses.items()})

    def state_dict(self) -> dict[str, Tensor]:
        return self.log_scale.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.log_scale.load_state_dict(state)
