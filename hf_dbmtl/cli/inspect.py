"""`hf-dbmtl inspect`: what a run will be, before it is: data, steps, parameters, memory."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sized
from typing import Any

from datasets import IterableDataset
from rich.console import Console
from rich.table import Table
from torch import nn

from hf_dbmtl_cli import CommandError

from ..balancing import Balancer, NormWeighting
from ..gradients import split_parameters
from ..metrics import main_metric
from ..tasks import Task
from ..training_args import MultiTaskTrainingArguments
from .building import make_trainer, prepare, steps
from .config import read_config
from .preparation import Data


__all__ = ["balancer_memory", "run"]


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    if given.config is None:
        raise CommandError("name the YAML file: hf-dbmtl inspect config.yaml")
    settings, args = read_config(given.config, given.settings)
    tokenizer, data = prepare(settings, args)
    trainer = make_trainer(settings, args, tokenizer, data)
    shared, heads = split_parameters(trainer.model, None, args.freeze_encoder)
    console = Console()
    rows, epoch = steps(data, args)
    console.print(_tasks(data, rows, heads), _first_rows(data, tokenizer))
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * epoch)
    summary = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    trained = f"{_count(shared.values()):,} shared, {_count(heads.values()):,} in the heads"
    frozen = _count(one for one in trainer.model.parameters() if not one.requires_grad)
    size = sum(one.numel() * max(4, one.element_size()) for one in shared.values())
    balancer = args.make_balancer()
    groups = {
        unit.described: f"{', '.join(unit)}: one pass of the encoder" for unit in data.units.values() if unit.is_group
    }
    for name, value in {
        **groups,
        "rows per step": f"{sum(rows.values()):,} ({_parts(args)})",
        "steps": f"{epoch:,} an epoch, {total:,} in all ({total / epoch:.2f} epochs)"
        if epoch
        else f"{total:,} (streamed)",
        "parameters": trained + (f", {frozen:,} frozen" if frozen else ""),
        "balancer": _describe(args),
        "its memory": f"{_bytes(balancer_memory(balancer, len(data.tasks), size))} above one gradient of the shared "
        f"parameters ({_bytes(size)}); it keeps {balancer.memory.memory if balancer.memory else balancer.weighting.memory}",
        "device": f"{args.device}, {args.world_size} process{'es' if args.world_size > 1 else ''}",
    }.items():
        summary.add_row(name, value)
    console.print(summary)


def balancer_memory(balancer: Balancer, tasks: int, size: int) -> int:
    """
    The bytes that a balancer takes at its peak on one process, above one gradient of the shared parameters: averages and
    other state of their size for the length of the run; within a step a running sum where the norms suffice, or else the
    gradients of all tasks and their sum.

    Args:
        balancer ([`Balancer`]):
            The balancer.
        tasks (`int`):
            The number of tasks.
        size (`int`):
            The bytes of one gradient of the shared parameters.
    """
    kept: float = tasks if balancer.memory is not None else 0
    if balancer.memory is not None and balancer.memory.dtype is not None:
        kept *= balancer.memory.dtype.itemsize / 4
    if "coordinate_state" in balancer.weighting.holds:
        kept += tasks
    streams = (
        isinstance(balancer.weighting, NormWeighting) and not balancer.validates and not balancer.transform.entangled
    )
    return int((kept + (1 if streams else tasks + 1)) * size)


def _tasks(data: Data, rows: dict[str, int], heads: dict[str, nn.Parameter]) -> Table:
    table = Table(title="Tasks", title_justify="left")
    for column in ("task", "kind", "labels", "metric"):
        table.add_column(column, overflow="fold")
    for column in ("train", "eval", "baseline", "rows/step", "head"):
        table.add_column(column, justify="right", no_wrap=True)
    trained, evaluated = data.by_task(data.train), data.by_task(data.eval)
    of_unit = {task: name for name, unit in data.units.items() for task in unit}
    for name, task in data.tasks.items():
        metric = main_metric(task)
        count = "" if task.num_labels is None else str(task.num_labels)  # a vocabulary is the encoder's
        labels = ", ".join(task.label_names) if task.label_names else count
        baseline = data.baselines.get(name, {}).get(metric)
        table.add_row(
            *(name, task.kind, labels if len(labels) <= 40 else f"{task.num_labels}: {labels[:36]}…", metric),
            *(
                f"{len(trained[name]):,}" if isinstance(trained[name], Sized) else "streamed",
                f"{len(evaluated.get(name, ())):,}",
            ),
            *("" if baseline is None else f"{baseline:.4f}", str(rows[of_unit[name]])),
            f"{_count(one for key, one in heads.items() if key.startswith(f'heads.{name}.')):,}",
        )
    return table


def _first_rows(data: Data, tokenizer: Any) -> Table:
    """The first training row of every task and group as the encoder reads it: wrong columns show here."""
    table = Table(title="First rows", title_justify="left", show_header=False)
    for _ in range(3):
        table.add_column(overflow="fold")
    for name, rows in data.train.items():
        streamed = isinstance(rows, IterableDataset)
        first, unit = next(iter(rows)) if streamed else rows[0], data.units[name]
        texts = "input_ids" in first
        text = _shown_input(first, tokenizer) if texts else f"pixels {tuple(first['pixel_values'].shape)}"
        lengths = [_length(one) for one in rows[:1000]["input_ids"]] if texts and not streamed else []
        size = f"{sum(lengths) / len(lengths):.0f} tokens on average, {max(lengths)} at most" if lengths else ""
        shown = {task: _shown_label(data.tasks[task], first, data.column(task), tokenizer) for task in unit}
        label = ", ".join(f"{task}: {one}" for task, one in shown.items()) if unit.is_group else shown[name]
        table.add_row(
            name,
            f"{text if len(text) <= 200 else text[:199] + '…'}",
            f"{label if len(label) <= 60 else label[:59] + '…'}\n{size}",
        )
    return table


def _shown_input(row: Mapping[str, Any], tokenizer: Any) -> str:
    """The text that the encoder reads, or those of all choices."""
    ids = row["input_ids"]
    return " | ".join(map(tokenizer.decode, ids)) if isinstance(ids[0], list) else tokenizer.decode(ids)


def _length(ids: Any) -> int:
    return max(map(len, ids)) if isinstance(ids[0], list) else len(ids)


def _shown_label(task: Task, row: Mapping[str, Any], column: str, tokenizer: Any) -> str:
    if task.self_supervised:
        return "made of the text"
    label = row[column]
    if task.dense and label is not None:
        return f"map {tuple(label.shape)}"
    if task.kind == "question_answering" and label is not None:
        return f"{label}: {tokenizer.decode(row['input_ids'][label[0] : label[1] + 1])}"
    return str(label)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(one.numel() for one in parameters)


def _parts(args: MultiTaskTrainingArguments) -> str:
    return f"{args.gradient_accumulation_steps} micro-batches x {args.world_size} processes, mixing {args.mixing}"


def _describe(args: MultiTaskTrainingArguments) -> str:
    given: Any = args.balancer_kwargs or {}
    options = ", ".join(f"{key}={value}" for key, value in given.items())
    return f"{args.balancer} ({options})" if options else args.balancer


def _bytes(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 2**10:.1f} KiB"
