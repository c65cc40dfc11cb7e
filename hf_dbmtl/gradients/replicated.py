"""
Per-task gradients over several processes that each hold all parameters (DDP).

A process keeps a slice of 1/W of every gradient. The flat gradient of a task is reduced and scattered while the next task
computes; norms and products are sums over the slices; the update is gathered at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .base import Gradients
from .flat import FlatVector, Layout
from .passes import How, Passes, TaskGradient, contradiction, refuse, total_loss
from .receiver import Hooks, Receiver, Receives
from .vector import GradientVector


__all__ = ["ReplicatedGradients"]

# renamed in torch 2.13, where the old names warn
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass
class Pending:
    """A task whose gradient is on its way."""

    task: str
    passes: Passes
    numbers: Tensor
    piece: Tensor
    works: list


class ReplicatedGradients(Gradients):
    """The gradients of W processes, each of which holds all parameters and keeps a slice of every gradient."""

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        super().__init__(shared, heads)
        self.layout = self._layout()
        # flat tensors of all parameters: of the task that computes and of the one on its way
        self._free: list[Tensor] = []

    def _one_by_one(
        self, units: Mapping[str, Sequence[str]], batches: Mapping[str, Sequence[Any]], how: How, hooks: Hooks
    ) -> Iterator[tuple[str, TaskGradient]]:
        pending: Pending | None = None
        for unit, tasks in units.items():
            for task, passes in self._run_passes(tasks, batches[unit], how, hooks):
                if pending is not None:
                    done, pending = pending, None
                    yield done.task, self._finish(done, how)
                    del done
                pending = self._launch(task, passes)
                del passes
        if pending is not None:
            yield pending.task, self._finish(pending, how)

    def _layout(self) -> Layout:
        return Layout(self.shared, dist.get_rank(), dist.get_world_size(), self.heads)

    def _receiver(self) -> Receives:
        return Receiver(self.layout.parameters, self._flat())

    def _land(self, receiver: Receives, factor: float, reached: Sequence[bool]) -> FlatVector:
        piece, works = self._scatter(receiver, factor)
        self._wait(works)
        self._free.append(receiver.flat)
        return FlatVector(self.layout, piece, torch.tensor(reached, dtype=torch.bool))

    @staticmethod
    def _wait(works: list) -> None:
        """For what is on its way."""
        for work in works:
            work.wait()

    def _summed_over_processes(self, numbers: Sequence[float]) -> list[float]:
        tensor = torch.tensor(numbers, dtype=torch.float64).to(self.layout.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def _flat(self) -> Tensor:
        return self._free.pop() if self._free else self.layout.empty()

    def _launch(self, task: str, passes: Passes) -> Pending:
        """Starts the sums over all processes: of the gradient, and of a few numbers that say what came of the task."""
        passes.heads.mul_(passes.unit)
        reached = [*passes.shared.reached, *(tensor is not None for tensor in passes.heads.tensors)]
        wrong = contradiction(passes.losses, passes.items)
        summed = total_loss(passes.losses, passes.items)
        numbers = torch.tensor(
            [summed, sum(passes.items), wrong is not None, passes.heads.norm() ** 2, *reached], dtype=torch.float64
        ).to(self.layout.device)
        works = [dist.all_reduce(numbers, async_op=True)]
        piece, more = self._scatter(passes.shared, passes.unit)
        return Pending(task, passes, numbers, piece, works + more)

    def _scatter(self, receiver: Receives, factor: float) -> tuple[Tensor, list]:
        """Starts to add up what arrived, times `factor`: what this process keeps of it, and what to wait for."""
        flat = receiver.finish().mul_(factor)
        piece = flat.new_empty(self.layout.length)
        return piece, [reduce_scatter(piece, flat, async_op=True)]

    def _finish(self, pending: Pending, how: How) -> TaskGradient:
        self._wait(pending.works)
        passes = pending.passes
        self._free.append(passes.shared.flat)
        loss, items, wrong, heads_norm, *reached = pending.numbers.tolist()
        if wrong:
            own = contradiction(passes.losses, passes.items)
            refuse(pending.task, *(own or (math.nan, 0.0)))
        if items == 0:
            return TaskGradient(0.0, 0.0, *self.zero(), norm=0.0)
        mean = loss / items
        # in float64: a process that lacks the task does not know the type of its loss
        correction = how.derivative(pending.task, torch.tensor(mean, dtype=torch.float64)).item() / items
        count = len(self.shared)
        shared = FlatVector(self.layout, pending.piece.mul_(correction), torch.tensor(reached[:count]) > 0)
        heads = passes.heads.mul_(correction)
        self._reach(heads, [number > 0 for number in reached[count:]])
        return TaskGradient(mean, items, shared, heads, shared.norm() if how.norms else None, heads_norm)

    def zero(self) -> tuple[FlatVector, GradientVector]:
        return FlatVector(self.layout), GradientVector([None] * len(self.heads))

    def from_entries(self, entries: Sequence[tuple[int, int, Tensor]]) -> FlatVector:
        return FlatVector.from_entries(self.layout, entries)

    def full(self, vector: FlatVector) -> list[Tensor | None]:
        return self._gathered(vector, self.layout.empty())

    def like_parameters(self, vector: FlatVector) -> list[Tensor | None]:
        flat = self._flat()
        self._free.append(flat)  # for the backward passes of the next step, when the gradients have served
        return self._gathered(vector, flat)

    def _gathered(self, vector: FlatVector, flat: Tensor) -> list[Tensor | None]:
        (piece,) = vector.tensors
        all_gather(flat, flat.new_zeros(self.layout.length) if piece is None else piece.to(flat.dtype))
        return self.layout.unflatten(flat, vector.reached.tolist())

    def write(self, shared: FlatVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        for parameter, tensor in zip(self.shared.values(), self.like_parameters(shared.mul_(loss_scale))):
            parameter.grad = None if tensor is None else tensor.to(parameter.dtype)
        for parameter, tensor in zip(self.heads.values(), self.summed(heads.mul_(loss_scale)).tensors):
            parameter.grad = None if tensor is None else tensor.to(parameter.dtype)

    def summed(self, heads: GradientVector) -> GradientVector:
        tensors = [tensor for tensor in heads.tensors if tensor is not None]
        if not tensors:
            return heads
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        pieces = iter(flat.split([tensor.numel() for tensor in tensors]))
        return GradientVector([None if tensor is None else next(pieces).view_as(tensor) for tensor in heads.tensors])
