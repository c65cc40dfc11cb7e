"""One picture of a run: the loss, the weight and the gradient norm of every task over the steps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["logged_tasks", "plot_training"]

LogHistory = Sequence[Mapping[str, Any]]
Curve = tuple[np.ndarray, np.ndarray]  # steps, values

QUANTITIES = {"loss": "Loss", "weight": "Weight", "grad_norm": "Gradient norm"}

# The colour-blind-safe colours of Okabe and Ito, with Tol's wine for their yellow, which is faint on white: any two
# differ by 16 or more in CIELAB also under simulated deuteranopia, protanopia and tritanopia. Then come dashes.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#222222")
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)))
INK, PALE, GRID = "#333333", "#888888", "#E6E6E6"
STYLE = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": PALE,
    "ytick.color": PALE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}
FEW_POINTS = 25  # up to here every record gets a marker
SMOOTH_FROM = 60  # from here a moving mean is drawn over the records
DECADES = 10.0  # a logarithmic axis from this ratio of the largest to the smallest value


def logged_tasks(log_history: LogHistory) -> list[str]:
    """The tasks for which `log_history` holds a finite loss, weight or gradient norm, in order of appearance."""
    finite = (key.partition("/") for record in log_history for key, value in record.items() if _is_finite(value))
    return list(dict.fromkeys(task for quantity, _, task in finite if task and quantity in QUANTITIES))


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def plot_training(
    log_history: LogHistory | Mapping[str, LogHistory],
    path: str | os.PathLike,
    tasks: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """
    Draws the loss, the weight and the gradient norm of every task over the steps into one picture. What was not logged
    gets no panel. Thin lines are the records; from 60 records on a thick line is their moving mean (geometric where the
    axis is logarithmic), and the picture says over how many. Values that are not finite are left out.

    Args:
        log_history (`list[dict]` or `dict[str, list[dict]]`):
            `trainer.state.log_history`, or those of several runs by name: one row of panels per run, on shared axes.
        path (`str` or `os.PathLike`):
            Where to write. The suffix decides the format (`.png`, `.svg`, `.pdf`); folders are made.
        tasks (`list[str]`, *optional*):
            The tasks to draw, in this order. Default: all, in the order of the log.
        title (`str`, *optional*):
            A headline.

    Returns:
        `Path`: the file. A `ValueError` is raised where nothing was logged for a task.
    """
    from matplotlib import style

    runs = dict(log_history) if isinstance(log_history, Mapping) else {"": log_history}
    logged = list(dict.fromkeys(task for history in runs.values() for task in logged_tasks(history)))
    tasks = logged if tasks is None else list(tasks)
    if not tasks or not set(tasks) <= set(logged):
        wanted = f"tasks {tasks}" if tasks else "any task"
        raise ValueError(f"The log must hold 'loss/<task>' of {wanted} to plot it; it holds those of {logged}.")
    curves = {
        run: {quantity: _curves(history, quantity, tasks) for quantity in QUANTITIES} for run, history in runs.items()
    }
    quantities = [q for q in QUANTITIES if any(curves[run][q] for run in runs)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with style.context(["default", STYLE]):  # whatever the user's own settings are; they come back afterwards
        _draw(curves, quantities, tasks, title).savefig(path, dpi=160)
    return path


def _curves(history: LogHistory, quantity: str, tasks: Sequence[str]) -> dict[str, Curve]:
    curves = {}
    for task in tasks:
        key = f"{quantity}/{task}"
        points = np.array([(r["step"], r[key]) for r in history if _is_finite(r.get(key))], dtype=np.float64)
        if len(points):
            curves[task] = (points[:, 0], points[:, 1])
    return curves


def _draw(
    curves: Mapping[str, Mapping[str, Mapping[str, Curve]]],
    quantities: Sequence[str],
    tasks: Sequence[str],
    title: str | None,
) -> Figure:
    from matplotlib.figure import Figure

    looks = {t: (COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]) for i, t in enumerate(tasks)}
    names, width = [_printable(task, 40) for task in tasks], max(4.1 * len(quantities), 6.0)
    columns = min(len(names), max(1, int(width * 13 / (max(map(len, names)) + 6))))
    height = 2.6 * len(curves) + 0.8 + 0.2 * math.ceil(len(names) / columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(curves), len(quantities), squeeze=False, sharex=True, sharey="col")
    window = _window(len(steps) for run in curves.values() for part in run.values() for steps, _ in part.values())
    for column, quantity in enumerate(quantities):
        values = np.concatenate([v for run in curves.values() for _, v in run[quantity].values()])
        for axes, (run, parts) in zip(panels[:, column], curves.items()):
            _scale(axes, values)
            _panel(axes, parts[quantity], looks, window)
            if column == 0 and run:
                axes.set_ylabel(_printable(run, 34), weight="bold", parse_math=False)
        panels[0, column].set_title(QUANTITIES[quantity])
        panels[-1, column].set_xlabel("Step")
    _legend(figure, names, looks.values(), columns, window)
    if title:
        figure.suptitle(_printable(title, 110), x=0.008, ha="left", weight="bold", parse_math=False)
    return figure


def _panel(axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, tuple[str, Any]], window: int) -> None:
    if not curves:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=PALE)
    hidden = _coincide(curves)
    for position, (task, (steps, values)) in enumerate(curves.items()):
        color, dash = looks[task]
        marker: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(steps) <= FEW_POINTS and not hidden else {}
        if hidden:  # equal curves would lie under the last one: share the line out in turns
            dash = (6.0 * position, (6.0, 6.0 * (len(curves) - 1)))
        elif window > 1:
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.25 if len(steps) < 500 else 0.15)
            values = _moving_mean(values, window, geometric=axes.get_yscale() == "log")
        axes.plot(steps, values, color=color, linestyle=dash, linewidth=1.7, dash_capstyle="butt", zorder=3, **marker)
    axes.margins(x=0.02)


def _legend(figure: Figure, names: Sequence[str], looks: Iterable[tuple[str, Any]], columns: int, window: int) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=color, linestyle=dash, linewidth=2.2) for color, dash in looks]
    note = f"thin lines: every record, thick lines: moving mean over {window} records" if window > 1 else None
    legend = figure.legend(lines, names, title=note, loc="outside lower center", ncols=columns, frameon=False)
    legend.get_title().set_color(PALE)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a task may be called "$x$"


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic where the values span decades (linear next to 0 where some are 0), with plain numbers as labels."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    positive = values[values > 0]
    if (values < 0).any() or not len(positive) or positive.max() / positive.min() < DECADES:
        return
    subs = (1, 2, 5) if positive.max() / positive.min() < 100 else (1,)
    if (values == 0).any():
        axes.set_yscale("symlog", linthresh=positive.min())
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=positive.min()))
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:g}" if 1e-4 < abs(value) < 1e5 or not value else f"{value:.0e}")
    )


def _window(lengths: Iterable[int]) -> int:
    """How many records the moving mean takes, odd; 1 for none."""
    longest = max(lengths)
    return 1 if longest < SMOOTH_FROM else max(5, longest // 25 | 1)


def _moving_mean(values: np.ndarray, window: int, geometric: bool) -> np.ndarray:
    """The centred mean of `window` values, of those there are at either end."""
    values = np.log(values) if geometric else values
    kernel = np.ones(min(window, len(values)))
    means = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return np.exp(means) if geometric else means


def _coincide(curves: Mapping[str, Curve]) -> bool:
    if len(curves) < 2:
        return False
    first, *others = curves.values()
    return all(
        len(steps) == len(first[0]) and np.array_equal(steps, first[0]) and np.allclose(values, first[1], rtol=1e-3)
        for steps, values in others
    )


def _printable(text: str, length: int) -> str:
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= length else f"{text[: length * 2 // 3]}…{text[-(length // 3) :]}"
