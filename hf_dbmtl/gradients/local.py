"""Per-task gradients in one process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .base import Gradients, How, Passes, TaskGradient, contradiction, refuse
from .flat import FlatVector, Layout
from .receiver import Hooks, Receiver
from .vector import GradientVector


__all__ = ["LocalGradients"]


class LocalGradients(Gradients):
    """The gradients of a single process, in flat tensors that stay from one task and step to the next."""

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        super().__init__(shared, heads)
        self.layout = Layout(self.shared, heads=self.heads)
        self._free: list[Tensor] = []

    def each(
        self, units: Mapping[str, Sequence[str]], batches: Callable[[str], Sequence[Any]], how: How
    ) -> Iterator[tuple[str, TaskGradient]]:
        of_units = {unit: batches(unit) for unit in units}
        total = how.total if how.loss_scale == 1.0 and all(len(one) < 2 for one in of_units.values()) else None
        with Hooks(self.layout.parameters) as hooks:
            if total is not None:
                yield from self._sum_up(units, of_units, how, hooks, total)
            else:
                for unit, tasks in units.items():
                    yield from self._one_by_one(tasks, of_units[unit], how, hooks)

    def _one_by_one(
        self, tasks: Sequence[str], batches: Sequence[Any], how: How, hooks: Hooks
    ) -> Iterator[tuple[str, TaskGradient]]:
        single = len(batches) == 1

        def receiver() -> Receiver:
            return Receiver(self.layout.parameters, self._flat())

        for task, passes in self._run_passes(tasks, batches, how, hooks, receiver, transformed=single):
            shared = FlatVector(
                self.layout, passes.shared.finish(), torch.tensor(passes.shared.reached, dtype=torch.bool)
            )
            measured = self._measured(task, passes, how, shared, transformed=single)
            yield task, measured
            self._free += [tensor for tensor in measured.shared.tensors if tensor is not None]

    def _sum_up(
        self,
        units: Mapping[str, Sequence[str]],
        batches: Mapping[str, Sequence[Any]],
        how: How,
        hooks: Hooks,
        total: FlatVector,
    ) -> Iterator[tuple[str, TaskGradient]]:
        """
        Lets autograd add the gradients of all tasks, whose units have a single micro-batch at most, to `total`, in one
        backward pass of a unit for the sum of its tasks' losses. The first task present is lent the total, the others
        nothing, and the first of each unit the gradient of its heads. The total is looked at once, when it is whole.
        """
        begun = False
        (flat,) = total.tensors
        receiver = Receiver(self.layout.parameters, self._flat() if flat is None else flat)
        last = next((unit for unit in reversed(list(units)) if batches[unit]), None)
        for unit, tasks in units.items():
            if not batches[unit]:
                yield from self._one_by_one(tasks, [], how, hooks)
                continue
            every = self._run_together(tasks, batches[unit][0], how, hooks, receiver)
            total.tensors, total.reached = [receiver.finish()], torch.tensor(receiver.reached, dtype=torch.bool)
            norm = total.norm() if unit == last else 0.0
            if not math.isfinite(norm + sum(passes.heads.norm() for passes in every.values())):
                yield from self._culprit(units, batches, how, hooks)
            for task, passes in every.items():
                measured = self._measured(task, passes, how, self.zero()[0] if begun else total)
                measured.norm = norm
                begun = begun or measured.num_items > 0
                yield task, measured

    def _run_together(
        self, tasks: Sequence[str], batch: Any, how: How, hooks: Hooks, receiver: Receiver
    ) -> dict[str, Passes]:
        """One forward and one backward pass for all tasks of a unit."""
        measured = how.forward(tasks, batch)
        every: dict[str, Passes] = {}
        present: list[Tensor] = []
        for task in tasks:
            every[task] = passes = Passes(1, receiver, self.zero()[1])
            loss, items = measured[task]
            scaled = passes.scaled(loss, items, self._reference) * how.derivative(task, loss.detach())
            if items != 0:
                present.append(scaled)
        if present:
            with receiver.receiving(hooks):
                how.backward(sum(present[1:], start=present[0]), retain_graph=False)
        for passes in every.values():
            self._ended(passes, how)
        first = next((passes for passes in every.values() if sum(passes.items) != 0), None)
        heads = self._collect(self.heads)
        if first is not None:
            first.heads.add_(heads)
        return every

    def _culprit(
        self, units: Mapping[str, Sequence[str]], batches: Mapping[str, Sequence[Any]], how: How, hooks: Hooks
    ) -> Iterator[tuple[str, TaskGradient]]:
        """Of tasks whose sum is not finite the one to be told of: the gradients once more, one by one."""
        alone = replace(how, total=None, norms=True)
        for unit, tasks in units.items():
            for task, measured in self._one_by_one(tasks, batches[unit], alone, hooks):
                if not measured.is_finite:
                    yield task, measured
                    return

    def _flat(self) -> Tensor:
        return self._free.pop() if self._free else self.layout.empty()

    def _measured(
        self, task: str, passes: Passes, how: How, shared: FlatVector, transformed: bool = True
    ) -> TaskGradient:
        if (found := contradiction(passes.losses, passes.items)) is not None:
            refuse(task, *found)
        total = sum(passes.items)
        if total == 0:
            shared.reached = torch.zeros_like(shared.reached)
            return TaskGradient(0.0, 0.0, shared, self.zero()[1], norm=0.0)
        mean = passes.losses[0]
        correction = passes.unit / total
        if not transformed:
            mean = sum(n * loss for n, loss in zip(passes.items, passes.losses) if n > 0) / total
            correction *= how.derivative(task, torch.tensor(mean, dtype=passes.dtype)).item()
        heads = passes.heads.mul_(correction)
        norm = shared.mul_(correction).norm() if how.norms else None
        return TaskGradient(mean, total, shared, heads, norm, heads.norm())

    def write(self, shared: FlatVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        heads.mul_(loss_scale)
        for parameter, tensor in zip(self.shared.values(), self.full(shared.mul_(loss_scale))):
            parameter.grad = None if tensor is None else tensor.to(parameter.dtype)
        for parameter, tensor in zip(self.heads.values(), heads.tensors):
            parameter.grad = None if tensor is None else tensor.to(parameter.dtype)

    def summed(self, heads: GradientVector) -> GradientVector:
        return heads

    def zero(self) -> tuple[FlatVector, GradientVector]:
        return FlatVector(self.layout), GradientVector([None] * len(self.heads))

    def full(self, vector: FlatVector) -> list[Tensor | None]:
        (flat,) = vector.tensors
        if flat is None:
            return [None] * len(self.shared)
        return self.layout.unflatten(flat, vector.reached.tolist())

    def from_entries(self, entries: Sequence[tuple[int, int, Tensor]]) -> FlatVector:
        return FlatVector.from_entries(self.layout, entries)
