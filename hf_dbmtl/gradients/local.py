"""Per-task gradients in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .vector import GradientVector, accumulation_dtype


__all__ = ["LocalGradients", "TaskGradient"]

Forward = Callable[[str, Any], tuple[Tensor, Tensor]]


@dataclass
class TaskGradient:
    r"""
    What one task contributes to a step, over all its micro-batches.

    Attributes:
        loss (`float`):
            The mean loss over the task's items, $\ell_t = \sum n L / N_t$.
        num_items (`float`):
            $N_t$, the number of items that carry a label of the task; 0 where the task is absent from the step.
        shared (`GradientVector`):
            $\phi'(\ell_t) \nabla_\theta \ell_t$, the gradient of the shared parameters.
        heads (`GradientVector`):
            The same for the parameters of the heads.
        norm (`float`):
            The norm of `shared`.
    """

    loss: float
    num_items: float
    shared: GradientVector
    heads: GradientVector
    norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm) and math.isfinite(self.heads.norm())


class LocalGradients:
    """
    Computes the gradient of one task after the other, exactly: whatever the micro-batches, it is the gradient of the mean
    over all items. One task at a time costs the forward and backward passes of the summed loss and keeps a single graph
    alive; the gradient is the tensors that autograd made, not a copy.

    Args:
        shared (`Mapping[str, Parameter]`):
            The shared parameters by name.
        heads (`Mapping[str, Parameter]`):
            All other trainable parameters by name.
    """

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        self.shared = dict(shared)
        self.heads = dict(heads)

    def measure(
        self,
        task: str,
        batches: Sequence[Any],
        forward: Forward,
        backward: Callable[[Tensor], None],
        derivative: Callable[[str, Tensor], Tensor],
        loss_scale: float = 1.0,
    ) -> TaskGradient:
        r"""
        Runs the forward and backward passes of a task.

        Micro-batch $m$ back-propagates its mean loss times $s_m / M$, with $s_m = n_m / n_1$: no sum over thousands of
        tokens that would overflow in half precision, and where all counts are equal exactly the $L / M$ of the stock
        Trainer. What is missing to $n_m / N$, and the derivative of the loss transform, is put right at the end. With a
        single micro-batch the derivative is known before the backward pass and goes through it for nothing.

        Args:
            task (`str`):
                The name of the task.
            batches (`Sequence`):
                Its micro-batches; none where the task is absent from the step.
            forward (`Callable`):
                `(task, batch)` to the mean loss and the number of items it is the mean over.
            backward (`Callable`):
                Back-propagates a loss, such as `accelerator.backward`.
            derivative (`Callable`):
                `(task, loss)` to the factor on the gradient, see [`Balancer.derivative`].
            loss_scale (`float`, *optional*, defaults to 1.0):
                The factor that `backward` puts on the loss (the scaler's), taken out again here.

        Raises:
            `ValueError`: where the number of items and the loss contradict each other.
        """
        if not batches:
            return TaskGradient(0.0, 0.0, *self.zero(), norm=0.0)
        measured: list[Tensor] = []
        single = len(batches) == 1
        reference: Tensor | None = None
        for batch in batches:
            loss, items = forward(task, batch)
            measured += [loss.detach(), items]
            if reference is None:
                reference = torch.where(items > 0, items, 1.0)
            loss = loss / (len(batches) / (items / reference))
            if single:
                loss = loss * derivative(task, loss.detach())
            backward(loss)
        shared, heads = self._collect(self.shared), self._collect(self.heads)
        numbers = torch.stack([number.to(measured[0]) for number in [*measured, reference]]).tolist()
        losses, items, reference = numbers[:-1:2], numbers[1:-1:2], numbers[-1]
        _check_items(task, losses, items)
        total = math.fsum(items)
        if total == 0:
            return TaskGradient(0.0, 0.0, shared, heads, 0.0)
        mean = losses[0] if single else sum(n * loss for n, loss in zip(items, losses) if n > 0) / total
        correction = len(batches) * reference / total / loss_scale
        if not single:
            correction *= derivative(task, torch.tensor(mean, dtype=measured[0].dtype)).item()
        shared.mul_(correction)
        heads.mul_(correction)
        return TaskGradient(mean, total, shared, heads, shared.norm())

    def write(self, shared: GradientVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        """Sets every parameter's `.grad` for the optimizer; what no task reached stays `None`."""
        for parameters, vector in ((self.shared, shared), (self.heads, heads)):
            vector.mul_(loss_scale)
            for parameter, tensor in zip(parameters.values(), vector.tensors):
                parameter.grad = None if tensor is None else tensor.to(parameter.dtype)

    def skip(self, scaled: bool = False) -> None:
        """
        Leaves the optimizer nothing to do: without a gradient scaler every `.grad` is `None`, with one (`scaled`) they are
        inf, from which the scaler sees that the step overflowed, skips it and lowers its scale.
        """
        for parameter in (*self.shared.values(), *self.heads.values()):
            parameter.grad = torch.full_like(parameter, math.inf) if scaled else None

    def zero(self) -> tuple[GradientVector, GradientVector]:
        """Zero vectors of the shared parameters and of the heads, nothing reached."""
        return GradientVector([None] * len(self.shared)), GradientVector([None] * len(self.heads))

    @staticmethod
    def _collect(parameters: Mapping[str, nn.Parameter]) -> GradientVector:
        """Takes the gradients away from the parameters."""
        tensors = []
        for parameter in parameters.values():
            grad, parameter.grad = parameter.grad, None
            tensors.append(None if grad is None else grad.to(accumulation_dtype(grad.dtype)))
        return GradientVector(tensors)


def _check_items(task: str, losses: Sequence[float], items: Sequence[float]) -> None:
    for loss, count in zip(losses, items):
        if not 0 <= count < math.inf or (count == 0 and loss != 0):
            raise ValueError(
                f"Task '{task}': its loss is {loss:g} over num_items={count:g}. `num_items` is the number of items that the "
                "loss is the mean over, zero or more; over none of them the loss must be a zero that is attached to the "
                "head, such as `logits.sum() * 0`."
            )
