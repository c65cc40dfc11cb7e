"""Tasks with a label per pixel: losses against independent ones, labels and metrics, and images through a processor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from encoders import SIDE, encoder_of
from helpers import arguments
from PIL import Image
from transformers import AutoImageProcessor, EvalPrediction, ViTImageProcessor

from hf_dbmtl import (
    Classification,
    DepthEstimation,
    MultiLabelClassification,
    MultiTaskModel,
    MultiTaskTrainer,
    Regression,
    SemanticSegmentation,
    SurfaceNormals,
)
from hf_dbmtl.metrics import baseline_metrics, default_compute_metrics
from hf_dbmtl.tasks import task_from_dict


nan = math.nan
DENSE = {"classes": SemanticSegmentation(3, ignore_index=255), "depth": DepthEstimation(), "normals": SurfaceNormals()}


def draw(task: Any, images: int = 2, side: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits and labels."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, task.num_labels, side, side, generator=generator, dtype=torch.float64)
    if task.kind == "semantic_segmentation":
        return logits, torch.randint(3, (images, side, side), generator=generator)
    shape = (images, 3, side, side) if task.kind == "surface_normals" else (images, side, side)
    return logits, torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1


def test_the_losses_are_those_of_the_definitions() -> None:
    logits, labels = draw(DENSE["classes"])
    labels[0, 0] = 255
    labels[1, 1, 1] = -100
    loss, items = DENSE["classes"].loss(logits, labels)
    expected = F.cross_entropy(logits, labels.where(labels != -100, 255), ignore_index=255)
    assert torch.isclose(loss, expected) and items == 32 - 5

    logits, labels = draw(DENSE["depth"])
    labels[0, 0] = torch.tensor([0.0, nan, -1.0, math.inf])
    loss, items = DENSE["depth"].loss(logits, labels)
    error = (logits[:, 0] - labels).abs().flatten()
    assert torch.isclose(loss, error[4:].mean()) and items == 28

    logits, labels = draw(DENSE["normals"])
    labels[0, :, 0, 0] = 0.0
    labels[1, 2, 3, 3] = nan
    loss, items = DENSE["normals"].loss(logits, labels)
    kept = [(i, y, x) for i in range(2) for y in range(4) for x in range(4) if (i, y, x) not in ((0, 0, 0), (1, 3, 3))]
    cosines = [F.cosine_similarity(logits[i, :, y, x], labels[i, :, y, x], dim=0) for i, y, x in kept]
    assert torch.isclose(loss, 1 - torch.stack(cosines).mean()) and items == 30
    longer, _ = DENSE["normals"].loss(logits, 7 * labels)
    assert torch.isclose(longer, loss)
    assert not torch.isclose(DENSE["normals"].loss(logits, labels.flip(1))[0], loss)


@pytest.mark.parametrize("name", DENSE)
def test_coarse_logits_are_resized_to_the_labels(name: str) -> None:
    task = DENSE[name]
    logits, _ = draw(task, side=2)
    _, labels = draw(task, side=6)
    fine = F.interpolate(logits, size=(6, 6), mode="bilinear", align_corners=False)
    assert torch.equal(task.loss(logits, labels)[0], task.loss(fine, labels)[0])
    assert not torch.equal(task.loss(logits.flip(-1), labels)[0], task.loss(fine, labels)[0])
    assert task.for_metrics(logits, labels).shape[-2:] == (6, 6)


@pytest.mark.parametrize("name", DENSE)
def test_without_any_label_the_loss_is_a_zero_that_hangs_on_the_logits(name: str) -> None:
    task = DENSE[name]
    logits, _ = draw(task)
    logits.requires_grad_(True)
    labels = task.label_tensor(name, [None, None])
    loss, items = task.loss(logits, labels)
    loss.backward()
    assert loss == 0 and items == 0 and logits.grad.count_nonzero() == 0
    assert not task.labelled(labels).any()


def test_labels_come_as_lists_arrays_and_images() -> None:
    classes = DENSE["classes"]
    array = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    tensor = classes.label_tensor("classes", [array, array.tolist(), Image.fromarray(array), None])
    assert tensor.dtype == torch.long and tensor.shape == (4, 2, 2)
    assert torch.equal(tensor[0], tensor[1]) and torch.equal(tensor[0], tensor[2])
    assert classes.labelled(tensor).sum() == 9
    assert DENSE["normals"].label_tensor("n", [np.ones((3, 2, 2)), None]).shape == (2, 3, 2, 2)
    assert task_from_dict(classes.to_dict()) == classes != SemanticSegmentation(3)


@pytest.mark.parametrize(
    ("name", "labels", "error", "message"),
    [
        ("classes", [[[0, 3]]], ValueError, r"label 3 is outside \[0, 3\): set num_labels, set ignore_index"),
        ("classes", [[[0, -1]]], ValueError, "label -1 is outside"),
        ("classes", [[[0.5, 1.0]]], ValueError, "not whole"),
        ("classes", [[0, 1]], ValueError, r"shape \(2,\): give a map of class indices"),
        ("classes", ["mask.png"], TypeError, "label 'mask.png' is of type str"),
        ("classes", [np.zeros((2, 2)), np.zeros((3, 3))], ValueError, "resize them to one size"),
        ("normals", [np.zeros((2, 2, 3))], ValueError, r"shape \(2, 2, 3\).*\(3, height, width\)"),
    ],
)
def test_wrong_labels_are_named(name: str, labels: list, error: type, message: str) -> None:
    with pytest.raises(error, match=rf"Task '{name}'.*{message}"):
        DENSE[name].label_tensor(name, labels)


def test_wrong_declarations_are_named() -> None:
    with pytest.raises(ValueError, match="a number that no class has, got 1"):
        SemanticSegmentation(3, ignore_index=1)
    with pytest.raises(ValueError, match="takes no num_labels=2"):
        DepthEstimation(2)
    with pytest.raises(ValueError, match=r"Task 'd': hidden_sizes=\[8, 8\].*one width"):
        MultiTaskModel.from_encoder(encoder_of("vit"), {"d": DepthEstimation(hidden_sizes=[8, 8])})


def judge(task: Any, predictions: Any, labels: Any) -> dict[str, float]:
    return default_compute_metrics(task)(EvalPrediction(np.array(predictions), np.array(labels)))


def test_segmentation_is_scored_over_the_classes_that_occur() -> None:
    task = SemanticSegmentation(5, ignore_index=255)
    predictions, labels = [[[0, 0], [1, 1]]], [[[0, 1], [1, 255]]]
    assert judge(task, predictions, labels) == {"mean_iou": 0.5, "pixel_accuracy": pytest.approx(2 / 3)}
    logits = np.eye(5)[np.array(predictions)].transpose(0, 3, 1, 2)
    assert judge(task, logits, labels) == judge(task, predictions, labels)
    assert judge(task, labels, labels)["mean_iou"] == 1.0
    assert judge(task, predictions, [[[-100, 255]]]) == {}


def test_depth_is_scored_where_there_is_a_label() -> None:
    scores = judge(DepthEstimation(), [[[1.0, 3.0], [9.0, 2.0]]], [[[1.0, 2.0], [0.0, 4.0]]])
    assert scores == {"absolute_error": 1.0, "relative_error": pytest.approx(1 / 3), "delta_1": pytest.approx(1 / 3)}
    assert all(map(math.isnan, judge(DepthEstimation(), [[[nan]]], [[[1.0]]]).values()))
    assert judge(DepthEstimation(), [[[1.0, 2.0]]], [[[0.0, nan]]]) == {}


def test_normals_are_scored_by_their_angle() -> None:
    labels = np.zeros((1, 3, 1, 3))
    labels[0, 0, 0, :2] = 2.0  # along x; the third pixel has none
    degrees = np.radians([20.0, 100.0, 0.0])
    predictions = np.stack([np.cos(degrees), np.sin(degrees), np.zeros(3)])[None, :, None]
    scores = judge(SurfaceNormals(), predictions, labels)
    assert scores["mean_angle"] == pytest.approx(60) and scores["median_angle"] == pytest.approx(60)
    assert (scores["within_11"], scores["within_22"], scores["within_30"]) == (0.0, 0.5, 0.5)
    diverged = judge(SurfaceNormals(), np.full_like(predictions, nan), labels)
    assert diverged.keys() == scores.keys() and all(map(math.isnan, diverged.values()))
    assert judge(SurfaceNormals(), predictions, np.zeros_like(labels)) == {}


def test_the_baseline_is_one_answer_for_every_pixel() -> None:
    classes = [np.array([[0, 1], [1, 1]]), None, np.array([[2, 255], [2, 2]])]
    assert baseline_metrics(DENSE["classes"], classes)["pixel_accuracy"] == pytest.approx(3 / 7)
    assert baseline_metrics(DepthEstimation(), [[[1.0, 3.0]]], [[[2.0, 4.0]]])["absolute_error"] == pytest.approx(1.0)
    up = np.zeros((3, 1, 2))
    up[1] = 1.0
    assert baseline_metrics(SurfaceNormals(), [up])["mean_angle"] == pytest.approx(0.0)
    with pytest.raises(ValueError, match="at least one training label, and all of them are missing"):
        baseline_metrics(DepthEstimation(), [np.zeros((2, 2))])


def test_images_of_a_processor_train_six_kinds(tmp_path: Path) -> None:
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})  # PIL's where torchvision is missing
    generator = np.random.default_rng(0)
    shades = generator.integers(0, 255, 16)
    images = [Image.fromarray(np.full((20, 20, 3), shade, dtype=np.uint8)) for shade in shades]
    pixels = np.asarray(processor(images, return_tensors="np")["pixel_values"])
    assert pixels.shape == (16, 3, SIDE, SIDE)
    maps = np.ones((16, SIDE, SIDE))
    labels = {
        "dark": (shades < 128).astype(int).tolist(),
        "bits": [[float(shade > 64), float(shade > 128)] for shade in shades],
        "shade": (shades / 255).tolist(),
        "classes": (maps * (shades < 128)[:, None, None]).astype(int).tolist(),
        "depth": (maps * (1 + shades / 255)[:, None, None]).tolist(),
        "normals": np.stack([maps, 0 * maps, 0 * maps], 1).tolist(),
    }
    data = {task: Dataset.from_dict({"pixel_values": pixels, "labels": values}) for task, values in labels.items()}
    declared = {"dark": Classification(2), "bits": MultiLabelClassification(2), "shade": Regression()}
    declared |= {"classes": SemanticSegmentation(2), "depth": DepthEstimation(), "normals": SurfaceNormals()}
    trainer = MultiTaskTrainer(
        model=MultiTaskModel.from_encoder(encoder_of("vit"), declared),
        args=arguments(tmp_path, optim="adamw_torch", learning_rate=3e-3, num_train_epochs=15, logging_steps=10),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    better = ["dark_accuracy", "bits_f1_micro", "shade_r2", "classes_mean_iou", "depth_delta_1", "normals_within_30"]
    assert all(after[f"eval_{name}"] > before[f"eval_{name}"] for name in better), (before, after)
    assert after["eval_classes_pixel_accuracy"] > 0.9 and after["eval_normals_mean_angle"] < 10
    trainer.save_model(tmp_path / "saved")
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "saved")).__name__.startswith("ViTImageProcessor")
    maps_of_classes = trainer.predict({"classes": data["classes"].remove_columns("labels")})["classes"].predictions
    assert maps_of_classes.ndim == 3 and set(np.unique(maps_of_classes)) <= {0, 1}
