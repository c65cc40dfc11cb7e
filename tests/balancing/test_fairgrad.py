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


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of SciPy's own
def test_where_least_squares_fails_newton_solves_it() -> None:
    """A power of 1000 is beyond what the solver can be started with."""
    gradients = random_gradients(3, 12, seed=1)
    part = FairGrad(0.001)
    with pytest.raises(ValueError, match="not finite"):
        part._weighting(gradients @ gradients.T)
    assert residual(weigh(part, gradients), gradients, 0.001) < 1e-9


@pytest.mark.parametrize("alpha", [0.01, 100.0])
def test_norms_and_powers_far_apart(alpha: float) -> None:
    """Weights of which some are next to nothing, and powers of the norms that no number can hold."""
    gradients = torch.eye(2, 6, dtype=torch.float64) * torch.tensor([[1e-12], [1e12]])
    expected = gradients.norm(dim=1) ** (-2 * alpha / (1 + alpha))
    assert relative(weigh(FairGrad(alpha, solver="newton"), gradients), expected) < 1e-12
    crowded = random_gradients(8, 6, seed=1)
    for more in (alpha, 500.0):
        weights = weigh(FairGrad(more, solver="newton"), crowded)
        assert residual(weights, crowded, more) < 1e-9 and weights.min() < (1e-280 if more == 500.0 else 1.0)


def test_opposed_gradients_have_a_solution_with_something_added() -> None:
    """Two that are opposed have none: the system is singular."""
    gradients = random_gradients(8, 6, seed=1)
    gradients[1] = -gradients[0]
    weights = weigh(FairGrad(100, solver="newton"), gradients)
    assert weights.isfinite().all() and weights[:2].min() > 1e6 > weights[2:].max()


def test_weights_smaller_than_a_number_can_be_are_those_of_orthogonal_gradients() -> None:
    """More gradients than dimensions, and a power next to zero."""
    gradients, alpha = random_gradients(8, 6, seed=1), 1e3
    weights = weigh(FairGrad(alpha, solver="newton"), gradients)
    torch.testing.assert_close(weights, gradients.norm(dim=1) ** (-2 * alpha / (1 + alpha)))
    assert residual(weights, gradients, alpha) > 1e-2


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
