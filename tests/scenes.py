"""Images with labels of their own and of their pixels, some of them missing, and tiny models for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from datasets import Dataset
from encoders import SIDE, encoder_of, exact

from hf_dbmtl import (
    Classification,
    DepthEstimation,
    MultiLabelClassification,
    MultiTaskModel,
    Regression,
    SemanticSegmentation,
    SurfaceNormals,
)


ROWS, MAP = 16, 16  # the heads give four times the pixels of a label
IMAGES = {"room": Classification(3), "things": MultiLabelClassification(4), "light": Regression()}
MAPS = {
    "classes": SemanticSegmentation(3, ignore_index=255),
    "depth": DepthEstimation(),
    "normals": SurfaceNormals(),
}
GROUPS = {"images": IMAGES, "maps": MAPS, "mixed": IMAGES | MAPS}


def label_of(task: Any, draw: np.random.Generator) -> Any:
    """One label. Of a map some pixels have none."""
    if task.kind == "classification":
        return int(draw.integers(task.num_labels))
    if task.kind == "multi_label_classification":
        return draw.integers(0, 2, task.num_labels).astype(float).tolist()
    if task.kind == "regression":
        return float(10 * draw.normal())
    gone = draw.random((MAP, MAP)) < draw.uniform(0, 0.5)
    if task.kind == "semantic_segmentation":
        return np.where(gone, 255, draw.integers(0, 3, (MAP, MAP))).tolist()
    if task.kind == "depth_estimation":
        return np.where(gone, draw.choice([0.0, math.nan]), draw.uniform(1, 5, (MAP, MAP))).tolist()
    return np.where(gone, 0.0, draw.normal(size=(3, MAP, MAP))).tolist()


def scenes(tasks: dict[str, Any], rows: int = ROWS, missing: float = 0.3) -> Dataset:
    """One dataset with a column of labels per task, a share of each missing."""
    draw = np.random.default_rng(0)
    columns: dict[str, list] = {"pixel_values": draw.normal(size=(rows, 3, SIDE, SIDE)).tolist()}
    for name, task in tasks.items():
        labels = [label_of(task, draw) for _ in range(rows)]
        columns[name] = [None if draw.random() < missing else label for label in labels]
    return Dataset.from_dict(columns)


def separate(group: Dataset, tasks: Any) -> dict[str, Dataset]:
    """The same images once more for each task, with its labels alone."""
    return {task: group.select_columns(["pixel_values", task]).rename_column(task, "labels") for task in tasks}


def model_of(tasks: dict[str, Any], family: str = "vit") -> MultiTaskModel:
    return exact(MultiTaskModel.from_encoder(encoder_of(family), dict(tasks)))
