"""FAMO, against its algorithm written down once more, with autograd and torch's Adam."""

from __future__ import annotations

import pytest
import torch
from stepping import TASKS, Step, differentiated, largest_error, made, play, random_steps

from hf_dbmtl.balancing import make_balancer


EPSILON = 1e-8


class Algorithm:
    """Algorithm 1 for steps in which every task is present."""

    def __init__(self, learning_rate: float, weight_decay: float, bounds: list[float], adam: bool = True):
        self.xi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        kind = torch.optim.Adam if adam else torch.optim.SGD
        self.optimizer = kind([self.xi], lr=learning_rate, weight_decay=weight_decay)
        self.bounds = torch.tensor(bounds, dtype=torch.float64)

    def objective(self, losses: torch.Tensor) -> torch.Tensor:
        z = self.xi.detach().softmax(0)
        excess = losses - self.bounds + EPSILON
        return (z * excess.log()).sum() / (z / excess.detach()).sum()

    def step(self, before: dict[str, float], after: dict[str, float]) -> None:
        old, new = (torch.tensor(list(one.values()), dtype=torch.float64) for one in (before, after))
        old, new = old - self.bounds + EPSILON, new - self.bounds + EPSILON
        self.optimizer.zero_grad()
        self.xi.softmax(0).backward(old.log() - new.log())
        self.optimizer.step()


@pytest.mark.parametrize("bounds", [[0.0, 0.0, 0.0], [0.3, 0.01, -1.0]])
@pytest.mark.parametrize("adam", [True, False])
def test_against_the_algorithm(adam: bool, bounds: list[float]) -> None:
    steps = random_steps(12)
    algorithm = Algorithm(0.1, 0.01, bounds, adam)
    expected = []
    for step in steps:
        expected.append(differentiated(algorithm.objective, step.losses))
        algorithm.step(step.losses, step.after)
    options = {"learning_rate": 0.1, "weight_decay": 0.01, "optimizer": "adam" if adam else "sgd"}
    options["min_losses"] = dict(zip(TASKS, bounds))
    assert largest_error(play(made("famo", options), steps)[1], expected) < 1e-11
    for wrong in ({"learning_rate": 0.11}, {"weight_decay": 0.5}, {"min_losses": {"a": 0.1}}):
        assert largest_error(play(made("famo", {**options, **wrong}), steps)[1], expected) > 1e-3, wrong


def test_the_update_is_a_convex_combination() -> None:
    for factor in play(made("famo"), random_steps())[1]:
        assert sum(factor.values()) == pytest.approx(1.0, rel=1e-12)


def test_a_task_that_falls_too_slowly_gets_more() -> None:
    balancer = made("famo", {"learning_rate": 0.1})
    play(balancer, [Step({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.5, "b": 0.9, "c": 0.9})] * 20)
    z = balancer.transform.logits.values().softmax(0).tolist()
    assert z[0] < 0.2 < 0.35 < z[1] and z[1] == pytest.approx(z[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_second_look_that_is_not_finite_leaves_the_logits(value: float) -> None:
    steps = random_steps(4)
    balancer = made("famo")
    play(balancer, steps[:2])
    before = {name: tensor.clone() for name, tensor in balancer.state_dict()["tensors"].items()}
    play(balancer, [Step(steps[2].losses, {**steps[2].after, "b": value})], first=2)
    after = balancer.state_dict()["tensors"]
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    play(balancer, [steps[2]], first=2)
    assert not torch.equal(before["transform/learned"], balancer.state_dict()["tensors"]["transform/learned"])


def test_a_second_look_counts_once() -> None:
    balancer = made("famo")
    steps = random_steps(2)
    play(balancer, steps[:1])
    before = balancer.transform.logits.values()
    balancer.look_again(steps[0].after)
    assert torch.equal(balancer.transform.logits.values(), before)


def test_logits_that_have_drifted_apart() -> None:
    balancer = made("famo")
    balancer.transform.logits.set([5000.0, 0.0, -5000.0])
    (factor,) = play(balancer, [Step({"b": 1.0, "c": 1.0}, {"b": 1.0, "c": 1.0})])[1]
    assert sum(factor.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -0.1}, "`learning_rate` must be a number of 0 or more"),
        ({"weight_decay": -0.1}, "`weight_decay` must be a number of 0 or more"),
        ({"min_loss": {}}, "did you mean 'min_losses'"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balancer("famo", options)


def test_a_bound_of_an_unknown_task_and_a_loss_below_it() -> None:
    with pytest.raises(ValueError, match="`min_losses` names a task 'z'"):
        made("famo", {"min_losses": {"z": 1.0}})
    balancer = made("famo", {"min_losses": {"a": 1.0}})
    with pytest.raises(ValueError, match=r"Task 'a': its loss is 0\.5, below the lower bound 1"):
        play(balancer, [Step({"a": 0.5})])
