"""
The same steps on 1, 2 and 4 processes: losses, averages and updates agree to rounding (G2). The matrix of layouts is slow;
what runs with every change is a thin cut through it.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor


sys.path.insert(0, str(Path(__file__).parent))

from distributed_cases import MATRIX, THIN, WRONG, Case, run_case  # noqa: E402
from launching import Group, started  # noqa: E402


KINDS = {"ddp": "ReplicatedGradients", "fsdp": "ShardedGradients"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@cache
def single(balancer: str, dtype: str, folder: Path, inputs: str = "separate") -> tuple[dict[str, Tensor], dict]:
    """One process on the whole batch."""
    return run_case(Case("single", balancer, dtype, inputs=inputs), folder)


@cache
def matrix(processes: int, folder: Path) -> Group:
    """One process group that runs all cases of the matrix."""
    return started(processes, folder / f"matrix-{processes}", MATRIX, timeout=3600)


def distances(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """The relative distance of everything that every step came to."""
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    assert all(a[key].shape == b[key].shape for key in a)
    return {key: ((a[key] - b[key]).norm() / a[key].norm().clamp(min=1e-300)).item() for key in a if a[key].numel()}


def agrees(case: Case, group: Group, folder: Path) -> None:
    expected, record = single(case.balancer, case.dtype, folder, case.inputs)
    processes = len(group.found)
    for rank, outcome in enumerate(group.of(str(case))):
        tensors = load_file(group.folder / f"{case}-{rank}.safetensors")
        worst = distances(expected, tensors)
        assert max(worst.values()) < case.bound, sorted(worst.items(), key=lambda entry: -entry[1])[:5]
        assert outcome["losses"] == pytest.approx(record["losses"], rel=1e-5)
        assert outcome["shared"] == record["shared"]
        if processes > 1:
            assert outcome["gradients"] == KINDS[case.layout]
            assert record["shared"] % processes != 0 or case.balancer == "frozen"


@pytest.mark.parametrize("case", THIN, ids=str)
def test_two_processes_agree(case: Case, pair: Group, folder: Path) -> None:
    agrees(case, pair, folder)


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_mistakes_would_show(case: Case, pair: Group, folder: Path) -> None:
    assert pair.of(str(case))
    found = load_file(pair.folder / f"{case}-0.safetensors")
    expected, _ = single("db_mtl", "float64", folder)
    assert distances({"": expected["0 update"]}, {"": found["0 update"]})[""] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_matrix(case: Case, processes: int, folder: Path) -> None:
    agrees(case, matrix(processes, folder), folder)
