"""`hf-dbmtl train`: settings in, a folder with the model, its card, a plot and the metrics out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, enable_full_determinism, set_seed
from transformers.utils import logging

from hf_dbmtl_cli import CommandError

from ..callbacks import MultiTaskProgressCallback, PlotCallback
from ..configuration import MultiTaskConfig
from ..metrics import baseline_metrics, main_metric
from ..modeling import MultiTaskModel
from ..tasks import Task
from ..trainer import MultiTaskTrainer
from ..training_args import MultiTaskTrainingArguments
from .config import read_config, run_settings, training_settings
from .encoding import encode
from .labels import LabelReader, declare_task
from .settings import Setting, TaskSettings, TrainSettings, settings_of
from .sources import as_list, load_rows, sample
from .values import nearest


__all__ = ["Data", "load_data", "run", "train"]

NO_LIMIT = 1_000_000  # tokenizers that know of no limit name a much larger number


@dataclass
class Data:
    """The tasks, and their data as the Trainer takes them."""

    tasks: dict[str, Task]
    train: dict[str, Dataset]
    eval: dict[str, Dataset]
    baselines: dict[str, dict[str, float]]


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    if given.help_all:
        _print_settings(Console())
    elif given.config is None:
        raise CommandError("name the YAML file: hf-dbmtl train config.yaml")
    else:
        train(*read_config(given.config, given.settings))


def train(settings: TrainSettings, args: MultiTaskTrainingArguments) -> MultiTaskTrainer:
    """
    Trains, evaluates and saves.

    Args:
        settings ([`TrainSettings`]):
            The model and the tasks.
        args ([`MultiTaskTrainingArguments`]):
            The training arguments.

    Returns:
        [`MultiTaskTrainer`]: the trainer, after all of it.

    Raises:
        [`CommandError`]: what is known to be wrong before the first step.
    """
    logging.set_verbosity(args.get_process_log_level())
    # the heads are made before the Trainer sets the seed
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    tokenizer, longest = _load_tokenizer(settings)
    with args.main_process_first(desc="loading and tokenizing the data"):  # the others find it in the cache
        data = load_data(settings, tokenizer, longest)
    trainer = _make_trainer(settings, args, tokenizer, data)
    MultiTaskProgressCallback.replace(trainer)

    result = trainer.train(resume_from_checkpoint=_checkpoint(args.resume_from_checkpoint))
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate() if data.eval else {}
    if metrics:
        trainer.save_metrics("eval", metrics)
    hub = [one.dataset.path for one in settings.tasks.values() if one.dataset.path and not Path(one.dataset.path).exists()]
    card = {"baselines": data.baselines, "dataset": list(dict.fromkeys(hub)) or None}
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    if trainer.is_world_process_zero():
        console = Console()
        console.print(_table(data, metrics))
        console.print(f"The model, its card and its metrics are in {args.output_dir}.", highlight=False, soft_wrap=True)
    return trainer


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
        train_rows, eval_rows = load_rows(name, task)
        declared = declare_task(name, task, train_rows)  # before rows are drawn: the names must all be there
        length = _max_length(name, task.max_length or settings.max_length, longest)

        def prepare(rows: Dataset, own: int | None, common: int | None) -> Dataset:
            reader = LabelReader.of(name, declared, as_list(task.label), rows)
            return encode(sample(rows, common if own is None else own), tokenizer, as_list(task.text), reader, length)

        data.tasks[name] = declared
        data.train[name] = prepare(train_rows, task.max_train_samples, settings.max_train_samples)
        if eval_rows is not None:
            data.eval[name] = prepare(eval_rows, task.max_eval_samples, settings.max_eval_samples)
            data.baselines[name] = _baseline(name, declared, data.train[name], data.eval[name])
    return data


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
        raise CommandError(f"Task '{name}': max_length={wanted} is more than the {longest} tokens that the encoder takes.")
    return longest if wanted is None else wanted


def _baseline(name: str, task: Task, train_rows: Dataset, eval_rows: Dataset) -> dict[str, float]:
    """What never looking at the input reaches; and the check that the main metric is one that will be computed."""
    try:
        metrics = baseline_metrics(task, train_rows["labels"][:], eval_rows["labels"][:])
    except ValueError:
        return {}  # no labels: the Trainer's own check says it better
    if metrics and main_metric(task) not in metrics:
        raise CommandError(
            f"Task '{name}': main_metric '{task.main_metric}' is not computed{nearest(task.main_metric, metrics) or '.'} "
            f"Those of its kind are {', '.join(metrics)}."
        )
    return metrics


def _load_tokenizer(settings: TrainSettings) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer, and how many tokens it and the encoder take (`None` where neither tells)."""
    name, options = settings.model_name_or_path, {"trust_remote_code": settings.trust_remote_code}
    what = "model_name_or_path"
    try:
        config = AutoConfig.from_pretrained(name, revision=settings.model_revision or "main", **options)
        if settings.tokenizer_name is None:
            options["revision"] = settings.model_revision or "main"
        else:
            what, name = "tokenizer_name", settings.tokenizer_name
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise CommandError(f"{what} '{name}' could not be loaded: {' '.join(str(error).split())}") from error
    if isinstance(config, MultiTaskConfig):
        raise CommandError(
            f"model_name_or_path '{settings.model_name_or_path}' has its heads already: name its encoder, or go on with an "
            "interrupted run by --resume_from_checkpoint."
        )
    if tokenizer.pad_token is None:  # decoders have none; what is padded is masked
        tokenizer.pad_token = tokenizer.eos_token
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or NO_LIMIT)
    return tokenizer, longest if longest < NO_LIMIT else None


def _make_trainer(
    settings: TrainSettings, args: MultiTaskTrainingArguments, tokenizer: PreTrainedTokenizerBase, data: Data
) -> MultiTaskTrainer:
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.model_revision is not None:
        options["revision"] = settings.model_revision
    try:
        model = MultiTaskModel.from_encoder(
            settings.model_name_or_path, data.tasks, pooling=settings.pooling, processing_class=tokenizer, **options
        )
        return MultiTaskTrainer(
            model=model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.eval or None,
            processing_class=tokenizer,
            callbacks=[PlotCallback()],
        )
    except (OSError, TypeError, ValueError) as error:  # they name the task, the value and the remedy
        raise CommandError(str(error)) from error


def _checkpoint(given: str | bool | None) -> str | bool | None:
    """What `Trainer.train` takes: a folder, or whether to go on from the newest checkpoint."""
    if isinstance(given, str) and not Path(given).is_dir():
        raise CommandError(f"resume_from_checkpoint: there is no folder {given}; true stands for the newest in output_dir.")
    return given


def _table(data: Data, metrics: Mapping[str, float]) -> Table:
    """The main metric of every task beside the baseline's, and their average."""
    table = Table(title="Results", title_justify="left", caption_justify="left")
    table.caption = "baseline: always the most frequent class, or the mean" if metrics else "not evaluated"
    for column in ("task", "kind", "metric"):
        table.add_column(column)
    for column in ("train rows", "eval rows", "baseline", "result", "loss"):
        table.add_column(column, justify="right")
    for name, task in data.tasks.items():
        metric, rows = main_metric(task), data.eval.get(name)
        values = (data.baselines.get(name, {}).get(metric), metrics.get(f"eval_{name}_{metric}"))
        shown = ["" if value is None else f"{value:.4f}" for value in (*values, metrics.get(f"eval_{name}_loss"))]
        sizes = [f"{len(data.train[name]):,}", "" if rows is None else f"{len(rows):,}"]
        table.add_row(name, task.kind.replace("_", " "), metric, *sizes, *shown)
    if "eval_average" in metrics:
        table.add_section()
        average = [f"{metrics[key]:.4f}" if key in metrics else "" for key in ("eval_average", "eval_loss")]
        table.add_row("average", "", "", "", "", "", *average)
    return table


def _print_settings(console: Console) -> None:
    """Every setting with its default and its help."""
    groups = {
        "The run": run_settings(),
        "A task (tasks.NAME)": settings_of(TaskSettings),
        "Its data (tasks.NAME.dataset)": settings_of(settings_of(TaskSettings)["dataset"].group),
        "Training arguments": training_settings(),
    }
    for title, known in groups.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 1))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name, setting in known.items():
            table.add_row(name, _help(setting))
        console.print(table)


def _help(setting: Setting) -> str:
    text = " ".join(setting.help.split())
    if setting.required:
        return f"{text} Required."
    if setting.default is None or setting.default == "":
        return text
    return f"{text} Default: {getattr(setting.default, 'value', setting.default)}."
