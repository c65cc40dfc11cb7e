"""What can be known to be wrong before the first training step, each with an error that says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Any

import datasets
import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from transformers import TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.training_args import ParallelMode
from transformers.utils import logging

from .data import LABEL_COLUMNS
from .modeling import MultiTaskModel
from .tasks import Task
from .training_args import MultiTaskTrainingArguments


__all__ = [
    "check_arguments",
    "check_dataset",
    "check_datasets",
    "check_layout",
    "check_model",
    "check_names",
]

logger = logging.get_logger(__name__)

SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length")
CHUNK = 1000  # rows whose labels are checked at a time


def check_arguments(args: MultiTaskTrainingArguments) -> None:
    """Refuses, by name, the training arguments that cannot mean here what they mean in the stock Trainer."""
    accelerator_config = args.accelerator_config
    layerwise = "layerwise" in args.optim.lower() or "lomo" in args.optim.lower()
    refusals = [
        (
            args.label_smoothing_factor != 0,
            "label_smoothing_factor",
            "it replaces the loss of one classifier, and every task here computes its own; put the smoothing into a "
            "task's loss",
        ),
        (
            layerwise,
            f"optim='{args.optim.value}'",
            "it steps inside the backward pass, before the gradients of all tasks are there; use one such as 'adamw_torch'",
        ),
        (args.torch_compile, "torch_compile", "it would compile the model anew for every task; compile the encoder itself"),
        (args.use_liger_kernel, "use_liger_kernel", "it patches known model classes; apply it to the encoder yourself"),
        (
            args.batch_eval_metrics,
            "batch_eval_metrics",
            "metrics are computed per task over the whole dataset; use `eval_accumulation_steps` to save memory",
        ),
        (not args.eval_do_concat_batches, "eval_do_concat_batches=False", "metrics are computed over whole arrays"),
        (
            args.train_sampling_strategy not in SAMPLING_STRATEGIES,
            f"train_sampling_strategy='{args.train_sampling_strategy}'",
            f"the rows of each task can be dealt in one of the orders {list(SAMPLING_STRATEGIES)}",
        ),
        (
            accelerator_config.split_batches,
            "accelerator_config.split_batches",
            "it cuts a batch by rows, and a process could lose a task; `per_device_train_batch_size` counts rows of each task "
            "per process already",
        ),
        (
            accelerator_config.dispatch_batches,
            "accelerator_config.dispatch_batches",
            "processes would get batches of different tasks and sizes; leave it at None",
        ),
        (
            not accelerator_config.use_seedable_sampler,
            "accelerator_config.use_seedable_sampler=False",
            "joint batches are drawn from the seed and the epoch alone, so that a resumed run sees the same ones",
        ),
        (
            args.auto_find_batch_size and bool(args.per_task_batch_size),
            "auto_find_batch_size",
            "it cannot make the batches smaller whose rows `per_task_batch_size` fixes; give one of the two",
        ),
        (
            args.enable_jit_checkpoint,
            "enable_jit_checkpoint",
            "it may save between the step of the balancer and that of the optimizer, and a resumed run would take the same "
            "gradients in twice; use `save_steps`",
        ),
        (DebugOption.TPU_METRICS_DEBUG in args.debug, "debug='tpu_metrics_debug'", "it does not run on TPUs"),
        (
            not args.average_tokens_across_devices,
            "average_tokens_across_devices=False",
            "a task's loss is the mean over its items on all processes",
        ),
        (bool(args.ddp_broadcast_buffers), "ddp_broadcast_buffers", "every process keeps its own buffers; use SyncBatchNorm"),
        (args.deepspeed is not None, "deepspeed", "its engine steps inside the backward pass; use DDP"),
        (args.parallelism_config is not None, "parallelism_config", "tensor, context and sequence parallelism split a task"),
        (bool(args.fsdp), "fsdp", "sharded parameters are not supported yet; use one process or more memory"),
    ]
    _refuse(refusals)


def check_model(model: nn.Module, args: MultiTaskTrainingArguments, columns: Collection[str] | None) -> None:
    """Refuses the training arguments that a model which takes `columns` (`None`: any) cannot honour."""
    declared, kind = isinstance(model, MultiTaskModel), type(model).__name__
    checkpoints = hasattr(model, "activation_checkpointing_enable") or hasattr(model, "gradient_checkpointing_enable")
    main_input = getattr(model, "main_input_name", "input_ids")
    refusals = [
        (
            args.activation_checkpointing and not (checkpoints and getattr(model, "supports_gradient_checkpointing", True)),
            "activation_checkpointing",
            f"{type(model.encoder).__name__ if declared else kind} does not support it",
        ),
        (
            args.neftune_noise_alpha is not None and not hasattr(model, "get_input_embeddings"),
            "neftune_noise_alpha",
            f"the noise goes onto the embeddings, and {kind} has no method `get_input_embeddings`",
        ),
        (
            "inputs" in args.include_for_metrics and columns is not None and main_input not in columns,
            "include_for_metrics=['inputs']",
            f"{kind} takes no '{main_input}'; name its main input in an attribute `main_input_name`",
        ),
        (
            declared and args.label_names not in (None, ["labels"]),
            f"label_names={args.label_names}",
            f"declared tasks read their labels in one of the columns {list(LABEL_COLUMNS)}; rename yours",
        ),
        (declared and args.use_cache, "use_cache", "past keys and values serve generation, and no task here generates"),
    ]
    _refuse(refusals)


def _refuse(refusals: Sequence[tuple[bool, str, str]]) -> None:
    for refused, name, reason in refusals:
        if refused:
            raise ValueError(f"MultiTaskTrainer does not take `{name}`: {reason}.")


def check_layout(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Refuses the ways of spreading a model over devices under which per-task gradients would be wrong."""
    if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED and args.n_gpu > 1:
        raise ValueError(
            f"MultiTaskTrainer does not run on {args.n_gpu} GPUs in one process (torch.nn.DataParallel). Start one process per "
            "GPU with `torchrun --nproc_per_node N` or `accelerate launch`, or show a single one: CUDA_VISIBLE_DEVICES=0."
        )
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ValueError(
            f"MultiTaskTrainer does not run under {accelerator.distributed_type.value}, only in one process or with DDP: "
            "start it with `torchrun --nproc_per_node N`, or with `accelerate launch` and a configuration for MULTI_GPU or "
            "MULTI_CPU."
        )
    if args.fp16 and accelerator.scaler is None:
        logger.warning(f"fp16 has no effect on this device ({accelerator.device.type}): training is in float32.")


def check_names(what: str, names: Collection[str], tasks: Sequence[str], complete: bool = False) -> None:
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
    """
    for name in names:
        if name not in tasks:
            near = difflib.get_close_matches(str(name), tasks, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "rename the key, or add the task to the model."
            raise ValueError(f"{what} names a task '{name}', and the tasks are {list(tasks)}: {hint}")
    missing = [task for task in tasks if task not in names]
    if complete and missing:
        raise ValueError(
            f"{what} has nothing for the task{'s' if len(missing) > 1 else ''} {missing}: give a dataset for every task of the "
            "model, or take the task out of it with `model.remove_task(name)`."
        )


def check_datasets(what: str, given: Any) -> dict[str, Any]:
    """A dictionary of datasets by task, or an error that says what was given instead."""
    if isinstance(given, Mapping) and given:
        for name in given:
            if not isinstance(name, str) or not name or "/" in name:  # which ends it in the records and the checkpoint
                raise ValueError(f"{what}: the name of a task is a non-empty string without '/', and not {name!r}.")
        return dict(given)
    raise TypeError(
        f"{what} must be a dictionary of one dataset per task, such as {{'mrpc': ..., 'stsb': ...}}, and is "
        f"{'empty' if isinstance(given, Mapping) else type(given).__name__}."
    )


def check_dataset(split: str, name: str, dataset: Any, task: Task | None, columns: Collection[str] | None) -> None:
    """
    Checks the dataset of a task: that it has rows, inputs the model takes, and labels the task takes.

    Args:
        split (`str`):
            `"train"` or `"eval"`, for the error.
        name (`str`):
            The name of the task.
        dataset (`Dataset`):
            The dataset. The labels are read through here only where that is cheap, for a [`~datasets.Dataset`] without a
            transform; others are checked as they are collated.
        task (`Task`, *optional*):
            The task as declared; `None` for a user's module, whose labels are its own business.
        columns (`Collection[str]`, *optional*):
            The columns that the model takes; `None` if it takes any.
    """
    if isinstance(dataset, (torch.utils.data.IterableDataset, datasets.IterableDataset)) or not isinstance(dataset, Sized):
        raise TypeError(
            f"Task '{name}': its {split} dataset has no length. Joint batches need one: give a dataset with `__len__`, "
            "such as `datasets.Dataset.from_generator(...)`."
        )
    if len(dataset) == 0:
        raise ValueError(f"Task '{name}': its {split} dataset is empty. Give it rows, or leave the task out.")
    if not isinstance(dataset, datasets.Dataset) or dataset.format["type"] == "custom":
        return
    inputs = [column for column in dataset.column_names if column not in LABEL_COLUMNS]
    if columns is not None and not any(column in columns for column in inputs):
        raise ValueError(
            f"Task '{name}': of the columns {dataset.column_names} of its {split} dataset, the model takes none as an input. "
            f"It takes {sorted(set(columns) - set(LABEL_COLUMNS))}: tokenize the texts first, or rename the columns."
        )
    if task is not None:
        _check_labels(split, name, dataset, task)


def _check_labels(split: str, name: str, dataset: datasets.Dataset, task: Task) -> None:
    column = next((column for column in LABEL_COLUMNS if column in dataset.column_names), None)
    if column is None and split == "eval":
        return  # a dataset to predict on
    labels = dataset.select_columns([column]).with_format(None) if column is not None else ()
    labelled = 0
    for start in range(0, len(labels), CHUNK):
        rows = labels[start : start + CHUNK][column]
        labelled += int(task.labelled(task.label_tensor(name, rows)).sum())
    if labelled == 0:
        raise ValueError(
            f"Task '{name}': its {split} dataset has no label at all"
            + (f" (none of the columns {list(LABEL_COLUMNS)})." if column is None else f" in its column '{column}'.")
            + " Name the column of the labels 'labels', or leave the task out."
        )


