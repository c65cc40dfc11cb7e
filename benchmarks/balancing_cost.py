"""
What the work of every balancing method costs in a step, beside the forward and backward passes: the gradients are
given, and the time is that of taking them in, weighing them and making the update.

Methods that need norms only stream the gradients into one sum; those that need the Gramian keep them to the end of the
step and multiply each with each; some call a solver or keep state for every coordinate. The gradients are synthetic
(random, of float32, their norms spread over an order of magnitude), the same for all methods. A step that raises is
shown as such.

    python benchmarks/balancing_cost.py                                  # T = 3, 11, 40, one million parameters
    python benchmarks/balancing_cost.py --methods cagrad nash_mtl --tasks 3 --size 22_000_000
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from hf_dbmtl.balancing import Balancer, balancer_names, make_balancer
from hf_dbmtl.balancing.properties import needs
from hf_dbmtl.gradients.flat import FlatVector, Layout


PACKAGES = ("torch", "torchjd", "numpy", "scipy", "cvxpy", "clarabel", "ecos", "quadprog", "qpsolvers")


def make_gradients(tasks: int, size: int, device: str = "cpu") -> dict[str, FlatVector]:
    """Gradients of `size` entries as the Trainer has them in one process, with a direction in common."""
    layout = Layout({"theta": nn.Parameter(torch.empty(size, device=device))})
    generator = torch.Generator(device).manual_seed(0)
    common = torch.randn(size, generator=generator, device=device)
    rows = {}
    for t in range(tasks):
        row = 0.3 * common + torch.randn(size, generator=generator, device=device)
        row *= 10.0 ** (t / max(tasks - 1, 1))
        rows[f"task{t}"] = FlatVector(layout, row, torch.ones(1, dtype=torch.bool))
    return rows


def copies(rows: dict[str, FlatVector]) -> dict[str, FlatVector]:
    """Since a step may overwrite what it is given."""
    return {task: row.new_zero().add_(row) for task, row in rows.items()}


def step(balancer: Balancer, losses: dict[str, float], rows: dict[str, FlatVector]) -> float:
    """The seconds of one step."""
    vectors = copies(rows)
    start = now()
    balancer.begin(epoch=balancer.steps)
    for task, gradient in vectors.items():
        factor = balancer.derivative(task, torch.tensor(losses[task]))
        balancer.take(task, losses[task], gradient.mul_(factor))
    if balancer.validates:  # as if the validation gradients were those of the tasks
        balancer.planned()
        balancer.tune(torch.stack([balancer.products(gradient) for gradient in vectors.values()]), 1e-3)
    balancer.balance()
    if balancer.looks_again:
        balancer.look_again({task: 0.99 * loss for task, loss in losses.items()})
    return now() - start


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(name: str, rows: dict[str, FlatVector], steps: int, warmup: int, limit: float) -> dict:
    """The milliseconds of `steps` steps after `warmup` ones, of fewer where they take longer than `limit` seconds."""
    losses = {task: 0.5 + i / len(rows) for i, task in enumerate(rows)}
    try:
        balancer = make_balancer(name).setup(list(rows))
        first = [step(balancer, losses, rows) for _ in range(warmup)]
        seconds: list[float] = []
        while len(seconds) < steps and sum(first) + sum(seconds) < limit:
            seconds.append(step(balancer, losses, rows))
    except (ValueError, TypeError, ImportError) as error:
        return {"error": str(error)}
    seconds = sorted(seconds or first)
    return {
        "milliseconds": round(1e3 * statistics.median(seconds), 3),
        "slowest": round(1e3 * seconds[-1], 3),
        "steps": len(seconds),
    }


def show(console: Console, results: dict[str, dict], tasks: list[int], size: int) -> None:
    table = Table(title=f"milliseconds of a balancing method in a step (median, slowest), |θ| = {size / 1e6:g} M")
    for column in ("method", "needs", *(f"T = {count}" for count in tasks)):
        table.add_column(column, justify="left" if column in ("method", "needs") else "right")
    for name, row in results.items():
        cells = [row["tasks"][str(count)] for count in tasks]
        table.add_row(
            name,
            row["needs"],
            *("error" if "error" in one else f"{one['milliseconds']:.2f} ({one['slowest']:.2f})" for one in cells),
        )
    console.print(table)
    errors = {one["error"]: name for name, row in results.items() for one in row["tasks"].values() if "error" in one}
    for error, name in errors.items():
        console.print(f"{name}: {error}", markup=False)


def about(options: argparse.Namespace) -> dict:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join(["python benchmarks/balancing_cost.py", *sys.argv[1:]]),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, CPU, {options.threads} torch threads",
        "versions": versions,
        "size": options.size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=balancer_names(), help="names of balancers (default: all)")
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 11, 40], help="numbers of tasks (default: 3 11 40)")
    parser.add_argument("--size", type=int, default=1_000_000, help="shared parameters (default: one million)")
    parser.add_argument("--steps", type=int, default=20, help="steps that count (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them (default: 3)")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds after which no step is begun (default: 20)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all cores)")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results: dict[str, dict] = {}
    console = Console(width=120)
    for count in options.tasks:
        rows = make_gradients(count, options.size)
        for name in track(options.methods, description=f"T = {count}", console=console):
            row = results.setdefault(name, {"needs": needs(make_balancer(name)), "tasks": {}})
            row["tasks"][str(count)] = measure(name, rows, options.steps, options.warmup, options.limit)
    show(console, results, options.tasks, options.size)
    if options.output:
        options.output.write_text(json.dumps({**about(options), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
