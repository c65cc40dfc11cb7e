"""The data of all tasks, as the Trainer takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_dbmtl_cli import CommandError

from ..tasks import Task
from ..units import Unit
from .baselines import baseline
from .encoding import encode, encode_task
from .images import encode_images
from .labels import LabelReader, declare_task
from .maps import MapReader
from .settings import GroupSettings, TaskSettings, TrainSettings
from .sources import SEED, Rows, load_rows, sample
from .streamed import first_rows, shuffled
from .values import nearest


__all__ = ["Data", "load_data", "load_evaluation"]


@dataclass
class Data:
    """
    The tasks, and their data as the Trainer takes them: by unit, which is a task with data of its own or a group.

    Attributes:
        units (`dict[str, Unit]`): the tasks of every unit.
        tasks (`dict[str, Task]`): the tasks.
        train, eval, validation (`dict[str, Dataset]`): the data by unit.
        baselines (`dict[str, dict[str, float]]`): what never looking at the input reaches, by task and metric.
    """

    units: dict[str, Unit] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    train: dict[str, Dataset] = field(default_factory=dict)
    eval: dict[str, Dataset] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    validation: dict[str, Dataset] = field(default_factory=dict)

    def by_task(self, datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """Datasets of units, by task."""
        return {task: datasets[name] for name, unit in self.units.items() if name in datasets for task in unit}

    def column(self, task: str) -> str:
        """The column of the labels of a task."""
        return "labels" if task in self.units else task


def load_data(settings: TrainSettings, tokenizer: PreTrainedTokenizerBase, longest: int | None = None) -> Data:
    """
    Loads and tokenizes the data of all tasks.

    Args:
        settings ([`TrainSettings`]):
            The tasks.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        longest (`int`, *optional*):
            Tokens of an input, where the settings do not say.
    """
    data = Data()
    for name, source in settings.inputs.items():
        members = settings.members(name)
        loaded = _load(name, source, members)
        # before rows are drawn: the names must all be there
        declared = {task: declare_task(task, own, loaded.train) for task, own in members.items()}
        length = _max_length(name, source.max_length or settings.max_length, longest)
        data.tasks |= declared
        data.units[name] = Unit(name, tuple(members))
        for into, rows, count in (
            (data.train, loaded.train, source.max_train_samples or settings.max_train_samples),
            (data.eval, loaded.eval, source.max_eval_samples or settings.max_eval_samples),
            (data.validation, loaded.validation, None),
        ):
            if rows is not None:
                readers = _readers(data, members, rows)
                rows = _drawn(source, rows, count, into is data.train)
                into[name] = _encode(name, source, rows, tokenizer, readers, length)
        for task in members if loaded.eval is not None else ():
            data.baselines[task] = baseline(task, declared[task], data.column(task), data.train[name], data.eval[name])
    data.tasks = {name: data.tasks[name] for name in settings.tasks}
    return data


def load_evaluation(
    settings: TrainSettings, tasks: Mapping[str, Task], tokenizer: PreTrainedTokenizerBase, longest: int | None = None
) -> Data:
    """
    Loads and tokenizes what a trained model is to be evaluated on, its labels as the model numbers them.

    Args:
        settings ([`TrainSettings`]):
            The tasks, or some of the model's.
        tasks (`Mapping[str, Task]`):
            The tasks of the model.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        longest (`int`, *optional*):
            Tokens of an input, where the settings do not say.
    """
    data = Data()
    for name, task in settings.tasks.items():
        if name not in tasks:
            raise CommandError(
                f"Task '{name}': the model has no such task{nearest(name, tasks) or f', only {list(tasks)}.'}"
            )
        if tasks[name].kind != task.kind:
            raise CommandError(f"Task '{name}': its kind is {task.kind}, and that of the model is {tasks[name].kind}.")
    for name, source in settings.inputs.items():
        members = settings.members(name)
        train_rows, rows, _ = _load(name, source, members)
        if rows is None:
            continue
        length = _max_length(name, source.max_length or settings.max_length, longest)
        data.tasks |= {member: tasks[member] for member in members}
        data.units[name] = Unit(name, tuple(members))
        rows = _drawn(source, rows, source.max_eval_samples or settings.max_eval_samples, False)
        data.eval[name] = _encode(name, source, rows, tokenizer, _readers(data, members, rows), length)
        trained = _readers(data, members, train_rows)
        for member, own in members.items():
            column = data.column(member)
            reader, train = trained.get(column), None
            if isinstance(reader, LabelReader) and isinstance(train_rows, Dataset):
                train = {column: reader(train_rows.select_columns(own.labels)[:])}
            data.baselines[member] = baseline(member, tasks[member], column, train, data.eval[name])
    return data


def _load(name: str, source: TaskSettings | GroupSettings, members: Mapping[str, TaskSettings]) -> Rows:
    """The rows of a unit, with the columns that its settings and those of its tasks name."""
    for task, own in members.items():
        if own.kind != "masked_language_modeling":
            _check_columns("Task", task, "label", own.labels, 1, None)
    kinds = {own.kind for own in members.values()}
    what = "Group" if isinstance(source, GroupSettings) else "Task"
    most: int | None
    least, most = 1, 1 if "token_classification" in kinds else 2
    if "multiple_choice" in kinds:
        least, most = 0, 1
    elif "question_answering" in kinds:
        positions = any(len(own.labels) == 2 for own in members.values())
        least, most = (1, None) if positions else (2, 2)
    if source.image is None:
        _check_columns(what, name, "text", source.texts, least, most)
    for limit in ("max_length", "max_train_samples", "max_eval_samples"):
        if (count := getattr(source, limit)) is not None and count < 1:
            raise CommandError(f"{what} '{name}': `{limit}` must be 1 or more, and is {count}.")
    return load_rows(name, source, [column for own in members.values() for column in own.labels])


def _drawn(source: TaskSettings | GroupSettings, rows: Any, count: int | None, training: bool) -> Any:
    """The rows that are made use of."""
    if not isinstance(rows, IterableDataset):
        return sample(rows, count)
    if not training:
        return first_rows(rows, count)
    assert source.dataset is not None  # the rows are from there
    return shuffled(rows, count, source.dataset, SEED)


def _check_columns(what: str, name: str, setting: str, columns: list[str], least: int, most: int | None) -> None:
    if len(columns) < least or (most is not None and len(columns) > most):
        wanted = {
            (0, 1): "one column, or none",
            (1, 1): "one column",
            (1, 2): "one column or two",
            (2, 2): "two columns",
        }
        raise CommandError(
            f"{what} '{name}': `{setting}` must name {wanted.get((least, most or 0), 'one column or more')}, and names {columns}."
        )


def _readers(data: Data, members: Mapping[str, TaskSettings], rows: Dataset) -> dict[str, Any]:
    """What reads the labels of tasks, by the column that these go to; those of questions and masked tokens come otherwise."""
    readers: dict[str, Any] = {}
    for name, own in members.items():
        task = data.tasks[name]
        if task.dense:
            readers[data.column(name)] = MapReader(name, task, own.labels[0])
        elif task.kind not in ("question_answering", "masked_language_modeling"):
            readers[data.column(name)] = LabelReader.of(name, task, own.labels, rows)
    return readers


def _encode(
    name: str,
    source: TaskSettings | GroupSettings,
    rows: Dataset,
    processing: Any,
    readers: Mapping[str, Any],
    length: int | None,
) -> Dataset:
    if source.image is not None:
        return encode_images(rows, processing, source.image, readers)
    if isinstance(source, TaskSettings):
        return encode_task(rows, processing, name, source, readers, length)
    return encode(rows, processing, source.texts, readers, length)


def _max_length(name: str, wanted: int | None, longest: int | None) -> int | None:
    if wanted is not None and longest is not None and wanted > longest:
        raise CommandError(
            f"Task '{name}': max_length={wanted} is more than the {longest} tokens that the encoder takes: lower it."
        )
    return longest if wanted is None else wanted
