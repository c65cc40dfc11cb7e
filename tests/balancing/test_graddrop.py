"""GradDrop: what it keeps, and that its random numbers do not depend on how a parameter is cut."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torchjd.aggregation import GradDrop as TorchJDGradDrop

from hf_dbmtl.balancing import make_balancer
from hf_dbmtl.balancing.graddrop import GOLDEN, _mix, uniform
from hf_dbmtl.gradients import GradientVector, vector


CPU = torch.device("cpu")
ROWS = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
TASKS = ["a", "b", "c"]


def update(
    rows: torch.Tensor = ROWS, seed: int = 0, step: int = 1, cut: int = 10, weights: dict | None = None, **options
) -> torch.Tensor:
    """The update of one step, of a gradient that is two parameters, the first of `cut` entries."""
    balancer = make_balancer("graddrop", options, weights).setup(TASKS, seed)
    balancer.steps = step - 1
    for task, row in zip(TASKS, rows):
        balancer.take(task, 1.0, GradientVector([row[:cut].clone(), row[cut:].clone()]))
    return torch.cat(balancer.balance().update.tensors)


def test_hash_is_splitmix64() -> None:
    counters = torch.tensor([1, 2, 3]) * GOLDEN
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # the published sequence of seed 0
    assert [value % (1 << 64) for value in _mix(counters).tolist()] == known


def test_random_numbers_do_not_depend_on_the_cut() -> None:
    whole = uniform(3, 5, 1, 0, 100, CPU)
    assert torch.equal(torch.cat([uniform(3, 5, 1, start, 25, CPU) for start in range(0, 100, 25)]), whole)
    expected = update()
    with mock.patch.object(vector, "STRETCH", 7):
        assert torch.equal(update(), expected)
    assert not torch.equal(update(cut=11), expected)  # the control: an entry that is at another place


def test_random_numbers_are_uniform_and_unrelated() -> None:
    drawn = torch.stack([uniform(*key, 0, 20_000, CPU) for key in ((0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1))])
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.stack([torch.histc(one, 20, 0, 1) for one in drawn])
    assert (((counts - 1000) ** 2 / 1000).sum(1) < 45).all()  # chi squared, 19 degrees of freedom: 45 is at 1e-3
    related = torch.corrcoef(torch.cat([drawn, drawn[:1].roll(1)]))
    assert (related - torch.eye(5, dtype=torch.float64)).abs().max() < 0.03


def test_it_is_torchjds_with_the_same_numbers() -> None:
    numbers = torch.cat([uniform(0, 1, 0, 0, 10, CPU), uniform(0, 1, 1, 0, 30, CPU)])
    for leaks in ([0.0, 0.0, 0.0], [0.5, 0.0, 0.2]):
        with mock.patch.object(torch, "rand", lambda *shape, **kwargs: numbers):
            expected = TorchJDGradDrop(leak=torch.tensor(leaks, dtype=torch.float64))(ROWS)
        torch.testing.assert_close(update(leak=dict(zip(TASKS, leaks))), expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(update(seed=1), update(), rtol=1e-3)


def test_the_signs_come_as_often_as_they_should() -> None:
    rows = torch.tensor([[3.0] * 2000, [-1.0] * 2000, [0.0] * 2000], dtype=torch.float64)
    kept = update(rows)
    assert set(kept.tolist()) == {3.0, -1.0}
    assert (kept == 3.0).double().mean().item() == pytest.approx(0.75, abs=0.03)


def test_weights_of_the_user_multiply_the_terms() -> None:
    weighted = update(weights={"a": 2.0, "b": 0.0, "c": 0.5}, leak=1.0)
    torch.testing.assert_close(weighted, 2 * ROWS[0] + 0.5 * ROWS[2], rtol=1e-12, atol=1e-12)
    signs = torch.sign(update()) * torch.sign(update(weights={"a": 2.0}))
    assert (signs >= 0).all()  # the choice of the sign is not the user's


@pytest.mark.parametrize("leak", [-0.1, 1.5, {"a": 2.0}, {"d": 0.5}])
def test_a_wrong_leak_is_refused(leak: object) -> None:
    with pytest.raises(ValueError, match="`leak`"):
        make_balancer("graddrop", {"leak": leak}).setup(TASKS)
