"""The plain sum of all tasks' gradients: one backward pass of a micro-batch for all tasks that share it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .flat import FlatVector
from .passes import How, TaskGradient, contradiction, refuse, total_loss
from .receiver import Hooks, Receives
from .vector import GradientVector


if TYPE_CHECKING:
    from .base import Gradients


__all__ = ["PlainSum"]

Units = Mapping[str, Sequence[str]]
Batches = Mapping[str, Sequence[Any]]


@dataclass
class Counted:
    """
    The items of a task, known before any forward pass.

    Attributes:
        own (`list[float]`):
            $n_m$, by micro-batch of this process.
        total (`float`):
            $N_t$, of all micro-batches and processes.
    """

    own: list[float]
    total: float


class PlainSum:
    r"""
    Lets autograd add up the gradients of all tasks: micro-batch $m$ back-propagates
    $\sum_t \phi'_t \frac{n_{t,m}}{N_t} L_{t,m}$ once, over the tasks that share it. So $N_t$ and $\phi'_t$ have to be known
    before the first backward pass: by [`How.count`], or of a single micro-batch on a single process, which is the whole step.
    The total is looked at once, when it is whole, and the tasks one by one only where it is not finite.

    Args:
        gradients ([`Gradients`]):
            Where the gradients live.
        units (`Mapping[str, Sequence[str]]`):
            The tasks by unit.
        batches (`Mapping[str, Sequence[Any]]`):
            The micro-batches of this process by unit.
        how ([`How`]):
            How tasks are computed.
    """

    def __init__(self, gradients: Gradients, units: Units, batches: Batches, how: How):
        self.gradients, self.units, self.batches, self.how = gradients, units, batches, how
        self.tasks = [task for tasks in units.values() for task in tasks]
        self.counted = self._count()
        self.numbers: dict[str, list[Tensor]] = {task: [] for task in self.tasks}  # L_1, n_1, L_2, n_2, ...

    def each(self, hooks: Hooks) -> Iterator[tuple[str, TaskGradient]]:
        """Runs all passes, and yields the tasks: the first present with the sum, of the heads too, the others with zero."""
        gradients = self.gradients
        receiver, heads = gradients._receiver(), gradients.zero()[1]
        for unit, tasks in self.units.items():
            for number, batch in enumerate(self.batches[unit]):
                parts = self._forward(tasks, number, batch)
                if parts:
                    with receiver.receiving(hooks):
                        self.how.backward(sum(parts[1:], start=parts[0]), retain_graph=False)
                    heads.add_(gradients._collect(gradients.heads))
        total, means, items, heads_norm = self._land(receiver, heads)
        norm = total.norm()
        if not math.isfinite(norm + heads_norm):
            yield from self._culprit(hooks)
        begun = False
        for task in self.tasks:
            shared, own = gradients.zero()
            if items[task] == 0:
                yield task, TaskGradient(0.0, 0.0, shared, own, norm=0.0)
            elif begun:
                yield task, TaskGradient(means[task], items[task], shared, own, norm=0.0)
            else:
                begun = True
                yield task, TaskGradient(means[task], items[task], total, heads, norm, heads_norm)

    def _count(self) -> dict[str, Counted] | None:
        """The items of every task, summed over the processes at once."""
        count = self.how.count
        if count is None:
            return None
        own: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        for unit, tasks in self.units.items():
            for batch in self.batches[unit]:
                for task, items in count(tasks, batch).items():
                    own[task].append(items)
        numbers = _read([items for task in self.tasks for items in own[task]])
        counts = {task: [float(next(numbers)) for _ in own[task]] for task in self.tasks}
        totals = self.gradients._summed_over_processes([sum(counts[task]) for task in self.tasks])
        return {task: Counted(counts[task], total) for task, total in zip(self.tasks, totals)}

    def _forward(self, tasks: Sequence[str], number: int, batch: Any) -> list[Tensor]:
        """What a micro-batch back-propagates, a term for every task with a label in it."""
        measured = self.how.forward(tasks, batch)
        for task in tasks:
            self.numbers[task] += [measured[task][0].detach(), measured[task][1]]
        if self.counted is None:
            return [self._term(task, loss, 1.0) for task, (loss, items) in measured.items() if items != 0]
        present = {task: loss for task, (loss, _) in measured.items() if self.counted[task].total > 0}
        parts = [
            self._term(task, loss, self.counted[task].total / self.counted[task].own[number])
            for task, loss in present.items()
            if self.counted[task].own[number] > 0
        ]
        # the pass of a process without labels keeps the others company, in what they exchange
        return parts or [loss * 0 for loss in present.values()]

    def _term(self, task: str, loss: Tensor, share: float) -> Tensor:
        return loss / share * self.how.derivative(task, loss.detach())

    def _land(
        self, receiver: Receives, heads: GradientVector
    ) -> tuple[FlatVector, dict[str, float], dict[str, float], float]:
        """
        What all passes and processes have left: the total, the mean loss and the number of items by task, and a number that
        is finite if and only if the gradient of the heads is, on every process.
        """
        gradients, factor = self.gradients, 1.0 / self.how.loss_scale
        read = _read([number for numbers in self.numbers.values() for number in numbers])
        values = {task: [next(read) for _ in numbers] for task, numbers in self.numbers.items()}
        own = {task: (numbers[::2], numbers[1::2]) for task, numbers in values.items()}
        heads.mul_(factor)
        reached = [*receiver.reached, *(tensor is not None for tensor in heads.tensors)]
        sums = [total_loss(*found) for found in own.values()]
        wrong = [contradiction(*found) is not None or self._miscounted(task, found[1]) for task, found in own.items()]
        counts = [sum(items) for _, items in own.values()]
        told = [*sums, *counts, *wrong, heads.norm() ** 2, *reached]
        numbers = iter(gradients._summed_over_processes([float(one) for one in told]))
        all_sums, all_items, all_wrong = ({task: next(numbers) for task in self.tasks} for _ in range(3))
        heads_norm, everywhere = next(numbers), [one > 0 for one in numbers]
        total = gradients._land(receiver, factor, everywhere[: len(gradients.shared)])
        for task, count in all_wrong.items():
            if count > 0:
                self._refuse(task, *own[task])
        gradients._reach(heads, everywhere[len(gradients.shared) :])
        means = {task: all_sums[task] / count for task, count in all_items.items() if count > 0}
        if gradients.layout.world == 1:
            # that of a single micro-batch as it is, and not its product with n divided by n
            means |= {task: losses[0] for task, (losses, _) in own.items() if len(losses) == 1}
        return total, means, all_items, heads_norm

    def _miscounted(self, task: str, items: Sequence[float]) -> bool:
        counted = self.counted
        return counted is not None and not all(map(partial(math.isclose, rel_tol=1e-6), items, counted[task].own))

    def _refuse(self, task: str, losses: Sequence[float], items: Sequence[float]) -> None:
        found = contradiction(losses, items)
        if found is None and self._miscounted(task, items):
            counted = self.counted[task].own if self.counted else []
            raise ValueError(
                f"Task '{task}': its loss is the mean over {sum(items):g} items, and its labels hold {sum(counted):g}. A kind "
                "of task of your own with a loss of its own has to say in `labelled(labels)` which of them it is over."
            )
        refuse(task, *(found or (math.nan, 0.0)))

    def _culprit(self, hooks: Hooks) -> Iterator[tuple[str, TaskGradient]]:
        """Of tasks whose sum is not finite the one to be told of: the gradients once more, one by one."""
        alone = replace(self.how, summed=False, norms=True)
        for task, measured in self.gradients._one_by_one(self.units, self.batches, alone, hooks):
            if not measured.is_finite:
                yield task, measured
                return


def _read(numbers: Sequence[Tensor]) -> Iterator[float]:
    """The values of tensors of shape `()`, which wait for the device once."""
    return iter(torch.stack([number.to(numbers[0]) for number in numbers]).tolist() if numbers else [])
