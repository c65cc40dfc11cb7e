"""The training arguments: those of transformers and what learning several tasks adds."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from .balancing import Balancer, describe_balancer, make_balancer


__all__ = ["MultiTaskTrainingArguments"]

MIXINGS = ("equal", "proportional", "temperature")
STOPPING_STRATEGIES = ("all_exhausted", "first_exhausted")
NON_FINITE_STRATEGIES = ("skip", "raise")


@dataclass
class MultiTaskTrainingArguments(TrainingArguments):
    """
    The arguments of [`MultiTaskTrainer`]: every one of [`~transformers.TrainingArguments`] and those below. Three of the
    former mean something of their own here: `per_device_train_batch_size` counts rows of each task, `max_grad_norm` is 0
    by default, and `metric_for_best_model` may name the average of all tasks (`"average"`), the mean loss (`"loss"`) or a
    metric of one task (`"mrpc_f1"`).

    Args:
        balancer (`str` or a `Weighting`, `Aggregator` or `Scalarizer` of TorchJD, *optional*, defaults to `"db_mtl"`):
            How the gradients of the tasks are made into one update: `"[transform+][ema+][weighting]"`, such as `"ew"`,
            `"log"`, `"max_norm"`, `"log+max_norm"`, or `"db_mtl"`, which is `"log+ema+max_norm"`. An object of TorchJD, such
            as `UPGrad()`, is copied for every run, and written as its description where the arguments are.
        balancer_kwargs (`dict` or `str`, *optional*):
            The options of the balancer (JSON on the command line). `db_mtl` takes `beta` (0.9), `decay` (0.5), `alpha`
            (`"max"`, `"min"`, `"mean"`, `"median"`, `"1/T"` or a number) and `ema_dtype`.
        mixing (`str`, *optional*, defaults to `"equal"`):
            How many rows of a batch each task (or group of tasks that share their rows) gets: `"equal"`, `"proportional"` to
            the size of its dataset, or `"temperature"`: proportional to size^(1 / `mixing_temperature`).
        mixing_temperature (`float`, *optional*, defaults to 2.0):
            The temperature of `mixing="temperature"`: 1 is proportional, large is equal.
        per_task_batch_size (`dict` or `str`, *optional*):
            Rows per micro-batch of single tasks, or of groups that share their rows, in place of what the mixing gives (JSON
            on the command line).
        stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`):
            An epoch ends when all rows of all tasks have been seen (`"all_exhausted"`, smaller tasks begin anew), or before
            any would be seen twice (`"first_exhausted"`).
        task_weights (`dict` or `str`, *optional*):
            A weight by task, 1.0 where silent (JSON on the command line). It multiplies the task's term in the update,
            after balancing, and the gradient of its head.
        encoder_lr_multiplier (`float`, *optional*, defaults to 1.0):
            The learning rate of the shared parameters, as a multiple of `learning_rate`.
        heads_lr_multiplier (`float`, *optional*, defaults to 1.0):
            The learning rate of the heads, as a multiple of `learning_rate`.
        task_lr_multipliers (`dict` or `str`, *optional*):
            The learning rate of single heads by task, as a further multiple (JSON on the command line).
        freeze_encoder (`bool`, *optional*, defaults to `False`):
            Train the heads alone.
        freeze_layers (`int`, *optional*, defaults to 0):
            Train neither the embeddings nor that many of the encoder's layers (of its stages, where it has these), from
            below. Anything else is frozen by `requires_grad_(False)` before the Trainer is made.
        freeze_batch_norm (`bool`, *optional*, defaults to `False`):
            Keep the statistics and the parameters of BatchNorm layers as they are.
        non_finite_strategy (`str`, *optional*, defaults to `"skip"`):
            What happens when the loss or a gradient of a task is NaN or infinite: the step is skipped with a warning
            (`"skip"`), or training ends with an error (`"raise"`). Neither lets it into the parameters or the memory.
        max_skipped_steps (`int`, *optional*, defaults to 100):
            After so many skipped steps in a row a checkpoint is saved and training ends with an error. `None` for never.
            (A gradient scaler skips a few while it looks for its scale.)
        consistency_check_steps (`int`, *optional*, defaults to 0):
            With several processes, every so many steps compare the parameters and the balancer's state of all of them bit by
            bit, and end the run on every process where they differ; also compare the first and the last row of the
            datasets at the beginning. 0 for never.
    """

    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "balancer_kwargs",
        "per_task_batch_size",
        "task_lr_multipliers",
        "task_weights",
    ]

    per_device_train_batch_size: int = field(
        default=8,
        metadata={
            "help": "Rows of each task in a micro-batch, per device. With T tasks a batch holds T times as many."
        },
    )
    max_grad_norm: float = field(
        default=0.0,
        metadata={
            "help": "Maximum gradient norm (for gradient clipping), 0 for none. Unlike in transformers it is 0 by default: "
            "clipping would undo the norm that the balancer's alpha gives to the update."
        },
    )
    balancer: str = field(
        default="db_mtl",
        metadata={
            "help": "The balancer, '[transform+][ema+][weighting]', such as db_mtl, ew, log, max_norm, log+max_norm."
        },
    )
    balancer_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": 'The options of the balancer as JSON, e.g. \'{"beta": 0.9, "decay": 0.5, "alpha": "max"}\'.'},
    )
    mixing: str = field(
        default="equal",
        metadata={
            "help": "The share of each task in a batch: equal, proportional to the dataset's size, or temperature.",
            "choices": MIXINGS,
        },
    )
    mixing_temperature: float = field(
        default=2.0,
        metadata={"help": "With mixing=temperature a task's share is proportional to size^(1/mixing_temperature)."},
    )
    per_task_batch_size: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Rows per micro-batch of single tasks as JSON, e.g. '{\"mrpc\": 4}'; overrides the mixing."},
    )
    stopping_strategy: str = field(
        default="all_exhausted",
        metadata={
            "help": "An epoch ends when every task's rows have all been seen (all_exhausted) or when the first task's have "
            "(first_exhausted).",
            "choices": STOPPING_STRATEGIES,
        },
    )
    task_weights: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "A weight by task as JSON, applied after balancing, e.g. '{\"mrpc\": 2.0}'."},
    )
    encoder_lr_multiplier: float = field(
        default=1.0, metadata={"help": "The learning rate of the shared parameters, as a multiple of learning_rate."}
    )
    heads_lr_multiplier: float = field(
        default=1.0, metadata={"help": "The learning rate of the heads, as a multiple of learning_rate."}
    )
    task_lr_multipliers: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "A further multiple of the learning rate of single heads as JSON, e.g. '{\"mrpc\": 10.0}'."},
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the heads alone."})
    freeze_layers: int = field(
        default=0, metadata={"help": "Train neither the embeddings nor that many of the encoder's first layers."}
    )
    freeze_batch_norm: bool = field(
        default=False, metadata={"help": "Keep the statistics and the parameters of BatchNorm layers as they are."}
    )
    non_finite_strategy: str = field(
        default="skip",
        metadata={
            "help": "What to do when a task's loss or gradient is NaN or infinite: skip the step, or raise.",
            "choices": NON_FINITE_STRATEGIES,
        },
    )
    consistency_check_steps: int = field(
        default=0,
        metadata={"help": "Every so many steps check that all processes hold the same parameters. 0 for never."},
    )
    max_skipped_steps: int | None = field(
        default=100,
        metadata={"help": "Save and end with an error after so many skipped steps in a row; null for never."},
    )

    def __post_init__(self) -> None:
        dictionaries = ("balancer_kwargs", "per_task_batch_size", "task_lr_multipliers", "task_weights")
        for name in dictionaries:
            _check_json(name, getattr(self, name))
        super().__post_init__()
        for name, choices in (
            ("mixing", MIXINGS),
            ("stopping_strategy", STOPPING_STRATEGIES),
            ("non_finite_strategy", NON_FINITE_STRATEGIES),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, and is {getattr(self, name)!r}.")
        for name in ("mixing_temperature", "encoder_lr_multiplier", "heads_lr_multiplier"):
            _number(name, getattr(self, name), zero=name != "mixing_temperature")
        for name in dictionaries:
            value = getattr(self, name)
            if value is not None and not isinstance(value, Mapping):
                raise ValueError(f"`{name}` must be a dictionary (JSON on the command line), and is {value!r}.")
        for name in ("task_weights", "task_lr_multipliers"):
            for task, number in (getattr(self, name) or {}).items():
                _number(f"{name}['{task}']", number, zero=True)
        for name in ("freeze_encoder", "freeze_batch_norm"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, and is {getattr(self, name)!r}.")
        if type(self.freeze_layers) is not int or self.freeze_layers < 0:
            raise ValueError(f"`freeze_layers` must be a number of layers, and is {self.freeze_layers!r}.")
        sizes: Any = self.per_task_batch_size or {}
        for task, rows in sizes.items():
            if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
                raise ValueError(
                    f"`per_task_batch_size['{task}']` must be a whole number of 1 or more, and is {rows!r}."
                )
        every = self.consistency_check_steps
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            raise ValueError(f"`consistency_check_steps` must be a whole number of 0 or more, and is {every!r}.")
        limit = self.max_skipped_steps
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"`max_skipped_steps` must be a whole number of 1 or more, or None, and is {limit!r}.")
        self._check_balancer()

    @property
    def multiplies_learning_rates(self) -> bool:
        """Whether parts of the model have learning rates of their own."""
        return not self.encoder_lr_multiplier == self.heads_lr_multiplier == 1.0 or bool(self.task_lr_multipliers)

    def _check_balancer(self) -> None:
        """An unknown name or option, or an object that cannot be saved, is an error here, not when a run is under way."""
        self.make_balancer()
        if not isinstance(self.balancer, str):
            _check_pickles(self.balancer)

    def with_balancer(self, balancer: str | Any) -> MultiTaskTrainingArguments:
        """A copy of these arguments with another balancer, of the same options."""
        other = copy.copy(self)
        other.balancer = balancer
        other._check_balancer()
        return other

    def to_dict(self) -> dict[str, Any]:
        """The arguments as they go into JSON and to trackers: an object of TorchJD as its description."""
        return super().to_dict() | {"balancer": describe_balancer(self.balancer)}

    def make_balancer(self) -> Balancer:
        """Makes the balancer that these arguments describe, see [`~hf_dbmtl.balancing.make_balancer`]."""
        options: Any = self.balancer_kwargs  # dictionaries since `__post_init__`, as are the weights
        weights: Any = self.task_weights
        return make_balancer(self.balancer, options, weights)


def _check_pickles(balancer: Any) -> None:
    """The Trainer saves its arguments with every model, by pickle; what it cannot save must not show only then."""
    try:
        pickle.dumps(balancer)
    except Exception as error:
        raise ValueError(
            f"The balancer {describe_balancer(balancer)} cannot be saved with the training arguments: {error}. Make it of "
            "functions that have a name in a module (no lambda)."
        ) from error


def _check_json(name: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"`{name}` must be a dictionary in JSON, and is {value!r}: {error}.") from error


def _number(name: str, value: Any, zero: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
    if not number or (value == 0 and not zero):
        raise ValueError(
            f"`{name}` must be a {'number of 0 or more' if zero else 'positive number'}, and is {value!r}."
        )
