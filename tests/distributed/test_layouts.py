"""The same steps on 1, 2 and 4 processes: losses, averages and updates agree to rounding (G2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from distributed_cases import CASES, run_case  # noqa: E402


BOUNDS = {"float64": 1e-10, "float32": 5e-6}


def launch(processes: int, folder: Path, *names: str) -> list[dict]:
    """Runs cases in one process group and returns the outcomes of every rank."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE / "worker.py"), str(folder), *names],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path, list[dict]]:
    folder = tmp_path_factory.mktemp(f"processes-{request.param}")
    return request.param, folder, launch(request.param, folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("single")
    return {name: run_case(name, folder) for name in CASES if name.endswith(".1")}


def worst(a: dict, b: dict) -> float:
    assert a.keys() == b.keys(), a.keys() ^ b.keys()
    assert all(a[key].shape == b[key].shape for key in a)
    return max(((a[key] - b[key]).norm() / a[key].norm().clamp(min=1e-300)).item() for key in a if a[key].numel())


@pytest.mark.parametrize("name", CASES)
def test_processes_agree(name: str, group: tuple, single: dict) -> None:
    processes, folder, outcomes = group
    balancer, dtype, _ = CASES[name]
    expected, record = single[f"{balancer}.{dtype}.1"]
    for rank in range(processes):
        assert "error" not in outcomes[rank][name], outcomes[rank][name]["error"]
        found = load_file(folder / f"{name}-{rank}.safetensors")
        assert worst(expected, found) < BOUNDS[dtype]
        assert outcomes[rank][name]["losses"] == pytest.approx(record["losses"], rel=1e-5)


def test_another_balancer_would_show(group: tuple, single: dict) -> None:
    _, folder, _ = group
    found = load_file(folder / "db_mtl_beta0.float64.1-0.safetensors")
    expected, _ = single["log.float64.1"]
    assert ((found["0 update"] - expected["0 update"]).norm() / expected["0 update"].norm()).item() > 1e-3
