"""`hf-dbmtl train`: settings in, a folder with the model, its card, a plot and the metrics out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, enable_full_determinism, set_seed
from transformers.utils import logging

from hf_dbmtl_cli import CommandError

from ..callbacks import MultiTaskProgressCallback, PlotCallback
from ..configuration import MultiTaskConfig
from ..metrics import main_metric
from ..modeling import MultiTaskModel
from ..preemption import PreemptionCallback
from ..trainer import MultiTaskTrainer
from ..training_args import MultiTaskTrainingArguments
from .config import read_config, run_settings, training_settings
from .preparation import Data, load_data
from .settings import Setting, TaskSettings, TrainSettings, settings_of


__all__ = ["run", "train"]

NO_LIMIT = 1_000_000  # tokenizers that know of no limit name a much larger number


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
    checkpoint = _checkpoint(args.resume_from_checkpoint)
    logging.set_verbosity(args.get_process_log_level())
    # the heads are made before the Trainer sets the seed
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    tokenizer, longest = _load_tokenizer(settings)
    with args.main_process_first(desc="loading and tokenizing the data"):  # the others find it in the cache
        data = load_data(settings, tokenizer, longest)
    trainer = _make_trainer(settings, args, tokenizer, data)
    MultiTaskProgressCallback.replace(trainer)

    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate() if data.eval else {}
    if metrics:
        trainer.save_metrics("eval", metrics)
    paths = dict.fromkeys(task.dataset.path for task in settings.tasks.values() if task.dataset.path)
    card = {"baselines": data.baselines, "dataset": [path for path in paths if not Path(path).exists()] or None}
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    if trainer.is_world_process_zero():
        console = Console()
        console.print(_table(data, metrics))
        console.print(f"The model, its card and its metrics are in {args.output_dir}.", highlight=False, soft_wrap=True)
    return trainer


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
            f"model_name_or_path '{settings.model_name_or_path}' has its heads already: name its encoder, or go on "
            "with an interrupted run by --resume_from_checkpoint."
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
            callbacks=[PlotCallback(), PreemptionCallback()],
        )
    except (OSError, TypeError, ValueError) as error:  # they name the task, the value and the remedy
        raise CommandError(str(error)) from error


def _checkpoint(given: str | bool | None) -> str | bool | None:
    """What `Trainer.train` takes: a folder, or whether to go on from the newest checkpoint."""
    if isinstance(given, str) and not Path(given).is_dir():
        raise CommandError(
            f"resume_from_checkpoint: there is no folder {given}. true takes the newest checkpoint in output_dir."
        )
    return given


def _table(data: Data, metrics: Mapping[str, float]) -> Table:
    """The main metric of every task beside the baseline's, and their average."""
    table = Table(title="Results", title_justify="left", caption_justify="left")
    table.caption = "baseline: always the most frequent class, or the mean" if metrics else "not evaluated"
    for column in ("task", "metric"):
        table.add_column(column)
    for column in ("train", "eval", "baseline", "result", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, task in data.tasks.items():
        metric, rows = main_metric(task), data.eval.get(name, ())
        numbers = (
            data.baselines.get(name, {}).get(metric),
            metrics.get(f"eval_{name}_{metric}"),
            metrics.get(f"eval_{name}_loss"),
        )
        table.add_row(name, metric, f"{len(data.train[name]):,}", f"{len(rows):,}", *map(_shown, numbers))
    if metrics:
        table.add_section()
        table.add_row("average", "", "", "", "", *(_shown(metrics.get(key)) for key in ("eval_average", "eval_loss")))
    return table


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}" if abs(number) >= 1000 else f"{number:.4f}"


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
