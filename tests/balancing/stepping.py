"""Steps of a balancer without a model: losses and gradients are given, as the Trainer would give them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_dbmtl.balancing import Balancer, make_balancer
from hf_dbmtl.gradients import GradientVector


TASKS = ("a", "b", "c")
SIZE = 5  # entries of the shared parameters


@dataclass
class Step:
    """The losses of the tasks present, those of the second look after the optimizer's step, and the epoch."""

    losses: dict[str, float]
    after: dict[str, float] = field(default_factory=dict)
    epoch: int = 0


def gradient(task: str, number: int) -> Tensor:
    """The gradient of the raw loss of a task at step `number`."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{task}{number}".encode()))
    return torch.randn(SIZE, generator=generator, dtype=torch.float64)


def random_steps(count: int = 8, tasks: Sequence[str] = TASKS, per_epoch: int = 2, seed: int = 0) -> list[Step]:
    """Losses of very different sizes that mostly fall; each step lowers them a little."""
    generator = torch.Generator().manual_seed(seed)
    steps = []
    for number in range(count):
        noise = (0.3 * torch.randn(2, len(tasks), generator=generator, dtype=torch.float64)).exp()
        sizes = torch.tensor([30.0 * 100.0**-i for i in range(len(tasks))], dtype=torch.float64) * 0.8**number
        losses, after = (sizes * noise[0]).tolist(), (0.9 * sizes * noise[0] * noise[1].sqrt()).tolist()
        steps.append(Step(dict(zip(tasks, losses)), dict(zip(tasks, after)), number // per_epoch))
    return steps


def made(name: str, options: Mapping | None = None, tasks: Sequence[str] = TASKS, seed: int = 0, **kwargs) -> Balancer:
    return make_balancer(name, options, **kwargs).setup(list(tasks), seed)


def play(balancer: Balancer, steps: Sequence[Step], first: int = 0) -> tuple[list[Tensor], list[dict[str, float]]]:
    """
    Runs the steps, the first of which is number `first`.

    Returns:
        The updates, and by task the factors on the gradients of the heads.
    """
    updates, factors = [], []
    for number, step in enumerate(steps, start=first):
        balancer.begin(epoch=step.epoch)
        own = {}
        for task, loss in step.losses.items():
            own[task] = balancer.derivative(task, torch.tensor(loss, dtype=torch.float64)).item()
            balancer.take(task, loss, GradientVector([own[task] * gradient(task, number)]))
        balanced = balancer.balance()
        updates.append(balanced.update.tensors[0].clone())
        factors.append({task: own[task] * balanced.head_weights[task] for task in own})
        if balancer.looks_again:
            balancer.look_again(step.after)
    return updates, factors


def differentiated(function: Callable[[Tensor], Tensor], losses: Mapping[str, float]) -> dict[str, float]:
    """The derivatives of a function of the losses, by autograd."""
    leaf = torch.tensor(list(losses.values()), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(function(leaf), leaf)
    return dict(zip(losses, found.tolist()))


def largest_error(found: Sequence[Mapping[str, float]], expected: Sequence[Mapping[str, float]]) -> float:
    """The largest relative error of any factor of any step."""
    assert len(found) == len(expected) > 0
    worst = 0.0
    for one, other in zip(found, expected):
        assert one.keys() == other.keys()
        worst = max(worst, *(abs(one[task] - other[task]) / abs(other[task]) for task in other))
    return worst
