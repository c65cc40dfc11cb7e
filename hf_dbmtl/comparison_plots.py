"""Pictures of a comparison: Δp of every method with its deviation, and the conflicts between the tasks."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .comparison import Summary, shown
from .conflicts import mean_cosines
from .plots import COLORS, DASHES, INK, PALE, STYLE


if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["heat_map", "plot_conflicts", "plot_delta_p"]

WORSE, BETTER = "#D55E00", "#0072B2"
SHOWN_TASKS = 12  # as many names fit on the side of a heat map
NUMBERED = 7  # up to here the fields of a heat map hold their numbers


def plot_delta_p(summaries: Sequence[Summary], path: str | os.PathLike, reference: str) -> Path:
    """
    A bar of Δp for every method, best first, with its sample standard deviation and a dot for every seed.

    Args:
        summaries (`list[Summary]`):
            The methods; those without Δp are left out.
        path (`str` or `os.PathLike`):
            Where to write. The suffix decides the format.
        reference (`str`):
            What Δp is relative to.

    Returns:
        `Path`: the file.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    known = [
        (one.method, one.delta_p) for one in summaries if one.delta_p is not None and math.isfinite(one.delta_p.mean)
    ]
    if not known:
        raise ValueError("No method has a Δp to plot.")
    known.sort(key=lambda one: one[1].mean)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(6.4, 1.1 + 0.38 * len(known)), layout="constrained")
        axes = figure.subplots()
        for place, (_, spread) in enumerate(known):
            mean, deviation = spread.mean, spread.deviation
            axes.barh(place, mean, height=0.62, color=BETTER if mean >= 0 else WORSE, alpha=0.75, zorder=2)
            if deviation is not None:
                axes.errorbar(mean, place, xerr=deviation, color=INK, linewidth=1.2, capsize=3.5, zorder=4)
            values = spread.values
            axes.plot(values, [place] * len(values), "o", color=INK, markersize=2.8, alpha=0.6, zorder=3)
        axes.set_yticks(
            range(len(known)),
            [f"{method}  ({shown(spread.mean, '+.2f')})" for method, spread in known],
            parse_math=False,
        )
        axes.axvline(0, color=INK, linewidth=0.9, zorder=5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"Δp in % against {reference} (bar: mean, dots: runs, whisker: deviation)", parse_math=False)
        return _save(figure, path)


def plot_conflicts(
    log_histories: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Sequence[str], path: str | os.PathLike
) -> Path:
    """
    For every method a heat map of the mean cosine between the gradients of every two tasks, and below how the mean over all
    pairs went on over the steps.

    Args:
        log_histories (`dict[str, list[dict]]`):
            The log of a run by method, in which a [`~hf_dbmtl.conflicts.ConflictCallback`] left its cosines.
        tasks (`list[str]`):
            The tasks.
        path (`str` or `os.PathLike`):
            Where to write. The suffix decides the format.

    Returns:
        `Path`: the file.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    maps = {method: mean_cosines(history, tasks) for method, history in log_histories.items()}
    maps = {
        method: found for method, found in maps.items() if np.isfinite(found[~np.eye(len(tasks), dtype=bool)]).any()
    }
    if not maps:
        raise ValueError("No log holds a cosine between two tasks (`cosine/one/other`).")
    columns = min(4, len(maps))
    rows = math.ceil(len(maps) / columns)
    side = 1.5 + 0.2 * min(len(tasks), 10)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(max(6.4, columns * side + 1.0), rows * side + 2.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[rows * side, 2.4])
        above, below = parts
        panels = above.subplots(rows, columns, squeeze=False, sharey=True)
        image = None
        for place, (axes, (method, found)) in enumerate(zip(panels.flat, maps.items())):
            image = heat_map(axes, found, tasks)
            axes.set_title(method, parse_math=False)
            axes.tick_params(labelbottom=place + columns >= len(maps))  # the lowest of its column
        for axes in panels.flat[len(maps) :]:
            axes.set_axis_off()
        bar = above.colorbar(image, ax=panels, shrink=0.8, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label("cosine of the gradients\n(mean over the run)")
        bar.outline.set_visible(False)
        _curves(below.subplots(), {method: log_histories[method] for method in maps})
        return _save(figure, path)


def heat_map(axes: Axes, cosines: np.ndarray, tasks: Sequence[str]) -> Any:
    """Draws cosines of shape `(tasks, tasks)` into a panel; returns the image, for a colour bar."""
    shown = np.where(np.eye(len(tasks), dtype=bool), np.nan, cosines)
    image = axes.imshow(shown, cmap="RdBu", vmin=-1, vmax=1)
    axes.grid(visible=False)
    axes.set_facecolor("#F2F2F2")
    if len(tasks) <= SHOWN_TASKS:
        axes.set_xticks(range(len(tasks)), tasks, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
        axes.set_yticks(range(len(tasks)), tasks, parse_math=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(tasks) <= NUMBERED:
        for (i, j), value in np.ndenumerate(shown):
            if np.isfinite(value):
                axes.text(
                    j,
                    i,
                    f"{value:.2f}".replace("0.", "."),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if abs(value) > 0.6 else INK,
                )
    return image


def _curves(axes: Axes, log_histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The mean over all pairs, record by record."""
    for place, (method, history) in enumerate(log_histories.items()):
        points = [
            (record["step"], float(np.mean(found)))
            for record in history
            if (found := [value for key, value in record.items() if key.startswith("cosine/") and key.count("/") == 2])
        ]
        steps, values = zip(*points)
        look: Any = {"color": COLORS[place % len(COLORS)], "linestyle": DASHES[place // len(COLORS) % len(DASHES)]}
        axes.plot(
            steps, values, label=method, linewidth=1.6, marker="o" if len(points) < 12 else None, markersize=3, **look
        )
    axes.axhline(0, color=PALE, linewidth=0.9)
    axes.set_title("Mean cosine over all pairs of tasks")
    axes.set_xlabel("Step")
    legend = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8.5)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _save(figure: Any, path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    return path
