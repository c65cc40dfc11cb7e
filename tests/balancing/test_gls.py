"""GLS, against the derivative of the geometric mean."""

from __future__ import annotations

import pytest
import torch
from stepping import Step, differentiated, largest_error, made, play, random_steps


def geometric_mean(losses: torch.Tensor) -> torch.Tensor:
    return losses.prod().pow(1 / len(losses))


def test_against_the_geometric_mean() -> None:
    steps = random_steps(6)
    del steps[2].losses["b"]  # then it is the mean of two
    del steps[4].losses["a"], steps[4].losses["c"]  # and of one
    expected = [differentiated(geometric_mean, step.losses) for step in steps]
    found = play(made("gls"), steps)[1]
    assert largest_error(found, expected) < 1e-12
    assert found[4] == {"b": pytest.approx(1.0)}
    assert largest_error(play(made("gls"), random_steps(6, seed=1))[1][:2], expected[:2]) > 1e-3


def test_a_product_beyond_the_range_of_floats() -> None:
    tasks = [f"t{i}" for i in range(100)]
    losses = dict.fromkeys(tasks, 1e-5)  # whose product is 1e-500
    (factors,) = play(made("gls", tasks=tasks), [Step(losses)])[1]
    assert all(factor == pytest.approx(0.01, rel=1e-12) for factor in factors.values())


def test_a_loss_of_zero_counts_as_epsilon() -> None:
    zero, small = play(made("gls"), [Step({"a": 0.0, "b": 2.0}), Step({"a": 1e-8, "b": 2.0})])[1]
    assert zero == small == {"a": pytest.approx(0.5 * (2e-8) ** 0.5 / 1e-8), "b": pytest.approx(0.25 * (2e-8) ** 0.5)}
