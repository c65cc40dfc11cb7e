"""UW, against the paper's objective, learned by autograd and torch's optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from stepping import TASKS, Step, differentiated, largest_error, made, play, random_steps

from hf_dbmtl.balancing import make_balancer


def objective(losses: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return (losses / (2 * s.exp()) + s / 2).sum()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("init", [0.0, -0.5])
def test_against_the_objective(init: float, optimizer: str) -> None:
    steps = random_steps(12)
    s = torch.full((3,), init, dtype=torch.float64, requires_grad=True)
    own = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([s], lr=0.03)
    expected = []
    for step in steps:
        expected.append(differentiated(lambda losses: objective(losses, s.detach()), step.losses))
        own.zero_grad()
        objective(torch.tensor(list(step.losses.values()), dtype=torch.float64), s).backward()
        own.step()
    options = {"init": init, "learning_rate": 0.03, "optimizer": optimizer}
    assert largest_error(play(made("uw", options), steps)[1], expected) < 1e-12
    assert largest_error(play(made("uw", {**options, "learning_rate": 0.031}), steps)[1], expected) > 1e-3
    assert largest_error(play(made("uw", {**options, "init": init + 0.01}), steps)[1], expected) > 1e-3


def test_it_settles_at_the_reciprocal_of_the_loss() -> None:
    """e^s = ℓ is where the objective is lowest: every term then has the weight 1 / 2ℓ."""
    balancer = made("uw", {"learning_rate": 0.3})
    losses = {"a": 4.0, "b": 0.2, "c": 1.0}
    factors = play(balancer, [Step(losses)] * 300)[1]
    assert factors[0] == {"a": 0.5, "b": 0.5, "c": 0.5}
    for task in TASKS:
        assert factors[-1][task] == pytest.approx(0.5 / losses[task], rel=1e-3)


def test_the_weight_of_a_vanished_loss_is_bounded() -> None:
    balancer = made("uw", {"init": -40.0})
    assert play(balancer, [Step({"a": 0.0})])[1] == [{"a": pytest.approx(0.5e8)}]
    assert play(made("uw", {"init": -18.0}), [Step({"a": 0.0})])[1] == [{"a": pytest.approx(0.5 * math.exp(18.0))}]


@pytest.mark.parametrize("init", [float("nan"), float("inf")])
def test_bad_init(init: float) -> None:
    with pytest.raises(ValueError, match="`init` must be a finite number"):
        make_balancer("uw", {"init": init})
