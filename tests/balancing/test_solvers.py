"""Packages that a balancer needs and that are not installed, and solvers that find nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import scipy.optimize
import torch
from gramians import random_gradients, weigh
from helpers import arguments

from hf_dbmtl.balancing import make_balancer


@pytest.mark.parametrize(
    ("name", "package"), [("cagrad", "cvxpy"), ("cagrad", "clarabel"), ("nash_mtl", "cvxpy"), ("log+nash_mtl", "ecos")]
)
def test_a_missing_solver_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what `import` takes for "not installed"
    method = name.removeprefix("log+")
    message = rf"The balancer '{method}' needs the package '{package}'.*pip install \"hf-dbmtl\[solvers\]\""
    with pytest.raises(ImportError, match=message):
        make_balancer(name)
    with pytest.raises(ImportError, match=message):  # as the arguments are made, not when the run is under way
        arguments(tmp_path, balancer=name)


@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj"])
def test_least_squares_that_find_nothing_are_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise RuntimeError("Maximum number of iterations reached.")

    gradients = random_gradients(3, 8) @ torch.diag(torch.tensor([1.0, -1.0] * 4, dtype=torch.float64))
    gradients[1] = -0.5 * gradients[0] + 0.1 * gradients[1]  # a conflict
    part = make_balancer(name).weighting
    weigh(part, gradients)
    monkeypatch.setattr(scipy.optimize, "nnls", fails)
    with pytest.raises(ValueError, match=f"The balancer '{name}' found no solution .* products are .*: Maximum number"):
        weigh(part, gradients)


def test_a_convex_solver_that_fails_is_told_with_step_and_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fails:
        def __call__(self, gramian: torch.Tensor) -> None:
            raise ArithmeticError("numerical trouble")

    part = make_balancer("cagrad").weighting
    weigh(part, random_gradients(2, 8))
    monkeypatch.setattr(part, "_weighting", Fails())
    message = (
        r"CLARABEL found no solution for `cagrad` in balanced step 7, .* tasks \['t0', 't1'\] .*: numerical trouble"
    )
    with pytest.raises(ValueError, match=message):
        weigh(part, random_gradients(2, 8), step=7)


def test_what_needs_no_solver_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("cvxpy", "clarabel", "ecos", "quadprog", "qpsolvers"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("mgda", "pcgrad", "gradvac", "imtl_g", "aligned_mtl", "fairgrad", "upgrad", "dualproj", "config"):
        make_balancer(name)
    make_balancer("nash_mtl", {"solver": "newton"})
