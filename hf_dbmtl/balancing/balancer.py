"""The balancer: a loss transform, a gradient memory and a weighting, run together over the tasks of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .db_mtl import EMA
from .transforms import LossTransform
from .vectors import Vector
from .weightings import NormWeighting


__all__ = ["Balanced", "Balancer"]


@dataclass
class Balanced:
    """
    What a step came to.

    Attributes:
        update (`Vector`, *optional*):
            The update of the shared parameters, for the optimizer; `None` where no task was present.
        weights (`dict[str, float]`):
            For every task present, the factor with which its (remembered) gradient enters the update.
    """

    update: Vector | None
    weights: dict[str, float] = field(default_factory=dict)


class Balancer:
    """
    Makes one update of the shared parameters from the losses and gradients of the tasks present in a step.

    A step is [`~Balancer.begin`], then [`~Balancer.take`] for one task after the other, then [`~Balancer.balance`]. A step
    that is given up half-way is simply begun anew: what `take` remembered stays, and the step is not counted.

    Args:
        transform (`LossTransform`):
            What is differentiated instead of the loss.
        memory (`EMA`, *optional*):
            The memory of every task's gradient; none by default.
        weighting (`NormWeighting`):
            The weights of the (remembered) gradients.
        task_weights (`Mapping[str, float]`, *optional*):
            The user's weights by task, 1.0 where silent. They multiply a task's term after balancing: a factor on the
            loss would be undone by the logarithm.
    """

    def __init__(
        self,
        transform: LossTransform,
        memory: EMA | None,
        weighting: NormWeighting,
        task_weights: Mapping[str, float] | None = None,
    ):
        self.transform = transform
        self.memory = memory
        self.weighting = weighting
        self.task_weights = dict(task_weights or {})
        self.steps = 0
        self.begin()

    def begin(self) -> None:
        """Starts a step."""
        self._sum: Vector | None = None
        self._norms: dict[str, float] = {}

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        """The factor on the gradient of `loss` (`torch.Tensor` of shape `()`): the derivative of the loss transform."""
        return self.transform.derivative(task, loss)

    def take(self, task: str, loss: float, gradient: Vector) -> None:
        """
        Takes in what a task present in the step contributes.

        Args:
            task (`str`):
                The name of the task.
            loss (`float`):
                Its mean loss over the step, as it is (not transformed).
            gradient (`Vector`):
                Its finite gradient, the transform's derivative applied. It is given away: this method may overwrite it.
        """
        self.transform.check(task, loss)
        if self.memory is not None:
            gradient = self.memory.update(task, gradient, self.steps + 1)
        norm = self._norms[task] = gradient.norm()
        unit = self.weighting.unit(norm) * self.task_weight(task)
        if self._sum is not None:
            self._sum.add_(gradient, unit)
        elif self.memory is not None:
            self._sum = gradient.new_zero().add_(gradient, unit)
        else:
            self._sum = gradient.mul_(unit)

    def balance(self) -> Balanced:
        """Ends the step: the update and the weights, and the step counts as balanced."""
        if self._sum is None:
            return Balanced(update=None)
        scale = self.weighting.scale(list(self._norms.values()))
        weights = {
            task: scale * self.weighting.unit(norm) * self.task_weight(task) for task, norm in self._norms.items()
        }
        update = self._sum.mul_(scale)
        self.steps += 1
        self.begin()
        return Balanced(update, weights)

    def task_weight(self, task: str) -> float:
        """The user's weight of a task, 1.0 by default."""
        return self.task_weights.get(task, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The counter of balanced steps, and by task what the memory holds."""
        return {"steps": self.steps, "memory": dict(self.memory.rows) if self.memory is not None else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the state that [`~Balancer.state_dict`] gave."""
        self.steps = state["steps"]
        if self.memory is not None:
            self.memory.rows = dict(state["memory"])
