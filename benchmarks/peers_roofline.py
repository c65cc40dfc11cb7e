"""The roofline of peers.py: what the bandwidth of the memory allows of DB-MTL's own work, beside the passes of the model."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from balancing_cost import copies, make_gradients, now
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_dbmtl.balancing import Balancer, make_balancer
from hf_dbmtl.gradients import keep_freed_memory
from hf_dbmtl.gradients.flat import FlatVector


__all__ = ["Bandwidth", "Traffic", "roofline"]

ONLY_WRITES = ("copy_", "fill_", "zero_")  # of the tensor that they change
ALLOCATES = ("empty", "new_empty")


class Traffic(TorchDispatchMode):
    """
    Adds up in `bytes` what the operations in it read and write of tensors. A view moves nothing; neither does memory that is
    only allocated. What an operation reads twice is counted once, and caches are not known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip((argument.name for argument in operation._schema.arguments), args)) | (kwargs or {})
        found = operation(*args, **(kwargs or {}))
        name = operation._schema.name.rpartition(":")[2]
        if operation.is_view or name.startswith(ALLOCATES):
            return found
        seen: set[int] = set()
        for argument in operation._schema.arguments:
            changed = argument.alias_info is not None and argument.alias_info.is_write
            reads = not changed or not (argument.is_out or name in ONLY_WRITES)
            for tensor in _tensors(given.get(argument.name)):
                seen.add(id(tensor))
                self.bytes += (reads + changed) * _size(tensor)
        self.bytes += sum(_size(tensor) for tensor in _tensors(found) if id(tensor) not in seen)
        return found


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


class Bandwidth:
    """
    Bytes a second, each time that it is asked for: the best of a copy, a product and a sum. The latter two are in place, as
    DB-MTL's operations are: a processor reads a line before it writes to it, which no count of operands sees.
    """

    def __init__(self, device: str, size: int = 1 << 26):
        one, two = (torch.ones(size, device=device) for _ in range(2))
        self.runs = ((2, lambda: one.copy_(two)), (2, lambda: one.mul_(1.0)), (3, lambda: one.add_(two)))
        self.unit = one.nbytes

    def __call__(self) -> float:
        return max(moved * self.unit / timed(run) for moved, run in self.runs)


def timed(run: Callable[[], Any]) -> float:
    start = now()
    run()
    return now() - start


def balance(balancer: Balancer, vectors: dict[str, FlatVector]) -> None:
    """What is left of a step when the gradients, of the logarithms, are there."""
    balancer.begin()
    for task, gradient in vectors.items():
        balancer.take(task, 1.0, gradient)
    balancer.balance()


def roofline(tasks: int, size: int, device: str, steps: int = 10) -> dict[str, float]:
    r"""
    DB-MTL's work in a step on gradients of `size` entries that are all there: averages, norms, weighted sum.

    Returns:
        `dict[str, float]`: the `bytes` it moves, and the `least_bytes` of $4 (4 T + 1) |\theta|$, where the norm is taken while
        the average is formed; the `bandwidth`, in bytes a second; the median of its `milliseconds`, the
        `roofline_milliseconds` that its bytes take at that bandwidth, and the latter's `share` of the former (the median of
        the steps, each beside the bandwidth right after it).
    """
    keep_freed_memory()  # as training does
    rows = make_gradients(tasks, size, device)
    balancer = make_balancer("db_mtl").setup(list(rows))
    balance(balancer, copies(rows))  # there were no averages yet
    with Traffic() as traffic:
        balance(balancer, rows)
    seconds, rates = [], []
    bandwidth = Bandwidth(device)
    bandwidth()  # the first touch of its memory
    for _ in range(steps):  # in turns, since a machine is not always as fast; on what the step before left as gradients
        seconds.append(timed(lambda: balance(balancer, rows)))
        rates.append(bandwidth())
    return {
        "bytes": traffic.bytes,
        "least_bytes": 4 * (4 * tasks + 1) * size,
        "bandwidth": round(statistics.median(rates)),
        "milliseconds": float(f"{1e3 * statistics.median(seconds):.4g}"),
        "roofline_milliseconds": float(f"{1e3 * traffic.bytes / statistics.median(rates):.4g}"),
        "share": round(statistics.median(traffic.bytes / (took * rate) for took, rate in zip(seconds, rates)), 3),
    }
