"""What the commands print of results."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from rich.table import Table

from ..metrics import main_metric
from ..tasks import Task


__all__ = ["results_table"]


def results_table(
    tasks: Mapping[str, Task],
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    evaluated: Mapping[str, Sized],
    trained: Mapping[str, int] | None = None,
) -> Table:
    """
    The main metric of every task beside the baseline's, and their average.

    Args:
        tasks (`dict[str, Task]`):
            The tasks.
        metrics (`dict[str, float]`):
            What `evaluate` returned; empty where nothing was evaluated.
        baselines (`dict[str, dict[str, float]]`):
            What never looking at the input reaches, by task and metric.
        evaluated (`dict[str, Dataset]`):
            The evaluation sets.
        trained (`dict[str, int]`, *optional*):
            Rows that were trained on, by task.
    """
    table = Table(title="Results", title_justify="left", caption_justify="left")
    table.caption = "baseline: always the most frequent class, or the mean" if metrics else "not evaluated"
    for column in ("task", "metric"):
        table.add_column(column)
    for column in (*(("train",) if trained is not None else ()), "eval", "baseline", "result", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, task in tasks.items():
        metric, rows = main_metric(task), evaluated.get(name, ())
        numbers = (
            baselines.get(name, {}).get(metric),
            metrics.get(f"eval_{name}_{metric}"),
            metrics.get(f"eval_{name}_loss"),
        )
        counts = [f"{trained[name]:,}" if name in trained else ""] if trained is not None else []
        table.add_row(name, metric, *counts, f"{len(rows):,}", *map(_shown, numbers))
    if metrics:
        table.add_section()
        empty = [""] * (len(table.columns) - 3)
        table.add_row("average", *empty, *(_shown(metrics.get(key)) for key in ("eval_average", "eval_loss")))
    return table


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}" if abs(number) >= 1000 else f"{number:.4f}"
