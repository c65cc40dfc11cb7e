"""Weightings: with which weights the gradients of the tasks are added up. Three kinds, by what they look at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from .part import Part
from .vectors import Vector


__all__ = ["CoordinateWeighting", "Equal", "GramianWeighting", "NormWeighting", "Weighting"]


class Weighting(Part):
    """
    Class attributes:
        weights_heads (`bool`): whether a head's gradient carries the weight of its task as well, as in the official code of
            methods that back-propagate the weighted sum of losses.
        reads_losses (`bool`): whether its weights depend on the scale of the losses as they are (not transformed), so that
            a logarithm before it does not make that scale immaterial.
    """

    weights_heads: ClassVar[bool] = False
    reads_losses: bool = False

    def head_weights(self, weights: Mapping[str, float]) -> Mapping[str, float]:
        """What the heads carry where `weights_heads`, given the weights of the tasks present: by default the same."""
        return weights

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        """Told at the end of a balanced step: learned weights are stepped here."""


class NormWeighting(Weighting):
    r"""
    A weighting that knows the tasks' gradients by their norms alone and factorises, $w_t = \alpha(n_1, \dots, n_T)
    \, u(n_t)$: the unit factor $u$ is known as soon as the gradient of its own task is, the common scale $\alpha$ at the
    end of the step. So one running sum $\sum_t u(n_t) g_t$ takes the place of the $T$ gradients.
    """

    needs = "norms"

    @abstractmethod
    def unit(self, norm: float, task: str = "") -> float:
        """The factor of the gradient of `task`, whose norm is `norm`."""

    @abstractmethod
    def scale(self, norms: Sequence[float]) -> float:
        """The factor common to all tasks, given the `norms` of those present in the step (at least one)."""


class GramianWeighting(Weighting):
    r"""A weighting that knows the $T$ gradients by their products alone, which suffices for most published methods."""

    needs = "gramian"

    @abstractmethod
    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        r"""
        Args:
            gramian (`torch.Tensor` of shape `(tasks, tasks)`, float64, on the CPU):
                $g_s \cdot g_t$ of the whole gradients, the same on every process.
            tasks (`Sequence[str]`):
                The names of the tasks present, in the order of the Gramian.
            losses (`Sequence[float]`):
                Their losses, not transformed.
            step (`int`):
                The number of this balanced step, from 1.

        Returns:
            `torch.Tensor` of shape `(tasks,)`: the weights $w_t$ of the update $\sum_t w_t g_t$.
        """


class CoordinateWeighting(Weighting):
    """A weighting that has to see every coordinate of the gradients."""

    needs = "coordinates"

    @abstractmethod
    def combine(
        self, rows: Mapping[str, Vector], losses: Sequence[float], step: int, task_weights: Sequence[float]
    ) -> tuple[Vector, dict[str, float]]:
        """
        Args:
            rows (`Mapping[str, Vector]`):
                The gradients of the tasks present, by name. They may be overwritten.
            losses (`Sequence[float]`):
                Their losses, not transformed.
            step (`int`):
                The number of this balanced step, from 1.
            task_weights (`Sequence[float]`):
                The user's weights, which multiply the terms of the tasks in the update.

        Returns:
            `tuple[Vector, dict[str, float]]`: the update, and by task the weights that the method itself chose, where it
            has one number per task.
        """


class Equal(NormWeighting):
    """Equal weighting (EW): the plain sum of the gradients."""

    needs = "losses"
    holds = frozenset({"rotation_invariant", "permutation_equivariant"})
    paper = "the sum of the losses"

    def unit(self, norm: float, task: str = "") -> float:
        return 1.0

    def scale(self, norms: Sequence[float]) -> float:
        return 1.0
