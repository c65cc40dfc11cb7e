"""Default metrics for every kind of task, and what a predictor that never looks at its input reaches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from transformers import EvalPrediction

from .arrays import FLOAT_KINDS, is_labelled, label_array, logits_of
from .external import ComputeMetrics
from .pixels import depth, segmentation, surface_normals
from .questions import AnswerMetric
from .scores import classification, masked_tokens, multi_label, multiple_choice, regression
from .spans import is_bio, token_classification


if TYPE_CHECKING:
    from ..tasks import QuestionAnswering, Task

__all__ = ["baseline_metrics", "default_compute_metrics", "main_metric"]

# all of them better high than low, so that their average means something
MAIN_METRICS = {
    "classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "r2",
    "token_classification": "accuracy",
    "question_answering": "f1",
    "multiple_choice": "accuracy",
    "masked_language_modeling": "accuracy",
    "semantic_segmentation": "mean_iou",
    "depth_estimation": "delta_1",
    "surface_normals": "within_30",
}


def main_metric(task: Task) -> str:
    """
    The metric of `task` that enters `eval_average`: `task.main_metric` where it is set, else "accuracy"
    (classification, token classification, multiple choice, masked language modelling), "f1_micro" (multi-label), "r2"
    (regression), "f1" (question answering, and the F1 over spans for token classification whose label names are BIO tags),
    "mean_iou" (segmentation), "delta_1" (depth), "within_30" (surface normals).
    """
    if task.main_metric is not None:
        return task.main_metric
    if task.kind == "token_classification" and is_bio(task.label_names):
        return "f1"
    return _of_kind(task, MAIN_METRICS)


def default_compute_metrics(task: Task, name: str | None = None) -> ComputeMetrics:
    """
    The function that judges the predictions of `task`, in the form that a `Trainer` takes as `compute_metrics`.

    Args:
        task (`Task`):
            The task. Its kind decides what is computed; items without a label never count:

            - classification: accuracy, f1_macro (over the classes that occur among labels or predictions),
              matthews_correlation, and f1 of class 1 where there are two classes.
            - multi-label: an entry is predicted where its logit is above 0. f1_micro and accuracy over all labelled
              entries, f1_macro over the labels with a labelled entry, and roc_auc over the labels with both classes
              (left out if there is none).
            - regression: r2, mse, mae, pearson, spearman, each the mean over the targets with a labelled item.
              What is undefined is 0.0, not NaN: a correlation with constant predictions or labels, and the r2 of a
              single item.
            - token classification: accuracy and f1_macro over tokens; where the label names are BIO tags also
              precision, recall and f1 over spans, as in CoNLL-2003.
            - question answering: exact_match and f1 of the answers, see [`AnswerMetric`].
            - multiple choice, masked language modelling: accuracy.
            - semantic segmentation: mean_iou (over the classes that occur) and pixel_accuracy.
            - depth estimation: absolute_error, relative_error, and delta_1 (the share of pixels where neither depth is more
              than 1.25 times the other).
            - surface normals: mean_angle and median_angle in degrees, and the share of pixels within 11.25, 22.5 and 30
              degrees (within_11, within_22, within_30).
        name (`str`, *optional*):
            The task's name, for error messages.

    Returns:
        `Callable[[EvalPrediction], dict[str, float]]`. NaN predictions (for multi-label and regression also infinite
        ones) on labelled items make every metric NaN; with no labelled item the dictionary is empty.
    """
    if task.kind == "question_answering":
        return AnswerMetric(cast("QuestionAnswering", task))
    _of_kind(task, JUDGES | WHOLE)  # refuses an unknown kind now
    return partial(_judge, task=task, name=name)


def baseline_metrics(task: Task, train_labels: Any, eval_labels: Any = None) -> dict[str, float]:
    """
    What a predictor that never looks at its input reaches: the most frequent class of the training labels (per label
    for multi-label tasks, per token for token classification, per pixel for segmentation; of equally frequent ones the
    first, for multi-label "no"), or the mean of each regression target, depth or direction; judged by [`default_compute_metrics`].

    Args:
        task (`Task`):
            The task.
        train_labels (`np.ndarray` or `list`):
            Labels to count, as in a dataset's column or in `EvalPrediction.label_ids`; missing ones as in either.
        eval_labels (`np.ndarray` or `list`, *optional*, defaults to `train_labels`):
            Labels to judge the predictor by.
    """
    if task.kind in WHOLE:
        return _judge_constant_map(task, train_labels, train_labels if eval_labels is None else eval_labels)
    _of_kind(task, JUDGES)
    train, judged = (label_array(task, x) for x in (train_labels, train_labels if eval_labels is None else eval_labels))
    if not is_labelled(train).any():
        raise ValueError("The baseline needs at least one training label, and all of them are missing.")
    if task.kind == "regression":
        constant = np.array([x[is_labelled(x)].mean() if is_labelled(x).any() else 0.0 for x in train.T])
    elif task.kind == "multi_label_classification":
        constant = np.array([1.0 if x[is_labelled(x)].sum() * 2 > is_labelled(x).sum() else -1.0 for x in train.T])
    else:
        counts = np.bincount(train[is_labelled(train)], minlength=task.num_labels)
        constant = np.eye(len(counts))[counts.argmax()]
    shape = judged.shape[:1] if task.kind in FLOAT_KINDS else judged.shape
    return _judge(EvalPrediction(np.broadcast_to(constant, (*shape, len(constant))), judged), task=task)


def _judge_constant_map(task: Task, train_labels: Any, eval_labels: Any) -> dict[str, float]:
    """The baseline of a task of pixels: the same class, depth or direction everywhere."""
    if not task.dense:
        raise TypeError(f"There is no baseline for tasks of kind '{task.kind}', whose labels no dataset holds.")
    train, judged = (task.label_tensor("baseline", list(labels)) for labels in (train_labels, eval_labels))
    mask = task.labelled(train)
    if not mask.any():
        raise ValueError("The baseline needs at least one training label, and all of them are missing.")
    if task.kind == "semantic_segmentation":
        constant = train[mask].bincount().argmax()
    elif task.kind == "depth_estimation":
        constant = train[mask].mean()
    else:
        constant = train.movedim(1, -1)[mask].mean(0)[None, :, None, None]
    predictions = constant.expand(judged.shape).numpy()
    return _judge(EvalPrediction(predictions, judged.numpy()), task)


def _judge(prediction: EvalPrediction, task: Task, name: str | None = None) -> dict[str, float]:
    if task.kind in WHOLE:
        scores = WHOLE[task.kind](task, logits_of(prediction), np.asarray(prediction.label_ids))
        return {key: float(value) for key, value in scores.items()}
    logits, labels = logits_of(prediction), label_array(task, prediction.label_ids)
    floating = task.kind in FLOAT_KINDS
    if logits.size != labels.size if floating else logits.shape[:-1] != labels.shape:
        where = "" if name is None else f"Task '{name}': "
        raise ValueError(f"{where}predictions of shape {logits.shape} do not fit labels of shape {labels.shape}.")
    mask = is_labelled(labels)
    if not mask.any():
        return {}
    if floating:
        logits = logits.astype(np.float64).reshape(labels.shape)
    diverged = bool((~np.isfinite(logits[mask]) if floating else np.isnan(logits[mask])).any())
    with warnings.catch_warnings():
        # scikit-learn warns of labels with one class, scipy of constant arrays: both have their documented value here.
        warnings.simplefilter("ignore")
        scores = _of_kind(task, JUDGES)(task, np.zeros_like(logits) if diverged else logits, labels, mask)
    return {key: math.nan if diverged else float(value) for key, value in scores.items()}


# functions of logits, labels and the mask of those that are there
JUDGES = {
    "classification": classification,
    "multi_label_classification": multi_label,
    "regression": regression,
    "token_classification": token_classification,
    "multiple_choice": multiple_choice,
}
# functions of predictions, reduced by `Task.for_metrics` or not, and labels
WHOLE: dict[str, Callable[[Any, np.ndarray, np.ndarray], dict[str, Any]]] = {
    "masked_language_modeling": masked_tokens,
    "semantic_segmentation": segmentation,
    "depth_estimation": depth,
    "surface_normals": surface_normals,
}


def _of_kind(task: Task, table: Mapping[str, Any]) -> Any:
    if task.kind not in table:
        raise TypeError(f"No default metrics for tasks of kind '{task.kind}', only for {list(table)}: pass a callable.")
    return table[task.kind]
