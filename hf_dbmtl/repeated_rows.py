"""Which rows of the last batch of an evaluation are there for the first time: accelerate fills it up with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import Tensor


__all__ = ["first_rows", "new_rows"]


def new_rows(accelerator: Accelerator, rows: int) -> int | None:
    """
    How many of the `rows` in this process's current batch count, `None` where on every process all of them do. The last
    batches of all processes, one behind the other, hold what was left of the dataset, and then rows that have been evaluated
    already.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return None
    return min(max(state.remainder - accelerator.process_index * rows, 0), rows)


def first_rows(batch: Mapping[str, Any], rows: int, count: int) -> dict[str, Any]:
    """The first `count` of the `rows` of a batch, labels by task included."""
    return {name: _first(value, rows, count) for name, value in batch.items()}


def _first(value: Any, rows: int, count: int) -> Any:
    if isinstance(value, Mapping):
        return first_rows(value, rows, count)
    sized = (isinstance(value, Tensor) and value.ndim) or isinstance(value, list)
    return value[:count] if sized and len(value) == rows else value
