"""One run of `hf-dbmtl compare`."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.trainer_utils import IntervalStrategy

from ..conflicts import ConflictCallback
from ..step_cost import StepCostCallback
from ..streams import is_stream
from ..trainer import MultiTaskTrainer
from ..training_args import MultiTaskTrainingArguments
from ..units import Unit
from .building import make_trainer, prepare, steps
from .compare_plan import CONFIG, RESULT, write_atomically
from .config import read_config
from .preparation import Data


__all__ = ["run_one"]

MEASUREMENTS = 20  # of the cosines between the tasks, over the run


def run_one(folder: str, task: str | None = None, keep_model: bool = False) -> None:
    """
    Trains and evaluates by the settings in a folder, and leaves the result there.

    Args:
        folder (`str`):
            The folder, with the settings in `config.yaml`.
        task (`str`, *optional*):
            Train on this task alone: as many steps as all of them take together, with as many of its rows in each.
        keep_model (`bool`, *optional*, defaults to `False`):
            Whether the trained model is kept.
    """
    settings, args = read_config(str(Path(folder, CONFIG)))
    output = str(args.output_dir)
    shutil.rmtree(output, ignore_errors=True)  # what an interrupted run left
    tokenizer, data = prepare(settings, args)
    if task is not None:
        args, data = alone(task, args, data)
    cost = StepCostCallback()
    trainer = make_trainer(settings, args, tokenizer, data, callbacks=[cost])
    streamed = any(map(is_stream, data.train.values()))  # the callback draws rows by number
    if len(data.tasks) > 1 and not streamed:
        trainer.add_callback(ConflictCallback(trainer, every=1 / MEASUREMENTS))
    trainer.train()
    if keep_model:
        trainer.save_model()
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        result = {
            "metrics": by_task(metrics, trainer),
            "seconds_per_step": cost.seconds,
            "memory_bytes": cost.memory,
            "steps": trainer.state.global_step,
            "log_history": [_finite(record) for record in trainer.state.log_history],
        }
        write_atomically(Path(folder, RESULT), json.dumps(result, indent=1))
        for checkpoint in Path(output).glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if not keep_model:
            shutil.rmtree(output, ignore_errors=True)


def alone(task: str, args: MultiTaskTrainingArguments, data: Data) -> tuple[MultiTaskTrainingArguments, Data]:
    """
    The arguments and data of a model of one task. It is to see what the joint model sees of the task: as many steps, as many
    rows in each, and evaluations as often; an epoch of its own data would be shorter.
    """
    parts = args.gradient_accumulation_steps * args.world_size
    joint, epoch = steps(data, args)
    epoch = epoch or args.max_steps  # of what is streamed nobody knows
    wanted = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    (unit,) = (name for name, one in data.units.items() if task in one)
    changes: dict[str, Any] = {"max_steps": wanted, "per_task_batch_size": {task: max(1, round(joint[unit] / parts))}}
    for what in ("eval", "save", "logging"):
        if getattr(args, f"{what}_strategy") == IntervalStrategy.EPOCH:
            changes |= {f"{what}_strategy": IntervalStrategy.STEPS, f"{what}_steps": epoch}
    if args.metric_for_best_model not in (None, "loss", "eval_loss"):
        changes |= {"metric_for_best_model": "average", "greater_is_better": True}
    for name, value in changes.items():
        setattr(args, name, value)
    return args, replace(
        data,
        tasks={task: data.tasks[task]},
        units={task: Unit.alone(task)},
        train=_alone(task, unit, data, data.train),
        eval=_alone(task, unit, data, data.eval),
        validation={},
    )


def _alone(task: str, unit: str, data: Data, datasets: dict[str, Dataset]) -> dict[str, Dataset]:
    """The dataset of a task alone; of one in a group the group's rows with its labels."""
    if unit not in datasets or unit == task:
        return {task: datasets[unit]} if unit in datasets else {}
    rows = datasets[unit]
    others = [other for other in data.units[unit] if other != task]
    return {task: rows.remove_columns(others).rename_column(task, "labels")}


def by_task(metrics: dict[str, float], trainer: MultiTaskTrainer) -> dict[str, dict[str, float]]:
    """What `evaluate` returned, task by task."""
    # the longest name first: 'a_b' owns eval_a_b_f1, although it begins with the 'a' of another task
    found: dict[str, dict[str, float]] = {task: {} for task in trainer.tasks}
    for key, value in metrics.items():
        owner = max((task for task in found if key.startswith(f"eval_{task}_")), key=len, default=None)
        if owner is not None:
            found[owner][key.removeprefix(f"eval_{owner}_")] = value
    return found


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what is not finite is left out."""
    return {key: value for key, value in record.items() if not (isinstance(value, float) and not math.isfinite(value))}
