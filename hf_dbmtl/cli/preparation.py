"""The data of all tasks, as the Trainer takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_dbmtl_cli import CommandError

from ..metrics import baseline_metrics, main_metric
from ..tasks import Task
from .encoding import encode, encode_images
from .labels import LabelReader, declare_task
from .settings import TaskSettings, TrainSettings
from .sources import as_list, load_rows, sample
from .values import nearest


__all__ = ["Data", "load_data", "load_evaluation"]


@dataclass
class Data:
    """The tasks, and their data as the Trainer takes them."""

    tasks: dict[str, Task]
    train: dict[str, Dataset]
    eval: dict[str, Dataset]
    baselines: dict[str, dict[str, float]]
    validation: dict[str, Dataset] = field(default_factory=dict)


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
    data = Data({}, {}, {}, {})
    for name, task in settings.tasks.items():
        _check_task(name, task)
        loaded = load_rows(name, task)
        declared = declare_task(name, task, loaded.train)  # before rows are drawn: the names must all be there
        length = _max_length(name, task.max_length or settings.max_length, longest)
        data.tasks[name] = declared
        for into, rows, count in (
            (data.train, loaded.train, task.max_train_samples or settings.max_train_samples),
            (data.eval, loaded.eval, task.max_eval_samples or settings.max_eval_samples),
            (data.validation, loaded.validation, None),
        ):
            if rows is not None:
                reader = LabelReader.of(name, declared, as_list(task.label), rows)
                into[name] = _encode(task, sample(rows, count), tokenizer, reader, length)
        if loaded.eval is not None:
            data.baselines[name] = _baseline(name, declared, _labels(data.train[name]), _labels(data.eval[name]))
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
    data = Data({}, {}, {}, {})
    for name, task in settings.tasks.items():
        _check_task(name, task)
        if name not in tasks:
            raise CommandError(
                f"Task '{name}': the model has no such task{nearest(name, tasks) or f', only {list(tasks)}.'}"
            )
        if tasks[name].kind != task.kind:
            raise CommandError(f"Task '{name}': its kind is {task.kind}, and that of the model is {tasks[name].kind}.")
        train_rows, rows, _ = load_rows(name, task)
        if rows is None:
            continue
        length = _max_length(name, task.max_length or settings.max_length, longest)
        columns = as_list(task.label)
        data.tasks[name] = tasks[name]
        rows = sample(rows, task.max_eval_samples or settings.max_eval_samples)
        reader = LabelReader.of(name, tasks[name], columns, rows)
        data.eval[name] = _encode(task, rows, tokenizer, reader, length)
        train_labels = LabelReader.of(name, tasks[name], columns, train_rows)(train_rows.select_columns(columns)[:])
        data.baselines[name] = _baseline(name, tasks[name], train_labels, _labels(data.eval[name]))
    return data


def _encode(task: TaskSettings, rows: Dataset, processing: Any, reader: LabelReader, length: int | None) -> Dataset:
    if task.image is not None:
        return encode_images(rows, processing, task.image, reader)
    return encode(rows, processing, as_list(task.text), reader, length)


def _labels(rows: Dataset) -> list:
    return rows.with_format(None)["labels"][:]


def _check_task(name: str, settings: TaskSettings) -> None:
    limit = 1 if settings.kind == "token_classification" else 2
    for what, columns, most in (("text", as_list(settings.text), limit), ("label", as_list(settings.label), None)):
        if not columns or (most is not None and len(columns) > most):
            wanted = "one column or more" if most is None else "one column" if most == 1 else "one column or two"
            raise CommandError(f"Task '{name}': `{what}` must name {wanted}, and names {columns}.")
    for what in ("max_length", "max_train_samples", "max_eval_samples"):
        if (count := getattr(settings, what)) is not None and count < 1:
            raise CommandError(f"Task '{name}': `{what}` must be 1 or more, and is {count}.")


def _max_length(name: str, wanted: int | None, longest: int | None) -> int | None:
    if wanted is not None and longest is not None and wanted > longest:
        raise CommandError(
            f"Task '{name}': max_length={wanted} is more than the {longest} tokens that the encoder takes: lower it."
        )
    return longest if wanted is None else wanted


def _baseline(name: str, task: Task, train_labels: list, eval_labels: list) -> dict[str, float]:
    """What never looking at the input reaches; and the check that the main metric is one that will be computed."""
    try:
        metrics = baseline_metrics(task, train_labels, eval_labels)
    except ValueError:
        return {}  # no labels: the Trainer's own check says it better
    if metrics and main_metric(task) not in metrics:
        raise CommandError(
            f"Task '{name}': main_metric '{task.main_metric}' is not computed"
            f"{nearest(task.main_metric, metrics) or '.'} Those of its kind are {', '.join(metrics)}."
        )
    return metrics
