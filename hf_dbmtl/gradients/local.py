"""Per-task gradients in one process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .base import Gradients
from .flat import FlatVector, Layout
from .passes import How, Passes, TaskGradient, contradiction, refuse, total_loss
from .receiver import Hooks, Receiver, Receives
from .vector import GradientVector


__all__ = ["LocalGradients"]


class LocalGradients(Gradients):
    """The gradients of a single process, in flat tensors that stay from one task and step to the next."""

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        super().__init__(shared, heads)
        self.layout = Layout(self.shared, heads=self.heads)
        self._free: list[Tensor] = []

    def _one_by_one(
        self, units: Mapping[str, Sequence[str]], batches: Mapping[str, Sequence[Any]], how: How, hooks: Hooks
    ) -> Iterator[tuple[str, TaskGradient]]:
        for unit, tasks in units.items():
            single = len(batches[unit]) == 1
            for task, passes in self._run_passes(tasks, batches[unit], how, hooks, transformed=single):
                shared = self._vector(passes.shared, passes.shared.reached)
                if passes.blend is not None:
                    shared.reached = shared.reached | passes.blend.reached
                measured = self._measured(task, passes, how, shared, transformed=single)
                yield task, measured
                self._keep(measured.shared)

    def _passes(self, task: str, parts: int, how: How, transformed: bool) -> Passes:
        # where a factor comes on top of what arrives, nothing can be blended with it before
        whole = transformed and how.loss_scale == 1.0 and not how.norms
        blend = how.blend(task) if how.blend is not None and whole else None
        if blend is not None and (blend[0].tensors[0] is None or blend[0].tensors[0].dtype != self.layout.dtype):
            blend = None
        return Passes(parts, self._receiver(blend), self.zero()[1], blend=None if blend is None else blend[0])

    def _receiver(self, blend: tuple[FlatVector, float] | None = None) -> Receiver:
        return Receiver(self.layout.parameters, self._free.pop() if self._free else self.layout.empty(), blend=blend)

    def _vector(self, receiver: Receives, reached: Sequence[bool]) -> FlatVector:
        return FlatVector(self.layout, receiver.finish(), torch.tensor(reached, dtype=torch.bool))

    def _land(self, receiver: Receives, factor: float, reached: Sequence[bool]) -> FlatVector:
        return self._vector(receiver, reached).mul_(factor)

    def _summed_over_processes(self, numbers: Sequence[float]) -> list[float]:
        return list(numbers)

    def _measured(self, task: str, passes: Passes, how: How, shared: FlatVector, transformed: bool) -> TaskGradient:
        if (found := contradiction(passes.losses, passes.items)) is not None:
            refuse(task, *found)
        total = sum(passes.items)
        if total == 0:
            shared.reached = torch.zeros_like(shared.reached)
            return TaskGradient(0.0, 0.0, shared, self.zero()[1], norm=0.0)
        mean = passes.losses[0]
        correction = passes.unit / total
        if not transformed:
            mean = total_loss(passes.losses, passes.items) / total
            correction *= how.derivative(task, torch.tensor(mean, dtype=passes.dtype)).item()
        heads = passes.heads.mul_(correction)
        shared.mul_(correction)
        norm = shared.norm() if how.norms else None
        return TaskGradient(mean, total, shared, heads, norm, heads.norm(), passes.blend is not None)

    def write(self, shared: FlatVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        heads.mul_(loss_scale)
        for parameter, tensor in zip(self.shared.values(), self.full(shared.mul_(loss_scale))):
            parameter.grad = None if tensor is None else tensor.to(parameter.dtype)
        for parameter, tensor in zip(self.heads.values(), heads.tensors):
            parameter.grad = None if tensor is None else tensor.to(parameter.dtype)
        # for the passes of the next step, when the gradients have served: one for a task and one for a running sum
        if len(self._free) < 2:
            self._keep(shared.take())

    def _keep(self, vector: FlatVector) -> None:
        """Keeps the memory of a vector that has served, unless it is of another type, as rows of a checkpoint may be."""
        (flat,) = vector.tensors
        if flat is not None and flat.dtype == self.layout.dtype:
            self._free.append(flat)

    def spare(self) -> FlatVector:
        return FlatVector(self.layout, self._free.pop() if self._free else None)

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
