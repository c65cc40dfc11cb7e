"""The benchmark of scaling runs at a tiny size. Its figures are for machines that do nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
TINY = ["--tasks", "1", "2", "3", "--steps", "2", "--repeats", "1", "--layers", "1", "--width", "16"]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_it_runs(processes: int, tmp_path: Path) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    output = tmp_path / "found.json"
    command = [sys.executable, *start, str(ROOT / "benchmarks" / "scaling.py"), *TINY, "--vocabulary", "50"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, "--length", "4", "--output", str(output)],
        check=True,
        timeout=300,
        env=environment,
        capture_output=True,
    )
    runs = json.loads(output.read_text())["runs"]
    assert [run["tasks"] for run in runs] == [1, 2, 3]
    assert all(run["seconds"] > 0 and 0 <= run["waiting"] < 1 for run in runs)
    assert all((run["bytes"] > 0) == (processes > 1) for run in runs)
