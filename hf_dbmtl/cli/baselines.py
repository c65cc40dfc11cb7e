"""What never looking at the input reaches, to judge a result by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import IterableDataset

from hf_dbmtl_cli import CommandError

from ..metrics import baseline_metrics, main_metric
from ..tasks import Task
from .values import nearest


__all__ = ["baseline"]

# The metrics of kinds without a baseline, whose labels are no column of numbers.
METRICS = {"question_answering": ("exact_match", "f1"), "masked_language_modeling": ("accuracy",)}


def baseline(name: str, task: Task, column: str, train: Any, judged: Any) -> dict[str, float]:
    """
    What never looking at the input reaches; and the check that the main metric is one that will be computed.

    Args:
        name (`str`):
            The name of the task, for errors.
        task (`Task`):
            The task.
        column (`str`):
            The column of its labels.
        train (`Dataset` or `Mapping[str, list]`, *optional*):
            The training rows; none where they are streamed.
        judged (`Dataset`):
            The rows to evaluate on.

    Returns:
        `dict[str, float]`: the metrics. None where there are no labels, of data that are streamed, and for questions, masked
        tokens and maps of pixels, of which all would have to be in memory at once.

    Raises:
        [`CommandError`]: a main metric that the kind does not have.
    """
    metrics: Mapping[str, float] = {}
    if task.dense:
        some = np.ones((3, 1, 1) if task.kind == "surface_normals" else (1, 1))
        known = list(baseline_metrics(task, [some]))
    elif task.kind in METRICS:
        known = list(METRICS[task.kind])
    else:
        try:
            known = list(baseline_metrics(task, _labels(judged, column)))
            if train is not None and not isinstance(train, IterableDataset):
                metrics = baseline_metrics(task, _labels(train, column), _labels(judged, column))
        except ValueError:
            return {}  # no labels: the Trainer's own check says it better
    if known and main_metric(task) not in known:
        raise CommandError(
            f"Task '{name}': main_metric '{task.main_metric}' is not computed"
            f"{nearest(task.main_metric, known) or '.'} Those of its kind are {', '.join(known)}."
        )
    return dict(metrics)


def _labels(rows: Any, column: str) -> list:
    return rows[column] if isinstance(rows, dict) else rows.with_format(None)[column][:]
