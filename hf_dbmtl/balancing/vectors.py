"""What balancing asks of a gradient, wherever it lives."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch


__all__ = ["Vector"]

V = TypeVar("V", bound="Vector")


class Vector(Protocol):
    """
    A gradient of the shared parameters. Its entries may be spread over processes; norms and products are those of the
    whole vector, the same number on every process.
    """

    def norm(self) -> float: ...

    def new_zero(self: V, dtype: torch.dtype | None = None) -> V: ...

    def mul_(self: V, factor: float) -> V: ...

    def add_(self: V, other: V, alpha: float = 1.0) -> V: ...

    def lerp_(self: V, other: V, weight: float) -> V: ...
