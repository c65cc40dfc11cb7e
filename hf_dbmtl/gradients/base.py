"""The forward and backward passes of one task after the other, wherever the gradients then live."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .vector import GradientVector, accumulation_dtype


__all__ = ["Gradients", "Passes", "TaskGradient"]


@dataclass
class How:
    """
    How a task is computed.

    Attributes:
        forward (`Callable`):
            `(task, batch)` to the mean loss and the number of items it is the mean over, tensors of shape `()`.
        backward (`Callable`):
            Back-propagates a loss, such as `accelerator.backward`.
        derivative (`Callable`):
            `(task, loss)` to the factor on the gradient, see [`Balancer.derivative`].
        loss_scale (`float`):
            The factor that `backward` puts on the loss (the scaler's), taken out of the gradients again.
    """

    forward: Callable[[str, Any], tuple[Tensor, Tensor]]
    backward: Callable[[Tensor], None]
    derivative: Callable[[str, Tensor], Tensor]
    loss_scale: float = 1.0


@dataclass
class TaskGradient:
    r"""
    What one task contributes to a step, over all its micro-batches and processes.

    Attributes:
        loss (`float`):
            The mean loss over the task's items, $\ell_t = \sum n L / N_t$.
        num_items (`float`):
            $N_t$, the number of items that carry a label of the task; 0 where the task is absent from the step.
        shared (`GradientVector`):
            $\phi'(\ell_t) \nabla_\theta \ell_t$, the gradient of the shared parameters.
        heads (`GradientVector`):
            The same for the parameters of the heads (with several processes this one's part of the sum).
        norm (`float`):
            The norm of `shared`.
        heads_norm (`float`):
            A number that is finite if and only if `heads` is, on every process.
    """

    loss: float
    num_items: float
    shared: GradientVector
    heads: GradientVector
    norm: float
    heads_norm: float = 0.0

    @property
    def is_finite(self) -> bool:
        return all(map(math.isfinite, (self.loss, self.norm, self.heads_norm)))


@dataclass
class Passes:
    r"""
    What the passes of a task left on this process.

    Attributes:
        shared, heads (`GradientVector`):
            The gradients as autograd made them; times `unit` they are $\sum n \nabla L$.
        losses, items (`list[float]`):
            $L$ and $n$ of every micro-batch.
        dtype (`torch.dtype`):
            Of the losses.
    """

    shared: GradientVector
    heads: GradientVector
    losses: list[float]
    items: list[float]
    unit: float
    dtype: torch.dtype


class Gradients(ABC):
    """
    Computes the gradient of one task after the other, exactly: whatever the micro-batches and processes, it is the
    gradient of the mean over all items. One task at a time costs the forward and backward passes of the summed loss and
    keeps a single graph alive.

    Args:
        shared (`Mapping[str, Parameter]`):
            The shared parameters by name.
        heads (`Mapping[str, Parameter]`):
            All other trainable parameters by name.
    """

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        self.shared = dict(shared)
        self.heads = dict(heads)

    @abstractmethod
    def measure(self, task: str, batches: Sequence[Any], how: How) -> TaskGradient:
        """
        The loss and gradient of a task over its micro-batches, none where the task is absent from the step.

        Raises:
            `ValueError`: where the number of items and the loss contradict each other.
        """

    def each(
        self, tasks: Sequence[str], batches: Callable[[str], Sequence[Any]], how: How
    ) -> Iterator[tuple[str, TaskGradient]]:
        """Measures one task after the other. Whoever goes on holding a task's tensors keeps them beside the next one's."""
        for task in tasks:
            yield task, self.measure(task, batches(task), how)

    @abstractmethod
    def write(self, shared: GradientVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        """Sets every parameter's `.grad` for the optimizer, times `loss_scale`; what no task reached stays `None`."""

    @abstractmethod
    def full(self, vector: GradientVector) -> list[Tensor | None]:
        """One whole tensor per shared parameter, `None` where none was reached. Every process must call it."""

    @abstractmethod
    def from_entries(self, entries: Sequence[tuple[int, int, Tensor]]) -> GradientVector:
        """
        This process's part of a vector of the shared parameters.

        Args:
            entries (`Sequence[tuple[int, int, torch.Tensor]]`):
                Pieces of parameters, as [`GradientVector.entries`] gives them, of all processes of some run: the position
                of the parameter, where the piece starts in it (flattened), and the piece.
        """

    @abstractmethod
    def summed(self, heads: GradientVector) -> GradientVector:
        """The gradient of the heads, the parts of all processes added up. Every process must call it."""

    def zero(self) -> tuple[GradientVector, GradientVector]:
        """Zero vectors of the shared parameters and of the heads, nothing reached."""
        return GradientVector([None] * len(self.shared)), GradientVector([None] * len(self.heads))

    def skip(self, scaled: bool = False) -> None:
        """
        Leaves the optimizer nothing to do: without a gradient scaler every `.grad` is `None`, with one (`scaled`) they are
        inf, from which the scaler sees that the step overflowed, skips it and lowers its scale.
        """
        for parameter in (*self.shared.values(), *self.heads.values()):
            parameter.grad = torch.full_like(parameter, math.inf) if scaled else None

    def _run_passes(self, task: str, batches: Sequence[Any], how: How, transformed: bool) -> Passes:
        r"""
        Runs the forward and backward passes of a task.

        Micro-batch $m$ back-propagates its mean loss times $s_m / M$, with $s_m = n_m / n_1$: no sum over thousands of
        tokens that would overflow in half precision, and where all counts are equal exactly the $L / M$ of the stock
        Trainer. `transformed` puts the derivative of the loss transform on the loss, which a single micro-batch on a single
        process knows before its backward pass.
        """
        measured: list[Tensor] = []
        reference: Tensor | None = None
        for batch in batches:
            loss, items = how.forward(task, batch)
            measured += [loss.detach(), items]
            if reference is None:
                reference = torch.where(items > 0, items, 1.0)
            loss = loss / (len(batches) / (items / reference))
            if transformed:
                loss = loss * how.derivative(task, loss.detach())
            how.backward(loss)
        shared, heads = self._collect(self.shared), self._collect(self.heads)
        if reference is None:
            return Passes(shared, heads, [], [], 0.0, torch.float32)
        numbers = torch.stack([number.to(measured[0]) for number in [*measured, reference]]).tolist()
        unit = len(batches) * numbers[-1] / how.loss_scale
        return Passes(shared, heads, numbers[:-1:2], numbers[1:-1:2], unit, measured[0].dtype)

    @staticmethod
    def _collect(parameters: Mapping[str, nn.Parameter]) -> GradientVector:
        """Takes the gradients away from the parameters."""
        tensors = []
        for parameter in parameters.values():
            grad, parameter.grad = parameter.grad, None
            tensors.append(None if grad is None else grad.to(accumulation_dtype(grad.dtype)))
        return GradientVector(tensors)


def contradiction(losses: Sequence[float], items: Sequence[float]) -> tuple[float, float] | None:
    """The first micro-batch whose number of items cannot be, or has none and yet a loss."""
    for loss, count in zip(losses, items):
        if not 0 <= count < math.inf or (count == 0 and loss != 0):
            return loss, count
    return None


def refuse(task: str, loss: float, count: float) -> None:
    raise ValueError(
        f"Task '{task}': its loss is {loss:g} over num_items={count:g}. `num_items` is the number of items that the "
        "loss is the mean over, zero or more; over none of them the loss must be a zero that is attached to the "
        "head, such as `logits.sum() * 0`."
    )
