"""What a run cannot be made of: training arguments that cannot be honoured, and what a forward may not return."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
from transformers import TrainingArguments
from transformers.debug_utils import DebugOption
from transformers.training_args import OptimizerNames, ParallelMode
from transformers.utils import is_peft_available, logging

from .collators import LABEL_COLUMNS
from .modeling import MultiTaskModel
from .training_args import MultiTaskTrainingArguments


__all__ = ["check_arguments", "check_layout", "check_loss", "check_measured", "check_model", "check_unwrapped"]

logger = logging.get_logger(__name__)

LAYOUTS = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
UNFIT = {  # by `DistributedType`
    "DEEPSPEED": "its engine steps inside the backward pass, before the gradients of all tasks are there",
    "MEGATRON_LM": "it splits the passes of a task over processes",
    "XLA": "on a TPU the passes of all tasks would be compiled and run as one",
}
SAMPLING_STRATEGIES = ("random", "sequential", "group_by_length")


def check_arguments(args: MultiTaskTrainingArguments) -> None:
    """Refuses, by name, the training arguments that cannot mean here what they mean in the stock Trainer."""
    accelerator_config: Any = args.accelerator_config  # an AcceleratorConfig since `__post_init__`
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
            f"optim='{OptimizerNames(args.optim).value}'",
            "it steps inside the backward pass, before the gradients of all tasks are there; use one such as 'adamw_torch'",
        ),
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
            "it may save between the step of the balancer and that of the optimizer, and a resumed run would take the "
            "same gradients in twice; use `save_steps`",
        ),
        (DebugOption.TPU_METRICS_DEBUG in args.debug, "debug='tpu_metrics_debug'", "it does not run on TPUs"),
        (
            not args.average_tokens_across_devices,
            "average_tokens_across_devices=False",
            "a task's loss is the mean over its items on all processes",
        ),
        (
            bool(args.ddp_broadcast_buffers),
            "ddp_broadcast_buffers",
            "every process keeps its own buffers; use SyncBatchNorm",
        ),
        (
            args.deepspeed is not None,
            "deepspeed",
            "its engine steps inside the backward pass; use DDP, or `fsdp` for a model that does not fit",
        ),
        (
            args.parallelism_config is not None,
            "parallelism_config",
            "tensor, context and sequence parallelism split a task",
        ),
    ]
    _refuse(refusals)


def check_model(model: nn.Module, args: MultiTaskTrainingArguments, columns: Collection[str] | None) -> None:
    """Refuses the training arguments that a model which takes `columns` (`None`: any) cannot honour."""
    declared, kind = isinstance(model, MultiTaskModel), type(model).__name__
    # transformers before 5.23 knows it by its older name only
    asked = getattr(args, "activation_checkpointing", None) or args.gradient_checkpointing
    able = hasattr(model, "activation_checkpointing_enable") or hasattr(model, "gradient_checkpointing_enable")
    checkpoints = able and getattr(model, "supports_gradient_checkpointing", True)
    main_input = getattr(model, "main_input_name", "input_ids")
    refusals = [
        (
            asked and not checkpoints,
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


def check_unwrapped(model: nn.Module) -> None:
    """Refuses a model in PEFT's wrapping: its tasks would be hidden, its heads frozen, and it could not be loaded again."""
    if not is_peft_available():
        return
    from peft import PeftModel

    for what, module in (("The model", model), ("The encoder", getattr(model, "encoder", None))):
        if isinstance(module, PeftModel):
            raise TypeError(
                f"{what} is a {type(module).__name__}: leave it unwrapped, and give the Trainer `peft_config=...`, or call "
                "`model.add_adapter(config)`, which puts the same adapters into its encoder."
            )


def _refuse(refusals: Sequence[tuple[bool | None, str, str]]) -> None:
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
    if accelerator.distributed_type not in LAYOUTS:
        name = accelerator.distributed_type.value
        raise ValueError(
            f"MultiTaskTrainer does not run under {name}: {UNFIT.get(name, 'its gradients cannot be told apart by task')}. Use DDP "
            "(start `torchrun --nproc_per_node N`, or `accelerate launch` with a configuration for MULTI_GPU or MULTI_CPU), or "
            "for a model that does not fit FSDP2 (`fsdp=True`)."
        )
    if accelerator.distributed_type == DistributedType.FSDP:
        _check_sharding(accelerator)
    elif args.fsdp:
        raise ValueError(
            f"`fsdp` has no effect on this device ({accelerator.device.type}), where accelerate falls back to "
            f"{accelerator.distributed_type.value}: leave it out, or use GPUs."
        )
    if args.fp16 and accelerator.scaler is None:
        logger.warning(f"fp16 has no effect on this device ({accelerator.device.type}): training is in float32.")


def _check_sharding(accelerator: Accelerator) -> None:
    plugin = accelerator.state.fsdp_plugin
    refusals = [
        (
            plugin.fsdp_version != 2,
            "FSDP1",
            "it flattens the parameters of several modules into one; use FSDP2 (`fsdp_config={'version': 2}`, or `fsdp_version: "
            "2` in accelerate's configuration)",
        ),
        (
            isinstance(plugin.cpu_offload, CPUOffloadPolicy),
            "cpu_offload",
            "the gradients would lie where the GPUs cannot exchange them; use more processes, or `activation_checkpointing`",
        ),
        (
            bool(plugin.cpu_ram_efficient_loading),
            "cpu_ram_efficient_loading",
            "the heads, which are not sharded, would be lost on all processes but one; leave it out",
        ),
        (
            plugin.state_dict_type != StateDictType.FULL_STATE_DICT,
            f"state_dict_type={plugin.state_dict_type.name}",
            "a parameter that no task has reached has no state in the optimizer, and such a checkpoint could not be read; use "
            "FULL_STATE_DICT",
        ),
        (
            accelerator.parallelism_config is not None,
            "parallelism_config",
            "hybrid sharding, tensor and context parallelism are not supported; use FSDP2 over all processes",
        ),
    ]
    _refuse(refusals)


def check_loss(model: nn.Module, inputs: Mapping[str, Any], loss: Any) -> None:
    """
    Refuses a `loss` that is not a number, or for tasks that share their input one for each whose labels are there, naming what
    is missing or wrong in the batch or the module it came from.
    """
    asked, labels = inputs["task"], inputs.get("labels")
    if isinstance(asked, str):
        _check_loss(model, asked, labels is not None, loss)
        return
    for task in asked:
        labelled = task in labels if isinstance(labels, Mapping) else labels is not None
        if labelled or not isinstance(labels, Mapping):
            _check_loss(model, task, labelled, loss.get(task) if isinstance(loss, Mapping) else None)


def _check_loss(model: nn.Module, task: str, labelled: bool, loss: Any) -> None:
    if isinstance(loss, Tensor) and loss.ndim == 0:
        return
    if isinstance(model, MultiTaskModel) and not labelled:
        raise ValueError(
            f"Task '{task}': a batch of its rows has no labels. Give every row one in a column 'labels', None or "
            "-100 where it is missing."
        )
    raise ValueError(
        f"Task '{task}': {type(model).__name__}.forward must return `loss`, a tensor of shape () that is the mean "
        f"over the labelled items, and returned {_kind(loss)}."
    )


def check_measured(model: nn.Module, task: str, loss: Tensor | None, num_items: Any) -> None:
    """Refuses a loss that nothing can learn from, and a `num_items` that is not one number."""
    if loss is None:
        raise ValueError(
            f"Task '{task}': a batch of its group has no labels of it. Let `labels` hold a tensor for every task of the group, "
            "-100 or NaN where a label is missing."
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise ValueError(
            f"Task '{task}': its loss hangs on no trainable parameter. Return it as it was computed, without `.detach()`, and "
            "leave a part of what it is computed with unfrozen."
        )
    if not (num_items.ndim == 0 if isinstance(num_items, Tensor) else isinstance(num_items, Real)):
        raise ValueError(
            f"Task '{task}': {type(model).__name__}.forward must return `num_items`, where it does, as a number or a tensor of "
            f"shape (), and returned {_kind(num_items)}."
        )


def _kind(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
