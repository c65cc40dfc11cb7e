"""Per-task gradients in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import Gradients, How, TaskGradient, contradiction, refuse
from .vector import GradientVector


__all__ = ["LocalGradients"]


class LocalGradients(Gradients):
    """The gradients of a single process: the tensors that autograd made, not a copy."""

    def measure(self, task: str, batches: Sequence[Any], how: How) -> TaskGradient:
        single = len(batches) == 1
        passes = self._run_passes(task, batches, how, transformed=single)
        if (found := contradiction(passes.losses, passes.items)) is not None:
            refuse(task, *found)
        total = sum(passes.items)
        if total == 0:
            return TaskGradient(0.0, 0.0, *self.zero(), norm=0.0)
        mean = passes.losses[0]
        correction = passes.unit / total
        if not single:
            mean = sum(n * loss for n, loss in zip(passes.items, passes.losses) if n > 0) / total
            correction *= how.derivative(task, torch.tensor(mean, dtype=passes.dtype)).item()
        shared, heads = passes.shared.mul_(correction), passes.heads.mul_(correction)
        return TaskGradient(mean, total, shared, heads, shared.norm(), heads.norm())

    def write(self, shared: GradientVector, heads: GradientVector, loss_scale: float = 1.0) -> None:
        for parameters, vector in ((self.shared, shared), (self.heads, heads)):
            vector.mul_(loss_scale)
            for parameter, tensor in zip(parameters.values(), vector.tensors):
                parameter.grad = None if tensor is None else tensor.to(parameter.dtype)

    def summed(self, heads: GradientVector) -> GradientVector:
        return heads

    def full(self, vector: GradientVector) -> list[Tensor | None]:
        return list(vector.tensors)

    def from_entries(self, entries: Sequence[tuple[int, int, Tensor]]) -> GradientVector:
        vector, _ = self.zero()
        parameters = list(self.shared.values())
        for position, start, piece in entries:
            like = parameters[position]
            if vector.tensors[position] is None:
                vector.tensors[position] = torch.zeros(like.shape, dtype=piece.dtype, device=like.device)
            vector.tensors[position].view(-1)[start : start + piece.numel()] = piece.reshape(-1).to(like.device)
        return vector
