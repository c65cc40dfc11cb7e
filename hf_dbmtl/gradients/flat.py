"""A gradient of the shared parameters as one flat tensor, of which a process may hold a slice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .vector import CoordinateFunction, GradientVector, accumulation_dtype


if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FlatVector", "Layout"]


class Layout:
    """
    How the shared parameters lie in one flat tensor and what of it a process keeps: slices of equal length, the end padded
    with zeros.

    Args:
        parameters (`Mapping[str, torch.nn.Parameter]`):
            The shared parameters, in their order.
        rank (`int`, *optional*, defaults to 0):
            This process.
        world (`int`, *optional*, defaults to 1):
            The number of processes.
        heads (`Mapping[str, torch.nn.Parameter]`, *optional*):
            Those of the heads, which tell the device where nothing is shared.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        rank: int = 0,
        world: int = 1,
        heads: Mapping[str, nn.Parameter] | None = None,
    ):
        self.parameters = list(parameters.values())
        self.rank, self.world = rank, world
        self.starts = [0]
        for parameter in self.parameters:
            self.starts.append(self.starts[-1] + parameter.numel())
        self.length = max(1, -(-self.starts[-1] // world))  # with a frozen encoder nothing but padding
        self.begin = rank * self.length
        first = next(iter({**parameters, **(heads or {})}.values()))
        self.device, self.dtype = first.device, accumulation_dtype(first.dtype)
        for parameter in self.parameters:
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)

    def empty(self) -> Tensor:
        """A flat tensor of all parameters."""
        return torch.empty(self.length * self.world, dtype=self.dtype, device=self.device)

    def unflatten(self, flat: Tensor, reached: Sequence[bool]) -> list[Tensor | None]:
        """Views of a flat tensor of all parameters, one for each parameter that is reached."""
        return [
            flat[start:stop].view(parameter.shape) if there else None
            for start, stop, parameter, there in zip(self.starts, self.starts[1:], self.parameters, reached)
        ]

    def pieces(self) -> Iterator[tuple[int, int, slice]]:
        """What this process's slice holds of every parameter: its position, where in it, and where in the slice."""
        end = self.begin + self.length
        for position, (start, stop) in enumerate(zip(self.starts, self.starts[1:])):
            low, high = max(start, self.begin), min(stop, end)
            if low < high:
                yield position, low - start, slice(low - self.begin, high - self.begin)


class FlatVector(GradientVector):
    """
    This process's slice of a gradient of the shared parameters (with one process all of it), and which parameters were
    reached on any process.

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
        count = len(layout.parameters)
        self.reached = torch.zeros(count, dtype=torch.bool) if reached is None else reached

    def new_zero(self, dtype: torch.dtype | None = None) -> Self:
        zero = super().new_zero(dtype)
        zero.reached = torch.zeros_like(self.reached)
        return zero

    def add_(self, other: Self, alpha: float = 1.0) -> Self:
        self.reached = self.reached | other.reached
        return super().add_(other, alpha)

    def lerp_(self, other: Self, weight: float) -> Self:
        self.reached = self.reached | other.reached
        return super().lerp_(other, weight)

    def set_(self, other: Self, alpha: float = 1.0) -> Self:
        self.reached = other.reached
        return super().set_(other, alpha)

    def swap_(self, other: Self) -> Self:
        self.reached, other.reached = other.reached, self.reached
        return super().swap_(other)

    def hold_(self, other: Self) -> Self:
        super().hold_(other)
        if self.dtype is not None:
            self.reached = other.reached
        return self

    def map(self, others: Sequence[Self], function: CoordinateFunction) -> Self:
        result = super().map(others, function)
        result.reached = torch.stack([self.reached, *(other.reached for other in others)]).any(0)
        return result

    def norm(self) -> float:
        own = super().norm()
        if self.layout.world == 1:
            return own
        square = torch.tensor(own, dtype=torch.float64, device=self.layout.device).square()
        dist.all_reduce(square)
        return math.sqrt(square.item()) if square.isfinite() else math.inf

    def sums(self, others: Sequence[Self], function: CoordinateFunction) -> Tensor:
        total = super().sums(others, function)
        if self.layout.world > 1:
            total = total.to(self.layout.device)
            dist.all_reduce(total)
        return total.cpu()

    def entries(self) -> Iterator[tuple[int, int, Tensor]]:
        (piece,) = self.tensors
        if piece is not None:
            for position, start, where in self.layout.pieces():
                if self.reached[position]:
                    parameter, own = self.layout.parameters[position], piece[where]
                    yield position, start, own.view(parameter.shape) if own.numel() == parameter.numel() else own

    @classmethod
    def from_entries(cls, layout: Layout, entries: Sequence[tuple[int, int, Tensor]]) -> FlatVector:
        """This process's slice of the vector whose `entries`, of all processes of some run, are given."""
        vector = cls(layout)
        own = {position: (start, where) for position, start, where in layout.pieces()}
        flat: Tensor | None = None
        for position, start, piece in entries:
            vector.reached[position] = True
            if flat is None:
                flat = torch.zeros(layout.length, dtype=piece.dtype, device=layout.device)
                vector.tensors = [flat]
            if position in own:
                first, where = own[position]
                low = max(start, first)
                high = min(start + piece.numel(), first + where.stop - where.start)
                if low < high:
                    shift = where.start - first
                    flat[low + shift : high + shift] = piece.reshape(-1)[low - start : high - start]
        return vector

    def _stretches(self, position: int, size: int, length: int) -> Iterator[tuple[tuple[int, int], slice]]:
        for parameter, start, where in self.layout.pieces():
            for offset in range(0, where.stop - where.start, length):
                low = where.start + offset
                yield (parameter, start + offset), slice(low, min(low + length, where.stop))
