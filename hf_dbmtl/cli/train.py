"""`hf-dbmtl train`: settings in, a folder with the model, its card, a plot and the metrics out."""

from __future__ import annotations

import argparse
from collections.abc import Sized
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_dbmtl_cli import CommandError

from ..callbacks import MultiTaskProgressCallback, PlotCallback
from ..conflicts import ConflictCallback
from ..preemption import PreemptionCallback
from ..trainer import MultiTaskTrainer
from ..training_args import MultiTaskTrainingArguments
from .building import make_trainer, prepare
from .config import read_config, run_settings, training_settings
from .launching import relaunch
from .settings import DatasetSettings, GroupSettings, Setting, TaskSettings, TrainSettings, settings_of
from .tables import results_table


__all__ = ["run", "train"]


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    if given.help_all:
        _print_settings(Console())
    elif given.config is None:
        raise CommandError("name the YAML file: hf-dbmtl train config.yaml")
    else:
        settings, args = read_config(given.config, given.settings)
        relaunch(given, args.use_cpu or args.device.type == "cpu")
        train(settings, args)


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
    tokenizer, data = prepare(settings, args)
    callbacks = [PlotCallback(), PreemptionCallback(), *_early_stopping(settings, args)]
    trainer = make_trainer(settings, args, tokenizer, data, callbacks)
    if settings.conflict_steps is not None:
        trainer.add_callback(ConflictCallback(trainer, settings.conflict_steps))
    MultiTaskProgressCallback.replace(trainer)
    if "tensorboard" in (args.report_to or ()):
        from ..tensorboard import MultiTaskTensorBoardCallback

        MultiTaskTensorBoardCallback.replace(trainer)

    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics)
    metrics = trainer.evaluate() if data.eval else {}
    if metrics:
        trainer.save_metrics("eval", metrics)
    sources = [source.dataset for source in settings.inputs.values() if source.dataset is not None]
    paths = dict.fromkeys(source.path for source in sources if source.path)
    card: dict[str, Any] = {
        "baselines": data.baselines,
        "dataset": [path for path in paths if not Path(path).exists()] or None,
    }
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    if trainer.is_world_process_zero():
        console = Console()
        rows = {name: len(rows) for name, rows in data.by_task(data.train).items() if isinstance(rows, Sized)}
        console.print(results_table(data.tasks, metrics, data.baselines, data.by_task(data.eval), rows))
        console.print(f"The model, its card and its metrics are in {args.output_dir}.", highlight=False, soft_wrap=True)
    return trainer


def _early_stopping(settings: TrainSettings, args: MultiTaskTrainingArguments) -> list[TrainerCallback]:
    if settings.early_stopping_patience is None:
        return []
    if not args.load_best_model_at_end or args.metric_for_best_model is None:
        raise CommandError(
            "early_stopping_patience needs load_best_model_at_end: true, and metric_for_best_model: average, or a metric of "
            "one task such as mrpc_f1."
        )
    return [EarlyStoppingCallback(settings.early_stopping_patience, settings.early_stopping_threshold)]


def _checkpoint(given: str | bool | None) -> str | bool | None:
    """What `Trainer.train` takes: a folder, or whether to go on from the newest checkpoint."""
    if isinstance(given, str) and not Path(given).is_dir():
        raise CommandError(
            f"resume_from_checkpoint: there is no folder {given}. true takes the newest checkpoint in output_dir."
        )
    return given


def _print_settings(console: Console) -> None:
    """Every setting with its default and its help."""
    groups = {
        "The run": run_settings(),
        "A task (tasks.NAME)": settings_of(TaskSettings),
        "Its data (tasks.NAME.dataset)": settings_of(DatasetSettings),
        "What tasks share (groups.NAME)": settings_of(GroupSettings),
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
    if setting.default in (None, "", {}):
        return text
    return f"{text} Default: {getattr(setting.default, 'value', setting.default)}."
