"""The state of the optimizer of a sharded model, read back where some parameters have none."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict


__all__ = ["load_sharded_optimizer"]


def load_sharded_optimizer(
    folder: str, accelerator: Accelerator, optimizer: torch.optim.Optimizer, model: nn.Module
) -> None:
    """
    Reads what accelerate's `save_fsdp_optimizer` has written, as a whole state in one file. A parameter that no task has
    reached has no state there, from which accelerate's own function concludes that the file is not the optimizer's; here it
    has none afterwards either.

    Args:
        folder (`str`):
            The folder of the checkpoint.
        accelerator (`accelerate.Accelerator`):
            What has prepared the model.
        optimizer (`torch.optim.Optimizer`):
            The optimizer.
        model (`torch.nn.Module`):
            The sharded model.
    """
    names: list[list[str]] = [[]]
    state = {}
    if accelerator.is_main_process:
        state = torch.load(os.path.join(folder, "optimizer.bin"), weights_only=True, map_location="cpu")
        names = [list(state["state"])]
    dist.broadcast_object_list(names)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_optimizer_state_dict(model, optimizer, state, options=options)
    known = set(names[0])
    for name, parameter in model.named_parameters():
        if name.replace("_checkpoint_wrapped_module.", "") not in known:
            optimizer.state.pop(parameter, None)
