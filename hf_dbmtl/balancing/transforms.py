"""Loss transforms: what is differentiated in place of the loss. Only the derivative matters, one number per task."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


__all__ = ["Identity", "LossTransform"]


class LossTransform(ABC):
    r"""
    A function $\phi$ applied to every task's loss $\ell_t$ before it is differentiated. By the chain rule the gradient
    is $\phi'(\ell_t) \nabla \ell_t$, so that a transform is its derivative: it is evaluated once per task and step, at
    the mean loss over all micro-batches and processes, never at a part of it.
    """

    @abstractmethod
    def derivative(self, task: str, loss: Tensor) -> Tensor:
        r"""
        Args:
            task (`str`):
                The name of the task.
            loss (`torch.Tensor` of shape `()`):
                The mean loss of the task over the step, detached.

        Returns:
            `torch.Tensor` of shape `()`: $\phi'(\ell_t)$, of the loss's dtype, on its device.
        """

    def check(self, task: str, loss: float) -> None:
        """Raises a `ValueError` where `loss` is outside the domain of the transform. By default every loss is inside."""


class Identity(LossTransform):
    r"""$\phi(\ell) = \ell$: the gradient of the loss itself."""

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return loss.new_ones(())
