"""Default metrics for every kind of task, their baselines, and Δp. scikit-learn and scipy are imported on use."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction


if TYPE_CHECKING:
    from .tasks import Task

__all__ = [
    "GREATER_IS_BETTER",
    "baseline_metrics",
    "default_compute_metrics",
    "delta_p",
    "delta_p_per_task",
    "main_metric",
    "resolve_metric",
]

ComputeMetrics = Callable[[EvalPrediction], dict[str, float]]

MISSING = -100
FLOAT_KINDS = ("multi_label_classification", "regression")
MAIN_METRICS = {
    "classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "r2",
    "token_classification": "accuracy",
}
GREATER_IS_BETTER: dict[str, bool] = {
    **dict.fromkeys(("accuracy", "f1", "f1_macro", "f1_micro", "precision", "recall", "matthews_correlation"), True),
    **dict.fromkeys(("roc_auc", "r2", "pearson", "spearman"), True),
    **dict.fromkeys(("mse", "mae", "loss"), False),
}


def main_metric(task: Task) -> str:
    """
    The metric of `task` that enters `eval_average`: `task.main_metric` where it is set, else "accuracy"
    (classification, token classification), "f1_micro" (multi-label), "r2" (regression), or "f1", the F1 over spans,
    for token classification whose label names are BIO tags.
    """
    if task.main_metric is not None:
        return task.main_metric
    if task.kind == "token_classification" and _is_bio(task.label_names):
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
        name (`str`, *optional*):
            The task's name, for error messages.

    Returns:
        `Callable[[EvalPrediction], dict[str, float]]`. NaN predictions (for multi-label and regression also infinite
        ones) on labelled items make every metric NaN; with no labelled item the dictionary is empty.
    """
    _of_kind(task, JUDGES)  # refuses an unknown kind now
    return partial(_judge, task=task, name=name)


def baseline_metrics(task: Task, train_labels: Any, eval_labels: Any = None) -> dict[str, float]:
    """
    What a predictor that never looks at its input reaches: the most frequent class of the training labels (per label
    for multi-label tasks, per token for token classification; of equally frequent ones the first, for multi-label
    "no"), or the mean of each regression target; judged by [`default_compute_metrics`].

    Args:
        task (`Task`):
            The task.
        train_labels (`np.ndarray` or `list`):
            Labels to count, as in a dataset's column or in `EvalPrediction.label_ids`; missing ones as in either.
        eval_labels (`np.ndarray` or `list`, *optional*, defaults to `train_labels`):
            Labels to judge the predictor by.
    """
    train, judged = (_labels(task, x) for x in (train_labels, train_labels if eval_labels is None else eval_labels))
    if not _labelled(train).any():
        raise ValueError("The baseline needs at least one training label, and all of them are missing.")
    if task.kind == "regression":
        constant = np.array([x[_labelled(x)].mean() if _labelled(x).any() else 0.0 for x in train.T])
    elif task.kind == "multi_label_classification":
        constant = np.array([1.0 if x[_labelled(x)].sum() * 2 > _labelled(x).sum() else -1.0 for x in train.T])
    else:
        counts = np.bincount(train[_labelled(train)], minlength=task.num_labels)
        constant = np.eye(len(counts))[counts.argmax()]
    shape = judged.shape[:1] if task.kind in FLOAT_KINDS else judged.shape
    return _judge(EvalPrediction(np.broadcast_to(constant, (*shape, len(constant))), judged), task=task)


def delta_p_per_task(
    metrics: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, Mapping[str, float]],
    greater_is_better: Mapping[str, bool] | None = None,
) -> dict[str, float]:
    """The terms of [`delta_p`]: for each task the mean signed relative change of its metrics, in percent."""
    if set(metrics) != set(baselines) or not metrics:
        raise ValueError(f"Δp compares the same tasks: got {sorted(metrics)}, with baselines for {sorted(baselines)}.")
    directions = GREATER_IS_BETTER | dict(greater_is_better or {})
    changes = {}
    for task, baseline in baselines.items():
        terms = []
        for metric, base in baseline.items():
            if metric not in metrics[task]:
                raise ValueError(f"Task '{task}': the results lack the baseline's '{metric}': {list(metrics[task])}.")
            if metric not in directions:
                raise ValueError(f"Task '{task}': say whether '{metric}' is better high in `greater_is_better`.")
            if base == 0:
                raise ValueError(f"Task '{task}': nothing is relative to a '{metric}' of 0 in the baseline: drop it.")
            sign = 1.0 if directions[metric] else -1.0
            terms.append(100.0 * sign * (metrics[task][metric] - base) / abs(base))
        if not terms:
            raise ValueError(f"Task '{task}': its baseline holds no metric to compare.")
        changes[task] = sum(terms) / len(terms)
    return changes


def delta_p(
    metrics: Mapping[str, Mapping[str, float]],
    baselines: Mapping[str, Mapping[str, float]],
    greater_is_better: Mapping[str, bool] | None = None,
) -> float:
    r"""
    Relative improvement over single-task models (or any other baseline) in percent, equation 3 of
    [DB-MTL](https://huggingface.co/papers/2308.12029), v3: the mean over tasks of the mean over a task's metrics,

    $$\Delta_p = \frac1T \sum_t \frac{100}{N_t} \sum_i (-1)^{s_{ti}} \frac{M_{ti} - M^{STL}_{ti}}{M^{STL}_{ti}}$$

    with s = 0 where higher is better and 1 where lower is. Positive is better. The Δm% of Nash-MTL or FAMO averages
    over all metrics at once, with the opposite sign: not comparable. A negative baseline (an R² below 0) divides by
    its absolute value, so that an improvement stays positive.

    Args:
        metrics (`dict[str, dict[str, float]]`):
            The results: metrics by task. Metrics that stand in no baseline are ignored.
        baselines (`dict[str, dict[str, float]]`):
            The single-task results: the same tasks, with exactly the metrics to compare.
        greater_is_better (`dict[str, bool]`, *optional*):
            Directions of metrics beside, or other than, those of [`GREATER_IS_BETTER`].
    """
    changes = delta_p_per_task(metrics, baselines, greater_is_better)
    return sum(changes.values()) / len(changes)


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
    logits, raw = _logits(prediction), prediction.label_ids
    if task is not None:
        kind = task.kind
    elif np.issubdtype(raw.dtype, np.floating) or (logits.ndim > raw.ndim and logits.shape[-1] == 1):
        kind = "regression"
    else:
        kind = "classification" if logits.ndim == raw.ndim + 1 else "multi_label_classification"
    if kind not in FLOAT_KINDS:
        labels = _integer_labels(raw)
        mask = _labelled(labels)
        return logits.argmax(-1)[mask], labels[mask]
    labels = _float_labels(raw, logits.shape[-1] if logits.ndim > 1 else 1, kind)
    predictions = logits.reshape(labels.shape)
    mask = _labelled(labels)
    if whole_rows:
        mask = mask.all(-1)
    if kind == "regression":
        return predictions[mask].astype(np.float64), labels[mask]
    return (predictions[mask] > 0).astype(np.int64), (labels[mask] > 0.5).astype(np.int64)


def _labels(task: Task, labels: Any) -> np.ndarray:
    return _float_labels(labels, task.num_labels, task.kind) if task.kind in FLOAT_KINDS else _integer_labels(labels)


def _labelled(labels: np.ndarray) -> np.ndarray:
    return ~np.isnan(labels) if labels.dtype == np.float64 else labels != MISSING


def _integer_labels(labels: Any) -> np.ndarray:
    """Class indices as integers: None and NaN become -100, rows of different length are filled with -100."""
    if not isinstance(labels, np.ndarray):
        labels = list(labels)
        if any(np.ndim(row) for row in labels):
            columns = list(zip_longest(*([] if row is None else row for row in labels)))
            labels = np.array(columns, dtype=np.float64).T
    values = np.array(labels, dtype=np.float64)
    return np.where(np.isnan(values), MISSING, values).astype(np.int64)


def _float_labels(labels: Any, num_labels: int, kind: str) -> np.ndarray:
    """(items, num_labels) in float64 with NaN where a label is missing; -100 is missing in multi-hot vectors only."""
    if not isinstance(labels, np.ndarray):
        labels = [[math.nan] * num_labels if row is None and num_labels > 1 else row for row in labels]
    values = np.array(labels, dtype=np.float64).reshape(-1, num_labels)
    return np.where(values == MISSING, math.nan, values) if kind == "multi_label_classification" else values


def _logits(prediction: EvalPrediction) -> np.ndarray:
    predictions = prediction.predictions  # a tuple where the model also returned hidden states
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def _judge(prediction: EvalPrediction, task: Task, name: str | None = None) -> dict[str, float]:
    logits, labels = _logits(prediction), _labels(task, prediction.label_ids)
    floating = task.kind in FLOAT_KINDS
    if logits.size != labels.size if floating else logits.shape[:-1] != labels.shape:
        where = "" if name is None else f"Task '{name}': "
        raise ValueError(f"{where}predictions of shape {logits.shape} do not fit labels of shape {labels.shape}.")
    mask = _labelled(labels)
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


def _class_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": accuracy_score(truth, predicted),
        "f1_macro": f1_score(truth, predicted, average="macro", zero_division=0),
    }


def _classification(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score, matthews_corrcoef

    truth, predicted = labels[mask], logits.argmax(-1)[mask]
    scores = _class_scores(truth, predicted) | {"matthews_correlation": matthews_corrcoef(truth, predicted)}
    if task.num_labels == 2:
        scores["f1"] = f1_score(truth == 1, predicted == 1, zero_division=0)
    return scores


def _multi_label(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
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


def _regression(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
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
    return {key: np.mean(values) for key, values in scores.items()}


def _token_classification(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    predicted = logits.argmax(-1)
    scores = _class_scores(labels[mask], predicted[mask])
    if not _is_bio(task.label_names):
        return scores
    return _span_scores(task.label_names, labels, predicted, mask) | scores


def _is_bio(names: Sequence[str] | None) -> bool:
    """Whether every name is "O", "B-type" or "I-type", and at least one begins a span."""
    return bool(names) and all(re.fullmatch(r"O|[BI]-.+", n) for n in names) and any(n[0] == "B" for n in names)


def _spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """
    (type, first, last + 1) of every span, by the rule of CoNLL's `conlleval`: a span starts at B-type, and at an I-type
    that does not continue a span of its own type.
    """
    spans, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        if kind is not None and (prefix != "I" or this != kind):
            spans.add((kind, start, i))
            kind = None
        if kind is None and prefix != "O":
            start, kind = i, this
    return spans


def _span_scores(names: Sequence[str], labels: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    right = true = found = 0
    for *rows, labelled in zip(labels, predicted, mask):  # labelled: the first piece of every word, as a rule
        actual, guessed = (_spans([names[i] for i in row[labelled]]) for row in rows)
        right, true, found = right + len(actual & guessed), true + len(actual), found + len(guessed)
    return {
        "f1": 2 * right / (true + found) if true + found else 0.0,
        "precision": right / found if found else 0.0,
        "recall": right / true if true else 0.0,
    }


JUDGES = {
    "classification": _classification,
    "multi_label_classification": _multi_label,
    "regression": _regression,
    "token_classification": _token_classification,
}


def _of_kind(task: Task, table: Mapping[str, Any]) -> Any:
    if task.kind not in table:
        raise TypeError(f"No default metrics for tasks of kind '{task.kind}', only for {list(table)}: pass a callable.")
    return table[task.kind]
