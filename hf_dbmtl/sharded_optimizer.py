"""The state of the optimizer of a sharded model, read back where some parameters have none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict


__all__ = ["load_sharded_optimizer"]

WRAPPER = "_checkpoint_wrapped_module."  # which activation checkpointing puts into names


def load_sharded_optimizer(
    folder: str, accelerator: Accelerator, optimizer: torch.optim.Optimizer, model: nn.Module
) -> None:
    """
    Reads what accelerate's `save_fsdp_optimizer` has written, as a whole state in one file. A parameter that no task has
    reached has no state there, from which accelerate's own function concludes that the file is not the optimizer's; here it
    has none afterwards either. The same for an optimizer that keeps nothing, such as SGD without momentum.

    Args:
        folder (`str`):
            The folder of the checkpoint.
        accelerator (`accelerate.Accelerator`):
            What has prepared the model.
        optimizer (`torch.optim.Optimizer`):
            The optimizer.
        model (`torch.nn.Module`):
            The sharded model.

    Raises:
        `ValueError`: on every process, where the first one cannot read the file: the others would wait for it for ever.
    """
    path = os.path.join(folder, "optimizer.bin")
    state: dict[str, Any] = {}
    told: list[Any] = [None, None, None]  # the error, the names of parameters that have a state, the groups
    if accelerator.is_main_process:
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            told = [None, list(state["state"]), state["param_groups"]]
        except Exception as error:
            told[0] = f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(told)
    refused, known, groups = told
    if refused is not None:
        raise ValueError(f"'{path}' cannot be read ({refused}). Resume from another checkpoint.")
    if known:
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        named = model.named_parameters()
        with _frozen(parameter for name, parameter in named if name.replace(WRAPPER, "") not in known):
            set_optimizer_state_dict(model, optimizer, state, options=options)
    else:  # torch asks on which device the state lies, and there is none
        _load_groups(optimizer, groups, model)


@contextlib.contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """torch 2.9 and before want a state for every parameter that is trained, and later ones make it up."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _load_groups(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], model: nn.Module) -> None:
    """Takes up the options of every group, such as its learning rate."""
    names = {parameter: name.replace(WRAPPER, "") for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for saved in groups:
            if names[group["params"][0]] in saved["params"]:
                group.update({key: value for key, value in saved.items() if key != "params"})
