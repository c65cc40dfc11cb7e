"""Loss transforms: what is differentiated in place of the loss. Only the derivative matters, one number per task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from .part import Part


__all__ = ["Identity", "LossTransform"]


class LossTransform(Part):
    r"""
    A function $\Phi$ of the tasks' losses that is differentiated in place of their sum. By the chain rule the gradient
    of task $t$ is $\frac{\partial\Phi}{\partial\ell_t} \nabla \ell_t$, so that a transform is its derivatives. They
    are taken at the mean losses over all micro-batches and processes, never at a part of them, and come in two factors:
    one known as soon as the task's own loss is ([`~LossTransform.derivative`], of which nothing may be remembered: the
    step may still be skipped, the task turn out to be absent), and one common to all tasks, known at the end of the
    step ([`~LossTransform.scale`]).
    """

    needs = "losses"
    # Whether it wants the losses of the same batch again after the optimizer's step.
    looks_again: bool = False
    # Whether `derivative` never looks at the loss, and so is known before it.
    known_before: ClassVar[bool] = False
    # Whether `scale` is anything but 1.
    coupled: ClassVar[bool] = False
    # Whether `late` follows from all losses, so that every gradient has to be kept to the end of the step.
    entangled: ClassVar[bool] = False

    def begin(self, step: int, epoch: int = 0) -> None:
        """Told before what will be balanced step `step` (from 1), in `epoch` (from 0), unless it is skipped."""

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        r"""
        The task's own factor of the derivative.

        Args:
            task (`str`):
                The name of the task.
            loss (`torch.Tensor` of shape `()`):
                The mean loss of the task over the step, detached.

        Returns:
            `torch.Tensor` of shape `()`: the factor, of the loss's dtype, on its device.
        """
        raise NotImplementedError

    def scale(self, losses: Mapping[str, float]) -> float:
        """The factor common to all tasks, given the losses of those present."""
        return 1.0

    def rescale(self, task: str, loss: float) -> float:
        """
        Told the loss of a task that is present, as it comes: the factor by which whatever came before has to be
        multiplied for [`~LossTransform.scale`] to be common to all. A sum of exponentials is kept relative to the
        largest so far.
        """
        return 1.0

    def late(self, task: str) -> float:
        """A factor of the task's own that is known at the end of the step only, where `needs` is `"validation"` or `entangled`."""
        return 1.0

    def check(self, task: str, loss: float) -> None:
        """Raises a `ValueError` where `loss` is outside the domain of the transform. By default every loss is inside."""

    def update(self, losses: Mapping[str, float]) -> None:
        """Told at the end of a balanced step, with the losses of the tasks present: learned weights are stepped here."""

    def look_again(self, losses: Mapping[str, float]) -> None:
        """Given the losses of the same batch after the optimizer's step, where `looks_again`."""


class Identity(LossTransform):
    r"""The sum of the losses: every derivative is 1."""

    holds = frozenset({"permutation_equivariant"})
    known_before = True

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return loss.new_ones(())
