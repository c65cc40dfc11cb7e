"""Scores of tasks with a label for every pixel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from ..tasks import SemanticSegmentation, Task

__all__ = ["depth", "segmentation", "surface_normals"]


def segmentation(task: SemanticSegmentation, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    mean_iou: over the classes that occur among labels or predictions, the share of the pixels of either that are of both;
    pixel_accuracy. Predictions are classes, or logits of shape `(images, num_labels, height, width)`.
    """
    predicted = predictions.argmax(1) if predictions.ndim > labels.ndim else predictions
    mask = (labels != task.ignore_index) & (labels >= 0)
    if not mask.any():
        return {}
    pairs = labels[mask].astype(np.int64) * task.num_labels + predicted[mask]
    confusion = np.bincount(pairs, minlength=task.num_labels**2).reshape(task.num_labels, task.num_labels)
    right, either = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return {
        "mean_iou": np.mean(right[either > 0] / either[either > 0]),
        "pixel_accuracy": right.sum() / confusion.sum(),
    }


def depth(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    The mean absolute_error, the mean relative_error (to the label), and delta_1: the share of pixels where neither is more
    than 1.25 times the other.
    """
    with np.errstate(invalid="ignore"):
        mask = np.isfinite(labels) & (labels > 0)
    truth, predicted = labels[mask].astype(np.float64), predictions.reshape(labels.shape)[mask].astype(np.float64)
    if not len(truth):
        return {}
    if not np.isfinite(predicted).all():
        return dict.fromkeys(("absolute_error", "relative_error", "delta_1"), math.nan)
    error = np.abs(predicted - truth)
    close = (predicted < 1.25 * truth) & (truth < 1.25 * predicted)
    return {"absolute_error": error.mean(), "relative_error": (error / truth).mean(), "delta_1": close.mean()}


def surface_normals(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """
    mean_angle and median_angle between prediction and label, in degrees, and the shares of pixels where it is below 11.25,
    22.5 and 30 (within_11, within_22, within_30). Of shape `(images, 3, height, width)`.
    """
    mask = np.isfinite(labels).all(1) & (labels != 0).any(1)
    truth, predicted = (np.moveaxis(array, 1, -1)[mask].astype(np.float64) for array in (labels, predictions))
    if not len(truth):
        return {}
    names = ("mean_angle", "median_angle", "within_11", "within_22", "within_30")
    if not np.isfinite(predicted).all():
        return dict.fromkeys(names, math.nan)
    lengths = np.linalg.norm(truth, axis=-1) * np.linalg.norm(predicted, axis=-1)
    cosine = (truth * predicted).sum(-1) / np.where(lengths > 0, lengths, 1.0)  # no direction: at a right angle
    angle = np.degrees(np.arccos(cosine.clip(-1, 1)))
    return dict(zip(names, (angle.mean(), np.median(angle), *((angle < limit).mean() for limit in (11.25, 22.5, 30)))))
