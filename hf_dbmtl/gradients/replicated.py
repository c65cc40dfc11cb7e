"""
Per-task gradients over several processes that each hold all parameters (DDP).

A process keeps a slice of 1/W of every gradient. The flat gradient of a task is reduced and scattered while the next task
computes; norms and products are sums over the slices; the update is gathered at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .base import Gradients, How, Passes, TaskGradient, contradiction, refuse
from .vector import STRETCH, CoordinateFunction, GradientVector, accumulation_dtype


__all__ = ["ReplicatedGradients", "SliceVector"]

# renamed in torch 2.13, where the old names warn
reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Layout:
    """
    How the shared parameters lie in one flat tensor and what of it a process keeps: slices of equal length, the end padded
    with zeros.

    Args:
        sizes (`Sequence[int]`):
            The number of entries of every shared parameter.
    """

    def __init__(self, sizes: Sequence[int]):
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.starts = [0]
        for size in sizes:
            self.starts.append(self.starts[-1] + size)
        self.length = max(1, -(-self.starts[-1] // self.world))  # with a frozen encoder nothing but padding
        self.begin = self.rank * self.length

    def pieces(self) -> Iterator[tuple[int, int, slice]]:
        """What this process's slice holds of every parameter: its position, where in it, and where in the slice."""
        end = self.begin + self.length
        for position, (start, stop) in enumerate(zip(self.starts, self.starts[1:])):
            low, high = max(start, self.begin), min(stop, end)
            if low < high:
                yield position, low - start, slice(low - self.begin, high - self.begin)


class SliceVector(GradientVector):
    """
    This process's slice of a gradient of the shared parameters, and which parameters were reached on any process.

    Args:
        layout (`Layout`):
            What the slice is of.
        piece (`torch.Tensor` of shape `(layout.length,)`, *optional*):
            The slice; nothing where the vector is zero.
        reached (`torch.Tensor` of shape `(parameters,)`, bool, *optional*):
            The parameters reached.
    """

    def __init__(self, layout: Layout, piece: Tensor | None = None, reached: Tensor | None = None):
        super().__init__([piece])
        self.layout = layout
        count = len(layout.starts) - 1
        self.reached = torch.zeros(count, dtype=torch.bool) if reached is None else reached

    def new_zero(self, dtype: torch.dtype | None = None) -> SliceVector:
        zero = super().new_zero(dtype)
        zero.reached = torch.zeros_like(self.reached)
        return zero

    def add_(self, other: SliceVector, alpha: float = 1.0) -> SliceVector:
        self.reached |= other.reached
        return super().add_(other, alpha)

    def lerp_(self, other: SliceVector, weight: float) -> SliceVector:
        self.reached |= other.reached
        return super().lerp_(other, weight)

    def map(self, others: Sequence[SliceVector], function: CoordinateFunction) -> SliceVector:
        result = super().map(others, function)
        result.reached = torch.stack([self.reached, *(other.reached for other in others)]).any(0)
        return result

    def norm(self) -> float:
        (piece,) = self.tensors
        if piece is None:
            return 0.0
        square = torch.linalg.vector_norm(piece, dtype=accumulation_dtype(piece.dtype)).double().square()
        dist.all_reduce(square)
        return math.sqrt(square.item()) if square.isfinite() else math.inf

    def sums(self, others: Sequence[SliceVector], function: CoordinateFunction) -> Tensor:
        device = next((one.tensors[0].device for one in (self, *others) if one.tensors[0] is not None), "cpu")
        total = super().sums(others, function).to(device)
        dist.all_reduce(total)
        return total.cpu()

    def entries(self) -> Iterator[tuple[int, int, Tensor]]:
        (piece,) = self.tensors
        if piece is not None:
            for position, start, where in self.layout.pieces():
                if self.reached[position]:
                    yield position, start, piece[where]

    def _stretches(self, position: int, size: int) -> Iterator[tuple[tuple[int, int], slice]]:
        for parameter, start, where in self.layout.pieces():
            for offset in range(0, where.stop - where.start, STRETCH):
                low = where.start + offset
                yield (parameter, start + offset), slice(low, min(low + STRETCH, where.stop))


@dataclass
class Pending:
    """A task whose gradient is on its way."""

    task: str
    passes: Passes
    numbers: Tensor
    piece: Tensor
    flat: Tensor | None
    works: list


class ReplicatedGradients(Gradients):
    """The gradients of W processes, each of which holds all parameters and keeps a slice of every gradient."""

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        super().__init__(shared, heads)
        self.layout = Layout([parameter.numel() for parameter in self.shared.values()])
        first = next(iter({**self.shared, **self.heads}.values()))
        self.device = first.device
        self.dtype = accumulation_dtype(first.dtype)
        # one zero tensor stands for every gradient that did not arrive
        self._zeros = torch.zeros(
            max((parameter.numel() for parameter in self.shared.values()), default=0), dtype=self.dtype
        )
        self._zeros = self._zeros.to(self.device)

    def each(
        self, tasks: Sequence[str], batches: Callable[[str], Sequence[Any]], how: How
    ) -> Iterator[tuple[str, TaskGradient]]:
        pending: Pending | None = None
        for task in tasks:
            passes = self._run_passes(task, batches(task), how, transformed=False)
            if pending is not None:
                done, pending = pending, None
                yield done.task, self._finish(done, how)
                del done
            pending = self._launch(task, passes)
            del passes
        if pending is not None:
            yield pending.task, self._finish(pending, how)

    def measure(self, task: str, batches: Sequence[Any], how: How) -> TaskGradient:
        return self._finish(self._launch(task, self._run_passes(task, batches, how, transformed=False)), how)

    def _launch(self, task: str, passes: Passes) -> Pending:
        """Starts the sums over all processes: of the gradient, and of a few numbers that say what came of the task."""
        passes.heads.mul_(passes.unit)
        flat = self._flatten(passes.shared)
        reached = [tensor is not None for tensor in (*passes.shared.tensors, *passes.heads.tensors)]
        passes.shared = GradientVector([])  # now in `flat`
        wrong = contradiction(passes.losses, passes.items)
        summed = sum(n * loss for n, loss in zip(passes.items, passes.losses) if n > 0)
        numbers = torch.tensor(
            [summed, sum(passes.items), wrong is not None, passes.heads.norm() ** 2, *reached], dtype=torch.float64
        ).to(self.device)
        flat.mul_(passes.unit)
        piece = torch.empty(self.layout.length, dtype=self.dtype, device=self.device)
        works = [dist.all_reduce(numbers, async_op=True), reduce_scatter(piece, flat, async_op=True)]
        return Pending(task, passes, numbers, piece, flat, works)

    def _finish(self, pending: Pending, how: How) -> TaskGradient:
        for work in pending.works:
            work.wait()
        pending.flat = None
        loss, items, wrong, heads_norm, *reached = pending.numbers.tolist()
        passes = pending.passes
        if wrong:
            own = contradiction(passes.losses, passes.items)
            refuse(pending.task, *(own or (math.nan, 0.0)))
        if items == 0:
            return TaskGradient(0.0, 0.0, *self.zero(), norm=0.0)
        mean = loss / items
        correction = how.derivative(pending.task, torch.tensor(mean, dtype=passes.dtype)).item() / items
        count = len(self.shared)
        shared = SliceVector(self.layout, pending.piece.mul_(correction), torch.tensor(reached[:count]) > 0)
        heads = passes.heads.mul_(correction)
        for i, parameter in enumerate(self.heads.values()):  # the same heads get a gradient on every process
            if reached[count + i] and heads.tensors[i] is None:
                heads.tensors[i] = torch.zeros_like(parameter, dtype=accumulation_dtype(parameter.dtype))
        return TaskGradient(mean, items, shared, heads, shared.norm(), heads_norm)

    def _flatten(self, vector: GradientVector) -> Tensor:
        """A copy in one flat tensor, padded to a multiple of the number of processes."""
        pieces = [
            self._zeros[: parameter.numel()] if tensor is None else tensor.reshape(-1)
            for parameter, tensor in zip(self.shared.values(), vector.tensors)
        ]
        padding = self.layout.length * self.layout.world - self.layout.starts[-1]
        return torch.cat([*pieces, self._zeros.new_zeros(padding)])

    def zero(self) -> tuple[SliceVector, GradientVector]:
        return SliceVector(self.layout), GradientVector([None] * len(self.heads))

    def from_entries(self, entries: Sequence[tuple[int, int, Tensor]]) -> SliceVector:
        vector, _ = self.zero()
        own = {position: (start, where) for position, start, where in self.layout.pieces()}
        for position, start, piece in entries:
            vector.reached[position] = True
            if vector.tensors[0] is None:
                vector.tensors[0] = torch.zeros(self.layout.length, dtype=piece.dtype, device=self.device)
            if position in own:
                first, where = own[position]
                low = max(start, first)
                high = min(start + piece.numel(), first + where.stop - where.start)
                if low < high:
                    shift = where.start - first
                    vector.tensors[0][low + shift : high + shift] = piece.reshape(-1)[low - start : high - start]
        return vector

    def full(self, vector: SliceVector) -> list[Tensor | None]:
        (piece,) = vector.tensors
        if piece is None:
            piece = torch.zeros(self.layout.length, dtype=self.dtype, device=self.device)
        flat = torch.empty(self.layout.length * self.layout.world, dtype=piece.dtype, device=piece.device)
        all_gather(flat, piece)
        return [
            flat[start:stop].view_as(parameter) if reached else None
            for start, stop, parameter, reached in zip(
                self.layout.starts, self.layout.starts[1:], self.shared.values(), vector.reached.tolist()
            )
        ]

    def write(self, shared: SliceVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        for parameter, tensor in zip(self.shared.values(), self.full(shared.mul_(loss_scale))):
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
