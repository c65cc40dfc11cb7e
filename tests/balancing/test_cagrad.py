"""CAGrad: its optimum, its ball and its three scales."""

from __future__ import annotations

import pytest
import torch
from gramians import random_gradients, relative, weigh
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchjd.aggregation import CAGradWeighting

from hf_dbmtl.balancing.cagrad import CAGrad


def least(update: Tensor, gradients: Tensor) -> float:
    """What the worst-served task gets."""
    return (gradients @ update).min().item()


@pytest.mark.parametrize("seed", range(4))
def test_two_tasks(seed: int) -> None:
    """One weight to be found: by a search on the line."""
    gradients, c = random_gradients(2, 5, seed=seed, spread=1.0), 0.5
    mean = gradients.mean(0)

    def dual(share: float) -> float:
        mixed = share * gradients[0] + (1 - share) * gradients[1]
        return (mixed @ mean + c * mean.norm() * mixed.norm()).item()

    share = minimize_scalar(dual, bounds=(0, 1), method="bounded", options={"xatol": 1e-12}).x
    mixed = share * gradients[0] + (1 - share) * gradients[1]
    expected = mean + c * mean.norm() / mixed.norm() * mixed
    assert relative(weigh(CAGrad(c, rescale=0), gradients) @ gradients, expected) < 1e-4
    assert relative(mean, expected) > 1e-2


@pytest.mark.parametrize("tasks", [3, 11, 40])
def test_no_other_direction_in_the_ball_serves_the_worst_task_better(tasks: int) -> None:
    gradients, c = random_gradients(tasks, 50, seed=tasks, spread=1.0), 0.7
    mean = gradients.mean(0)
    update = weigh(CAGrad(c, rescale=0), gradients) @ gradients
    assert (update - mean).norm().item() == pytest.approx(c * mean.norm().item(), rel=1e-6)
    for seed in range(20):
        other = update + 0.1 * mean.norm() * random_gradients(1, 50, seed=seed)[0]
        other = mean + (other - mean) * min(1.0, (c * mean.norm() / (other - mean).norm()).item())
        assert least(other, gradients) <= least(update, gradients) + 1e-6 * mean.norm()
    assert least(mean, gradients) < least(update, gradients)


@pytest.mark.parametrize(("rescale", "divisor"), [(0, 1.0), (1, 1.25), (2, 1.5)])
def test_rescale(rescale: int, divisor: float) -> None:
    gradients = random_gradients(3, 9, seed=1)
    plain = CAGradWeighting(0.5)(gradients @ gradients.T)
    assert relative(weigh(CAGrad(0.5, rescale), gradients) * divisor, plain) < 1e-6


def test_a_gradient_far_smaller_than_the_others() -> None:
    """TorchJD's own tolerance takes the optimum, at the small gradient, for zero."""
    gradients = random_gradients(3, 9, seed=1) * torch.tensor([[1.0], [1.0], [1e-5]], dtype=torch.float64)
    assert (weigh(CAGrad(), gradients) @ gradients).norm() > 0.1
    assert (CAGradWeighting(0.5)(gradients @ gradients.T) == 0).all()


@pytest.mark.parametrize("options", [{"c": -1.0}, {"rescale": 3}])
def test_options(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        CAGrad(**options)
