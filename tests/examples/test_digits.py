"""The image example, small: its labels are true, it trains, and what it leaves can be used."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from scripts import printed_by
from sklearn.datasets import load_digits
from transformers import AutoModel, pipeline

import hf_dbmtl  # noqa: F401  (registers the model with AutoModel)


EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(EXAMPLE))

import digit_images  # noqa: E402


TASKS = ["digit", "parity", "ink"]


def test_the_splits_share_no_image_and_the_labels_are_true() -> None:
    splits = digit_images.build()
    assert {name: len(split.images) for name, split in splits.items()} == digit_images.SIZES
    seen = [image.tobytes() for split in splits.values() for image in split.images]
    assert len(set(seen)) == len(seen) == len(load_digits().images)
    for split in splits.values():
        ink = [np.asarray(image.convert("L")).mean() / 255 * 100 for image in split.images]
        assert np.abs(split.labels["ink"] - ink).max() < 0.5  # the pixels of an image are whole numbers
        assert (split.labels["parity"] == split.labels["digit"] % 2).all()
        shares = np.bincount(split.labels["digit"]) / len(split.images)
        assert shares.min() > 0.06 and shares.max() < 0.14
    assert all(
        one.tobytes() == other.tobytes()
        for one, other in zip(splits["test"].images, digit_images.build()["test"].images)
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("digits")
    return folder, printed_by("digits/train.py", "--tiny", "--output_dir", folder)


def test_it_prints_a_table_and_answers(example: tuple[Path, str]) -> None:
    folder, printed = example
    for word in (*TASKS, "never looks", "equal weighting", "DB-MTL", "ViTForImageClassification"):
        assert word in printed
    assert (folder / "results.md").read_text().count("\n") == 2 + len(TASKS)


def test_it_leaves_a_model_a_card_and_pictures(example: tuple[Path, str]) -> None:
    folder, _ = example
    assert list(AutoModel.from_pretrained(folder / "model").tasks) == TASKS
    card = ModelCard.load(folder / "model" / "README.md")
    assert {result.task_type for result in card.data.eval_results} == {"image-classification", "image-regression"}
    assert "image.png" in card.text and "AutoImageProcessor" in card.text and str(folder) not in card.content
    for picture in (folder / "training.png", folder / "model" / "training.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_both_checkpoints_say_the_same_of_a_digit(example: tuple[Path, str]) -> None:
    folder, _ = example
    every = pipeline("multi-task", model=str(folder / "model"), device="cpu", top_k=None)
    alone = pipeline("image-classification", model=str(folder / "digit"), device="cpu", top_k=10)
    images = digit_images.build()["test"].images[:3]
    for one, other in zip(every(images, batch_size=3), alone(images)):
        assert {label["label"]: label["score"] for label in one["digit"]} == pytest.approx(
            {label["label"]: label["score"] for label in other}, abs=1e-6
        )


def test_both_runs_start_alike_and_part(example: tuple[Path, str]) -> None:
    folder, _ = example
    results = json.loads((folder / "results.json").read_text())["results"]
    assert set(results) == {"never looks", "ew", "db_mtl"}
    assert results["ew"]["digit"] != results["db_mtl"]["digit"]
    assert results["never looks"]["ink"]["r2"] <= 0.0
