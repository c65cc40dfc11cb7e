"""FairGrad: its equation, at every scale."""

from __future__ import annotations

import pytest
import torch
from gramians import random_gradients, relative, weigh
from torch import Tensor

from hf_dbmtl.balancing.fairgrad import FairGrad


def residual(weights: Tensor, gradients: Tensor, alpha: float) -> float:
    """How far $(G w)_t w_t^{1/alpha}$ is from 1."""
    products = gradients @ (weights @ gradients)
    return (products * weights ** (1 / alpha) - 1).abs().max().item()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("tasks", [1, 2, 3, 11, 40])
def test_newton_solves_the_equation(tasks: int, alpha: float) -> None:
    gradients = random_gradients(tasks, 60, seed=tasks, spread=1.0)
    weights = weigh(FairGrad(alpha, solver="newton"), gradients)
    assert weights.min() > 0 and residual(weights, gradients, alpha) < 1e-9
    assert residual(torch.full_like(weights, 1 / tasks), gradients, alpha) > 1e-2


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_least_squares_comes_to_the_same(alpha: float) -> None:
    gradients = random_gradients(3, 12, seed=1)
    assert relative(weigh(FairGrad(alpha), gradients), weigh(FairGrad(alpha, solver="newton"), gradients)) < 1e-6


@pytest.mark.parametrize("factor", [1e-12, 1e-4, 1e4, 1e12])
@pytest.mark.parametrize("solver", ["least_squares", "newton"])
@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_gradients_of_any_norm(alpha: float, solver: str, factor: float) -> None:
    gradients = factor * random_gradients(3, 12, seed=1)
    assert residual(weigh(FairGrad(alpha, solver), gradients), gradients, alpha) < 1e-6


def test_norms_far_apart() -> None:
    gradients = random_gradients(5, 12, seed=1) * torch.logspace(-12, 12, 5, dtype=torch.float64)[:, None]
    assert residual(weigh(FairGrad(solver="newton"), gradients), gradients, 1.0) < 1e-9


@pytest.mark.parametrize("solver", ["least_squares", "newton"])
def test_a_gradient_of_zero_takes_no_part(solver: str) -> None:
    gradients = random_gradients(3, 8, seed=2)
    gradients[1] = 0.0
    weights = weigh(FairGrad(solver=solver), gradients)
    assert weights[1] == 1.0
    torch.testing.assert_close(weights[[0, 2]], weigh(FairGrad(solver=solver), gradients[[0, 2]]))


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"solver": "exact"}])
def test_options(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        FairGrad(**options)
