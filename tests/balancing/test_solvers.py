"""Packages that a balancer needs and that are not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
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


def test_what_needs_no_solver_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("cvxpy", "clarabel", "ecos", "quadprog", "qpsolvers"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("mgda", "pcgrad", "gradvac", "imtl_g", "aligned_mtl", "fairgrad", "upgrad", "dualproj", "config"):
        make_balancer(name)
    make_balancer("nash_mtl", {"solver": "newton"})
