"""
DB-MTL by this package, by LibMTL and by TorchJD, on one model and the same batches, in turns.

Every arm trains in a process of its own and they take turns step by step, so that whatever slows the machine slows all of
them. The floor is transformers' own Trainer, which back-propagates the loss of one task after the other and adds them up.
LibMTL's and TorchJD's steps run in a bare loop, without a Trainer around them. All use AdamW. Memory is the peak of the
tensors that are alive over two steps, counted by torch's profiler from before the Trainer exists. The updates are compared
over three steps of SGD.

    python benchmarks/peers.py --libmtl FOLDER                     # a clone of github.com/median-research-group/LibMTL
    python benchmarks/peers.py --sizes 22M --tasks 2 8 --steps 5   # without LibMTL
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
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
import transformers
from peers_steps import libmtl_step, torchjd_step
from rich.console import Console
from rich.table import Table
from step_cost import StockTrainer, Turns, make_batches, quiet
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, PrinterCallback, TrainerCallback, TrainerControl

from hf_dbmtl import Classification, MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments


# layers, width, heads, vocabulary, rows of a task in a step, tokens
SIZES = {
    "tiny": (1, 16, 2, 50, 2, 4),
    "5M": (4, 256, 4, 8000, 8, 64),
    "22M": (6, 384, 12, 30522, 4, 32),  # MiniLM-L6
    "110M": (12, 768, 12, 30522, 2, 32),  # BERT-base
}
OURS, FLOOR = "hf_dbmtl", "stock Trainer, summed losses"
PEERS = ("LibMTL", "TorchJD", "TorchJD, one task at a time")


def make_model(size: str, tasks: int) -> MultiTaskModel:
    layers, width, heads, vocabulary, _, length = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=max(64, length),
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = BertModel(config, add_pooling_layer=False)
    return MultiTaskModel.from_encoder(encoder, {f"task{t}": Classification(3) for t in range(tasks)}, pooling="cls")


def train(
    arm: str, size: str, tasks: int, steps: int, options: argparse.Namespace, sgd: bool, turn: Any
) -> MultiTaskModel:
    """Trains by one arm; `turn`, a callback of transformers or None, is told the end of every step."""
    *_, vocabulary, rows, length = SIZES[size]
    model, batches = make_model(size, tasks), make_batches(tasks, vocabulary, rows, length)
    if arm in (OURS, FLOOR):
        _train_by_trainer(arm == FLOOR, model, batches, steps, sgd, [turn] if turn else [])
        return model
    if arm == "LibMTL":
        step = libmtl_step(model, options.libmtl)
    else:
        step = torchjd_step(model, 1 if arm.endswith("one task at a time") else None)
    optimizer = (torch.optim.SGD if sgd else torch.optim.AdamW)(model.parameters(), lr=1e-2 if sgd else 5e-5)
    model.train()
    control = TrainerControl()
    for number in range(steps):
        step(batches[number % len(batches)])
        optimizer.step()
        if turn is not None:
            turn.on_step_end(None, None, control)
        if control.should_training_stop:
            break
    return model


def _train_by_trainer(
    stock: bool, model: MultiTaskModel, batches: list, steps: int, sgd: bool, callbacks: list[TrainerCallback]
) -> None:
    class Fixed(StockTrainer if stock else MultiTaskTrainer):
        def get_train_dataloader(self) -> DataLoader:
            return self.accelerator.prepare(DataLoader(batches * (steps // len(batches) + 1), batch_size=None))

    how = {"optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant"} if sgd else {"optim": "adamw_torch"}
    checked = [{"input_ids": [0], "labels": 0}]  # what is checked at construction; the batches are trained on
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            output_dir=folder, max_steps=steps, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=True, balancer="db_mtl", max_grad_norm=0.0, **how,
        )  # fmt: skip
        data = {} if stock else {"train_dataset": dict.fromkeys(batches[0], checked)}
        trainer = Fixed(model=model, args=args, callbacks=callbacks, **data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


# ---- Each in a process of its own --------------------------------------------------------------------------------------


def time_arm(connection: Connection, arm: str, size: str, tasks: int, options: argparse.Namespace) -> None:
    quiet(options)
    train(arm, size, tasks, options.warmup + options.steps + 2, options, False, Turns(connection))


def weigh_arm(connection: Connection, arm: str, size: str, tasks: int, options: argparse.Namespace) -> None:
    """Sends the peak of the bytes in tensors over two steps."""
    quiet(options)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as run:
        train(arm, size, tasks, 2, options, False, None)
    now = peak = 0
    events = [event for event in run.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    connection.send(peak)


def update_arm(
    connection: Connection, arm: str, size: str, tasks: int, options: argparse.Namespace, folder: str
) -> None:
    """Leaves the update of all parameters over three steps of SGD in a file, and sends its name."""
    quiet(options)
    before = make_model(size, tasks).state_dict()
    after = train(arm, size, tasks, 3, options, True, None).state_dict()
    place = Path(folder, arm.replace(" ", "_"))
    torch.save(torch.cat([(after[name] - before[name]).flatten() for name in before]), place)
    connection.send(str(place))


def in_process(function: Callable, *arguments: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    return found


def in_turns(arms: list[str], size: str, tasks: int, options: argparse.Namespace) -> dict[str, list[float]]:
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for arm in arms:
        connections[arm], theirs = context.Pipe()
        processes.append(context.Process(target=time_arm, args=(theirs, arm, size, tasks, options), daemon=True))
        processes[-1].start()
        theirs.close()
    for connection in connections.values():
        connection.recv()  # its first step
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for step in range(options.warmup + options.steps):
        for arm in random.Random(step).sample(arms, len(arms)):  # no arm always follows the same other
            connections[arm].send(True)
            took = connections[arm].recv()
            if step >= options.warmup:
                seconds[arm].append(took)
    for connection in connections.values():
        connection.send(False)
    for process in processes:
        process.join()
    return seconds


# ---- The report --------------------------------------------------------------------------------------------------------


def compare_updates(arms: list[str], size: str, tasks: int, options: argparse.Namespace) -> dict[str, float]:
    """How far the update of every arm is from ours, relative to ours; that of the floor shows what a difference is."""
    with tempfile.TemporaryDirectory() as folder:
        updates: dict[str, Tensor] = {
            arm: torch.load(in_process(update_arm, arm, size, tasks, options, folder)) for arm in arms
        }
    ours = updates.pop(OURS)
    return {arm: float((update - ours).norm() / ours.norm()) for arm, update in updates.items()}


def report(options: argparse.Namespace, size: str, tasks: int) -> dict[str, Any]:
    arms = [FLOOR, OURS, *(arm for arm in options.peers if arm != "LibMTL" or options.libmtl)]
    theta = sum(parameter.numel() for parameter in make_model(size, tasks).encoder.parameters())
    rows: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    if "memory" in options.measure:
        for arm in arms:
            rows[arm]["peak_MiB"] = round(in_process(weigh_arm, arm, size, tasks, options) / 2**20, 1)
    if "updates" in options.measure:
        for arm, difference in compare_updates(arms, size, tasks, options).items():
            rows[arm]["difference"] = float(f"{difference:.2e}")
    if "time" in options.measure:
        seconds = in_turns(arms, size, tasks, options)
        for arm in arms:
            ratios = [one / two for one, two in zip(seconds[arm], seconds[FLOOR])]
            low, median, high = statistics.quantiles(ratios, n=4)
            rows[arm] |= {
                "milliseconds": round(1e3 * statistics.median(seconds[arm]), 1),
                "ratio": round(median, 3),
                "quartiles": [round(low, 3), round(high, 3)],
            }
    *_, batch, length = SIZES[size]
    return {"size": size, "theta": theta, "tasks": tasks, "rows": batch, "tokens": length, "arms": rows}


def show(console: Console, result: dict[str, Any]) -> None:
    title = f"{result['size']} ({result['theta'] / 1e6:.1f} M), T = {result['tasks']}, inputs of their own"
    table = Table("arm", "ms a step", "ratio to floor", "quartiles", "peak MiB", "difference from ours", title=title)
    for arm, row in result["arms"].items():
        table.add_row(
            arm,
            f"{row['milliseconds']:.1f}" if "milliseconds" in row else "",
            f"{row['ratio']:.2f}" if "ratio" in row else "",
            "{:.2f} to {:.2f}".format(*row["quartiles"]) if "quartiles" in row else "",
            f"{row['peak_MiB']:.0f}" if "peak_MiB" in row else "",
            f"{row['difference']:.1e}" if "difference" in row else "",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libmtl", type=Path, help="a clone of LibMTL's repository (default: without it)")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["5M"], help="models (default: 5M)")
    parser.add_argument(
        "--tasks", type=int, nargs="+", default=[2, 4, 8, 16], help="numbers of tasks (default: 2 4 8 16)"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="with which (default: all)")
    measures = ["time", "memory", "updates"]
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
    for size in options.sizes:
        for tasks in options.tasks:
            results.append(report(options, size, tasks))
            show(console, results[-1])
            if options.output:
                options.output.write_text(json.dumps({**about(options), "results": results}, indent=2) + "\n")


def about(options: argparse.Namespace) -> dict[str, Any]:
    git = partial(subprocess.run, capture_output=True, text=True)
    commit = git(["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]).stdout.strip()
    words = [f"--{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
             for key, value in vars(options).items() if key not in ("output", "libmtl")]  # fmt: skip
    return {
        "command": "python benchmarks/peers.py " + ("--libmtl FOLDER " if options.libmtl else "") + " ".join(words),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, CPU",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "torchjd": version("torchjd"),
            "python": platform.python_version(),
        },
    }


if __name__ == "__main__":
    main()
