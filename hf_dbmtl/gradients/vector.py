"""A gradient of the shared parameters, as one process holds it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor


if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["GradientVector", "accumulation_dtype"]

CoordinateFunction = Callable[[Tensor, int, int], Tensor]
ROW = 1 << 10
STRETCH = 1 << 18  # entries of a vector worked on at a time where several are looked at side by side
TOGETHER = (
    1 << 20
)  # entries of all of them, whose doubles (8 MiB) are memory that is free again and need not be had anew


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which gradients of parameters of type `dtype` are added up: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


class GradientVector:
    """
    One tensor per shared parameter, `None` where no gradient has arrived: a parameter that no task reaches must stay
    without a gradient, since an optimizer such as AdamW moves a weight whose gradient is zero.

    The tensors are taken over as autograd left them, without a copy, and the operations run over all of them at once.

    Args:
        tensors (`Sequence[torch.Tensor | None]`):
            The entries, in the order of the shared parameters.
    """

    def __init__(self, tensors: Sequence[Tensor | None]):
        self.tensors = list(tensors)
        self.dtype: torch.dtype | None = None  # of entries to come; None: the accumulation type of what arrives

    def new_zero(self, dtype: torch.dtype | None = None) -> Self:
        """A zero vector of the same parameters, none of them reached, whose entries will be kept in `dtype`."""
        zero = copy.copy(self)
        zero.tensors, zero.dtype = [None] * len(self.tensors), dtype
        return zero

    def norm(self) -> float:
        """The Euclidean norm. It is inf or NaN where any entry is."""
        tensors = self._reached()
        if not tensors:
            return 0.0
        norm = _norm(tensors)
        return norm if 0.0 < norm < math.inf else math.hypot(*(tensor.double().norm().item() for tensor in tensors))

    def take(self) -> Self:
        """This vector for keeps, where it was only lent: a new one takes its entries over and leaves it empty."""
        return self.new_zero().swap_(self)

    def swap_(self, other: Self) -> Self:
        """Exchanges the entries with `other`, without a copy."""
        self.tensors, other.tensors = other.tensors, self.tensors
        return self

    def hold_(self, other: Self) -> Self:
        """Becomes what `other` is, rounded where this vector keeps its entries in another type. `other` is used up."""
        if self.dtype is None:
            return self.swap_(other)
        for position, tensor in enumerate(other.tensors):
            mine = self.tensors[position]
            if mine is None or tensor is None:
                self.tensors[position] = None if tensor is None else tensor.to(self.dtype, copy=True)
            else:
                mine.copy_(tensor)
        return self

    def set_(self, other: Self, alpha: float = 1.0) -> Self:
        """Becomes `alpha` times `other`, in the memory that this vector has."""
        for position, (a, b) in enumerate(zip(self.tensors, other.tensors)):
            if a is None or b is None:
                self.tensors[position] = None if b is None else b.to(accumulation_dtype(b.dtype)) * alpha
            elif a.dtype == b.dtype:
                torch.mul(b, alpha, out=a)
            else:
                a.copy_(b).mul_(alpha)
        return self

    def gramian(self, others: Sequence[Self]) -> Tensor:
        """The products of this vector and `others` with one another, in float64 on the CPU."""
        return self.sums(others, lambda pieces, parameter, start: pieces @ pieces.T)

    def map(self, others: Sequence[Self], function: CoordinateFunction) -> Self:
        """A new vector, by `function(pieces, parameter, start)` applied to the entries of this vector and `others`."""
        result = self.new_zero()
        for position, where, stretch, pieces in self._pieces(others):
            found = result.tensors[position]
            if found is None:
                like = next(one for vector in (self, *others) if (one := vector.tensors[position]) is not None)
                found = torch.zeros(like.shape, dtype=accumulation_dtype(like.dtype), device=like.device)
                result.tensors[position] = found
            found.view(-1)[stretch] = function(pieces, *where).to(found.dtype)
        return result

    def sums(self, others: Sequence[Self], function: CoordinateFunction) -> Tensor:
        """
        The numbers that `function(pieces, parameter, start)` gives, a tensor that is the same for all stretches in shape,
        added up over the whole vector, in float64 on the CPU.
        """
        total: Tensor | None = None
        for _, where, _, pieces in self._pieces(others):
            part = function(pieces, *where).double().cpu()
            total = part if total is None else total + part
        return function(torch.zeros(1 + len(others), 0, dtype=torch.float64), 0, 0) if total is None else total

    def entries(self) -> Iterator[tuple[int, int, Tensor]]:
        """What is reached of every parameter here: its position, where the piece starts in it (flattened), the piece."""
        for position, tensor in enumerate(self.tensors):
            if tensor is not None:
                yield position, 0, tensor

    def _stretches(self, position: int, size: int, length: int) -> Iterator[tuple[tuple[int, int], slice]]:
        """Cuts the flattened tensor at `position` into stretches, each with the parameter and the place it is of."""
        for start in range(0, size, length):
            yield (position, start), slice(start, min(start + length, size))

    def _pieces(self, others: Sequence[Self]) -> Iterator[tuple[int, tuple[int, int], slice, Tensor]]:
        """The entries of this vector and `others` side by side in float64, stretch by stretch; zero where unreached."""
        length = min(STRETCH, max(TOGETHER // (1 + len(others)), 1))
        for position, tensors in enumerate(zip(self.tensors, *(other.tensors for other in others))):
            like = next((tensor for tensor in tensors if tensor is not None), None)
            if like is None:
                continue
            flat = [None if tensor is None else tensor.reshape(-1) for tensor in tensors]
            for where, stretch in self._stretches(position, like.numel(), length):
                empty = like.new_zeros(stretch.stop - stretch.start, dtype=torch.float64)
                yield (
                    position,
                    where,
                    stretch,
                    torch.stack([empty if one is None else one[stretch].double() for one in flat]),
                )

    def mul_(self, factor: float | Tensor) -> Self:
        """Multiplies by a number (or a tensor of shape `()`) in place. A factor of 1.0 costs nothing."""
        tensors = self._reached()
        if tensors and not (isinstance(factor, float) and factor == 1.0):
            torch._foreach_mul_(tensors, factor)
        return self

    def add_(self, other: Self, alpha: float = 1.0) -> Self:
        """Adds `alpha` times `other` in place."""
        self._adopt(other, alpha, lambda mine, theirs: torch._foreach_add_(mine, theirs, alpha=alpha))
        return self

    def lerp_(self, other: Self, weight: float) -> Self:
        """Moves towards `other` in place: `(1 - weight) * self + weight * other`."""
        untouched = [a for a, b in zip(self.tensors, other.tensors) if a is not None and b is None]
        if untouched:
            torch._foreach_mul_(untouched, 1.0 - weight)
        self._adopt(other, weight, lambda mine, theirs: _lerp(mine, theirs, weight))
        return self

    def _adopt(self, other: Self, alpha: float, combine: Callable[[list[Tensor], list[Tensor]], None]) -> None:
        """Combines the entries that both have, and starts from `alpha * other` where this vector has none yet."""
        pairs = [(a, b) for a, b in zip(self.tensors, other.tensors) if a is not None and b is not None]
        if pairs:
            combine(*map(list, zip(*pairs)))
        for i, (a, b) in enumerate(zip(self.tensors, other.tensors)):
            if a is None and b is not None:
                scaled = b.to(accumulation_dtype(b.dtype)) * alpha
                self.tensors[i] = scaled if self.dtype is None else scaled.to(self.dtype)

    def _reached(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors if tensor is not None]


def _norm(tensors: list[Tensor]) -> float:
    """
    The norm of all tensors together. A float32 sum over millions of squares is wrong from the fourth digit on, so short
    rows are summed in it, and the rows in float64.
    """
    norms = []
    for tensor in tensors:
        flat = tensor.reshape(-1).to(accumulation_dtype(tensor.dtype))
        whole = flat.numel() // ROW * ROW
        norms.append(torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1))
        norms.append(torch.linalg.vector_norm(flat[whole:]).reshape(1))
    return torch.cat([one.to(norms[0].device) for one in norms]).double().norm().item()


def _lerp(mine: list[Tensor], theirs: list[Tensor], weight: float) -> None:
    if all(a.dtype == b.dtype for a, b in zip(mine, theirs)):
        torch._foreach_lerp_(mine, theirs, weight)
        return
    for a, b in zip(mine, theirs):  # one of them kept in a smaller type: compute in the larger, round once
        dtype = torch.promote_types(a.dtype, b.dtype)
        a.copy_(torch.lerp(a.to(dtype), b.to(dtype), weight))
