"""`hf-dbmtl compare`: single-task models and every balancer over several seeds, and one table of all."""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hf_dbmtl_cli import CommandError

from ..balancing import make_balancer
from ..comparison import SINGLE_TASK, Run, Summary, summarise
from ..comparison_plots import plot_conflicts, plot_delta_p
from ..comparison_text import legend, to_csv, to_markdown, to_table
from ..metrics import main_metric
from ..plots import logged_tasks, plot_training
from .building import prepare
from .compare_plan import ERROR, PlannedRun, parse_methods, parse_seeds, plan_runs, write_atomically
from .compare_processes import LOG, in_a_process, in_several
from .config import build_config, merge_config
from .launching import launch_command, wanted
from .preparation import Data
from .yaml_file import parse_yaml


__all__ = ["report", "run"]


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    if given.config is None:
        raise CommandError("name the YAML file: hf-dbmtl compare config.yaml --balancers ew,db_mtl --seeds 3")
    config = merge_config(given.config, given.settings)
    settings, args = build_config(config, given.config)
    methods, seeds = parse_methods(given.balancers, config), parse_seeds(given.seeds, args.seed)
    reference = given.reference
    if reference not in (SINGLE_TASK, *(method.name for method in methods)):
        raise CommandError(f"--reference must be {SINGLE_TASK} or one of the methods compared, and is '{reference}'.")
    folder = Path(str(args.output_dir), "compare")
    alone = list(settings.tasks) if reference == SINGLE_TASK and len(settings.tasks) > 1 else []
    planned = plan_runs(config, folder / "runs", methods, seeds, alone)
    for one in planned:
        one.check()
    _, data = prepare(settings, args)  # refuses here, once, what every run would fail with; they find it in the cache
    metrics = _metrics(given.metrics, data)
    for method in methods:
        if make_balancer(method.balancer, method.options).validates and not data.validation:
            raise CommandError(
                f"--balancers: '{method.name}' tunes its weights on rows held out for it: give validation_fraction or "
                "split.validation in the dataset of every task that is to become better."
            )
    console = Console()
    try:
        _run_all(planned, console, _starter(given, args.use_cpu or args.device.type == "cpu"))
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on with what is not finished.")
        report(planned, folder, metrics, reference, console)
        raise SystemExit(130) from None
    report(planned, folder, metrics, reference, console)
    if not all(one.finished for one in planned):
        raise SystemExit(1)


def _metrics(words: str | None, data: Data) -> dict[str, list[str]]:
    """The metrics of every task that enter Δp, the main one first."""
    chosen = parse_yaml(words) if words else {}
    if not isinstance(chosen, Mapping):
        raise CommandError(f"--metrics must be a mapping such as '{{mrpc: [accuracy, f1]}}', and is {words!r}.")
    found = {}
    for name, task in data.tasks.items():
        if name not in data.by_task(data.eval):
            raise CommandError(
                f"Task '{name}' has nothing to evaluate on, and so nothing to compare: see eval_fraction."
            )
        given = chosen.get(name, main_metric(task))
        found[name] = list(dict.fromkeys([given] if isinstance(given, str) else given))
        known = data.baselines.get(name, {})
        for metric in found[name]:
            if known and metric not in known:
                raise CommandError(f"--metrics: task '{name}' has no '{metric}', those it has are {', '.join(known)}.")
    if unknown := set(chosen) - set(found):
        raise CommandError(f"--metrics: there is no task {', '.join(sorted(unknown))}, only {', '.join(found)}.")
    return found


def _starter(given: argparse.Namespace, use_cpu: bool) -> Callable[[PlannedRun], None]:
    """What carries a run out and returns when it has ended, however it did."""
    if not wanted(given):
        return partial(in_a_process, keep_models=given.keep_models)
    command = partial(
        launch_command, num_processes=given.num_processes, accelerate_config=given.accelerate_config, use_cpu=use_cpu
    )
    command([])  # refuses now what it would refuse for every run
    return partial(in_several, keep_models=given.keep_models, command=command)


def _run_all(planned: Sequence[PlannedRun], console: Console, start_run: Callable[[PlannedRun], None]) -> None:
    for number, one in enumerate(planned, start=1):
        what = f"[{number}/{len(planned)}] {one}"
        if one.finished:
            console.print(f"{what}: finished before", markup=False, highlight=False)
            continue
        start = time.perf_counter()
        one.prepare()
        start_run(one)
        seconds = time.perf_counter() - start
        if one.finished:
            console.print(f"{what}: {seconds:.0f} s", markup=False, highlight=False)
        else:
            error = one.folder / ERROR
            reason = error.read_text().strip() if error.exists() else "its process was killed (out of memory?)"
            console.print(
                f"{what}: failed after {seconds:.0f} s: {reason} (see {one.folder / LOG})",
                markup=False,
                highlight=False,
            )


def report(
    planned: Sequence[PlannedRun], folder: Path, metrics: Mapping[str, Sequence[str]], reference: str, console: Console
) -> None:
    """
    Prints the table of what is finished, and writes it (`comparison.md`, `comparison.csv`), and the plots.

    Args:
        planned (`list[PlannedRun]`):
            The runs.
        folder (`Path`):
            Where to write.
        metrics (`dict[str, list[str]]`):
            The metrics of every task, the main one first.
        reference (`str`):
            What Δp is relative to.
        console (`Console`):
            Where to print.
    """
    results = [(one, one.result()) for one in planned if one.finished]
    if not results:
        console.print("No run is finished.")
        return
    runs = [
        Run(one.method, one.seed, found["metrics"], found["seconds_per_step"], found["memory_bytes"])
        for one, found in results
    ]
    summaries = summarise(runs, metrics, reference)
    write_atomically(folder / "comparison.md", to_markdown(summaries, metrics, reference))
    write_atomically(folder / "comparison.csv", to_csv(summaries, metrics))
    write_atomically(folder / "runs.csv", _runs_csv(runs))
    plots = _plots(results, summaries, list(metrics), folder, reference)
    console.print(_table(summaries, metrics, console))
    console.print(legend(reference), style="dim", markup=False, highlight=False)
    for why in dict.fromkeys(f"{one.method}: no Δp, since {one.why}" for one in summaries if one.why):
        console.print(why, markup=False, highlight=False)
    names = ", ".join(["comparison.md", "comparison.csv", "runs.csv", *plots])
    console.print(f"In {folder}: {names}", markup=False, highlight=False, soft_wrap=True)


def _runs_csv(runs: Sequence[Run]) -> str:
    """Every number of every run, one a line."""
    lines = ["method,seed,task,metric,value"]
    for run in runs:
        name = f'"{run.method}"' if "," in run.method else run.method
        lines += [
            f"{name},{run.seed},{task},{metric},{value}"
            for task, found in run.metrics.items()
            for metric, value in found.items()
        ]
    return "\n".join(lines) + "\n"


def _plots(
    results: Sequence[tuple[PlannedRun, dict[str, Any]]],
    summaries: Sequence[Summary],
    tasks: list[str],
    folder: Path,
    reference: str,
) -> list[str]:
    """The pictures that there is something to draw for, by the names of their files."""
    histories: dict[str, list[dict[str, Any]]] = {}
    for one, found in results:
        if one.task is None and logged_tasks(found["log_history"]):
            histories.setdefault(one.method, found["log_history"])  # the first seed that is finished
    drawn = []
    if any(one.delta_p is not None for one in summaries):
        drawn.append(plot_delta_p(summaries, folder / "delta_p.png", reference))
    if histories:
        drawn.append(plot_training(histories, folder / "training.png", title="Training, first seed"))
    if any(key.startswith("cosine/") for history in histories.values() for record in history for key in record):
        drawn.append(plot_conflicts(histories, tasks, folder / "conflicts.png"))
    return [path.name for path in drawn]


def _table(summaries: Sequence[Summary], metrics: Mapping[str, Sequence[str]], console: Console) -> Table:
    """A row or a column per method, with deviations beside or below the means, whichever is the first that fits."""
    header, rows = to_table(summaries, metrics)
    for turned, break_ in itertools.product((False, True), (" ± ", "\n± ")):
        lines = list(zip(header, *rows)) if turned else [header, *rows]
        table = Table(title="Comparison", title_justify="left", show_lines=break_ != " ± ")
        for place, column in enumerate(lines[0]):
            name = column if turned or not place else column.replace(" ", "\n")
            table.add_column(name, justify="right" if place else "left", overflow="fold")
        for line in lines[1:]:
            table.add_row(*(cell.replace(" ± ", break_) for cell in line))
        if console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width:
            break
    return table
