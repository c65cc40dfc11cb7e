"""UPGrad and DualProj: projections onto the dual cone, against a solver of quadratic programs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gramians import random_gradients, relative, weigh
from qpsolvers import solve_qp
from torch import Tensor
from torchjd.aggregation import DualProjWeighting, UPGradWeighting

from hf_dbmtl.balancing.dualproj import DualProj
from hf_dbmtl.balancing.upgrad import UPGrad


def project(vector: Tensor, gradients: Tensor) -> Tensor:
    """The nearest vector that opposes no gradient, found among all vectors."""
    size = len(vector)
    found = solve_qp(np.eye(size), -vector.numpy(), -gradients.numpy(), np.zeros(len(gradients)), solver="quadprog")
    return torch.from_numpy(found)


def conflict(update: Tensor, gradients: Tensor) -> float:
    return -(gradients @ update / gradients.norm(dim=1)).min().item()


@pytest.mark.parametrize(("tasks", "size"), [(1, 3), (2, 3), (3, 12), (5, 3), (11, 40)])
def test_exact_projections(tasks: int, size: int) -> None:
    gradients = random_gradients(tasks, size, seed=tasks + 1, spread=0.5)
    upgrad = torch.stack([project(gradient, gradients) for gradient in gradients]).mean(0)
    dualproj = project(gradients.mean(0), gradients)
    largest = gradients.norm(dim=1).max().item()
    for part, expected in ((UPGrad(), upgrad), (DualProj(), dualproj)):
        found = weigh(part, gradients) @ gradients
        assert (found - expected).norm() < 1e-8 * largest
        assert conflict(found, gradients) < 1e-12 * largest


def test_torchjds_options() -> None:
    """With its regularization the results are its own, and leave a conflict."""
    gradients = random_gradients(5, 6, seed=4)
    for part, torchjd in ((UPGrad, UPGradWeighting()), (DualProj, DualProjWeighting())):
        expected = torchjd(gradients @ gradients.T)
        assert relative(weigh(part(1e-4, 1e-4), gradients), expected) < 1e-9
        assert relative(weigh(part(), gradients), expected) > 1e-6
    assert conflict(DualProjWeighting()(gradients @ gradients.T) @ gradients, gradients) > 1e-4


@pytest.mark.parametrize("part", [UPGrad, DualProj])
def test_tiny_gradients(part: type) -> None:
    gradients = torch.tensor([[1.0, 0.2], [-3.0, 0.3]], dtype=torch.float64)
    for factor in (1e-12, 1e12):
        assert relative(weigh(part(), factor * gradients), weigh(part(), gradients)) < 1e-9
    # with TorchJD's threshold nothing is projected any more
    assert weigh(part(norm_eps=1e-4), 1e-12 * gradients).tolist() == [0.5, 0.5] != weigh(part(), gradients).tolist()


def test_opposite_gradients_leave_nothing() -> None:
    one = random_gradients(1, 4)
    for part in (UPGrad(), DualProj()):
        gradients = torch.cat([one, -2 * one])
        assert (weigh(part, gradients) @ gradients).norm() < 1e-12


@pytest.mark.parametrize("part", [UPGrad, DualProj])
@pytest.mark.parametrize("options", [{"norm_eps": -1.0}, {"reg_eps": float("nan")}])
def test_options(part: type, options: dict) -> None:
    with pytest.raises(ValueError, match="must be a finite number"):
        part(**options)
