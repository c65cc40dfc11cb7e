"""What a model card says, read off a trainer."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.trainer_utils import has_length

from .balancing import describe_balancer
from .configuration import MultiTaskConfig
from .model_card import ModelCardContent
from .units import Unit


if TYPE_CHECKING:
    from .balancing import Balancer
    from .balancing.part import Part
    from .trainer import MultiTaskTrainer

__all__ = ["content_from_trainer"]

MODALITIES = {"input_ids": "text", "pixel_values": "image", "input_values": "audio", "input_features": "audio"}
# Read from the training arguments: these always, those where they differ from their defaults.
ALWAYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "mixing",
    "stopping_strategy",
    "seed",
)
WHERE_CHANGED = (
    "max_steps",
    "mixing_temperature",
    "per_task_batch_size",
    "task_weights",
    "encoder_lr_multiplier",
    "heads_lr_multiplier",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
)
NO_METRIC = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def content_from_trainer(trainer: MultiTaskTrainer, **overrides: Any) -> ModelCardContent:
    """
    Reads a card's content off a trainer: the tasks and the encoder from the model's configuration (only their names for
    a module of the user's own, which has none), the balancer and the hyper-parameters from its arguments, the sizes of
    its datasets, and the results from its log: the newest evaluation, or that of the best checkpoint if it was loaded.

    Args:
        trainer ([`MultiTaskTrainer`]):
            The trainer.
        overrides:
            Fields of [`ModelCardContent`] that are known better, such as `license` or `baselines`.
    """
    args, state = trainer.args, trainer.state
    folder = Path(args.output_dir or "")
    repo_id = getattr(trainer, "hub_model_id", None) or args.hub_model_id  # with its owner, once it has been made
    config = getattr(trainer.model, "config", None)  # a module of the user's own need not have one
    train = _rows(trainer.train_dataset, trainer.units)
    evaluated = _rows(trainer.eval_dataset, trainer.eval_units)
    read: dict[str, Any] = {"tasks": {name: {} for name in {**train, **evaluated}}}
    options: Any = args.balancer_kwargs or {}  # a dictionary since `__post_init__`
    if isinstance(config, MultiTaskConfig):
        encoder: Any = config.encoder
        main_input: Any = trainer.model.main_input_name
        read = {
            "tasks": config.tasks,
            "encoder": (encoder.architectures or [type(encoder).__name__])[0],
            "base_model": _hub_name(encoder.name_or_path),
            "pooling": config.pooling,
            "modality": MODALITIES.get(main_input, main_input),
        }
    best = state.best_global_step if args.load_best_model_at_end else None
    results, averages = _results(state.log_history, list(read["tasks"]), best)
    balancer = args.make_balancer()
    read |= {
        "model_name": (repo_id or folder.resolve().name or "model").split("/")[-1],
        "repo_id": repo_id,
        "balancer": describe_balancer(args.balancer),
        "balancer_kwargs": _options(balancer) | dict(options),
        "papers": list(dict.fromkeys(part.paper for part in _parts(balancer) if ", " in getattr(part, "paper", ""))),
        "hyperparameters": _hyperparameters(args),
        "steps": state.global_step,
        "epochs": state.epoch,
        "train_rows": train,
        "eval_rows": evaluated,
        "results": results,
        "averages": averages,
        "picture": "training.png" if (folder / "training.png").is_file() else None,
    }
    return ModelCardContent(**(read | overrides))


def _hub_name(name: str) -> str | None:
    """`name` where it can be a repository on the Hub, and not a folder of this machine."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if not name or Path(name).exists() else name


def _rows(datasets: Any, units: Mapping[str, Unit]) -> dict[str, int | None]:
    """The rows of each task, those of a group for all of its tasks."""
    sizes = {name: len(datasets[name]) if has_length(datasets[name]) else None for name in units}
    return {task: sizes[name] for name, unit in units.items() for task in unit}


def _parts(balancer: Balancer) -> list[Part]:
    return [part for part in (balancer.transform, balancer.memory, balancer.weighting) if part is not None]


def _options(balancer: Balancer) -> dict[str, Any]:
    """The options of a balancer's parts, defaults included: what a part keeps under the name it takes it by."""
    named = ((part, name) for part in _parts(balancer) for name in inspect.signature(type(part)).parameters)
    return {name: vars(part)[name] for part, name in named if name in vars(part)}


def _hyperparameters(args: Any) -> dict[str, Any]:
    defaults = {f.name: f.default for f in dataclasses.fields(args)}
    names = [*ALWAYS, *(name for name in WHERE_CHANGED if getattr(args, name) != defaults[name])]
    values = {name: getattr(args, name) for name in names} | (
        {"processes": args.world_size} if args.world_size > 1 else {}
    )
    if args.max_steps > 0:
        del values["num_train_epochs"]  # overruled
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def _results(
    log_history: Sequence[Mapping[str, Any]], tasks: Iterable[str], step: int | None
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The metrics of the last evaluation (at `step`) by task, and those over all tasks."""
    by_length = sorted(tasks, key=len, reverse=True)  # of the tasks "a" and "a_b" the second owns "eval_a_b_f1"
    results: dict[str, dict[str, float]] = {}
    averages: dict[str, float] = {}
    records = [r for r in log_history if "eval_runtime" in r and (step is None or r["step"] == step)]
    for key, value in (records[-1] if records else {}).items():
        name = key.removeprefix("eval_")
        if name == key or name in NO_METRIC:
            continue
        task = next((t for t in by_length if name.startswith(f"{t}_")), None)
        if task is None:
            averages[name] = value
        elif (metric := name.removeprefix(f"{task}_")) not in NO_METRIC:
            results.setdefault(task, {})[metric] = value
    return results, averages
