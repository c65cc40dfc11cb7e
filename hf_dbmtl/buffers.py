"""The model's buffers, such as the running statistics of BatchNorm: what a forward pass changes beside gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainerCallback


__all__ = ["AverageBuffers", "Buffers", "average_buffers"]


class Buffers:
    """
    The buffers as they were at the beginning of a step. A NaN that has got into a running mean stays there for ever, even
    where the step has been skipped.

    Args:
        model (`torch.nn.Module`):
            The model, before the forward passes of the step.
    """

    def __init__(self, model: nn.Module):
        self.kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives every buffer its contents back."""
        for buffer, before in self.kept:
            buffer.copy_(before)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """
    Gives every process the mean of the floating-point buffers of all of them. Each has seen rows of its own, and only those
    of one process would be saved. Buffers that are the same everywhere stay as they are, to the bit. Every process must
    call it.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.numel()]
    if not buffers:
        return
    own = torch.cat([buffer.reshape(-1).double() for buffer in buffers])
    low, high, mean = own.clone(), own.clone(), own.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    dist.all_reduce(mean)
    mean = torch.where(low == high, own, mean / dist.get_world_size())
    for buffer, piece in zip(buffers, mean.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(_view(piece, buffer))


def _view(piece: Tensor, buffer: Tensor) -> Tensor:
    return piece.view(buffer.shape).to(buffer.dtype)


class AverageBuffers(TrainerCallback):
    """Averages the buffers at the end of training, so that what is saved or evaluated then is the mean of all processes."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        average_buffers(kwargs["model"])
