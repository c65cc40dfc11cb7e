"""What holds for every method that works on the losses alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stepping import TASKS, Step, gradient, made, play, random_steps

from hf_dbmtl.balancing import Balancer
from hf_dbmtl.balancing.table import TRANSFORMS
from hf_dbmtl.gradients import GradientVector


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "uw": ("uw", {"learning_rate": 0.1}),
    "uw by adam": ("uw", {"learning_rate": 0.1, "optimizer": "adam"}),
    "imtl_l": ("imtl_l", {"learning_rate": 0.01}),
    "dwa": ("dwa", {}),
    "dwa by steps": ("dwa", {"period": 1, "temperature": 0.5}),
    "rlw": ("rlw", {}),
    "gls": ("gls", {}),
    "famo": ("famo", {}),
    "stch": ("stch", {}),
    "sharp stch": ("stch", {"mu": 0.01}),
    "official stch": ("stch", {"variant": "official", "warmup_epochs": 1, "mu": 0.5}),
}
REMEMBERING = {key: one for key, one in METHODS.items() if one[0] in ("uw", "imtl_l", "dwa", "famo")} | {
    "official stch": METHODS["official stch"]
}
COUPLED = {key: one for key, one in METHODS.items() if TRANSFORMS[one[0]].coupled}


def test_all_methods_are_here() -> None:
    tuned = {name for name, kind in TRANSFORMS.items() if kind.needs == "validation"}  # tested with a model
    assert {name for name, _ in METHODS.values()} == TRANSFORMS.keys() - tuned - {"log"}


@pytest.mark.parametrize("key", METHODS)
def test_heads_and_shared_parameters_get_the_same_factor(key: str) -> None:
    updates, factors = play(made(*METHODS[key]), random_steps())
    for number, (update, factor) in enumerate(zip(updates, factors)):
        expected = sum(factor[task] * gradient(task, number) for task in TASKS)
        torch.testing.assert_close(update, expected, rtol=1e-12, atol=0)
    assert len({tuple(factor.values()) for factor in factors}) > 2  # they change as it goes


@pytest.mark.parametrize("weighting", ["max_norm", "ema", "ema+max_norm"])
@pytest.mark.parametrize("key", COUPLED)
def test_a_weighting_sees_the_whole_factor(key: str, weighting: str) -> None:
    """A memory or weighting gets the very gradients that it would get of losses already transformed."""
    name, options = METHODS[key]
    steps = random_steps()
    _, factors = play(made(name, options), steps)
    updates, _ = play(made(f"{name}+{weighting}", options), steps)
    alone = made(weighting)
    for number, (step, factor, update) in enumerate(zip(steps, factors, updates)):
        alone.begin()
        for task in TASKS:
            alone.take(task, step.losses[task], GradientVector([factor[task] * gradient(task, number)]))
        (expected,) = alone.balance().update.tensors
        torch.testing.assert_close(update, expected, rtol=1e-9, atol=1e-12 * expected.norm().item())


@pytest.mark.parametrize("key", METHODS)
def test_the_order_of_the_tasks_is_immaterial(key: str) -> None:
    updates, _ = play(made(*METHODS[key]), random_steps())
    backwards = [
        Step(dict(reversed(step.losses.items())), dict(reversed(step.after.items())), step.epoch)
        for step in random_steps()
    ]
    others, _ = play(made(*METHODS[key], tasks=TASKS[::-1]), backwards)
    torch.testing.assert_close(others, updates, rtol=1e-9, atol=0)
    shuffled = [
        Step(dict(zip(step.losses, reversed(step.losses.values()))), step.after, step.epoch) for step in random_steps()
    ]
    if key != "rlw":  # which does not look at the losses
        assert not torch.allclose(play(made(*METHODS[key]), shuffled)[0][-1], updates[-1], rtol=1e-3)


def tensors(balancer: Balancer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in balancer.state_dict()["tensors"].items()}


@pytest.mark.parametrize("key", REMEMBERING)
def test_an_absent_task_keeps_its_state(key: str) -> None:
    steps = random_steps(6)
    balancer = made(*REMEMBERING[key])
    play(balancer, steps[:2])
    before = tensors(balancer)
    for step in steps[2:4]:
        del step.losses["b"]
    play(balancer, steps[2:4], first=2)
    moved = {}
    for name, now in tensors(balancer).items():
        if now.ndim:
            # what appears only now (the average of the official STCH) starts from zero
            changed = now != before.get(name, torch.zeros_like(now))
            if key.startswith("dwa"):  # whose present period ends without it
                closed = name.endswith(("sum", "count")) or now[1] == tensors_at_end(key, steps)[name][1]
                changed[1] &= not closed
            moved[name] = changed.tolist()
    assert not any(changed[1] for changed in moved.values()), moved
    assert any(changed[0] for changed in moved.values()) and any(changed[2] for changed in moved.values()), moved


def tensors_at_end(key: str, steps: list[Step]) -> dict[str, torch.Tensor]:
    """The state of a DWA that has closed the period before the task went."""
    balancer = made(*REMEMBERING[key])
    play(balancer, steps[:2])
    play(balancer, [Step({"a": 1.0, "c": 1.0}, epoch=1)], first=2)
    return tensors(balancer)


@pytest.mark.parametrize("key", [key for key in METHODS if key not in ("rlw", "stch", "sharp stch")])
def test_a_task_that_is_never_there_might_as_well_not_exist(key: str) -> None:
    """Not so for RLW and the paper's STCH, where the share of a task is 1/T of all."""
    steps = [Step({task: step.losses[task] for task in "ac"}, step.after, step.epoch) for step in random_steps()]
    without, _ = play(made(*METHODS[key], tasks="ac"), steps)
    absent, _ = play(made(*METHODS[key]), steps)
    torch.testing.assert_close(absent, without, rtol=1e-12, atol=0)
    assert not torch.allclose(play(made(*METHODS[key]), random_steps())[0][-1], without[-1], rtol=1e-3)


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("key", METHODS)
def test_state_goes_through_a_checkpoint_bit_for_bit(key: str, at: int) -> None:
    steps = random_steps()
    for step in steps[: at - 1]:
        del step.losses["c"]  # so that one task's optimizer has counted fewer steps, or none
    whole = made(*METHODS[key])
    play(whole, steps[:at])
    resumed = made(*METHODS[key])
    resumed.load_state_dict(whole.state_dict())
    expected, _ = play(whole, steps[at:], first=at)
    found, _ = play(resumed, steps[at:], first=at)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    end = tensors(resumed)
    assert end.keys() == tensors(whole).keys()
    assert all(torch.equal(end[name], one) for name, one in tensors(whole).items())
    warming_up = key == "official stch" and at == 1  # nothing to remember yet
    if (key in REMEMBERING or key == "rlw") and not warming_up:  # the control: begun anew it is another run
        anew, _ = play(made(*METHODS[key]), steps[at:], first=at)
        assert not all(torch.equal(a, b) for a, b in zip(anew, expected))


@pytest.mark.parametrize("key", METHODS)
def test_a_step_that_is_given_up_leaves_no_trace(key: str) -> None:
    steps = random_steps()
    expected, _ = play(made(*METHODS[key]), steps)
    balancer = made(*METHODS[key])
    updates = []
    for number, step in enumerate(steps):
        before = tensors(balancer)
        balancer.begin(epoch=step.epoch)
        for task, loss in (("a", 1e3), ("b", 1e-3)):  # and then `c` turns out to be NaN
            derivative = balancer.derivative(task, torch.tensor(loss, dtype=torch.float64))
            balancer.take(task, loss, GradientVector([derivative * gradient(task, 99)]))
        balancer.derivative("c", torch.tensor(float("nan"), dtype=torch.float64))
        after = tensors(balancer)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        updates += play(balancer, [step], first=number)[0]
    assert all(torch.equal(a, b) for a, b in zip(updates, expected))


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("key", METHODS)
def test_any_number_of_tasks(key: str, count: int) -> None:
    tasks = [f"t{i}" for i in range(count)]
    generator = torch.Generator().manual_seed(0)
    steps = []
    for number in range(6):
        losses = (6 * torch.randn(count, generator=generator, dtype=torch.float64)).exp().tolist()  # 1e-6 to 1e6
        losses[0] = 0.0 if number == 3 else losses[0]
        steps.append(Step(dict(zip(tasks, losses)), dict(zip(tasks, [0.5 * loss for loss in losses])), number // 2))
    updates, factors = play(made(*METHODS[key], tasks=tasks), steps)
    assert all(torch.isfinite(update).all() for update in updates)
    assert all(factor >= 0 for one in factors for factor in one.values())
    assert all(sum(one.values()) > 0 for one in factors)


@pytest.mark.parametrize("key", METHODS)
def test_the_dtype_of_the_derivative_is_that_of_the_loss(key: str) -> None:
    for dtype in (torch.float32, torch.float64):
        balancer = made(*METHODS[key])
        balancer.begin()
        found = balancer.derivative("b", torch.tensor(0.7, dtype=dtype))
        assert found.dtype == dtype and found.shape == ()


@pytest.mark.parametrize("key", [key for key in METHODS if key not in ("rlw", "stch", "sharp stch")])
def test_a_negative_loss_is_refused(key: str) -> None:
    balancer = made(*METHODS[key])
    with pytest.raises(ValueError, match=r"Task 'b': its loss is -0\.5"):
        balancer.take("b", -0.5, GradientVector([gradient("b", 0)]))


def test_task_weights_multiply_after_the_transform() -> None:
    for name in ("uw", "gls", "famo", "stch"):
        plain, factors = play(made(name), random_steps(3))
        weighted, others = play(made(name, task_weights={"b": 3.0}), random_steps(3))
        for number in range(3):
            more = 2.0 * factors[number]["b"] * gradient("b", number)
            torch.testing.assert_close(weighted[number], plain[number] + more, rtol=1e-12, atol=1e-14)
            assert others[number]["b"] == pytest.approx(3.0 * factors[number]["b"], rel=1e-12)


@pytest.mark.parametrize("key", [*METHODS, "ew", "log"])
def test_a_factor_known_before_never_looks_at_the_loss(key: str) -> None:
    balancer = made(*METHODS.get(key, (key, {})))
    balancer.begin()
    small, large = (balancer.derivative(TASKS[0], torch.tensor(loss)).item() for loss in (0.5, 2.0))
    if balancer.known_before or not balancer.transform.coupled:  # else the rest is in what is common to all
        assert (small == large) == balancer.known_before
    assert balancer.known_before == (key.split()[0] in ("ew", "uw", "imtl_l", "dwa", "rlw"))
