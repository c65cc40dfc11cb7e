"""The balancer: a loss transform, a gradient memory and a weighting, run together over the tasks of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from .auto_lambda import TunedWeights
from .db_mtl import EMA
from .part import Part
from .transforms import LossTransform
from .vectors import Vector
from .weightings import CoordinateWeighting, Equal, GramianWeighting, NormWeighting, Weighting


__all__ = ["Balanced", "Balancer"]


@dataclass
class Balanced:
    """
    What a step came to.

    Attributes:
        update (`Vector`, *optional*):
            The update of the shared parameters, for the optimizer; `None` where no task was present.
        weights (`dict[str, float]`):
            For every task present, the factor with which its (remembered) gradient, the derivative of the loss transform
            applied, enters the update.
        factors (`dict[str, float]`):
            For every task present, the factor on the gradient of its loss itself, that of the loss transform included.
        head_weights (`dict[str, float]`):
            For every task present, the factor on the gradient of its head.
        cosines (`torch.Tensor` of shape `(pairs,)`, *optional*):
            The cosines between the gradients of the tasks present, pair by pair, where the Gramian was computed.
    """

    update: Vector | None
    weights: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    head_weights: dict[str, float] = field(default_factory=dict)
    cosines: Tensor | None = None


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
        weighting (`Weighting`):
            The weights of the (remembered) gradients.
        task_weights (`Mapping[str, float]`, *optional*):
            The user's weights by task, 1.0 where silent. They multiply a task's term after balancing: a factor on the
            loss would be undone by the logarithm.
    """

    def __init__(
        self,
        transform: LossTransform,
        memory: EMA | None,
        weighting: Weighting,
        task_weights: Mapping[str, float] | None = None,
    ):
        self.transform = transform
        self.memory = memory
        self.weighting = weighting
        self.task_weights = dict(task_weights or {})
        self.steps = 0
        self.epoch = 0
        self.begin()

    def setup(self, tasks: Sequence[str], seed: int = 0) -> Balancer:
        """Tells every part the names of the tasks and the seed of the run."""
        for part in self._parts().values():
            part.setup(tasks, seed)
        return self

    def begin(self, epoch: int | None = None) -> None:
        """Starts a step, in `epoch` (from 0; by default that of the last step)."""
        self.epoch = self.epoch if epoch is None else epoch
        self._sum: Vector | None = None  # the running sum, where there is one
        self._rows: dict[str, Vector] = {}
        self._norms: dict[str, float] = {}
        self._losses: dict[str, float] = {}
        self._late: dict[str, float] = {}  # by what came after a task, see `LossTransform.rescale`
        self.transform.begin(self.steps + 1, self.epoch)

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        """The factor on the gradient of `loss` (`torch.Tensor` of shape `()`), see [`LossTransform.derivative`]."""
        return self.transform.derivative(task, loss)

    def blend(self, task: str) -> tuple[Vector, float] | None:
        """
        The vector $v$ and the share $b$ with which the gradient $g$ of the task may be blended before it is given to `take`,
        $(1 - b) g + b v$; None where `take` wants the gradient itself.
        """
        return None if self.memory is None or self._waits else self.memory.blend(task, self.steps + 1)

    def take(self, task: str, loss: float, gradient: Vector, norm: float | None = None, blended: bool = False) -> bool:
        """
        Takes in what a task present in the step contributes.

        Args:
            task (`str`):
                The name of the task.
            loss (`float`):
                Its mean loss over the step, as it is (not transformed).
            gradient (`Vector`):
                Its gradient, the transform's derivative applied. It is lent: this method may overwrite it, and takes
                what it wants to keep.
            norm (`float`, *optional*):
                The norm of `gradient`, where it is known already.
            blended (`bool`, *optional*, defaults to `False`):
                Whether it is blended with what `blend` gave in this step.

        Returns:
            `bool`: whether the gradient is finite. If not, the step cannot go on, and nothing remembers it.
        """
        self.transform.check(task, loss)
        self._rescale(self.transform.rescale(task, loss))
        self._losses[task], self._late[task] = loss, 1.0
        if self.memory is not None and not self._waits:
            self._rows[task], self._norms[task] = self.memory.update(task, gradient, self.steps + 1, blended)
        else:
            self._norms[task] = gradient.norm() if norm is None else norm
            if self._streams:
                self._add(task, gradient)
            else:
                self._rows[task] = gradient.take()
        return math.isfinite(self._norms[task])

    @property
    def _streams(self) -> bool:
        """Whether a gradient can be added to the running sum as it comes, and is not kept to the end of the step anyway."""
        return isinstance(self.weighting, NormWeighting) and self.memory is None and not self._waits

    @property
    def _waits(self) -> bool:
        """Whether a factor known at the end of the step only must be on the gradients before anything looks at them."""
        simple = self.memory is None and isinstance(self.weighting, Equal)
        return self.validates or self.transform.entangled or (self.transform.coupled and not simple)

    @property
    def is_plain_sum(self) -> bool:
        """
        Whether the update is the plain sum of the gradients: the first of them given to `take` may then be the sum itself,
        and the others zero.
        """
        plain = isinstance(self.weighting, Equal) and self._streams and not self.transform.coupled
        return plain and all(weight == 1.0 for weight in self.task_weights.values())

    @property
    def known_before(self) -> bool:
        """Whether [`~Balancer.derivative`] never looks at the loss."""
        return self.transform.known_before

    def _rescale(self, factor: float) -> None:
        if factor != 1.0:
            self._late = {task: late * factor for task, late in self._late.items()}
            if self._sum is not None:
                self._sum.mul_(factor)

    def _add(self, task: str, gradient: Vector) -> None:
        """Adds a gradient to the running sum, which stands for all of them where the norms suffice."""
        weighting = cast(NormWeighting, self.weighting)  # see `_streams`
        unit = weighting.unit(self._norms[task], task) * self.task_weight(task)
        if self._sum is None:
            self._sum = gradient.mul_(unit).take()
        else:
            self._sum.add_(gradient, unit)

    def balance(self, room: Callable[[], Vector] | None = None) -> Balanced:
        """
        Ends the step: the update and the weights, and the step counts as balanced.

        Args:
            room (`Callable`, *optional*):
                To a vector whose memory may be overwritten with the update; by default it is given memory of its own.
        """
        if not self._losses:
            return Balanced(update=None)
        common = self.transform.scale(self._losses)
        self._late = {task: late * self.transform.late(task) for task, late in self._late.items()}
        if self._waits:
            for task, row in self._rows.items():
                row.mul_(common * self._late[task])
                if self.memory is None:
                    self._norms[task] *= abs(common * self._late[task])
                else:
                    self._rows[task], self._norms[task] = self.memory.update(task, row, self.steps + 1)
        if isinstance(self.weighting, NormWeighting):
            balanced = self._by_norms(self.weighting, room)
        elif isinstance(self.weighting, GramianWeighting):
            balanced = self._by_gramian(self.weighting, room)
        else:
            balanced = self._by_coordinates(cast(CoordinateWeighting, self.weighting))
        if not self._waits and balanced.update is not None:
            balanced.update.mul_(common)
        heads = self.weighting.head_weights(balanced.weights)
        for task, loss in self._losses.items():
            derivative = self.derivative(task, torch.tensor(loss, dtype=torch.float64)).item()
            balanced.factors[task] = derivative * balanced.weights[task] * common * self._late[task]
            own = heads[task] if self.weighting.weights_heads else self.task_weight(task)
            balanced.head_weights[task] = own * common * self._late[task]
        self.transform.update(self._losses)
        self.weighting.update(self._losses, self._norms)
        self.steps += 1
        self.begin()
        return balanced

    def _by_norms(self, weighting: NormWeighting, room: Callable[[], Vector] | None) -> Balanced:
        scale = weighting.scale(list(self._norms.values()))
        weights = {
            task: scale * weighting.unit(norm, task) * self.task_weight(task) for task, norm in self._norms.items()
        }
        if self._sum is not None:
            return Balanced(self._sum.mul_(scale), weights)
        return Balanced(self._weighted_sum(weights, room), weights)

    def _weighted_sum(self, weights: Mapping[str, float], room: Callable[[], Vector] | None) -> Vector:
        first, *others = self._rows
        update = self._rows[first].new_zero() if room is None else room()
        update.set_(self._rows[first], weights[first])
        for task in others:
            update.add_(self._rows[task], weights[task])
        return update

    def _by_gramian(self, weighting: GramianWeighting, room: Callable[[], Vector] | None) -> Balanced:
        first, *others = self._rows.values()
        gramian = first.gramian(others)
        norms = gramian.diagonal().clamp(min=0).sqrt()
        self._norms = dict(zip(self._rows, norms.tolist()))
        found = weighting.weights(gramian, list(self._rows), list(self._losses.values()), self.steps + 1)
        weights = {task: weight * self.task_weight(task) for task, weight in zip(self._rows, found.tolist())}
        update = self._weighted_sum(weights, room)
        pairs = torch.triu_indices(len(norms), len(norms), 1)
        cosines = (gramian / (norms[:, None] * norms).clamp(min=torch.finfo(gramian.dtype).tiny))[pairs[0], pairs[1]]
        return Balanced(update, weights, cosines=cosines if len(cosines) else None)

    def _by_coordinates(self, weighting: CoordinateWeighting) -> Balanced:
        of_user = {task: self.task_weight(task) for task in self._rows}
        losses = list(self._losses.values())
        update, weights = weighting.combine(self._rows, losses, self.steps + 1, list(of_user.values()))
        return Balanced(update, {task: weights.get(task, 1.0) * of_user[task] for task in self._rows})

    def task_weight(self, task: str) -> float:
        """The user's weight of a task, 1.0 by default."""
        return self.task_weights.get(task, 1.0)

    @property
    def validates(self) -> bool:
        """Whether the weights are tuned, in every step between `take` and `balance`, on what validation data say."""
        return self.transform.needs == "validation"

    def planned(self) -> tuple[Vector, dict[str, float]]:
        """The weighted sum of the gradients taken, with the weights as they are before being tuned, and the weights."""
        tuned = cast(TunedWeights, self.transform).weights(list(self._rows))
        weights = {task: one * self.task_weight(task) for task, one in tuned.items()}
        total = next(iter(self._rows.values())).new_zero()
        for task, row in self._rows.items():
            total.add_(row, weights[task])
        return total, weights

    def products(self, vector: Vector) -> Tensor:
        """The products of a vector with the gradients taken, `(tasks,)`, float64, on the CPU."""
        return vector.sums(list(self._rows.values()), lambda pieces, parameter, start: pieces[1:] @ pieces[0])

    def tune(self, products: Tensor, learning_rate: float) -> None:
        """
        Tunes the weights.

        Args:
            products (`torch.Tensor` of shape `(objectives, tasks)`):
                The products of the gradients of the validation losses, behind a step of gradient descent along
                `planned`, with the gradients taken.
            learning_rate (`float`):
                That of the step.
        """
        of_user = products.new_tensor([self.task_weight(task) for task in self._rows])
        cast(TunedWeights, self.transform).tune(products * of_user, list(self._rows), learning_rate)

    def look_again(self, losses: Mapping[str, float]) -> None:
        """Given the losses of the same batch after the optimizer's step, where the transform wants them."""
        self.transform.look_again(losses)

    @property
    def looks_again(self) -> bool:
        """Whether the transform wants the losses of the same batch again after the optimizer's step."""
        return self.transform.looks_again

    def _parts(self) -> dict[str, Part]:
        parts = {"transform": self.transform, "memory": self.memory, "weighting": self.weighting}
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """
        Everything a further step depends on: `steps`, the counter of balanced steps; `tensors`, by `part/name`; `vectors`,
        by `part/name` and task.
        """
        parts = self._parts().items()
        return {
            "steps": self.steps,
            "tensors": {f"{place}/{name}": one for place, part in parts for name, one in part.state_dict().items()},
            "vectors": {f"{place}/{name}": rows for place, part in parts for name, rows in part.vectors().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the state that [`~Balancer.state_dict`] gave."""
        self.steps = state["steps"]
        for place, part in self._parts().items():
            for kind, load in (("tensors", part.load_state_dict), ("vectors", part.load_vectors)):
                prefix = f"{place}/"
                load({key.removeprefix(prefix): one for key, one in state[kind].items() if key.startswith(prefix)})
        self.begin()
