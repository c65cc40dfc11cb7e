"""Labels and logits as arrays, with what is missing marked."""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction


if TYPE_CHECKING:
    from ..tasks import Task

__all__ = ["FLOAT_KINDS", "MISSING", "float_labels", "integer_labels", "is_labelled", "label_array", "logits_of"]

MISSING = -100
FLOAT_KINDS = ("multi_label_classification", "regression")


def label_array(task: Task, labels: Any) -> np.ndarray:
    return float_labels(labels, task.num_labels, task.kind) if task.kind in FLOAT_KINDS else integer_labels(labels)


def is_labelled(labels: np.ndarray) -> np.ndarray:
    return ~np.isnan(labels) if labels.dtype == np.float64 else labels != MISSING


def integer_labels(labels: Any) -> np.ndarray:
    """Class indices as integers: None and NaN become -100, rows of different length are filled with -100."""
    if not isinstance(labels, np.ndarray):
        labels = list(labels)
        if any(np.ndim(row) for row in labels):
            columns = list(zip_longest(*([] if row is None else row for row in labels)))
            labels = np.array(columns, dtype=np.float64).T
    values = np.array(labels, dtype=np.float64)
    return np.where(np.isnan(values), MISSING, values).astype(np.int64)


def float_labels(labels: Any, num_labels: int, kind: str) -> np.ndarray:
    """(items, num_labels) in float64 with NaN where a label is missing; -100 is missing in multi-hot vectors only."""
    if not isinstance(labels, np.ndarray):
        labels = [[math.nan] * num_labels if row is None and num_labels > 1 else row for row in labels]
    values = np.array(labels, dtype=np.float64).reshape(-1, num_labels)
    return np.where(values == MISSING, math.nan, values) if kind == "multi_label_classification" else values


def logits_of(prediction: EvalPrediction) -> np.ndarray:
    predictions = prediction.predictions  # a tuple where the model also returned hidden states
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
