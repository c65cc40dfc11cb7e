"""The forward and backward passes of one task after the other, wherever the gradients then live."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .flat import FlatVector, Layout
from .passes import How, Passes, TaskGradient
from .plain_sum import PlainSum
from .receiver import Hooks, Receives
from .vector import GradientVector, accumulation_dtype


__all__ = ["Gradients"]


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

    layout: Layout

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        self.shared = dict(shared)
        self.heads = dict(heads)

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
        of_units = {unit: batches(unit) for unit in units}
        with Hooks(self.layout.parameters) as hooks:
            whole = self.layout.world == 1 and all(len(one) < 2 for one in of_units.values())
            if how.summed and (whole or how.count is not None):
                yield from PlainSum(self, units, of_units, how).each(hooks)
            else:
                yield from self._one_by_one(units, of_units, how, hooks)

    @abstractmethod
    def _one_by_one(
        self, units: Mapping[str, Sequence[str]], batches: Mapping[str, Sequence[Any]], how: How, hooks: Hooks
    ) -> Iterator[tuple[str, TaskGradient]]:
        """The tasks with a gradient of their own each."""

    @abstractmethod
    def _receiver(self) -> Receives:
        """Where the gradient of a task arrives, or that of all of them."""

    @abstractmethod
    def _land(self, receiver: Receives, factor: float, reached: Sequence[bool]) -> FlatVector:
        """What arrived on all processes, times `factor`. Every process must call it."""

    @abstractmethod
    def _summed_over_processes(self, numbers: Sequence[float]) -> list[float]:
        """A few numbers, summed over the processes. Every process must call it."""

    @abstractmethod
    def write(self, shared: FlatVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        """
        Sets every parameter's `.grad` for the optimizer, times `loss_scale`; what no task reached stays `None`. `shared` is
        used up: the passes of the next step may overwrite its memory.
        """

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

    def spare(self) -> FlatVector:
        """A vector whose memory may be overwritten, until a task's gradient is asked for again."""
        return self.zero()[0]

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
                    every[task] = self._passes(task, len(batches), how, transformed)
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
                yield task, self._ended(Passes(0, self._receiver(), self.zero()[1]), how)

    def _passes(self, task: str, parts: int, how: How, transformed: bool) -> Passes:
        """Those of a task, before the first of them."""
        return Passes(parts, self._receiver(), self.zero()[1])

    def _reach(self, heads: GradientVector, reached: Sequence[bool]) -> None:
        """Zeros for the heads that another process has reached: the same ones get a gradient on every process."""
        for i, (parameter, there) in enumerate(zip(self.heads.values(), reached)):
            if there and heads.tensors[i] is None:
                heads.tensors[i] = torch.zeros_like(parameter, dtype=accumulation_dtype(parameter.dtype))

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
