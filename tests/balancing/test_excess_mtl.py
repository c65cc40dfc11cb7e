"""ExcessMTL: its steps beside TorchJD's, what differs between them, and what becomes of heads and absent tasks."""

from __future__ import annotations

import pytest
import torch
from cases import Item, draw, flat, play, vector
from torchjd.aggregation import ExcessMTLWeighting

from hf_dbmtl.balancing import make_balancer


STEPS = draw(3, 12, 7, steps=8)
TASKS = list(STEPS[0])


def weights(options: dict, steps: list = STEPS) -> torch.Tensor:
    _, factors = play(make_balancer("excess_mtl", options).setup(TASKS), steps)
    return torch.tensor([list(one.values()) for one in factors], dtype=torch.float64)


@pytest.mark.parametrize("warmup", [1, 3])
def test_steps_are_torchjds(warmup: int) -> None:
    theirs = ExcessMTLWeighting(robust_step_size=0.2, n_warmup_steps=warmup)
    expected = torch.stack([theirs(torch.stack([item.gradient for item in step.values()])) for step in STEPS])
    options = {"step_size": 0.2, "initial_weight": "1/T", "warmup_steps": warmup}
    torch.testing.assert_close(weights(options), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights({**options, "initial_weight": "1"}), 3 * expected, rtol=1e-6, atol=1e-6)
    for name, value in {"step_size": 0.1, "warmup_steps": 2}.items():
        assert (weights({**options, name: value}) - expected).abs().max() > 1e-3, f"{name} makes no difference"


def test_update_is_the_weighted_sum_and_heads_carry_the_weights() -> None:
    balancer = make_balancer("excess_mtl", {"step_size": 0.2}, {"t0": 2.0}).setup(TASKS)
    play(balancer, STEPS[:3])
    for task, item in STEPS[3].items():
        balancer.take(task, item.loss, vector(item.gradient))
    balanced = balancer.balance()
    expected = sum(balanced.weights[task] * item.gradient for task, item in STEPS[3].items())
    torch.testing.assert_close(flat(balanced.update, expected), expected)
    assert balanced.head_weights == balanced.weights
    assert balanced.weights["t0"] / 2 + balanced.weights["t1"] + balanced.weights["t2"] == pytest.approx(3.0)


def test_a_task_begins_with_its_first_gradient() -> None:
    zero = [{task: Item(1.0, item.gradient * (task != "t1"), 1.0) for task, item in step.items()} for step in STEPS[:3]]
    found = weights({}, [*zero, *STEPS])
    assert found.isfinite().all() and (found > 0).all()
    absent = weights({}, [{task: step[task] for task in ("t0", "t2")} for step in STEPS[:3]])
    torch.testing.assert_close(absent.sum(1), torch.full((3,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"step_size": -1.0}, {"initial_weight": "2"}, {"warmup_steps": 0}])
def test_a_wrong_option_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        make_balancer("excess_mtl", options)
