"""Nash-MTL: its equation, its bound, its heads and what it keeps."""

from __future__ import annotations

import pytest
import torch
from cases import Item, make, play
from gramians import names, random_gradients, relative, weigh
from torch import Tensor

from hf_dbmtl.balancing import make_balancer
from hf_dbmtl.balancing.nash_mtl import NashMTL
from hf_dbmtl.gradients import GradientVector


def residual(weights: Tensor, gradients: Tensor) -> float:
    return ((gradients @ (weights @ gradients)) * weights - 1).abs().max().item()


@pytest.mark.parametrize("tasks", [1, 2, 3, 11, 40])
def test_newton_solves_the_equation(tasks: int) -> None:
    gradients = random_gradients(tasks, 60, seed=tasks, spread=2.0)
    assert residual(weigh(NashMTL(max_norm=0.0, solver="newton"), gradients), gradients) < 1e-9


def test_the_sequence_comes_to_the_same() -> None:
    gradients = random_gradients(3, 4, seed=5)
    found, expected = (weigh(NashMTL(max_norm=0.0, solver=solver), gradients) for solver in ("ccp", "newton"))
    assert relative(found, expected) < 1e-5
    # the control: one problem of the sequence is not enough
    assert relative(weigh(NashMTL(max_norm=0.0, optim_niter=1), gradients), expected) > 1e-3


@pytest.mark.parametrize("solver", ["ccp", "newton"])
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_gradients_of_any_norm(factor: float, solver: str) -> None:
    gradients = factor * random_gradients(3, 12, seed=1)
    assert residual(weigh(NashMTL(max_norm=0.0, solver=solver), gradients), gradients) < 1e-4


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
def test_the_bound_is_for_the_shared_parameters(max_norm: float) -> None:
    """The heads carry the weights without it, times the user's own."""
    gradients = random_gradients(3, 12, seed=1)
    balancer = make_balancer("nash_mtl", {"max_norm": max_norm, "solver": "newton"}, {"t1": 2.0}).setup(names(3), 0)
    balancer.begin()
    for task, gradient in zip(names(3), gradients):
        balancer.take(task, 1.0, GradientVector([gradient.clone()]))
    balanced = balancer.balance()
    free = weigh(NashMTL(max_norm=0.0, solver="newton"), gradients)
    norm = (free @ gradients).norm().item()
    bound = min(1.0, max_norm / norm) if max_norm else 1.0
    assert bound < 1.0 or max_norm != 0.5
    of_user = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    for found, expected in ((balanced.weights, bound * free), (balanced.head_weights, free)):
        assert relative(torch.tensor(list(found.values()), dtype=torch.float64), expected * of_user) < 1e-9


def test_weights_are_kept_between_updates() -> None:
    part = NashMTL(max_norm=0.0, update_weights_every=3, solver="newton")
    part.setup(names(3), 0)
    found = [weigh(part, random_gradients(3, 12, seed=step), step=step, setup=False) for step in range(1, 8)]
    assert [torch.equal(one, found[0]) for one in found] == [True] * 3 + [False] * 4
    assert torch.equal(found[3], found[5]) and not torch.equal(found[5], found[6])


def test_an_absent_task_keeps_its_weight() -> None:
    part = NashMTL(max_norm=0.0, solver="newton")
    part.setup(names(3), 0)
    weigh(part, random_gradients(3, 12, seed=1), setup=False)
    before = part.last.clone()
    gradients = random_gradients(2, 12, seed=2)
    found = weigh(part, gradients, step=2, tasks=["t0", "t2"], setup=False)
    assert residual(found, gradients) < 1e-9
    assert part.last[1] == before[1] and torch.equal(part.last[[0, 2]], found)


def test_a_gradient_of_zero_has_weight_one_for_its_head() -> None:
    gradients = random_gradients(3, 8, seed=2)
    gradients[1] = 0.0
    assert weigh(NashMTL(max_norm=0.0), gradients)[1] == 1.0


def test_the_sequence_begins_at_the_last_weights() -> None:
    """With one problem per step the weights approach the solution of a problem that stays."""
    gradients = random_gradients(3, 4, seed=5)
    step = {name: Item(1.0, gradient, 1.0) for name, gradient in zip(names(3), gradients)}
    balancer = make("nash_mtl", names(3))
    balancer.weighting.optim_niter, balancer.weighting.max_norm = 1, 0.0
    factors = [torch.tensor(list(one.values()), dtype=torch.float64) for one in play(balancer, [step] * 5)[1]]
    solution = weigh(NashMTL(max_norm=0.0, solver="newton"), gradients)
    assert relative(factors[0], solution) > 1e-2 > 1e-4 > relative(factors[-1], solution)


@pytest.mark.parametrize(
    "options", [{"max_norm": -1.0}, {"optim_niter": 0}, {"update_weights_every": 0}, {"solver": "x"}]
)
def test_options(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        NashMTL(**options)
