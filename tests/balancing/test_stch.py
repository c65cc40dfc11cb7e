"""STCH in both variants, against the derivatives of what it maximises smoothly."""

from __future__ import annotations

import pytest
import torch
from stepping import TASKS, Step, differentiated, largest_error, made, play, random_steps

from hf_dbmtl.balancing import make_balancer


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
@pytest.mark.parametrize("mu", [10.0, 1.0, 0.01])
def test_the_definition(mu: float, order: str) -> None:
    """In whatever order the largest comes, and with exponents of a thousand and more."""
    preferences, ideal = {"a": 0.2, "c": 0.5}, {"b": 0.1, "a": -1.0}
    chosen = torch.tensor([preferences.get(task, 1 / 3) for task in order], dtype=torch.float64)
    points = torch.tensor([ideal.get(task, 0.0) for task in order], dtype=torch.float64)

    def smooth_maximum(losses: torch.Tensor) -> torch.Tensor:
        return mu * torch.logsumexp(chosen * (losses - points) / mu, dim=0)

    steps = [Step({task: step.losses[task] for task in order}) for step in random_steps(5)]
    expected = [differentiated(smooth_maximum, step.losses) for step in steps]
    options = {"mu": mu, "preferences": preferences, "ideal": ideal}
    found = play(made("stch", options), steps)[1]
    for one, other in zip(found, expected):
        assert one == {task: pytest.approx(factor, rel=1e-10, abs=1e-250) for task, factor in other.items()}
    for wrong in ({"mu": 1.3 * mu}, {"ideal": {}}, {"preferences": {}}):
        assert largest_error(play(made("stch", {**options, **wrong}), steps[-1:])[1], expected[-1:]) > 1e-3, wrong


def test_absent_tasks() -> None:
    steps = random_steps(3)
    del steps[1].losses["a"]
    found = play(made("stch", {"mu": 0.5}), steps)[1]
    expected = differentiated(lambda losses: 0.5 * torch.logsumexp(losses / 3 / 0.5, 0), steps[1].losses)
    assert found[1] == {task: pytest.approx(factor, rel=1e-12) for task, factor in expected.items()}


@pytest.mark.parametrize("mu", [1.0, 0.3])
def test_the_official_code(mu: float) -> None:
    """Epoch 0 and 1 sum logarithms, epoch 1 gives the average, from epoch 2 on it is the smooth maximum."""
    steps = random_steps(10)
    average = torch.tensor([(steps[2].losses[task] + steps[3].losses[task]) / 2 for task in TASKS], dtype=torch.float64)

    def later(losses: torch.Tensor) -> torch.Tensor:
        return 3 * mu * (((losses / average).log() / mu).exp().sum()).log()

    expected = [differentiated(lambda losses: losses.log().sum(), step.losses) for step in steps[:4]]
    expected += [differentiated(later, step.losses) for step in steps[4:]]
    options = {"variant": "official", "mu": mu, "warmup_epochs": 1}
    assert largest_error(play(made("stch", options), steps)[1], expected) < 1e-11
    for wrong in ({"warmup_epochs": 2}, {"warmup_epochs": 0}, {"mu": 1.1 * mu}):
        assert largest_error(play(made("stch", {**options, **wrong}), steps)[1], expected) > 1e-3, wrong


def test_a_task_that_missed_the_average() -> None:
    steps = random_steps(8)
    for step in steps[:5]:
        step.losses.pop("b")
    balancer = made("stch", {"variant": "official", "warmup_epochs": 1})
    found = play(balancer, steps)[1]
    first = steps[5].losses["b"]  # which stands for its average
    ratio = {task: sum(step.losses[task] for step in steps[2:4]) / 2 for task in "ac"} | {"b": first}
    for number in (5, 6):
        losses = steps[number].losses
        total = sum(losses[task] / ratio[task] for task in losses)
        assert found[number] == {task: pytest.approx(3 / ratio[task] / total, rel=1e-12) for task in losses}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 0.0}, "`mu` must be positive"),
        ({"variant": "libmtl"}, r"`variant` must be one of \['paper', 'official'\]"),
        ({"variant": "official", "ideal": {"a": 1.0}}, "belong to variant='paper'"),
        ({"preferences": {"a": 0.0}}, r"`preferences\['a'\]` must be positive"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balancer("stch", options)


@pytest.mark.parametrize("name", ["preferences", "ideal"])
def test_an_unknown_task(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` names a task 'z'"):
        made("stch", {name: {"z": 1.0}})
