"""
What a balanced step costs, against transformers' own Trainer on the same model and batches.

The stock Trainer back-propagates the loss of one task after the other, the cheaper way to sum them. All arms train at
once, each in a process of its own, and take turns step by step, so that whatever slows the machine slows all of them; a
second stock arm shows the noise, and there is no verdict where stock against stock is off by more than 1.5 %. A turn is everything from the end
of one step to the end of the next: fetching the batch, the step, the optimizer, the callbacks. Memory is the peak of the
tensors that are alive, counted by torch's profiler from before the Trainer exists.

    python benchmarks/step_cost.py                          # T = 8, the table of benchmarks/README.md
    python benchmarks/step_cost.py --tasks 2 4 8 --steps 30
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import random
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the threads of arms that wait must not spin
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, Trainer, TrainerCallback

from hf_dbmtl import Classification, MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments


ARMS = {
    "stock": None,
    "stock again": None,
    "ew": {"balancer": "ew"},
    "db_mtl": {"balancer": "db_mtl"},
    "db_mtl, beta=0": {"balancer": "db_mtl", "balancer_kwargs": {"beta": 0.0}},
}
NOISE = 0.015  # of stock against stock, beyond which there is no verdict
LIMITS = {"ew": 1.02, "db_mtl": 1.05, "db_mtl, beta=0": 1.05}


def make_model(tasks: int, vocab: int) -> MultiTaskModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    return MultiTaskModel.from_encoder(
        BertModel(config, add_pooling_layer=False), {f"task{t}": Classification(3) for t in range(tasks)}, pooling="cls"
    )


def make_batches(tasks: int, vocab: int, rows: int, length: int, count: int = 4) -> list[dict[str, dict]]:
    torch.manual_seed(1)
    return [
        {
            f"task{t}": {
                "input_ids": torch.randint(vocab, (rows, length)),
                "attention_mask": torch.ones(rows, length, dtype=torch.long),
                "labels": torch.randint(3, (rows,)),
            }
            for t in range(tasks)
        }
        for _ in range(count)
    ]


class StockTrainer(Trainer):
    """transformers' Trainer, its step repeated for every task of the batch."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        steps = super().training_step
        return sum(steps(model, {"task": task, **batch}) for task, batch in inputs.items())


def make_trainer(
    own: dict | None,
    model: MultiTaskModel,
    batches: list,
    steps: int,
    folder: str,
    callbacks: list,
    stock: type[Trainer] = StockTrainer,
    rows: Any = None,
) -> Trainer:
    """
    The Trainer of an arm, with arguments of its `own` or the `stock` one. It trains on the batches; `rows` are what is checked
    at construction, by default one of each task.
    """
    args = MultiTaskTrainingArguments(
        output_dir=folder,
        max_steps=steps,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        **(own or {}),
    )
    base = stock if own is None else MultiTaskTrainer

    class Fixed(base):
        def get_train_dataloader(self) -> DataLoader:
            return self.accelerator.prepare(DataLoader(batches * (steps // len(batches) + 1), batch_size=None))

    rows = rows or {task: [{"input_ids": [0], "labels": 0}] for task in batches[0]}
    data = {} if own is None else {"train_dataset": rows}
    return Fixed(model=model, args=args, callbacks=callbacks, **data)


class Turns(TrainerCallback):
    """Runs from the end of one step to the end of the next when told to, and answers with the seconds it took."""

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.perf_counter) -> None:
        self.connection = connection
        self.clock = clock
        self.start = clock()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.connection.send(self.clock() - self.start)
        control.should_training_stop = not self.connection.recv()
        self.start = self.clock()


def train_in_turns(arm: str, options: argparse.Namespace, tasks: int, connection: Connection) -> None:
    """An arm, in a process of its own: a thread of its own would share the memory allocator with the other arms."""
    quiet(options)
    batches = make_batches(tasks, options.vocab, options.rows, options.length)
    total = options.warmup + options.steps + 2
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(ARMS[arm], make_model(tasks, options.vocab), batches, total, folder, [Turns(connection)]).train()


def quiet(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()


def measure_time(
    options: argparse.Namespace, tasks: int, arms: Iterable[str] = tuple(ARMS), train: Callable = train_in_turns
) -> dict[str, list[float]]:
    """The seconds of every step that counts, by arm: `train` runs one, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    connections = {}
    for arm in arms:
        connections[arm], theirs = context.Pipe()
        context.Process(target=train, args=(arm, options, tasks, theirs), daemon=True).start()
        theirs.close()  # an arm that ends early is then an error here, and not waited for
        connections[arm].recv()  # its first step
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    order = list(arms)
    for step in range(options.warmup + options.steps):
        random.Random(step).shuffle(order)  # no arm always follows the same other
        for arm in order:
            connections[arm].send(True)
            took = connections[arm].recv()
            if step >= options.warmup:
                seconds[arm].append(took)
    for connection in connections.values():
        connection.send(False)
    for process in multiprocessing.active_children():
        process.join()
    return seconds


def measure_memory(options: argparse.Namespace, tasks: int, arm: str) -> int:
    """The peak of the bytes in tensors over three steps, from before the Trainer is made."""
    batches = make_batches(tasks, options.vocab, options.rows, options.length)
    model = make_model(tasks, options.vocab)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.profiler.profile(activities=activities, profile_memory=True) as run,
    ):
        make_trainer(ARMS[arm], model, batches, 3, folder, []).train()
    return peak_bytes(run)


def peak_bytes(run: torch.profiler.profile) -> int:
    """The most bytes that were alive in tensors at once while a profile of the memory was taken."""
    now = peak = 0
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def report(options: argparse.Namespace, tasks: int) -> dict:
    encoder = make_model(tasks, options.vocab).encoder
    theta = sum(parameter.numel() for parameter in encoder.parameters())
    memory = {arm: measure_memory(options, tasks, arm) for arm in ARMS if arm != "stock again"}
    seconds = measure_time(options, tasks)
    ratios = {arm: [one / two for one, two in zip(seconds[arm], seconds["stock"])] for arm in ARMS}
    noise = abs(statistics.median(ratios["stock again"]) - 1)
    rows = {}
    for arm in ARMS:
        low, _, high = statistics.quantiles(ratios[arm], n=4)
        row = {
            "milliseconds": round(1e3 * statistics.median(seconds[arm]), 1),
            "ratio": round(statistics.median(ratios[arm]), 4),
            "quartiles": [round(low, 4), round(high, 4)],
        }
        if arm in LIMITS:
            row["limit"] = LIMITS[arm]
            row["verdict"] = "noise" if noise > NOISE else ("holds" if row["ratio"] <= LIMITS[arm] else "fails")
        if arm in memory:
            row["memory_above_stock_in_theta"] = round((memory[arm] - memory["stock"]) / (4 * theta), 3)
            row["memory_bound_in_theta"] = {"db_mtl": tasks + 2, "db_mtl, beta=0": 2}.get(arm)
        rows[arm] = row
    return {"tasks": tasks, "theta": theta, "noise": round(noise, 4), "arms": rows}


def show(console: Console, result: dict) -> None:
    table = Table(
        title=f"T = {result['tasks']}, |θ| = {result['theta'] / 1e6:.2f} M, noise {100 * result['noise']:.2f} %"
    )
    for column in (
        "arm",
        "ms a step",
        "ratio to stock",
        "quartiles",
        "at most",
        "verdict",
        "memory above stock, |θ|·4 B",
        "at most",
    ):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, row in result["arms"].items():
        bound = row.get("memory_bound_in_theta")
        table.add_row(
            arm,
            f"{row['milliseconds']:.1f}",
            f"{row['ratio']:.3f}",
            "{:.3f} to {:.3f}".format(*row["quartiles"]),
            f"{row['limit']:.2f}" if "limit" in row else "",
            row.get("verdict", ""),
            f"{row['memory_above_stock_in_theta']:.2f}" if "memory_above_stock_in_theta" in row else "",
            str(bound) if bound else "",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[8], help="numbers of tasks (default: 8)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each arm that count (default: 40)")
    parser.add_argument("--warmup", type=int, default=5, help="steps of each arm before them (default: 5)")
    parser.add_argument("--vocab", type=int, default=30522, help="size of the vocabulary (default: BERT's, 30522)")
    parser.add_argument("--rows", type=int, default=8, help="rows of each task in a batch (default: 8)")
    parser.add_argument("--length", type=int, default=64, help="tokens in a row (default: 64)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all cores)")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    quiet(options)
    console = Console(width=140)
    results = []
    for tasks in options.tasks:
        results.append(report(options, tasks))
        show(console, results[-1])
    if options.output:
        options.output.write_text(json.dumps({**about(options, "step_cost.py"), "results": results}, indent=2) + "\n")


def as_given(options: argparse.Namespace) -> Iterator[str]:
    """The options as words of a command line, but for where the figures go to."""
    for key, value in vars(options).items():
        if key != "output" and value is not None and value is not False:
            yield f"--{key}"
            yield from (
                () if value is True else map(shlex.quote, map(str, value if isinstance(value, list) else [value]))
            )


def about(options: argparse.Namespace, script: str) -> dict:
    """By what, of which code and where figures were made."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "command": " ".join(["python", f"benchmarks/{script}", *as_given(options)]),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
        + (torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    main()
