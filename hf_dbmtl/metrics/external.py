"""Metrics that a user brings: functions, and modules of `evaluate`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction

from .arrays import FLOAT_KINDS, float_labels, integer_labels, is_labelled, logits_of


if TYPE_CHECKING:
    from ..tasks import Task

__all__ = ["ComputeMetrics", "resolve_metric"]

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]


def resolve_metric(spec: Any, task: Task | None = None) -> ComputeMetrics:
    """
    Turns what a user may give as a task's metric into a `compute_metrics` function.

    Args:
        spec (`Callable`, `str`, `evaluate.EvaluationModule` or `evaluate.CombinedEvaluations`):
            A callable stays as it is. A string is the name (or local folder) of an `evaluate` module, loaded when first
            used. A module gets `predictions=` and `references=` of the labelled items: the most likely class (token
            level: flattened), 0/1 for every entry of a multi-label task, the value for regression. Multi-label and
            several-target regression are flattened too, unless the module was loaded with the "multilabel" or
            "multilist" configuration: it gets the rows without a missing entry. Results that are not one number are
            left out.
        task (`Task`, *optional*):
            The task. Without it the shapes decide: floating labels or a single logit are regression, logits with one
            dimension more than the labels are classes, whole-numbered labels of the logits' shape are multi-label.
    """
    evaluate = sys.modules.get("evaluate")  # importing it costs seconds, and a module in hand means it is imported
    modules = (evaluate.EvaluationModule, evaluate.CombinedEvaluations) if evaluate else ()
    if isinstance(spec, (str, *modules)):
        return _evaluate_metric(spec, task)
    if callable(spec):
        return spec
    raise TypeError(
        f"A metric is a callable (EvalPrediction -> dict of numbers), an `evaluate` module or the name of one, not "
        f"{spec!r} ({type(spec).__name__}); `evaluate.combine([...])` makes one of several."
    )


def _evaluate_metric(module: Any, task: Task | None) -> ComputeMetrics:
    def compute(prediction: EvalPrediction) -> dict[str, float]:
        nonlocal module
        module = _load_evaluate(module) if isinstance(module, str) else module
        whole_rows = getattr(module, "config_name", None) in ("multilabel", "multilist")  # a combination has none
        predictions, references = _predictions_and_references(prediction, task, whole_rows)
        results = module.compute(predictions=predictions, references=references)
        return {key: float(value) for key, value in results.items() if isinstance(value, Real)}

    return compute


def _load_evaluate(name: str) -> Any:
    try:
        import evaluate

        return evaluate.load(name)
    except Exception as error:  # not installed, or whatever the Hub client raises
        raise ValueError(
            f"evaluate.load({name!r}) failed ({type(error).__name__}: {error}). Install `evaluate`, give the folder of "
            "the metric's script where there is no network, or pass a callable."
        ) from error


def _predictions_and_references(
    prediction: EvalPrediction, task: Task | None, whole_rows: bool
) -> tuple[np.ndarray, np.ndarray]:
    logits, raw = logits_of(prediction), np.asarray(prediction.label_ids)
    if task is not None:
        kind = task.kind
    elif np.issubdtype(raw.dtype, np.floating) or (logits.ndim > raw.ndim and logits.shape[-1] == 1):
        kind = "regression"
    else:
        kind = "classification" if logits.ndim == raw.ndim + 1 else "multi_label_classification"
    if kind not in FLOAT_KINDS:
        labels = integer_labels(raw)
        mask = is_labelled(labels)
        return logits.argmax(-1)[mask], labels[mask]
    labels = float_labels(raw, logits.shape[-1] if logits.ndim > 1 else 1, kind)
    predictions = logits.reshape(labels.shape)
    mask = is_labelled(labels)
    if whole_rows:
        mask = np.asarray(mask.all(-1))
    if kind == "regression":
        return predictions[mask].astype(np.float64), labels[mask]
    return (predictions[mask] > 0).astype(np.int64), (labels[mask] > 0.5).astype(np.int64)
