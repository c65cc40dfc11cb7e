"""MGDA: the exact point of least norm, and what the gradients are divided by before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gramians import random_gradients, relative, weigh
from qpsolvers import solve_qp
from torch import Tensor
from torchjd.aggregation import MGDAWeighting

from hf_dbmtl.balancing.mgda import MGDA


def by_qp(gradients: Tensor) -> Tensor:
    """The point by a solver of quadratic programs, which wants the gradients to be independent."""
    count, scale = len(gradients), gradients.norm(dim=1).min()
    gramian = (gradients @ gradients.T / scale**2).numpy()
    ones, zeros = np.ones((1, count)), np.zeros(count)
    return torch.from_numpy(solve_qp(gramian, zeros, A=ones, b=np.ones(1), lb=zeros, solver="quadprog")) @ gradients


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("tasks", [1, 2, 3, 11, 40])
def test_the_point_is_exact(tasks: int, spread: float) -> None:
    gradients = random_gradients(tasks, 60, seed=tasks, spread=spread)
    weights = weigh(MGDA(), gradients)
    assert weights.min() >= 0 and weights.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert relative(weights @ gradients, by_qp(gradients)) < 1e-9


def test_frank_wolfe_is_not() -> None:
    """The control: what TorchJD's iteration comes to is told apart by the same comparison."""
    gradients = random_gradients(11, 60, seed=11)
    assert relative(MGDAWeighting()(gradients @ gradients.T) @ gradients, by_qp(gradients)) > 1e-3


@pytest.mark.parametrize("case", range(5))
def test_two_tasks_in_closed_form(case: int) -> None:
    one, two = gradients = random_gradients(2, 4, seed=case, spread=1.0)
    share = ((two @ (two - one)) / (one - two).square().sum()).clamp(0, 1)
    torch.testing.assert_close(weigh(MGDA(), gradients), torch.stack([share, 1 - share]), rtol=1e-9, atol=1e-12)


def test_a_gradient_may_be_the_point() -> None:
    """Where the authors' code gives 0.999 and 0.001."""
    gradients = torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    assert weigh(MGDA(), gradients).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("tasks", [5, 40])
def test_a_stationary_point_has_none(tasks: int) -> None:
    """In two dimensions the hull of many gradients holds the origin."""
    gradients = random_gradients(tasks, 2, seed=3)
    assert (weigh(MGDA(), gradients) @ gradients).norm() < 1e-12


@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_normalization(normalization: str) -> None:
    gradients, losses = random_gradients(3, 9, seed=1, spread=1.0), [0.3, 2.0, 0.7]
    sizes = torch.ones(3, dtype=torch.float64)
    if normalization != "l2":
        sizes = sizes * torch.tensor(losses, dtype=torch.float64)
    if normalization != "loss":
        sizes = sizes * gradients.norm(dim=1)
    divided = gradients / sizes[:, None]
    point = by_qp(divided)
    assert relative(weigh(MGDA(normalization), gradients, losses) @ gradients, point) < 1e-9
    raw = weigh(MGDA(normalization, combine="raw"), gradients, losses)
    assert raw.sum().item() == pytest.approx(1.0) and relative(raw @ divided, point) < 1e-9
    assert relative(weigh(MGDA(), gradients, losses) @ gradients, point) > 1e-2


def test_a_loss_of_zero_is_no_divisor() -> None:
    with pytest.raises(ValueError, match="Task 't1': its loss is 0, and `mgda` with normalization='loss' divides"):
        weigh(MGDA("loss"), random_gradients(2, 3), [1.0, 0.0])


@pytest.mark.parametrize("options", [{"normalization": "l1"}, {"combine": "both"}])
def test_options(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        MGDA(**options)
