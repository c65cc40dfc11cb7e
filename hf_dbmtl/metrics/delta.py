"""Δp: how much better several tasks became, against a baseline."""

from __future__ import annotations

from collections.abc import Mapping


__all__ = ["GREATER_IS_BETTER", "delta_p", "delta_p_per_task"]

GREATER_IS_BETTER: dict[str, bool] = {
    **dict.fromkeys(("accuracy", "f1", "f1_macro", "f1_micro", "precision", "recall", "matthews_correlation"), True),
    **dict.fromkeys(("roc_auc", "r2", "pearson", "spearman", "exact_match"), True),
    **dict.fromkeys(("mean_iou", "pixel_accuracy", "delta_1", "within_11", "within_22", "within_30"), True),
    **dict.fromkeys(("mse", "mae", "loss"), False),
    **dict.fromkeys(("absolute_error", "relative_error", "mean_angle", "median_angle"), False),
}


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
