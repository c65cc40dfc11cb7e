"""
What a balanced step costs where the tasks share their input, against transformers' own Trainer that back-propagates the sum of
their losses once.

With T tasks the encoder runs forward once and backward T times: where the backward pass costs two forward passes, a step costs
(1 + 2T) / 3 of the plain one. A method whose factors are known before the backward pass takes one. All arms train at once and
take turns step by step, see `step_cost.py`.

    python benchmarks/shared_input.py                        # T = 2, 4, 8, the table of benchmarks/README.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from step_cost import NOISE, Turns, about, make_model, make_trainer, measure_time, quiet
from transformers import Trainer


ARMS: dict[str, dict[str, Any] | None] = {
    "stock": None,
    "stock again": None,
    "ew": {"balancer": "ew"},
    "uw": {"balancer": "uw"},
    "db_mtl": {"balancer": "db_mtl"},
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WITHIN = 0.10  # of the arithmetic
ONE_BACKWARD = ("ew", "uw")


def make_batches(tasks: int, options: argparse.Namespace, count: int = 4) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    shape = (options.rows, options.length)
    return [
        {
            "input_ids": torch.randint(options.vocab, shape),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "labels": {f"task{t}": torch.randint(3, (options.rows,)) for t in range(tasks)},
        }
        for _ in range(count)
    ]


class StockTrainer(Trainer):
    """transformers' Trainer, its loss the sum of the tasks' losses."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(task=list(inputs["labels"]), **inputs)
        loss = sum(outputs.loss.values())
        return (loss, outputs) if return_outputs else loss


def train_in_turns(arm: str, options: argparse.Namespace, tasks: int, connection: Connection) -> None:
    quiet(options)
    total = options.warmup + options.steps + 2
    batches = make_batches(tasks, options)
    own = ARMS[arm]
    dealt = batches if own is None else [{"all": batch} for batch in batches]
    rows = [{"input_ids": [0], **{f"task{t}": 0 for t in range(tasks)}}]
    turns = Turns(connection, CLOCKS[options.clock])
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(tasks, options.vocab)
        make_trainer(own, model, dealt, total, folder, [turns], stock=StockTrainer, rows=rows).train()


def report(options: argparse.Namespace, tasks: int) -> dict[str, Any]:
    seconds = measure_time(options, tasks, ARMS, train_in_turns)
    ratios = {arm: [one / two for one, two in zip(seconds[arm], seconds["stock"])] for arm in ARMS}
    noise = abs(statistics.median(ratios["stock again"]) - 1)
    rows = {}
    for arm in ARMS:
        low, _, high = statistics.quantiles(ratios[arm], n=4)
        rows[arm] = {
            "milliseconds": round(1e3 * statistics.median(seconds[arm]), 1),
            "ratio": round(statistics.median(ratios[arm]), 4),
            "quartiles": [round(low, 4), round(high, 4)],
        }
        if not arm.startswith("stock"):
            expected = 1.0 if arm in ONE_BACKWARD else (1 + 2 * tasks) / 3
            off = statistics.median(ratios[arm]) / expected - 1
            rows[arm] |= {"arithmetic": round(expected, 4), "off": round(off, 4)}
            rows[arm]["verdict"] = "noise" if noise > NOISE else ("holds" if off <= WITHIN else "fails")
    return {"tasks": tasks, "noise": round(noise, 4), "arms": rows}


def show(console: Console, result: dict[str, Any]) -> None:
    table = Table(title=f"T = {result['tasks']}, noise {100 * result['noise']:.2f} %")
    for column in ("arm", "ms a step", "ratio to stock", "quartiles", "arithmetic", "off", "verdict"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, row in result["arms"].items():
        table.add_row(
            arm,
            f"{row['milliseconds']:.1f}",
            f"{row['ratio']:.3f}",
            "{:.3f} to {:.3f}".format(*row["quartiles"]),
            f"{row['arithmetic']:.3f}" if "arithmetic" in row else "",
            f"{100 * row['off']:+.1f} %" if "off" in row else "",
            row.get("verdict", ""),
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4, 8], help="numbers of tasks (default: 2 4 8)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each arm that count (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, help="steps of each arm before them (default: 3)")
    parser.add_argument("--vocab", type=int, default=8000, help="size of the vocabulary (default: 8000)")
    parser.add_argument("--rows", type=int, default=8, help="rows in a batch (default: 8)")
    parser.add_argument("--length", type=int, default=64, help="tokens in a row (default: 64)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all cores)")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="what is counted: seconds, or those of the processor, on a machine that others use too (default: wall)",
    )
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    options = parser.parse_args()
    quiet(options)
    console, results = Console(width=120), []
    for tasks in options.tasks:
        results.append(report(options, tasks))
        show(console, results[-1])
        if options.output:
            options.output.write_text(
                json.dumps({**about(options, "shared_input.py"), "results": results}, indent=2) + "\n"
            )


if __name__ == "__main__":
    main()
