"""The balancer's part of a checkpoint: one safetensors file in logical form, by task and parameter name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers.trainer import OPTIMIZER_NAME
from transformers.utils import logging

from .balancing import Balancer
from .gradients import GradientVector
from .training_args import MultiTaskTrainingArguments


__all__ = ["BALANCER_NAME", "load_balancer", "save_balancer"]

logger = logging.get_logger(__name__)

BALANCER_NAME = "balancer.safetensors"
SEPARATOR = "/"  # between the names of parts, tasks and parameters; none of them holds one


def save_balancer(folder: str, balancer: Balancer, names: Sequence[str], args: MultiTaskTrainingArguments) -> None:
    """
    Writes the state of a balancer into a checkpoint, atomically: a file of that name is whole or not there.

    Args:
        folder (`str`):
            The folder of the checkpoint.
        balancer ([`~hf_dbmtl.balancing.Balancer`]):
            The balancer.
        names (`Sequence[str]`):
            The names of the shared parameters, in the order of its vectors.
        args ([`MultiTaskTrainingArguments`]):
            Where the name and the options of the balancer are noted from.
    """
    state = balancer.state_dict()
    tensors = {f"tensors{SEPARATOR}{key}": tensor.contiguous() for key, tensor in state["tensors"].items()}
    for key, rows in state["vectors"].items():
        for task, row in rows.items():
            for name, tensor in zip(names, row.tensors):
                if tensor is not None:
                    tensors[SEPARATOR.join(("vectors", key, task, name))] = tensor.contiguous()
    metadata = {"format": "pt", "steps": str(state["steps"]), **_description(args)}
    path = os.path.join(folder, BALANCER_NAME)
    save_file(tensors, f"{path}.tmp", metadata)
    os.replace(f"{path}.tmp", path)


def load_balancer(
    folder: str, balancer: Balancer, parameters: Mapping[str, nn.Parameter], args: MultiTaskTrainingArguments
) -> None:
    """
    Reads back what [`save_balancer`] wrote.

    Args:
        folder (`str`):
            The folder of the checkpoint.
        balancer ([`~hf_dbmtl.balancing.Balancer`]):
            The balancer that takes the state up.
        parameters (`Mapping[str, Parameter]`):
            The shared parameters by name.
        args ([`MultiTaskTrainingArguments`]):
            What the run is continued with. A difference to what was saved is told, not refused.

    Raises:
        `ValueError`: where the file is missing although the optimizer's is there, or holds names unknown to the model.
    """
    path = os.path.join(folder, BALANCER_NAME)
    if not os.path.isfile(path):
        if os.path.isfile(os.path.join(folder, OPTIMIZER_NAME)):
            raise ValueError(
                f"The checkpoint '{folder}' holds an optimizer and no {BALANCER_NAME}: it was not written by "
                "MultiTaskTrainer, and the averages of the gradients would silently begin anew. Load its weights into the "
                "model and start a new run."
            )
        logger.warning(f"'{folder}' was saved without optimizer and balancer: both begin anew.")
        return
    position = {name: i for i, name in enumerate(parameters)}
    state: dict[str, Any] = {"tensors": {}, "vectors": {}}
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        for key in file.keys():
            kind, _, rest = key.partition(SEPARATOR)
            if kind == "tensors":
                state["tensors"][rest] = file.get_tensor(key)
                continue
            *what, task, name = rest.split(SEPARATOR)
            if name not in position:
                raise ValueError(
                    f"'{path}' holds the average of task '{task}' for a parameter '{name}' that is not shared in this model. "
                    "Resume with the model and the `shared_parameters` of the run that was saved."
                )
            rows = state["vectors"].setdefault(SEPARATOR.join(what), {})
            row = rows.setdefault(task, GradientVector([None] * len(position)))
            row.tensors[position[name]] = file.get_tensor(key).to(parameters[name].device)
    now = _description(args)
    for key, value in now.items():
        if metadata.get(key) != value:
            logger.warning(f"The run is resumed with {key}={value}; it was saved with {metadata.get(key)}.")
    balancer.load_state_dict({"steps": int(metadata["steps"]), **state})


def _description(args: MultiTaskTrainingArguments) -> dict[str, str]:
    return {"balancer": args.balancer, "balancer_kwargs": json.dumps(args.balancer_kwargs or {}, sort_keys=True)}
