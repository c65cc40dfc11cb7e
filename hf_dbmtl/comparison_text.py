"""A comparison as a table: for the screen, in Markdown and in CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO

from .comparison import SINGLE_TASK, Spread, Summary
from .metrics import GREATER_IS_BETTER


__all__ = ["legend", "to_csv", "to_markdown", "to_table"]


def to_table(summaries: Sequence[Summary], tasks: Mapping[str, Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """
    A header and rows of text, a row per method: its metrics, their average, Δp, milliseconds and MiB per step.

    Returns:
        `tuple[list[str], list[list[str]]]`: the header and the rows.
    """
    columns = [(task, metric) for task, metrics in tasks.items() for metric in metrics]
    header = ["method", "runs", *(f"{task} {metric}" for task, metric in columns), "average", "Δp %", "ms/step", "MiB"]
    rows = []
    for one in summaries:
        spreads = [one.metrics.get(task, {}).get(metric) for task, metric in columns]
        row = [
            one.method,
            str(one.runs),
            *("" if spread is None else spread.show() for spread in [*spreads, one.average]),
        ]
        row.append("" if one.delta_p is None else one.delta_p.show("+.2f"))
        row.append("" if one.seconds is None else f"{1e3 * one.seconds:.1f}")
        row.append("" if one.memory is None else f"{one.memory / 2**20:.0f}")
        rows.append(row)
    return header, rows


def to_markdown(
    summaries: Sequence[Summary],
    tasks: Mapping[str, Sequence[str]],
    reference: str = SINGLE_TASK,
    greater_is_better: Mapping[str, bool] | None = None,
) -> str:
    """The table in Markdown, the best mean of every column in bold, and what its columns are below it."""
    header, rows = to_table(summaries, tasks)
    directions = GREATER_IS_BETTER | dict(greater_is_better or {})
    columns = [(task, metric) for task, metrics in tasks.items() for metric in metrics]
    for place, (task, metric) in enumerate(columns, start=2):
        _embolden(rows, place, [one.metrics.get(task, {}).get(metric) for one in summaries], directions.get(metric))
    _embolden(rows, 2 + len(columns) + 1, [one.delta_p for one in summaries], True)
    table = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table]
    notes = [f"{one.method}: no Δp, since {one.why}." for one in summaries if one.why]
    return "\n".join([*lines, "", legend(reference), *(f"\n{note}" for note in dict.fromkeys(notes))]) + "\n"


def legend(reference: str) -> str:
    """What the columns of the table are."""
    single = ", that of single-task the sum over the tasks (their steps), its memory that of the largest"
    return (
        f"Mean ± sample standard deviation over the runs. Δp: the mean over tasks of the mean over a task's metrics of the "
        f"signed relative change to {reference}, in percent; positive is better. ms/step: the median time of an optimizer "
        f"step without loading data{single if reference == SINGLE_TASK else ''}. MiB: the peak of training above the loaded "
        "model."
    )


def _embolden(rows: list[list[str]], column: int, spreads: Sequence[Spread | None], greater: bool | None) -> None:
    means = [spread.mean for spread in spreads if spread is not None and math.isfinite(spread.mean)]
    if greater is None or len(means) < 2:
        return
    best = max(means) if greater else min(means)
    for row, spread in zip(rows, spreads):
        if spread is not None and spread.mean == best:
            row[column] = f"**{row[column]}**"


def to_csv(summaries: Sequence[Summary], tasks: Mapping[str, Sequence[str]]) -> str:
    """The numbers of the table, means and deviations in columns of their own."""
    names = [f"{task}_{metric}" for task, metrics in tasks.items() for metric in metrics]
    names += ["average", "delta_p", *(f"delta_p_{task}" for task in tasks)]
    header = ["method", "runs", *(f"{name}_{what}" for name in names for what in ("mean", "std"))]
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*header, "seconds_per_step", "memory_bytes"])
    for one in summaries:
        spreads = [one.metrics.get(task, {}).get(metric) for task, metrics in tasks.items() for metric in metrics]
        spreads += [one.average, one.delta_p, *(one.delta_p_by_task.get(task) for task in tasks)]
        numbers = [
            number for spread in spreads for number in ((spread.mean, spread.deviation) if spread else (None, None))
        ]
        writer.writerow([one.method, one.runs, *numbers, one.seconds, one.memory])
    return text.getvalue()
