"""Scores of labels that are numbers: of examples, of choices and of masked tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from ..tasks import Task

__all__ = ["class_scores", "classification", "masked_tokens", "multi_label", "multiple_choice", "regression"]


def class_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": accuracy_score(truth, predicted),
        "f1_macro": f1_score(truth, predicted, average="macro", zero_division=0),
    }


def classification(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score, matthews_corrcoef

    truth, predicted = labels[mask], logits.argmax(-1)[mask]
    scores = class_scores(truth, predicted) | {"matthews_correlation": matthews_corrcoef(truth, predicted)}
    if task.num_labels == 2:
        scores["f1"] = f1_score(truth == 1, predicted == 1, zero_division=0)
    return scores


def multi_label(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    truth, predicted = labels > 0.5, logits > 0
    columns = [(truth[m, i], predicted[m, i], logits[m, i]) for i, m in enumerate(mask.T) if m.any()]
    areas = [roc_auc_score(t, score) for t, _, score in columns if t.any() and not t.all()]
    scores = {
        "f1_micro": f1_score(truth[mask], predicted[mask], zero_division=0),
        "f1_macro": np.mean([f1_score(t, p, zero_division=0) for t, p, _ in columns]),
        "accuracy": accuracy_score(truth[mask], predicted[mask]),
    }
    return scores | ({"roc_auc": np.mean(areas)} if areas else {})


def regression(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    scores: dict[str, list[float]] = {key: [] for key in ("r2", "mse", "mae", "pearson", "spearman")}
    for truth, predicted in ((labels[m, i], logits[m, i]) for i, m in enumerate(mask.T) if m.any()):
        several = len(truth) > 1
        scores["r2"].append(r2_score(truth, predicted) if several else 0.0)
        scores["mse"].append(mean_squared_error(truth, predicted))
        scores["mae"].append(mean_absolute_error(truth, predicted))
        scores["pearson"].append(np.nan_to_num(pearsonr(truth, predicted).statistic) if several else 0.0)
        scores["spearman"].append(np.nan_to_num(spearmanr(truth, predicted).statistic) if several else 0.0)
    return {key: float(np.mean(values)) for key, values in scores.items()}


def multiple_choice(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    return {"accuracy": np.mean(logits.argmax(-1)[mask] == labels[mask])}


def masked_tokens(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Of token ids, or of logits."""
    predicted = predictions.argmax(-1) if predictions.ndim > labels.ndim else predictions
    mask = labels >= 0
    return {"accuracy": np.mean(predicted[mask] == labels[mask])} if mask.any() else {}
