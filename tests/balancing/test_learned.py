"""The optimizer of learned numbers, against torch's own on a whole vector."""

from __future__ import annotations

import pytest
import torch

from hf_dbmtl.balancing.learned import Learned


TASKS = ["a", "b", "c"]


def gradients(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_it_steps_as_torch_does(optimizer: str, weight_decay: float) -> None:
    learned = Learned(0.05, optimizer, weight_decay)
    learned.setup(TASKS, 0.4)
    leaf = torch.full((3,), 0.4, dtype=torch.float64, requires_grad=True)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    reference = kind([leaf], lr=0.05, weight_decay=weight_decay)
    for gradient in gradients(10):
        leaf.grad = gradient.clone()
        reference.step()
        learned.step(dict(zip(TASKS, gradient.tolist())))
        torch.testing.assert_close(learned.values(), leaf.detach(), rtol=1e-14, atol=0)
    assert (learned.values() - 0.4).abs().min() > 1e-3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_task_without_a_gradient_stays(optimizer: str) -> None:
    """It goes on later as if the steps without it had not been; so with weight decay and Adam's count of steps."""
    learned, alone = Learned(0.05, optimizer, 0.3), Learned(0.05, optimizer, 0.3)
    learned.setup(TASKS, 0.4)
    alone.setup(["b"], 0.4)
    for number, gradient in enumerate(gradients(9)):
        given = dict(zip(TASKS, gradient.tolist()))
        if number % 3 == 1:
            before = learned["b"]
            del given["b"]
            learned.step(given)
            assert learned["b"] == before
        else:
            learned.step(given)
            alone.step({"b": given["b"]})
    assert learned["b"] == alone["b"]


def test_a_state_without_numbers_leaves_them() -> None:
    """As of a run with another balancer."""
    learned = Learned(0.05, "adam")
    learned.setup(TASKS, 0.4)
    learned.step({"a": 1.0})
    before = learned.values()
    learned.load_state_dict({"step": torch.zeros(3)})
    assert torch.equal(learned.values(), before)
    learned.load_state_dict({"learned": before + 1})  # the control
    assert torch.equal(learned.values(), before + 1)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("before", [0, 1, 4])
def test_state_round_trip(before: int, optimizer: str) -> None:
    whole = Learned(0.05, optimizer, 0.3)
    whole.setup(TASKS, 0.4)
    rows = gradients(8)
    for gradient in rows[:before]:
        whole.step({"a": gradient[0].item(), "c": gradient[2].item()})  # `b` never had a step
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    assert all(tensor.shape == (3,) for tensor in state.values())
    assert (len(state) > 1) == (optimizer == "adam" and before > 0)
    again = Learned(0.05, optimizer, 0.3)
    again.setup(TASKS, 0.4)
    again.step(dict.fromkeys(TASKS, 1.0))  # what was there is forgotten
    again.load_state_dict(state)
    for gradient in rows[before:]:
        for one in (whole, again):
            one.step(dict(zip(TASKS, gradient.tolist())))
        assert torch.equal(whole.values(), again.values())


def test_numbers_can_be_set() -> None:
    learned = Learned(0.1, "sgd")
    learned.setup(TASKS, 0.0)
    learned.set([1.0, 2.0, 3.0])
    assert [learned[task] for task in TASKS] == [1.0, 2.0, 3.0]
    assert learned.values(["c", "a"]).tolist() == [3.0, 1.0]
    with pytest.raises(ValueError):
        learned.set([1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0, "optimizer": "sgd"}, "`learning_rate` must be a number of 0 or more, and is -1.0"),
        ({"learning_rate": float("nan"), "optimizer": "sgd"}, "`learning_rate`"),
        ({"learning_rate": 0.1, "optimizer": "lion"}, r"`optimizer` must be one of \['sgd', 'adam'\], and is 'lion'"),
        ({"learning_rate": 0.1, "optimizer": "sgd", "weight_decay": -0.1}, "`weight_decay`"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Learned(**options)
