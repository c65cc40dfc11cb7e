"""DWA, against the paper's equation written down once more."""

from __future__ import annotations

import math

import pytest
from stepping import TASKS, Step, largest_error, made, play, random_steps

from hf_dbmtl.balancing import make_balancer


def expected_weights(periods: list[list[dict[str, float]]], temperature: float) -> list[dict[str, float]]:
    """The weights of every step, given the losses of the steps of every period; all tasks present throughout."""
    averages = [{task: sum(losses[task] for losses in period) / len(period) for task in TASKS} for period in periods]
    found = []
    for number, period in enumerate(periods):
        weights = dict.fromkeys(TASKS, 1.0)
        if number >= 2:
            newer, older = averages[number - 1], averages[number - 2]
            terms = {task: math.exp(newer[task] / older[task] / temperature) for task in TASKS}
            weights = {task: 3 * term / sum(terms.values()) for task, term in terms.items()}
        found += [weights] * len(period)
    return found


@pytest.mark.parametrize("temperature", [2.0, 0.3])
def test_by_epochs(temperature: float) -> None:
    steps = random_steps(10, per_epoch=2)
    periods = [[step.losses for step in steps if step.epoch == epoch] for epoch in range(5)]
    found = play(made("dwa", {"temperature": temperature}), steps)[1]
    expected = expected_weights(periods, temperature)
    assert largest_error(found, expected) < 1e-12
    assert largest_error(play(made("dwa", {"temperature": temperature * 1.1}), steps)[1], expected) > 1e-3
    shifted = [Step(step.losses, step.after, (number + 1) // 2) for number, step in enumerate(steps)]
    assert largest_error(play(made("dwa", {"temperature": temperature}), shifted)[1], expected) > 1e-3


def test_by_steps() -> None:
    steps = random_steps(10, per_epoch=100)
    periods = [[step.losses for step in steps[first : first + 3]] for first in range(0, 10, 3)]
    expected = expected_weights(periods, 2.0)
    assert largest_error(play(made("dwa", {"period": 3}), steps)[1], expected) < 1e-12
    assert largest_error(play(made("dwa"), steps)[1], [dict.fromkeys(TASKS, 1.0)] * 10) == 0.0  # one epoch only


def test_a_task_that_comes_late_is_not_among_the_k() -> None:
    steps = random_steps(5, per_epoch=1)
    for step in steps[:3]:
        del step.losses["c"]
    found = play(made("dwa"), steps)[1]
    assert found[3]["c"] == found[4]["c"] == 1.0  # it has been there in one period at most
    assert found[3]["a"] + found[3]["b"] == pytest.approx(2.0, rel=1e-12) and found[3]["a"] != 1.0
    more = play(made("dwa"), [*steps, Step(steps[4].losses, epoch=5)])[1]
    assert sum(more[5].values()) == pytest.approx(3.0, rel=1e-12) and more[5]["c"] != 1.0


def test_a_task_that_misses_a_period_keeps_its_averages() -> None:
    steps = random_steps(6, per_epoch=1)
    del steps[2].losses["b"]
    found = play(made("dwa"), steps)[1]
    rates = {task: steps[2].losses[task] / steps[1].losses[task] for task in "ac"}
    rates["b"] = steps[1].losses["b"] / steps[0].losses["b"]
    total = sum(math.exp(rate / 2) for rate in rates.values())
    assert found[3] == {task: pytest.approx(3 * math.exp(rates[task] / 2) / total, rel=1e-12) for task in TASKS}


def test_an_average_of_zero() -> None:
    steps = [Step({"a": loss, "b": 1.0}, epoch=epoch) for epoch, loss in enumerate([0.0, 0.0, 0.0])]
    found = play(made("dwa", tasks="ab"), steps)[1]
    assert found[2]["b"] == pytest.approx(2 * math.exp(0.5) / (1 + math.exp(0.5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"period": 0}, "`period` must be a number of steps"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balancer("dwa", options)
