"""What can be known to be wrong with the datasets before the first training step, with errors that say what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import datasets

from .collators import LABEL_COLUMNS, check_alignment
from .streams import is_stream
from .tasks import Task


if TYPE_CHECKING:
    from .units import Unit

__all__ = ["Lone", "check_dataset", "check_datasets", "check_names", "columns_of", "not_a_dictionary"]

CHUNK = 1000  # rows whose labels are checked at a time
SAMPLE = 8  # rows whose labels are checked where a label is a map of pixels


def check_names(
    what: str, names: Collection[str], tasks: Sequence[str], complete: bool = False, note: str = ""
) -> None:
    """
    Compares the task names of a dictionary with those of the model.

    Args:
        what (`str`):
            What the dictionary is, for the error.
        names (`Collection[str]`):
            Its keys.
        tasks (`Sequence[str]`):
            The names of the tasks.
        complete (`bool`, *optional*, defaults to `False`):
            Whether every task must be among the keys.
        note (`str`, *optional*):
            What else a key may be, for the error.
    """
    for name in names:
        if name not in tasks:
            near = difflib.get_close_matches(str(name), tasks, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "rename the key, or add the task to the model."
            raise ValueError(f"{what} names a task '{name}', and the tasks are {list(tasks)}: {hint}{note}")
    missing = [task for task in tasks if task not in names]
    if complete and missing:
        raise ValueError(
            f"{what} has nothing for the task{'s' if len(missing) > 1 else ''} {missing}: give a dataset for every "
            "task of the model, or take the task out of it with `model.remove_task(name)`."
        )


class Lone(dict):
    """A dataset that was given without a name, under the one of the group that it is to be."""


def check_datasets(what: str, given: Any) -> dict[str, Any]:
    """A dictionary of datasets by name, or an error that says what was given instead."""
    if isinstance(given, Mapping) and given:
        for name in given:
            if not isinstance(name, str) or not name or "/" in name:  # which ends it in the records and the checkpoint
                raise ValueError(f"{what}: the name of a task is a non-empty string without '/', and not {name!r}.")
        return dict(given)
    if not isinstance(given, Mapping) and columns_of(given):
        return Lone({"all": given})
    raise not_a_dictionary(what, given)


def not_a_dictionary(what: str, given: Any) -> TypeError:
    return TypeError(
        f"{what} must be a dictionary of one dataset per task, such as {{'mrpc': ..., 'stsb': ...}}, or a dataset with a "
        f"column of labels named like each task, and is {'empty' if isinstance(given, Mapping) else type(given).__name__}."
    )


def columns_of(dataset: Any) -> list[str]:
    """The columns of a dataset; of one that only its rows tell of, those of the first."""
    columns: list[str] = []
    if isinstance(dataset, datasets.IterableDataset) and dataset.column_names is None:  # of what a function made
        return list(next(iter(dataset), {}))
    if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        columns = list(dataset.column_names or ())
        if isinstance(dataset, datasets.IterableDataset) or dataset.format["type"] != "custom":
            return columns
    if isinstance(dataset, Mapping) or not isinstance(dataset, Sized) or len(dataset) == 0:
        return columns
    try:
        row = dataset[0]  # type: ignore[index]
    except (IndexError, KeyError, TypeError):  # a data frame, a set: the check of the dataset will say what it is
        return columns
    return [*columns, *row] if isinstance(row, Mapping) else columns


def check_dataset(
    split: str,
    unit: Unit,
    dataset: Any,
    tasks: Mapping[str, Task],
    columns: Collection[str] | None,
) -> None:
    """
    Checks a dataset: that it has rows, inputs the model takes, and labels the tasks take.

    Args:
        split (`str`):
            `"train"`, `"eval"` or `"test"`, for the error. A dataset to test on needs no labels.
        unit ([`Unit`]):
            The tasks that it feeds.
        dataset (`Dataset`):
            The dataset. The labels are read through here only where that is cheap, for a [`~datasets.Dataset`] without
            a transform (of maps of pixels the first few); others are checked as they are collated.
        tasks (`Mapping[str, Task]`):
            The tasks whose labels it holds, none where they are somebody else's business, that of a user's module or
            collator.
        columns (`Collection[str]`, *optional*):
            The columns that the model takes; `None` if it takes any.

    Raises:
        `TypeError`: for what is not a dataset with a length.
        `ValueError`: for a dataset without rows, without inputs or without labels, or with impossible ones.
    """
    which = f"{unit}: its {split} dataset"
    stream = is_stream(dataset)
    if stream and split == "train":
        if isinstance(dataset, datasets.IterableDataset) and dataset.column_names is not None:
            _check_inputs(which, unit, dataset.column_names, columns)
        return
    if stream or not isinstance(dataset, Sized):
        raise TypeError(
            f"{which} is a {type(dataset).__name__} and has no length. Joint batches and evaluations need one: give a dataset "
            "with `__len__`, such as `datasets.Dataset.from_generator(...)`, or of a stream "
            "`Dataset.from_list(list(stream.take(1000)))`. All training sets may be an `IterableDataset`."
        )
    by_number = hasattr(dataset, "__getitem__") and not isinstance(dataset, (Mapping, str))
    if not by_number or type(dataset).__name__ == "DataFrame":
        raise TypeError(
            f"{which} is a {type(dataset).__name__}"
            + (f" with the keys {list(dataset)[:10]}" if isinstance(dataset, Mapping) else "")
            + " and must be a dataset whose rows are found by number: one split of a DatasetDict, or what "
            "`datasets.Dataset.from_dict` or `.from_pandas` makes."
        )
    if len(dataset) == 0:
        raise ValueError(f"{which} is empty. Give it rows, or leave the task out.")
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return
    _check_inputs(which, unit, dataset.column_names, columns)
    for name, task in tasks.items():
        if not task.self_supervised:
            _check_labels(split, which, name, dataset, task, [name] if unit.is_group else LABEL_COLUMNS)


def _check_inputs(which: str, unit: Unit, given: Sequence[str], columns: Collection[str] | None) -> None:
    labels = unit.tasks if unit.is_group else LABEL_COLUMNS
    inputs = [column for column in given if column not in labels]
    if columns is not None and not any(column in columns for column in inputs):
        raise ValueError(
            f"{which} has the columns {given}, of which the model takes none as an input. It takes "
            f"{sorted(set(columns) - set(LABEL_COLUMNS))}: tokenize the texts first, rename the columns, or set "
            "`remove_unused_columns=False` where a `data_collator` of yours makes the inputs."
        )


def _check_labels(
    split: str, which: str, name: str, dataset: datasets.Dataset, task: Task, columns: Sequence[str]
) -> None:
    column = next((column for column in columns if column in dataset.column_names), None)
    if column is None:
        if split != "train":
            return  # a dataset to predict on
        raise ValueError(
            f"{which} has the columns {dataset.column_names} and none of {list(columns)}: name the column of the "
            "labels 'labels', or leave the task out."
        )
    tokens = ["input_ids"] if task.per_token and "input_ids" in dataset.column_names else []
    rows = dataset.select_columns([column, *tokens]).with_format(None)
    if task.dense:
        rows = rows.select(range(min(SAMPLE, len(rows))))
    labelled = 0
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        if tokens:
            check_alignment(name, chunk[column], chunk["input_ids"])
        labelled += int(task.labelled(task.label_tensor(name, chunk[column])).sum())
    if labelled == 0 and split != "test" and not task.dense:
        raise ValueError(f"{which} has no label at all in its column '{column}': mend the data, or leave the task out.")
