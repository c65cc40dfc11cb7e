"""From the labels in a dataset, be they names or numbers, to those that a task takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset, LargeList, List, Value

from hf_dbmtl_cli import CommandError

from ..tasks import Task, task_from_dict
from .settings import TaskSettings
from .streamed import head
from .values import nearest


__all__ = ["LabelReader", "declare_task"]

MISSING = -100
# Kinds whose labels the data name or number; others hold positions or maps, or none at all.
READ = ("classification", "multi_label_classification", "regression", "token_classification", "multiple_choice")
SHOWN = 8  # names that fit into a message
# Different strings in a label column from which on it is taken for a mistake, where they make up half of the rows.
MANY = 100


def declare_task(name: str, settings: TaskSettings, train: Dataset | IterableDataset) -> Task:
    """
    The task that the settings declare, its labels completed from the training data where they are silent: the names of
    a `ClassLabel` column, else the strings that occur, sorted, else as many as the largest number asks for. Of choices
    there are as many as the first row has.

    Raises:
        [`CommandError`]: labels that do not suit the kind of the task.
    """
    columns = settings.labels
    vector = settings.kind in ("multi_label_classification", "regression")
    if len(columns) > 1 and not vector and settings.kind != "question_answering":
        raise CommandError(f"Task '{name}': {settings.kind} takes one label column, and {columns} are {len(columns)}.")
    names, count = settings.label_names, settings.num_labels
    if isinstance(train, IterableDataset):
        train = head(name, settings, train)
    if settings.kind in READ:
        if names is None and len(columns) > 1:
            names = columns
        elif names is None and settings.kind != "regression":
            names = _names_in(name, train, columns[0], settings.kind)
        if settings.kind == "multiple_choice" and count is None:
            count = _choices(name, settings, train)
        if names is None and count is None:
            rows = [label for label in train[columns[0]][:] if label is not None]
            count = _width(rows) if vector else _classes(rows)
    described = {"kind": settings.kind, "num_labels": count, "label_names": names}
    for one in ("dropout", "main_metric", "max_answer_length", "mlm_probability", "ignore_index"):
        if (value := getattr(settings, one)) is not None:
            described[one] = value
    try:
        return task_from_dict(described)
    except (TypeError, ValueError) as error:
        found = f" (its data hold {_shown(names)})" if names and settings.label_names is None else ""
        raise CommandError(f"Task '{name}': {error}{found}") from error


def _choices(name: str, settings: TaskSettings, train: Dataset) -> int:
    columns = settings.choice_columns
    if len(columns) > 1:
        return len(columns)
    (first,) = train.select_columns(columns)[:1][columns[0]] or [[]]
    if not isinstance(first, list):
        raise CommandError(
            f"Task '{name}': the column '{columns[0]}' must hold a list of choices per row, and holds {str(first)[:80]!r}: name "
            "another in `choices`, or a column for each."
        )
    return len(first)


def _leaf(rows: Dataset, column: str) -> Any:
    feature = rows.features[column]
    while isinstance(feature, (List, LargeList)):
        feature = feature.feature
    return feature


def _is_text(rows: Dataset, column: str) -> bool:
    leaf = _leaf(rows, column)
    return isinstance(leaf, Value) and "string" in leaf.dtype


def _names_in(name: str, rows: Dataset, column: str, kind: str) -> list[str] | None:
    """The names that the labels of a column have; `None` where they are numbers."""
    leaf = _leaf(rows, column)
    if isinstance(leaf, ClassLabel):
        return list(leaf.names)
    if not _is_text(rows, column):
        return None
    if kind == "multi_label_classification" and isinstance(rows.features[column], Value):
        raise CommandError(
            f"Task '{name}': the labels in '{column}' are strings, such as {next(iter(rows[column]), '')!r}. Give a "
            "list per row, of the names that hold or of a 0 or 1 for every label; or a column of 0 and 1 for every "
            "label, as in label: [a, b, c]."
        )
    found: set[str] = set()
    for label in rows[column][:]:
        found.update([label] if kind in ("classification", "multiple_choice") else _words(label))
    found.discard(None)
    if len(found) > MANY and 2 * len(found) > len(rows):
        raise CommandError(
            f"Task '{name}': the label column '{column}' holds {len(found)} different strings in {len(rows)} rows. Is "
            "it the one meant? If so, list them in label_names."
        )
    numbers = all(_is_number(one) for one in found)
    return sorted(found, key=int if numbers else None)


def _words(label: Any) -> Sequence[Any]:
    """The labels of a row: a string holds them between white space, as a file of one line per sentence does."""
    if label is None:
        return []
    return label.split() if isinstance(label, str) else label


def _is_number(word: str) -> bool:
    return word.removeprefix("-").isdecimal()


def _classes(rows: Sequence[Any]) -> int:
    """Two at least, and as many as the largest index asks for."""
    numbers = [one for row in rows for one in (row if isinstance(row, (list, tuple)) else [row]) if one is not None]
    finite = [one for one in numbers if isinstance(one, (int, float)) and math.isfinite(one)]
    return max(2, int(max(finite, default=0)) + 1)


def _width(rows: Sequence[Any]) -> int:
    return len(rows[0]) if rows and isinstance(rows[0], (list, tuple)) else 1


def _shown(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more


@dataclass
class LabelReader:
    """
    Turns the label columns of rows into labels: an index (-100 where it is missing), a list of these by word, or a
    number or a vector of numbers (NaN where missing).

    Args:
        name (`str`):
            The name of the task, for errors.
        task (`Task`):
            The task.
        columns (`list[str]`):
            The label columns.
        source (`list[str]`, *optional*):
            The names by which the data number their classes, those of a `ClassLabel`.
    """

    name: str
    task: Task
    columns: list[str]
    source: list[str] | None = None
    hot: bool = False  # whether a row lists the labels that hold

    @classmethod
    def of(cls, name: str, task: Task, columns: list[str], rows: Dataset) -> LabelReader:
        """The reader for a dataset."""
        leaf = _leaf(rows, columns[0])
        source = list(leaf.names) if isinstance(leaf, ClassLabel) else None
        hot = task.kind == "multi_label_classification" and len(columns) == 1
        reader = cls(name, task, columns, source, hot and (source is not None or _is_text(rows, columns[0])))
        reader._check_source()
        return reader

    def __call__(self, rows: Mapping[str, list]) -> list:
        if len(self.columns) > 1:
            return [[self._number(value) for value in row] for row in zip(*(rows[column] for column in self.columns))]
        return [self._label(value) for value in rows[self.columns[0]]]

    def _label(self, value: Any) -> Any:
        kind, width = self.task.kind, self.task.num_labels
        if kind in ("classification", "multiple_choice"):
            return self._index(value)
        if kind == "token_classification":
            return [self._index(one) for one in _words(value)]
        if self.hot:
            if value is None:
                return [math.nan] * width
            held = {self._index(one) for one in value}
            return [float(index in held) for index in range(width)]
        if isinstance(value, (list, tuple)):
            return [self._number(one) for one in value]
        number = self._number(value)
        return number if width == 1 and kind == "regression" else [number] * (width if math.isnan(number) else 1)

    def _number(self, value: Any) -> float:
        if isinstance(value, str):
            raise CommandError(
                f"Task '{self.name}': label {value!r} is a string, and {self.task.kind} takes numbers: mend the data, "
                "or name another column in `label`."
            )
        return math.nan if value is None else float(value)

    def _index(self, value: Any) -> int:
        names = self.task.label_names
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return MISSING
        if isinstance(value, float):  # a column of integers with gaps is one of floats in a csv file
            if not value.is_integer():
                raise CommandError(f"Task '{self.name}': label {value} is no class: give integers or names.")
            value = int(value)
        if self.source is not None and not isinstance(value, str):
            if value == -1:  # no label, by the convention of `datasets`
                return MISSING
            return self._from_source(value)
        if isinstance(value, str):
            if names is None or value not in names:
                known = f"The names are {_shown(names)}." if names else "The training data hold numbers."
                raise CommandError(
                    f"Task '{self.name}': label {value!r} has no index{nearest(value, names or ()) or '.'} {known} "
                    "List all names in label_names."
                )
            return names.index(value)
        if not isinstance(value, int):
            raise CommandError(f"Task '{self.name}': label {value!r} is no class: give integers or names.")
        # where the names are numbers themselves, such as 1 to 5 stars, a number in the data is a name
        if names is not None and str(value) in names and all(_is_number(one) for one in names):
            return names.index(str(value))
        return int(value)

    def _from_source(self, value: int) -> int:
        names, source = self.task.label_names, self.source
        if names is not None and source is not None and set(names) == set(source) and value < len(source):
            return names.index(source[value])
        return int(value)

    def _check_source(self) -> None:
        """Other names than those of the data rename them in their order; the same names may stand in another order."""
        names, source = self.task.label_names, self.source
        if names is None or source is None or set(names) == set(source):
            return
        moved = [one for position, one in enumerate(names) if one in source and source.index(one) != position]
        if len(names) != len(source) or moved:
            raise CommandError(
                f"Task '{self.name}': label_names are {_shown(names)}, and the data call their classes "
                f"{_shown(source)}, in this order: give the same names, or a new name for each in the same order."
            )
