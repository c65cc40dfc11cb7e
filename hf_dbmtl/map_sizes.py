"""The size of a dataset's maps of pixels, which a batch in which all of them are missing does not tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from torch import Tensor

from .collators import LABEL_COLUMNS
from .tasks import Task
from .units import Unit


__all__ = ["as_large_as_others", "map_sizes"]


def map_sizes(unit: Unit, dataset: Any, tasks: Mapping[str, Task | None]) -> dict[str, tuple[int, int]]:
    """
    Height and width of the first map of every task that has maps as labels, and any in the dataset.

    Args:
        unit ([`Unit`]):
            The tasks that the dataset feeds.
        dataset (`Dataset`):
            A dataset with a length.
        tasks (`Mapping[str, Task | None]`):
            The tasks of the model.
    """
    sizes = {}
    for name in unit:
        task = tasks[name]
        if (
            task is not None
            and task.dense
            and (size := _first_size(dataset, [name] if unit.is_group else LABEL_COLUMNS))
        ):
            sizes[name] = size
    return sizes


def as_large_as_others(labels: Mapping[str, Any], sizes: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """
    Label tensors of a batch by task, where those without a map, of one pixel for want of a better size, get that of the other
    batches: only what is of one size can be gathered from several processes and put behind one another.
    """
    return {
        name: own.expand(*own.shape[:-2], *sizes[name]).contiguous()
        if name in sizes and isinstance(own, Tensor) and own.shape[-2:] == (1, 1)
        else own
        for name, own in labels.items()
    }


def _first_size(dataset: Any, columns: list[str] | tuple[str, ...]) -> tuple[int, int] | None:
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":  # the images need not be read
        dataset = dataset.select_columns([column for column in columns if column in dataset.column_names])
        dataset = dataset.with_format(None)
    for row in range(len(dataset)):
        example = dataset[row]
        label = next((example[column] for column in columns if column in example), None)
        if label is not None:
            height, width = np.asarray(label).shape[-2:]
            return height, width
    return None
