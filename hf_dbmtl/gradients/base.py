"""The forward and backward passes of one task after the other, wherever the gradients then live."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .flat import FlatVector
from .receiver import Hooks, Receives
from .vector import GradientVector, accumulation_dtype


__all__ = ["Gradients", "How", "Passes", "TaskGradient"]


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
        total (`FlatVector`, *optional*):
            A vector whose memory may be overwritten, where all that is wanted of the tasks' gradients is their sum, and
            neither they nor their norms: autograd may add them to it at once, those of a unit in one backward pass. The first
            task present is then lent the sum, which those after it go on adding to, and these a zero vector; the gradient of
            the heads likewise within a unit.
    """

    forward: Callable[[Sequence[str], Any], Mapping[str, tuple[Tensor, Tensor]]]
    backward: Backward
    derivative: Callable[[str, Tensor], Tensor]
    loss_scale: float = 1.0
    norms: bool = True
    total: FlatVector | None = None


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
            The norm of `shared`, where it was wanted; with [`How.total`] that of the sum at the last task, 0.0 before.
        heads_norm (`float`):
            A number that is finite if and only if `heads` is, on every process.
    """

    loss: float
    num_items: float
    shared: FlatVector
    heads: GradientVector
    norm: float | None
    heads_norm: float = 0.0

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
    """

    parts: int
    shared: Receives
    heads: GradientVector
    numbers: list[Tensor] = field(default_factory=list)
    reference: Tensor | None = None

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
    def each(
        self, units: Mapping[str, Sequence[str]], batches: Callable[[str], Sequence[Any]], how: How
    ) -> Iterator[tuple[str, TaskGradient]]:
        """
        The loss and gradient of one task after the other over its micro-batches, none where the task is absent from the
        step.

        Args:
            units (`Mapping[str, Sequence[str]]`):
                The tasks that share their batches, by the name of the unit. A task of its own is a unit of one.
            batches (`Callable`):
                From the name of a unit to its micro-batches on this process.
            how ([`How`]):
                How tasks are computed.

        Yields:
            `tuple[str, TaskGradient]`: the task, and what it contributes. Its gradient of the shared parameters is lent
            until the next one is asked for: whoever wants to keep it has to `take` it.

        Raises:
            `ValueError`: where the number of items and the loss of a task contradict each other.
        """

    @abstractmethod
    def write(self, shared: FlatVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        """Sets every parameter's `.grad` for the optimizer, times `loss_scale`; what no task reached stays `None`."""

    @abstractmethod
    def full(self, vector: FlatVector) -> list[Tensor | None]:
        """One whole tensor per shared parameter, `None` where none was reached. Every process must call it."""

    def like_parameters(self, vector: FlatVector) -> list[Tensor | None]:
        """
        As `full`, but sharded as the parameters are, and in memory that the passes of the next step overwrite. Every process
        must call it.
        """
        return self.full(vector)

    @abstractmethod
    def from_entries(self, entries: Sequence[tuple[int, int, Tensor]]) -> FlatVector:
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

    @abstractmethod
    def zero(self) -> tuple[FlatVector, GradientVector]:
        """Zero vectors of the shared parameters and of the heads, nothing reached."""

    def skip(self, scaled: bool = False) -> None:
        """
        Leaves the optimizer nothing to do: without a gradient scaler every `.grad` is `None`, with one (`scaled`) they are
        inf, from which the scaler sees that the step overflowed, skips it and lowers its scale.
        """
        for parameter in (*self.shared.values(), *self.heads.values()):
            parameter.grad = torch.full_like(parameter, math.inf) if scaled else None

    def _run_passes(
        self,
        tasks: Sequence[str],
        batches: Sequence[Any],
        how: How,
        hooks: Hooks,
        receiver: Callable[[], Receives],
        transformed: bool = False,
    ) -> Iterator[tuple[str, Passes]]:
        """
        Runs the forward and backward passes of a unit, and yields every task as soon as it is done: one forward pass of a
        micro-batch serves all of its tasks. `transformed` puts the derivative of the loss transform on the loss, which a
        single micro-batch on a single process knows before its backward pass.
        """
        every: dict[str, Passes] = {}
        for number, batch in enumerate(batches, start=1):
            measured = dict(how.forward(tasks, batch))
            for task in tasks:
                if task not in every:
                    every[task] = Passes(len(batches), receiver(), self.zero()[1])
                passes, (loss, items) = every[task], measured.pop(task)
                scaled = passes.scaled(loss, items, self._reference)
                if transformed:
                    scaled = scaled * how.derivative(task, loss.detach())
                with passes.shared.receiving(hooks):
                    how.backward(scaled, retain_graph=bool(measured))
                passes.heads.add_(self._collect(self.heads))
                if number == len(batches):
                    yield task, self._ended(every.pop(task), how)
        if not batches:
            for task in tasks:
                yield task, self._ended(Passes(0, receiver(), self.zero()[1]), how)

    def _reference(self, items: Tensor) -> Tensor:
        """The number of items in whose units a task is back-propagated, given that of the first micro-batch."""
        return torch.where(items > 0, items, 1.0)

    @staticmethod
    def _ended(passes: Passes, how: How) -> Passes:
        passes.end(how.loss_scale)
        return passes

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
