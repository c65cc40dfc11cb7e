"""
The balancer's part of a checkpoint: safetensors in logical form, by task and parameter name. Each process writes what it
holds, pieces of parameters by the place where they start, so that any other number of processes can read them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from glob import escape, glob
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import logging

from .balancing import Balancer, describe_balancer
from .gradients import Gradients
from .training_args import MultiTaskTrainingArguments


__all__ = ["BALANCER_NAME", "load_balancer", "save_balancer"]

logger = logging.get_logger(__name__)

BALANCER_NAME = "balancer.safetensors"
SEPARATOR = "/"  # between the names of parts, tasks and parameters; none of them holds one


def save_balancer(folder: str, balancer: Balancer, gradients: Gradients, args: MultiTaskTrainingArguments) -> None:
    """
    Writes the state of a balancer into a checkpoint, atomically: a file of that name is whole or not there.

    Args:
        folder (`str`):
            The folder of the checkpoint.
        balancer ([`~hf_dbmtl.balancing.Balancer`]):
            The balancer.
        gradients ([`~hf_dbmtl.gradients.Gradients`]):
            Whose vectors it holds.
        args ([`MultiTaskTrainingArguments`]):
            Where the process, the name and the options of the balancer are noted from.
    """
    names = list(gradients.shared)
    state = balancer.state_dict()
    tensors = {}
    if args.process_index == 0:
        tensors = {f"tensors{SEPARATOR}{key}": tensor.contiguous() for key, tensor in state["tensors"].items()}
    for key, rows in state["vectors"].items():
        for task, row in rows.items():
            for position, start, piece in row.entries():
                tensors[SEPARATOR.join(("vectors", key, task, names[position], str(start)))] = piece.contiguous()
    metadata = {"format": "pt", "steps": str(state["steps"]), **_description(args)}
    name = BALANCER_NAME
    if args.world_size > 1:
        name = name.replace(".", f"-{args.process_index:05d}-of-{args.world_size:05d}.", 1)
    os.makedirs(folder, exist_ok=True)  # another process may be the one that makes it, later
    path = os.path.join(folder, name)
    save_file(tensors, f"{path}.tmp", metadata)
    os.replace(f"{path}.tmp", path)


def load_balancer(folder: str, balancer: Balancer, gradients: Gradients, args: MultiTaskTrainingArguments) -> None:
    """
    Reads back what [`save_balancer`] wrote, with whatever number of processes.

    Args:
        folder (`str`):
            The folder of the checkpoint.
        balancer ([`~hf_dbmtl.balancing.Balancer`]):
            The balancer that takes the state up.
        gradients ([`~hf_dbmtl.gradients.Gradients`]):
            What makes its vectors.
        args ([`MultiTaskTrainingArguments`]):
            What the run is continued with. A difference to what was saved is told, not refused.

    Raises:
        `ValueError`: where the file is missing although the optimizer's is there, or holds names unknown to the model.
    """
    pattern = BALANCER_NAME.replace(".", "*.", 1)
    paths = sorted(glob(os.path.join(escape(folder), pattern)))
    if not paths:
        if glob(os.path.join(escape(folder), "optimizer*")):  # a file, or under FSDP with sharded states a folder
            raise ValueError(
                f"The checkpoint '{folder}' holds an optimizer and no {BALANCER_NAME}: it was not written by "
                "MultiTaskTrainer, and the averages of the gradients would silently begin anew. Load its weights into the "
                "model and start a new run."
            )
        logger.warning(f"'{folder}' was saved without optimizer and balancer: both begin anew.")
        return
    tensors: dict[str, torch.Tensor] = {}
    pieces: dict[str, dict[str, list[tuple[int, int, torch.Tensor]]]] = {}
    position = {name: i for i, name in enumerate(gradients.shared)}
    for path in paths:
        with _opened(path) as file:
            metadata = _metadata(path, file.metadata())
            for key in file.keys():
                kind, _, rest = key.partition(SEPARATOR)
                if kind == "tensors":
                    tensors[rest] = file.get_tensor(key)
                    continue
                *what, task, name, start = _place(path, rest)
                if name not in position:
                    raise ValueError(
                        f"'{path}' holds the average of task '{task}' for a parameter '{name}' that is not shared in this "
                        "model. Resume with the model and the `shared_parameters` of the run that was saved."
                    )
                piece = file.get_tensor(key)
                if int(start) + piece.numel() > gradients.shared[name].numel() or not piece.isfinite().all():
                    raise ValueError(f"'{path}' holds a '{key}' that is too large for the parameter, or not finite.")
                rows = pieces.setdefault(SEPARATOR.join(what), {})
                rows.setdefault(task, []).append((position[name], int(start), piece))
    for key, value in _description(args).items():
        if metadata.get(key) != value:
            logger.warning(f"The run is resumed with {key}={value}; it was saved with {metadata.get(key)}.")
    vectors = {
        key: {task: gradients.from_entries(entries) for task, entries in rows.items()} for key, rows in pieces.items()
    }
    balancer.load_state_dict({"steps": int(metadata["steps"]), "tensors": tensors, "vectors": vectors})


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"'{path}' is damaged ({error}). Resume from another checkpoint.") from error


def _metadata(path: str, metadata: dict[str, str] | None) -> dict[str, str]:
    if not metadata or not re.fullmatch("[0-9]{1,18}", metadata.get("steps", "")):
        raise ValueError(f"'{path}' does not tell the number of `steps`: it is no balancer's state.")
    return metadata


def _place(path: str, key: str) -> list[str]:
    """What a vector is, its task, its parameter and the place where it starts."""
    parts = key.split(SEPARATOR)
    if len(parts) < 4 or not re.fullmatch("[0-9]{1,18}", parts[-1]):
        raise ValueError(f"'{path}' holds '{key}', which is no entry of a balancer's state.")
    return parts


def _description(args: MultiTaskTrainingArguments) -> dict[str, str]:
    options = json.dumps(args.balancer_kwargs or {}, sort_keys=True)
    return {"balancer": describe_balancer(args.balancer), "balancer_kwargs": options}
