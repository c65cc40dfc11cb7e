"""
Per-task gradients over several processes that each hold a shard of the parameters (FSDP2).

`fully_shard` adds up and scatters the gradients of what it shards in every backward pass, so that a process receives its
shard of every task's gradient. Parameters that it leaves whole are added up here: those of the heads as under DDP, shared
ones in slices, so that a process keeps 1/W of every gradient whatever is sharded, and nothing is counted twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from .flat import FlatVector, Layout
from .receiver import Hooks, Receives
from .replicated import ReplicatedGradients, all_gather, reduce_scatter


__all__ = ["ShardedGradients"]


class ShardedLayout(Layout):
    """
    What a process keeps of a gradient: its shard of every sharded parameter, one behind the other, and behind them its
    slice of the other parameters, which lie in a flat tensor of their own that is padded to W slices of equal length.

    Args:
        parameters (`Mapping[str, torch.nn.Parameter]`):
            The shared parameters, in their order.
        rank (`int`):
            This process.
        world (`int`):
            The number of processes.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rank: int, world: int):
        super().__init__(parameters, rank, world)
        self.sharded = [isinstance(parameter, DTensor) for parameter in self.parameters]
        whole = {name: one for name, one in parameters.items() if not isinstance(one, DTensor)}
        self.whole = Layout(whole, rank, world) if whole else None
        self.places: list[slice] = []  # of the parameters in the piece, or in the flat tensor of those not sharded
        end = 0
        starts = iter(self.whole.starts if self.whole else ())
        for name, parameter in parameters.items():
            if isinstance(parameter, DTensor):
                _check_placement(name, parameter)
                self.places.append(slice(end, end + local(parameter).numel()))
                end += local(parameter).numel()
            else:
                start = next(starts)
                self.places.append(slice(start, start + parameter.numel()))
        self.shards = end
        self.length = end + (self.whole.length if self.whole else 0)
        self.device = local(self.parameters[0]).device

    def empty(self) -> Tensor:
        """A flat tensor of the parameters that are not sharded."""
        size = self.whole.length * self.world if self.whole else 0
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def pieces(self) -> Iterator[tuple[int, int, slice]]:
        for position, (parameter, sharded) in enumerate(zip(self.parameters, self.sharded)):
            if sharded and local(parameter).numel():
                rows = -(-parameter.shape[0] // self.world)  # as torch.chunk cuts
                yield position, self.rank * rows * parameter.shape[1:].numel(), self.places[position]
        if self.whole:
            positions = [position for position, sharded in enumerate(self.sharded) if not sharded]
            for position, start, where in self.whole.pieces():
                yield positions[position], start, slice(self.shards + where.start, self.shards + where.stop)


class ShardReceiver:
    """
    Adds up the gradients of a task: `piece` holds the shards, already summed over the processes, and `flat` this process's
    part of the gradients of the parameters that are not sharded.
    """

    def __init__(self, layout: ShardedLayout, flat: Tensor):
        self.layout = layout
        self.flat = flat.zero_()
        self.piece = torch.zeros(layout.length, dtype=layout.dtype, device=layout.device)
        self.reached = [False] * len(layout.parameters)

    @contextlib.contextmanager
    def receiving(self, hooks: Hooks) -> Iterator[None]:
        """Takes in the gradients of the backward pass that runs inside."""
        layout = self.layout
        for parameter in layout.parameters:  # where a module is unsharded, its `zero_grad` does not reach them
            parameter.grad = None
        yield
        for position, (parameter, where) in enumerate(zip(layout.parameters, layout.places)):
            grad, parameter.grad = parameter.grad, None
            if grad is not None:
                self.reached[position] = True
                place = self.piece if layout.sharded[position] else self.flat
                place[where].add_(local(grad).reshape(-1))

    def finish(self) -> Tensor:
        return self.flat


class ShardedGradients(ReplicatedGradients):
    """The gradients of W processes, each of which holds a shard of the parameters and of every gradient."""

    layout: ShardedLayout

    def __init__(self, shared: Mapping[str, nn.Parameter], heads: Mapping[str, nn.Parameter]):
        super().__init__(shared, heads)
        for name, parameter in heads.items():
            if isinstance(parameter, DTensor):
                raise ValueError(
                    f"FSDP has sharded '{name}', a parameter that is not shared by all tasks. Let MultiTaskTrainer prepare "
                    "the model, which leaves such parameters whole, or give them to `fully_shard(ignored_params=...)`."
                )

    def _layout(self) -> ShardedLayout:
        return ShardedLayout(self.shared, dist.get_rank(), dist.get_world_size())

    def _receiver(self) -> ShardReceiver:
        return ShardReceiver(self.layout, self._flat())

    def _reference(self, items: Tensor) -> Tensor:
        """The largest first micro-batch of all processes: their gradients meet before any of them could be corrected."""
        largest = items.detach().clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return super()._reference(largest)

    def _scatter(self, receiver: Receives, factor: float) -> tuple[Tensor, list]:
        layout, piece = self.layout, cast(ShardReceiver, receiver).piece
        piece[: layout.shards].mul_(factor * layout.world)  # FSDP has divided by the number of processes
        if layout.whole is None:
            return piece, []
        flat = receiver.finish().mul_(factor)
        return piece, [reduce_scatter(piece[layout.shards :], flat, async_op=True)]

    def full(self, vector: FlatVector) -> list[Tensor | None]:
        return [
            tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in self.like_parameters(vector)
        ]

    def like_parameters(self, vector: FlatVector) -> list[Tensor | None]:
        layout, (piece,) = self.layout, vector.tensors
        piece = torch.zeros(layout.length, dtype=layout.dtype, device=layout.device) if piece is None else piece
        flat = self._flat()
        if layout.whole is not None:
            all_gather(flat, piece[layout.shards :].to(flat.dtype))
        tensors: list[Tensor | None] = []
        for parameter, where, reached in zip(layout.parameters, layout.places, vector.reached.tolist()):
            if not reached:
                tensors.append(None)
            elif isinstance(parameter, DTensor):
                shard = piece[where].view(local(parameter).shape)
                tensors.append(
                    DTensor.from_local(
                        shard,
                        parameter.device_mesh,
                        parameter.placements,
                        run_check=False,
                        shape=parameter.shape,
                        stride=parameter.stride(),
                    )
                )
            else:
                tensors.append(flat[where].view(parameter.shape).clone())
        self._free.append(flat)
        return tensors


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _check_placement(name: str, parameter: DTensor) -> None:
    if tuple(parameter.placements) != (Shard(0),):
        raise ValueError(
            f"FSDP has placed '{name}' as {parameter.placements}, and per-task gradients are kept for parameters that are cut "
            "along their first dimension over all processes. Use FSDP2 without a hybrid, tensor or context parallel mesh."
        )
