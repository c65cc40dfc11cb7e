"""Counts what processes exchange: the bytes of the tensors handed to collectives, and what a ring makes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


__all__ = ["CollectiveBytes"]

# By the name of the operator: what it is, and which of its arguments holds the whole tensor.
COLLECTIVES = {
    "allreduce_": ("all_reduce", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "_allgather_base_": ("all_gather", 0),
    "broadcast_": ("broadcast", 0),
    "allgather_": ("all_gather", 0),
}
# How often a ring sends each byte of the whole tensor, per process, as a multiple of (W - 1) / W.
RING = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "broadcast": 1}


class CollectiveBytes(TorchDispatchMode):
    """
    A context that counts the collectives of this process, those inside of FSDP too.

    Attributes:
        calls (`Counter[str]`):
            How often each collective was called: `"all_reduce"`, `"reduce_scatter"`, `"all_gather"`, `"broadcast"`.
        sizes (`Counter[str]`):
            The bytes of the whole tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def volume(self, collective: str) -> float:
        """The bytes that this process sends for a collective over a ring of all processes."""
        world = dist.get_world_size()
        return RING[collective] * self.sizes[collective] * (world - 1) / world

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "c10d" and name in COLLECTIVES:
            collective, position = COLLECTIVES[name]
            self.calls[collective] += 1
            self.sizes[collective] += sum(one.numel() * one.element_size() for one in _tensors(args[position]))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    else:
        for one in value:
            yield from _tensors(one)
