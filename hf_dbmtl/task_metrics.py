"""The stock Trainer's evaluation loop knows one task; here it is given the predictions of all tasks of a unit, by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_utils import denumpify_detensorize


__all__ = ["ByTask", "PreprocessByTask"]


class ByTask:
    """
    A metric function for the predictions and labels of several tasks, dictionaries by task.

    Args:
        metrics (`Mapping[str, Callable]`):
            The metric function of every task that has one.

    Attributes:
        found (`dict[str, dict[str, float]]`):
            What they gave, by task.
    """

    def __init__(self, metrics: Mapping[str, Callable[[EvalPrediction], dict[str, float]]]):
        self.metrics = dict(metrics)
        self.found: dict[str, dict[str, float]] = {}

    def __call__(self, given: EvalPrediction) -> dict[str, float]:
        predictions: Any = given.predictions
        labels: Any = given.label_ids
        for task, metric in self.metrics.items():
            if task in predictions and task in labels:
                own = EvalPrediction(predictions[task], labels[task], given.inputs, given.losses)
                self.found[task] = denumpify_detensorize(metric(own))
        return {}


class PreprocessByTask:
    """`preprocess_logits_for_metrics` for the logits and labels of several tasks; those without a function stay."""

    def __init__(self, functions: Mapping[str, Callable[[Tensor, Any], Any]]):
        self.functions = dict(functions)

    def __call__(self, logits: Mapping[str, Any], labels: Mapping[str, Any] | None) -> dict[str, Any]:
        return {
            task: self.functions[task](own, (labels or {}).get(task)) if task in self.functions else own
            for task, own in logits.items()
        }
