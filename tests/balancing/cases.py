"""Steps to run balancers on without a model: losses and gradients are given, as the Trainer would give them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_dbmtl.balancing import Balancer, make_balancer
from hf_dbmtl.gradients import GradientVector


STEPS = 4  # an epoch each


@dataclass(frozen=True)
class Item:
    """What a task brings to a step: its loss, its gradient, the loss of the same batch after the optimizer's step."""

    loss: float
    gradient: Tensor
    later: float


Step = dict[str, Item]


def draw(tasks: int, size: int, seed: int, spread: float = 1.0, steps: int = STEPS, common: float = 0.0) -> list[Step]:
    """
    Steps of `tasks` tasks with gradients of `size` entries and norms that are `spread` apart, that share a direction as
    far as `common` says; losses from 0.1 to 3.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = (spread * random(tasks)).exp()
    drawn = []
    for _ in range(steps):
        gradients = scales[:, None] * (random(tasks, size) + (common * random(size) if common else 0.0))
        losses = 0.1 + 2.9 * torch.rand(tasks, generator=generator, dtype=torch.float64)
        later = losses * (1 - 0.3 * torch.rand(tasks, generator=generator, dtype=torch.float64))
        drawn.append({f"t{i}": Item(losses[i].item(), gradients[i], later[i].item()) for i in range(tasks)})
    return drawn


# Three tasks in many dimensions, with norms alike and far apart; two tasks; more tasks than dimensions, in conflict;
# and tasks that mostly agree.
CASES = [draw(3, 12, 0), draw(3, 12, 1, spread=2.0), draw(2, 5, 2), draw(8, 4, 3), draw(4, 6, 9, common=2.0)]


def change(steps: list[Step], function: Callable[[str, Item], Item]) -> list[Step]:
    return [{task: function(task, item) for task, item in step.items()} for step in steps]


# Options beside the defaults under which a balancer is checked as well, by what it is called here.
VARIANTS = {
    "max_norm of alpha 1": ("max_norm", {"alpha": 1.0}),
    "gradnorm, the paper's": ("gradnorm", {"parametrization": "paper", "optimizer": "adam"}),
    "moco, the paper's": ("moco", {"normalize": False, "projection": "simplex"}),
    "excess_mtl, the paper's": ("excess_mtl", {"initial_weight": "1/T", "warmup_steps": 2}),
    "mgda of unit gradients": ("mgda", {"normalization": "l2"}),
    "mgda, its authors'": ("mgda", {"normalization": "loss+", "combine": "raw"}),
    "nash_mtl by newton": ("nash_mtl", {"solver": "newton", "max_norm": 0.0, "update_weights_every": 2}),
    "fairgrad by newton": ("fairgrad", {"solver": "newton", "alpha": 2.0}),
    "upgrad, torchjd's": ("upgrad", {"norm_eps": 1e-4, "reg_eps": 1e-4}),
    "cagrad of c 1": ("cagrad", {"c": 1.0, "rescale": 0}),
    "graddrop with a leak": ("graddrop", {"leak": 0.3}),
}


def build(name: str) -> Balancer:
    return make_balancer(*VARIANTS.get(name, (name,)))


def make(name: str, tasks: list[str], seed: int = 0) -> Balancer:
    return build(name).setup(tasks, seed)


def vector(gradient: Tensor) -> GradientVector:
    """A gradient as two parameters."""
    half = len(gradient) // 2
    return GradientVector([gradient[:half].clone(), gradient[half:].clone()])


def flat(update: GradientVector, like: Tensor) -> Tensor:
    """An update as one vector in float64; what no task reached is zero."""
    half = len(like) // 2
    pieces = zip(update.tensors, (like[:half], like[half:]))
    return torch.cat([torch.zeros_like(piece) if one is None else one for one, piece in pieces]).double()


def play(
    balancer: Balancer, steps: list[Step], epoch: int | None = None
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """The updates, and the factors that they put on the tasks' gradients, as far as the balancer tells them."""
    updates, factors = [], []
    for step in steps:
        balancer.begin(epoch=balancer.steps if epoch is None else epoch)
        for task, item in step.items():
            loss = torch.tensor(item.loss, dtype=torch.float64)
            balancer.take(task, item.loss, vector(item.gradient).mul_(balancer.derivative(task, loss).item()))
        if balancer.validates:  # as if every task's validation loss had the gradient of its training loss
            balancer.planned()
            products = [balancer.products(vector(item.gradient)) for item in step.values()]
            balancer.tune(torch.stack(products), learning_rate=0.1)
        balanced = balancer.balance()
        updates.append(flat(balanced.update, next(iter(step.values())).gradient))
        factors.append({task: balanced.factors[task] for task in step})
        if balancer.looks_again:
            balancer.look_again({task: item.later for task, item in step.items()})
    return updates, factors


def run(name: str, steps: list[Step], seed: int = 0) -> list[Tensor]:
    return play(make(name, list(steps[0]), seed), steps)[0]


_KNOWN: dict[tuple[str, int], list[Tensor]] = {}


def known(name: str, steps: list[Step]) -> list[Tensor]:
    """`run` on one of the CASES, once for all the checks that compare with it."""
    key = (name, id(steps))
    if key not in _KNOWN:
        _KNOWN[key] = run(name, steps)
    return _KNOWN[key]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of an update, relative to its size."""
    assert all(update.isfinite().all() for update in (*found, *expected)), "an update is not finite"
    sizes = [max(one.norm(), two.norm(), torch.tensor(1e-300)) for one, two in zip(found, expected)]
    return max(((one - two).norm() / size).item() for one, two, size in zip(found, expected, sizes))
