"""What balancing asks of a gradient, wherever it lives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor


__all__ = ["CoordinateFunction", "V", "Vector"]

V = TypeVar("V", bound="Vector")

# (pieces, parameter, start) -> piece: from the entries of several vectors for the same stretch of a parameter, a tensor of
# shape (vectors, n), those of one vector, of shape (n,). `parameter` is the position of the parameter among the shared
# ones, `start` that of the stretch in the flattened parameter: the same on every process, however the parameter is cut.
CoordinateFunction = Callable[[Tensor, int, int], Tensor]


class Vector(Protocol):
    """
    A gradient of the shared parameters. Its entries may be spread over processes; norms and products are those of the
    whole vector, the same number on every process.
    """

    def norm(self) -> float: ...

    def gramian(self: V, others: Sequence[V]) -> Tensor:
        """The products of this vector and `others` with one another, `(1 + len(others),) * 2`, float64, on the CPU."""

    def new_zero(self: V, dtype: torch.dtype | None = None) -> V: ...

    def take(self: V) -> V:
        """This vector for keeps, where it was only lent. It is empty afterwards."""

    def swap_(self: V, other: V) -> V:
        """Exchanges the entries with `other`."""

    def hold_(self: V, other: V) -> V:
        """Becomes what `other` is, which is used up."""

    def set_(self: V, other: V, alpha: float = 1.0) -> V:
        """Becomes `alpha` times `other`, in the memory that this vector has."""

    def mul_(self: V, factor: float) -> V: ...

    def add_(self: V, other: V, alpha: float = 1.0) -> V: ...

    def lerp_(self: V, other: V, weight: float) -> V: ...

    def map(self: V, others: Sequence[V], function: CoordinateFunction) -> V:
        """A new vector, by `function` applied to the entries of this vector and `others`, stretch by stretch."""

    def sums(self: V, others: Sequence[V], function: CoordinateFunction) -> Tensor:
        """As `map`, but each call gives numbers, a tensor of one shape, which are added up over the whole vector."""
