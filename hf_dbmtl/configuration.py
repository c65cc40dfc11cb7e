"""The configuration of an encoder with several heads."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from .limits import check_sizes
from .tasks import Task, task_from_dict


__all__ = ["POOLINGS", "MultiTaskConfig"]

POOLINGS = ("pooler", "cls", "mean", "last")
# How `pipeline("multi-task", folder, trust_remote_code=True)` finds what to run, in the copy beside the weights.
PIPELINES = {"multi-task": {"impl": "pipeline.MultiTaskPipeline", "pt": ["AutoModel"], "type": "multimodal"}}

# A head lives in a ModuleDict under the name of its task: none of these can be one.
_RESERVED = frozenset(dir(nn.ModuleDict()))


class MultiTaskConfig(PreTrainedConfig):
    """
    Configuration of a [`MultiTaskModel`].

    Args:
        encoder (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the shared encoder, of any type that `AutoConfig` knows. Defaults to a BERT.
        tasks (`dict[str, dict]`, *optional*):
            The tasks by name, each as [`Task.to_dict`] describes it ([`Task`] objects are turned into that). A model
            wants one at least.
        pooling (`str`, *optional*, defaults to `"pooler"`):
            What a head at sequence level sees: the encoder's `"pooler"`, the first token (`"cls"`), the `"mean"` over
            the tokens, or the `"last"` token. Padding, where an attention mask tells it, is left out.
        adapter (`dict`, *optional*):
            What adapters of PEFT the encoder holds; [`~MultiTaskModel.add_adapter`] writes it.
    """

    model_type = "multi_task"
    sub_configs = {"encoder": AutoConfig}

    encoder: dict | PreTrainedConfig | None = None
    tasks: dict[str, Any] | None = None
    pooling: str = "pooler"
    adapter: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        order = kwargs.pop("task_order", [])
        if __package__ == "hf_dbmtl":  # where `pipeline` knows "multi-task" already, without trust_remote_code
            kwargs.pop("custom_pipelines", None)
        check_sizes(kwargs, "config")
        if self.encoder is None or isinstance(self.encoder, dict):
            self.encoder = _encoder_config(self.encoder or {})
        elif not isinstance(self.encoder, PreTrainedConfig):
            raise TypeError(f"encoder must be a configuration, or a dict that describes one, got {self.encoder!r}.")
        chosen = {key: getattr(self.encoder, key) for key in ("_attn_implementation", "_experts_implementation")}
        super().__post_init__(**kwargs)
        # The base class has just set these two in the encoder's to what it was told itself, None as a rule.
        for key, value in chosen.items():
            if getattr(self, key) is None:
                setattr(self.encoder, key, value)
        if self.tasks is None:
            self.tasks = {}
        if isinstance(self.tasks, dict) and isinstance(order, list):
            tasks = {name: task.to_dict() if isinstance(task, Task) else task for name, task in self.tasks.items()}
            self.tasks = {name: tasks.pop(name) for name in order if name in tasks} | tasks
        self.task_objects  # reading it checks the tasks
        if self.pooling not in POOLINGS:
            raise ValueError(f"Unknown pooling {self.pooling!r}: choose from {', '.join(POOLINGS)}.")

    @property
    def task_objects(self) -> dict[str, Task]:
        """
        The tasks by name, made from `tasks`.

        Raises:
            `TypeError`, `ValueError`: a name that cannot be one, or a description that is none.
        """
        if not isinstance(self.tasks, dict):
            raise TypeError(f"tasks must be a dict that maps names to tasks, got {self.tasks!r}.")
        return {name: _task(name, values) for name, values in self.tasks.items()}

    def to_dict(self) -> dict[str, Any]:
        # config.json is written with sorted keys, but the order of the heads is that of their parameters in an
        # optimizer, whose state is saved by number.
        values = super().to_dict() | {
            "task_order": list(self.tasks or {}),
            "custom_pipelines": copy.deepcopy(PIPELINES),
        }
        if Path(values["encoder"].get("_name_or_path", "")).is_absolute():  # a folder here says nothing elsewhere
            del values["encoder"]["_name_or_path"]
        return values

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The encoder's: there `transformers` looks for sizes, the vocabulary and `initializer_range`."""
        own: Any = self.encoder  # a configuration since `__post_init__`
        return own.get_text_config(decoder=decoder, encoder=encoder)


def _encoder_config(values: dict[str, Any]) -> PreTrainedConfig:
    check_sizes(values)
    try:
        return AutoConfig.for_model(**{"model_type": "bert"} | values)
    except Exception as error:  # every class of configurations has errors of its own
        raise ValueError(
            f"encoder: no configuration can be made of this: {' '.join(str(error).split())[:500]}"
        ) from error


def _task(name: Any, values: Any) -> Task:
    check_task_name(name)
    try:
        return task_from_dict(values)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Task {name!r}: {error}") from error


def check_task_name(name: Any) -> None:
    """Raises a `TypeError` or `ValueError` on what cannot name a task."""
    if not isinstance(name, str):
        raise TypeError(f"The name of a task must be a string, got {name!r}.")
    if not name or any(letter in "./\\" or letter.isspace() or not letter.isprintable() for letter in name):
        raise ValueError(
            f"Task name {name!r}: must not be empty, nor hold a dot, a slash, a backslash, white space or a control "
            "character (it becomes part of parameter and file names)."
        )
    if name in _RESERVED:
        raise ValueError(f"Task name {name!r} is an attribute of torch.nn.ModuleDict, where the heads live: rename it.")


# A saved model carries a copy of this module and of its siblings, and so loads where the package is absent.
MultiTaskConfig.register_for_auto_class()
