"""
DB-MTL by this package, by LibMTL and by TorchJD, on one model and the same batches, in turns.

LibMTL's release on PyPI has no DB-MTL. Where it is installed and no clone is given, its methods on losses are compared with
the same ones of this package: EW, UW, DWA, RLW and GLS.

Every arm trains in a process of its own and they take turns step by step, so that whatever slows the machine slows all of
them. The floor is transformers' own Trainer, which back-propagates the loss of one task after the other and adds them up.
LibMTL's and TorchJD's steps run in a bare loop, without a Trainer around them. All use AdamW. Memory is the peak of the
tensors that are alive over two steps, counted by torch's profiler from before the Trainer exists. The updates are compared
over three steps of SGD, in float32 and in float64. Inputs of the tasks' own, or one input that all of them share; the floor of
the latter back-propagates the sum once. The roofline is the bytes that DB-MTL's own work moves in a step over the bandwidth of
the memory, and how near its time comes to that.

Where there is a GPU all of it happens there, and its allocator tells the peak; `--bf16` computes in bfloat16, on either.

    python benchmarks/peers.py --libmtl FOLDER                     # a clone of github.com/median-research-group/LibMTL
    python benchmarks/peers.py --libmtl FOLDER --inputs shared
    python benchmarks/peers.py                                     # after `pip install --no-deps LibMTL`: its release
    python benchmarks/peers.py --libmtl FOLDER --bf16
    python benchmarks/peers.py --threads 1 --clock cpu             # where other programs use the machine
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the threads of arms that wait must not spin
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peers_arms import FLOOR, OURS, PEERS, SIZES, arms_of, counterpart, make_model, of_a_task, train
from peers_roofline import roofline
from peers_steps import find_libmtl, has_db_mtl
from rich.console import Console
from rich.table import Table
from shared_input import CLOCKS
from step_cost import Turns, about, measure_time, peak_bytes, quiet
from torch import Tensor


# ---- Each in a process of its own --------------------------------------------------------------------------------------


def time_arm(size: str, arm: str, options: argparse.Namespace, tasks: int, connection: Connection) -> None:
    quiet(options)
    train(arm, size, tasks, options.warmup + options.steps + 2, options, turn=Turns(connection, CLOCKS[options.clock]))


def weigh_arm(connection: Connection, arm: str, size: str, tasks: int, options: argparse.Namespace) -> None:
    """Sends the peak of the bytes in tensors over two steps, None where a GPU has not got that many."""
    quiet(options)
    if options.device == "cpu":
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as run:
            train(arm, size, tasks, 2, options)
        connection.send(peak_bytes(run))
        return
    try:
        train(arm, size, tasks, 2, options)
        connection.send(torch.cuda.max_memory_allocated())
    except torch.OutOfMemoryError:
        connection.send(None)


def update_arm(
    connection: Connection,
    arm: str,
    size: str,
    tasks: int,
    options: argparse.Namespace,
    dtype: torch.dtype,
    place: Path,
) -> None:
    """Leaves the update of all parameters over three steps of SGD in a file, and sends its name."""
    quiet(options)
    torch.set_default_dtype(dtype)
    before = make_model(size, tasks).state_dict()
    after = train(arm, size, tasks, 3, options, sgd=True).state_dict()
    torch.save(torch.cat([(after[name].cpu() - before[name]).flatten() for name in before]), place)
    connection.send(place)


def draw_roofline(connection: Connection, theta: int, tasks: int, options: argparse.Namespace) -> None:
    quiet(options)
    connection.send(roofline(tasks, theta, options.device))


def in_process(function: Callable, *arguments: Any) -> Any:
    """What the function sends from a process of its own. `MemoryError`: that was killed, as it is when the memory is out."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGKILL:
            raise MemoryError(f"{function.__name__} of {arguments[:3]} was killed.") from None
        raise
    process.join()
    return found


# ---- The report --------------------------------------------------------------------------------------------------------


def compare_updates(
    arms: list[str], size: str, tasks: int, options: argparse.Namespace, dtype: torch.dtype
) -> dict[str, float]:
    """
    How far the update of every arm is from ours of the same method, relative to ours; the floor's from that of DB-MTL, which
    shows what a difference is.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(arms))]
        updates: dict[str, Tensor] = {
            arm: torch.load(in_process(update_arm, arm, size, tasks, options, dtype, place)).double()
            for arm, place in zip(arms, places)
        }
    found = {}
    for arm, update in updates.items():
        ours = updates.get(counterpart(arm) or "")
        if ours is not None and ours is not update:
            found[arm] = float((update - ours).norm() / ours.norm())
    return found


def report(options: argparse.Namespace, size: str, tasks: int) -> dict[str, Any]:
    arms = arms_of(options)
    theta = sum(parameter.numel() for parameter in make_model(size, tasks).encoder.parameters())
    rows: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    if "memory" in options.measure:
        for arm in arms:
            try:
                peak = in_process(weigh_arm, arm, size, tasks, options)
            except MemoryError:
                peak = None
            rows[arm]["peak_MiB"] = None if peak is None else round(peak / 2**20, 1)
        arms = [arm for arm in arms if rows[arm]["peak_MiB"] is not None]
    if "updates" in options.measure:
        for dtype in (torch.float32,) if options.bf16 else (torch.float32, torch.float64):
            for arm, difference in compare_updates(arms, size, tasks, options, dtype).items():
                rows[arm][f"difference_{str(dtype).removeprefix('torch.')}"] = float(f"{difference:.2e}")
    if "time" in options.measure:
        seconds = measure_time(options, tasks, arms, partial(time_arm, size))
        for arm in arms:
            ratios = [one / two for one, two in zip(seconds[arm], seconds[FLOOR])]
            low, median, high = statistics.quantiles(ratios, n=4)
            rows[arm] |= {
                "milliseconds": round(1e3 * statistics.median(seconds[arm]), 1),
                "ratio": round(median, 3),
                "quartiles": [round(low, 3), round(high, 3)],
            }
    if "roofline" in options.measure:
        rows[OURS]["roofline"] = in_process(draw_roofline, theta, tasks, options)
    rows_of_a_task, tokens = of_a_task(size, options)
    where = {"size": size, "theta": theta, "tasks": tasks, "inputs": options.inputs}
    where |= {"rows": rows_of_a_task, "tokens": tokens}
    return {**where, "arms": rows}


def show(console: Console, result: dict[str, Any]) -> None:
    inputs = "one input" if result["inputs"] == "shared" else "inputs of their own"
    title = f"{result['size']} ({result['theta'] / 1e6:.1f} M), T = {result['tasks']}, {inputs}"
    title += f", {result['rows']} x {result['tokens']} tokens"
    heads = ("arm", "ms a step", "ratio to floor", "quartiles", "peak MiB", "off ours, float32", "float64")
    table = Table(*heads, title=title)
    forms = {"milliseconds": "{:.1f}", "ratio": "{:.3f}", "quartiles": "{0[0]:.3f} to {0[1]:.3f}", "peak_MiB": "{:.0f}"}
    forms |= {"difference_float32": "{:.1e}", "difference_float64": "{:.1e}"}
    for arm, row in result["arms"].items():
        words = [form.format(row[key]) if row.get(key) is not None else "" for key, form in forms.items()]
        table.add_row(arm if row.get("peak_MiB", 0) is not None else f"{arm}: killed, out of memory", *words)
    console.print(table)
    if found := result["arms"][OURS].get("roofline"):
        console.print(
            f"The balancer of a step moves {found['bytes'] / 1e9:.2f} GB, "
            f"{found['roofline_milliseconds']:.1f} ms at {found['bandwidth'] / 1e9:.1f} GB/s, and takes "
            f"{found['milliseconds']:.1f} ms: {100 * found['share']:.0f} % of the roofline."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--libmtl", type=Path, help="a clone of LibMTL's repository (default: its release, if installed)"
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["5M"], help="models (default: 5M)")
    parser.add_argument(
        "--tasks", type=int, nargs="+", default=[2, 4, 8, 16], help="numbers of tasks (default: 2 4 8 16)"
    )
    parser.add_argument("--rows", type=int, help="rows of a task in a step (default: the size's)")
    parser.add_argument("--tokens", type=int, help="tokens of a row, up to 64 (default: the size's)")
    parser.add_argument("--inputs", choices=["separate", "shared"], default="separate", help="(default: separate)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="wall, or processor seconds: --threads 1")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="with which (default: all)")
    devices = ["cuda"] if torch.cuda.is_available() else []
    parser.add_argument("--device", choices=["cpu", *devices], default=[*devices, "cpu"][0], help="(default: a GPU)")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16; updates are not compared in float64")
    measures = ["time", "memory", "updates", "roofline"]
    parser.add_argument("--measure", nargs="+", choices=measures, default=measures, help="what (default: all)")
    parser.add_argument("--steps", type=int, default=10, help="steps of each arm that count (default: 10)")
    parser.add_argument(
        "--warmup", type=int, default=1, help="steps of each arm before them, and one more (default: 1)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all cores)")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    quiet(options)
    console, results = Console(width=140), []
    if "LibMTL" in options.peers:
        libmtl = find_libmtl(options.libmtl)
        if libmtl is None:
            console.print(
                "Without LibMTL: give a clone by --libmtl, or `pip install --no-deps LibMTL` for its release."
            )
        elif not has_db_mtl(libmtl):
            console.print("This LibMTL has no DB-MTL, as its release on PyPI: its methods on losses stand in.")
    for size in options.sizes:
        for tasks in options.tasks:
            results.append(report(options, size, tasks))
            show(console, results[-1])
            if options.output:
                found = about(options, "peers.py")
                found["command"] = found["command"].replace(str(options.libmtl), "FOLDER")
                found["versions"]["torchjd"] = version("torchjd")
                if not options.libmtl and find_libmtl(None):
                    found["versions"]["libmtl"] = version("LibMTL")
                options.output.write_text(json.dumps({**found, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
