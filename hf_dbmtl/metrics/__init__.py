"""Default metrics for every kind of task, their baselines, and Δp. scikit-learn and scipy are imported on use."""

from .default import baseline_metrics, default_compute_metrics, main_metric
from .delta import GREATER_IS_BETTER, delta_p, delta_p_per_task
from .external import ComputeMetrics, resolve_metric
from .questions import AnswerMetric


__all__ = [
    "GREATER_IS_BETTER",
    "AnswerMetric",
    "ComputeMetrics",
    "baseline_metrics",
    "default_compute_metrics",
    "delta_p",
    "delta_p_per_task",
    "main_metric",
    "resolve_metric",
]
