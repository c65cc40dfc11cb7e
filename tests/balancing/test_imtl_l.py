"""IMTL-L, against the paper's objective, learned by autograd and torch's optimizers."""

from __future__ import annotations

import pytest
import torch
from stepping import TASKS, Step, differentiated, largest_error, made, play, random_steps

from hf_dbmtl.balancing import make_balancer


def objective(losses: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return (s.exp() * losses - s).sum()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_against_the_objective(optimizer: str) -> None:
    steps = random_steps(12)
    s = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    own = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]([s], lr=0.01)
    expected = []
    for step in steps:
        expected.append(differentiated(lambda losses: objective(losses, s.detach()), step.losses))
        own.zero_grad()
        objective(torch.tensor(list(step.losses.values()), dtype=torch.float64), s).backward()
        own.step()
    options = {"learning_rate": 0.01, "optimizer": optimizer}
    assert largest_error(play(made("imtl_l", options), steps)[1], expected) < 1e-12
    assert largest_error(play(made("imtl_l", {**options, "learning_rate": 0.0103}), steps)[1], expected) > 1e-3


def test_it_settles_at_the_log_transform() -> None:
    """Proposition 3.1 of DB-MTL: log x = min over s of e^s x - s - 1, so that e^s becomes 1 / ℓ."""
    losses = {"a": 4.0, "b": 0.2, "c": 1.0}
    factors = play(made("imtl_l", {"learning_rate": 0.2}), [Step(losses)] * 200)[1]
    assert factors[0] == dict.fromkeys(TASKS, 1.0)
    for task in TASKS:
        assert factors[-1][task] == pytest.approx(1 / losses[task], rel=1e-3)


def test_the_weight_of_a_vanished_loss_is_bounded() -> None:
    assert play(made("imtl_l", {"init": 50.0}), [Step({"a": 0.0})])[1] == [{"a": pytest.approx(1e8)}]


def test_bad_init() -> None:
    with pytest.raises(ValueError, match="`init` must be a finite number"):
        make_balancer("imtl_l", {"init": float("nan")})
