"""Data that are read as they are needed, from files or over the network, in the order in which they stand there."""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, LargeList, List, Value

from hf_dbmtl_cli import CommandError

from ..training_args import MultiTaskTrainingArguments
from .settings import DatasetSettings, TaskSettings, TrainSettings


__all__ = ["BATCH", "check_streamed", "first_rows", "head", "shuffled"]

BUFFER = 1000  # rows among which the next is drawn, as `datasets` has it
# Kinds whose labels may be names.
NAMED = ("classification", "token_classification", "multi_label_classification", "multiple_choice")
BATCH = 100  # rows that are tokenized at once: a run that goes on begins with the first of these


def check_streamed(settings: TrainSettings, args: MultiTaskTrainingArguments, path: str) -> None:
    """
    Refuses what needs the number of rows, or to look at all of them.

    Raises:
        [`CommandError`]: it names the file, the setting and the remedy.
    """
    inputs = {
        name: (f"{'groups' if name in settings.groups else 'tasks'}.{name}.dataset", source.dataset)
        for name, source in settings.inputs.items()
        if source.dataset is not None
    }
    streamed = [where for where, dataset in inputs.values() if dataset.streaming]
    for where, dataset in inputs.values():
        if dataset.streaming:
            _check_shares(f"{path}: {where}.", dataset)
        elif streamed:
            raise CommandError(f"{path}: {where}.streaming: it must be true, as it is in {streamed[0]}: all or none.")
        elif dataset.buffer_size is not None:
            raise CommandError(
                f"{path}: {where}.buffer_size: it is a setting of streaming: true, and this is not: leave it out."
            )
    if not streamed:
        return
    for name, wrong, remedy in (
        ("max_steps", args.max_steps <= 0, "set it: how many steps an epoch has is not known"),
        ("mixing", args.mixing != "equal", "the sizes to mix by are not known: leave it out"),
        ("conflict_steps", settings.conflict_steps is not None, "it looks at rows drawn by number: leave it out"),
    ):
        if wrong:
            raise CommandError(f"{path}: {name}: {streamed[0]} is streamed, and {remedy}.")


def _check_shares(where: str, dataset: DatasetSettings) -> None:
    for name in ("eval_fraction", "validation_fraction"):
        if getattr(dataset, name):
            raise CommandError(
                f"{where}{name}: no share of rows can be held out of what is streamed: name other rows (split.eval or "
                "data_files.eval), or do without (eval_fraction: 0)."
            )
    if dataset.buffer_size is not None and dataset.buffer_size < 0:
        raise CommandError(f"{where}buffer_size: it must be 0 or more, and is {dataset.buffer_size}.")


def shuffled(rows: IterableDataset, count: int | None, source: DatasetSettings, seed: int) -> IterableDataset:
    """The rows to train on: the first ones, shuffled within a buffer, otherwise in every epoch."""
    rows = rows if count is None else rows.take(count)
    size = BUFFER if source.buffer_size is None else source.buffer_size
    return rows.shuffle(seed=seed, buffer_size=size) if size > 1 else rows


def first_rows(rows: IterableDataset, count: int | None) -> Dataset:
    """The first rows, or all, in memory: what is evaluated on needs a length."""
    return Dataset.from_list(list(rows if count is None else rows.take(count)), features=rows.features)


def head(name: str, settings: TaskSettings, rows: IterableDataset) -> Dataset:
    """
    The first row, which tells as much of a task as can be told without reading the others.

    Raises:
        [`CommandError`]: labels that only all rows would tell.
    """
    columns, kind = settings.labels, settings.kind
    leaf: Any = rows.features[columns[0]] if columns else None
    while isinstance(leaf, (List, LargeList)):
        leaf = leaf.feature
    if settings.label_names is not None or len(columns) != 1 or isinstance(leaf, ClassLabel):
        return first_rows(rows, 1)
    text = isinstance(leaf, Value) and "string" in leaf.dtype
    unnamed = text and kind in NAMED
    uncounted = settings.num_labels is None and kind in ("classification", "token_classification")
    if unnamed or uncounted:
        raise CommandError(
            f"Task '{name}': its data are streamed, and its labels not known before all have been read: give "
            f"{'label_names' if text else 'num_labels, or label_names'}."
        )
    return first_rows(rows, 1)
