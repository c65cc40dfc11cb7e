"""Per-task gradients of the shared parameters: where they live. Knows nothing of the methods that balance them."""

from collections.abc import Mapping

import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from .base import Gradients
from .local import LocalGradients
from .memory import keep_freed_memory
from .parameters import split_parameters
from .passes import How, TaskGradient
from .replicated import ReplicatedGradients
from .sharded import ShardedGradients
from .vector import GradientVector


__all__ = [
    "GradientVector",
    "Gradients",
    "How",
    "LocalGradients",
    "ReplicatedGradients",
    "ShardedGradients",
    "TaskGradient",
    "make_gradients",
    "split_parameters",
]


def make_gradients(shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]) -> Gradients:
    """The gradients of the given parameters, for the processes that there are."""
    if all(parameter.device.type == "cpu" for parameter in shared.values()):
        keep_freed_memory()
    if any(isinstance(parameter, DTensor) for parameter in shared.values()):
        return ShardedGradients(shared, heads)
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return (ReplicatedGradients if several else LocalGradients)(shared, heads)
