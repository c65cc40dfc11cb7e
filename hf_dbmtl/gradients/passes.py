"""What is asked of the passes of a task, and what they leave behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .flat import FlatVector
from .receiver import Receives
from .vector import GradientVector


__all__ = ["How", "Passes", "TaskGradient", "contradiction", "refuse", "total_loss"]


class Backward(Protocol):
    def __call__(self, loss: Tensor, *, retain_graph: bool) -> None: ...


@dataclass
class How:
    """
    How tasks are computed.

    Attributes:
        forward (`Callable`):
            `(tasks, batch)`, where the tasks share the batch, to the mean loss of each and the number of items it is the
            mean over, tensors of shape `()`, by task.
        backward (`Callable`):
            Back-propagates a loss, such as `accelerator.backward`, and keeps the graph where `retain_graph`.
        derivative (`Callable`):
            `(task, loss)` to the factor on the gradient, see [`Balancer.derivative`].
        loss_scale (`float`):
            The factor that `backward` puts on the loss (the scaler's), taken out of the gradients again.
        norms (`bool`):
            Whether the norm of every task's gradient is wanted.
        summed (`bool`):
            Whether all that is wanted of the tasks' gradients is their sum, and neither they nor their norms: autograd may
            add them up at once, those of a unit in one backward pass, see [`PlainSum`]. The first task present is then lent
            the sum, of the heads too, and the others zero vectors.
        count (`Callable`, *optional*):
            `(tasks, batch)` to the number of items of each, integer tensors of shape `()`, known before its forward pass.
            None where it is not, or where a derivative depends on the loss of the whole step.
        blend (`Callable`, *optional*):
            From a task to a vector $v$ and a share $b$, or None: the task may then be lent $(1 - b) g + b v$ in place of its
            gradient $g$, see [`TaskGradient.blended`]. Formed while $g$ arrives it costs fewer passes over memory.
    """

    forward: Callable[[Sequence[str], Any], Mapping[str, tuple[Tensor, Tensor]]]
    backward: Backward
    derivative: Callable[[str, Tensor], Tensor]
    loss_scale: float = 1.0
    norms: bool = True
    summed: bool = False
    count: Callable[[Sequence[str], Any], Mapping[str, Tensor]] | None = None
    blend: Callable[[str], tuple[FlatVector, float] | None] | None = None


@dataclass
class TaskGradient:
    r"""
    What one task contributes to a step, over all its micro-batches and processes.

    Attributes:
        loss (`float`):
            The mean loss over the task's items, $\ell_t = \sum n L / N_t$.
        num_items (`float`):
            $N_t$, the number of items that carry a label of the task; 0 where the task is absent from the step.
        shared (`FlatVector`):
            $\phi'(\ell_t) \nabla_\theta \ell_t$, the gradient of the shared parameters.
        heads (`GradientVector`):
            The same for the parameters of the heads (with several processes this one's part of the sum).
        norm (`float`, *optional*):
            The norm of `shared`, where it was wanted.
        heads_norm (`float`):
            A number that is finite if and only if `heads` is, on every process.
        blended (`bool`):
            Whether `shared` is blended with what [`How.blend`] gave.
    """

    loss: float
    num_items: float
    shared: FlatVector
    heads: GradientVector
    norm: float | None
    heads_norm: float = 0.0
    blended: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are, as far as their norms are known."""
        return all(map(math.isfinite, (self.loss, self.norm or 0.0, self.heads_norm)))


@dataclass
class Passes:
    r"""
    What the passes of a task left on this process: micro-batch $m$ back-propagates its mean loss times $s_m / M$, with
    $s_m = n_m / n_1$. So no sum over thousands of tokens overflows in half precision, and where all counts are equal it
    is exactly the $L / M$ of the stock Trainer.

    Attributes:
        parts (`int`):
            $M$.
        shared (`Receives`):
            Takes in the gradient of the shared parameters.
        heads (`GradientVector`):
            The gradient of the heads.
        numbers (`list[torch.Tensor]`):
            $L_1, n_1, L_2, n_2, \dots$
        blend (`FlatVector`, *optional*):
            The vector that the gradient of the shared parameters is blended with as it arrives.
    """

    parts: int
    shared: Receives
    heads: GradientVector
    numbers: list[Tensor] = field(default_factory=list)
    reference: Tensor | None = None
    blend: FlatVector | None = None

    def scaled(self, loss: Tensor, items: Tensor, reference: Callable[[Tensor], Tensor]) -> Tensor:
        """What is back-propagated for a micro-batch with this mean loss over so many items."""
        self.numbers += [loss.detach(), items]
        if self.reference is None:
            self.reference = reference(items)
        return loss / (self.parts / (items / self.reference))

    def end(self, loss_scale: float) -> None:
        r"""
        Reads `losses`, `items`, the `dtype` of the losses and `unit`, the factor that makes $\sum n \nabla L$ of the
        gradients, all at once.
        """
        self.losses, self.items, self.unit, self.dtype = [], [], 0.0, torch.float32
        if self.reference is not None:
            first, reference = self.numbers[0], self.reference
            numbers = torch.stack([number.to(first) for number in [*self.numbers, reference]]).tolist()
            self.losses, self.items, self.dtype = numbers[:-1:2], numbers[1:-1:2], first.dtype
            self.unit = self.parts * numbers[-1] / loss_scale


def total_loss(losses: Sequence[float], items: Sequence[float]) -> float:
    r"""$\sum n L$, of micro-batches with any items."""
    return sum(n * loss for n, loss in zip(items, losses) if n > 0)


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
