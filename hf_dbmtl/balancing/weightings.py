"""Weightings: with which weights the gradients of the tasks are added up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


__all__ = ["Equal", "NormWeighting"]


class NormWeighting(ABC):
    r"""
    A weighting that knows the tasks' gradients by their norms alone and factorises, $w_t = \alpha(n_1, \dots, n_T)
    \, u(n_t)$: the unit factor $u$ is known as soon as the gradient of its own task is, the common scale $\alpha$ at the
    end of the step. So one running sum $\sum_t u(n_t) g_t$ takes the place of the $T$ gradients.
    """

    @abstractmethod
    def unit(self, norm: float) -> float:
        """The factor of a task's own gradient, whose norm is `norm`."""

    @abstractmethod
    def scale(self, norms: Sequence[float]) -> float:
        """The factor common to all tasks, given the `norms` of those present in the step (at least one)."""


class Equal(NormWeighting):
    """Equal weighting (EW): the plain sum of the gradients."""

    def unit(self, norm: float) -> float:
        return 1.0

    def scale(self, norms: Sequence[float]) -> float:
        return 1.0
