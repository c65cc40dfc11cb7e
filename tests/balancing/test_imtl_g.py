"""IMTL-G: equal projections onto all gradients."""

from __future__ import annotations

import pytest
import torch
from gramians import random_gradients, relative, weigh
from torch import Tensor
from torchjd.aggregation import IMTLGWeighting

from hf_dbmtl.balancing.imtl_g import IMTLG


def uneven(update: Tensor, gradients: Tensor) -> float:
    """How far apart the projections of an update onto the gradients are, relative to the largest."""
    projections = gradients @ update / gradients.norm(dim=1)
    return ((projections.max() - projections.min()) / projections.abs().max()).item()


@pytest.mark.parametrize("tasks", [2, 3, 11])
def test_the_papers_formula(tasks: int) -> None:
    """Equation 6: the first task's weight is what the others leave."""
    gradients = random_gradients(tasks, 20, seed=tasks, spread=1.0)
    units = gradients / gradients.norm(dim=1, keepdim=True)
    differences, turns = gradients[0] - gradients[1:], units[0] - units[1:]
    others = gradients[0] @ turns.T @ torch.linalg.inv(differences @ turns.T)
    expected = torch.cat([1 - others.sum()[None], others])
    weights = weigh(IMTLG(), gradients)
    assert relative(weights, expected) < 1e-10
    assert uneven(weights @ gradients, gradients) < 1e-10
    assert uneven(gradients.mean(0), gradients) > 1e-2
    assert relative(weights, IMTLGWeighting()(gradients @ gradients.T)) < 1e-8


def test_norms_far_apart() -> None:
    """TorchJD's pseudo-inverse of the Gramian has forgotten the small gradient."""
    gradients = random_gradients(3, 8, seed=1) * torch.tensor([[1e-9], [1.0], [1e9]], dtype=torch.float64)
    assert uneven(weigh(IMTLG(), gradients) @ gradients, gradients) < 1e-3
    assert uneven(IMTLGWeighting()(gradients @ gradients.T) @ gradients, gradients) > 0.1


def test_opposite_gradients_cancel() -> None:
    one = random_gradients(1, 5)
    assert (weigh(IMTLG(), torch.cat([one, -2 * one])) == 0).all()
