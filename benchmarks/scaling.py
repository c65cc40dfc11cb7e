"""
Time per step over the number of tasks, and over the number of processes, with what these exchange.

    python benchmarks/scaling.py --tasks 1 2 4 8 16 32 64
    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 benchmarks/scaling.py --tasks 8

The time over the tasks should be a straight line: what a step costs without any task, and each task's share. The numbers of
tasks take turns, so that a machine that slows down slows all of them. With several processes the global batch stays the same, so that
more processes should be quicker; `waiting` is the share of the step that a process waits for collectives which no
computation hides, and `bytes` what it sends, by the sizes of the tensors and the cost of a ring.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset
from transformers import BertConfig, BertModel, TrainerCallback
from transformers.utils import logging

from hf_dbmtl import Classification, MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
from hf_dbmtl.gradients.replicated import ReplicatedGradients
from hf_dbmtl.gradients.traffic import RING, CollectiveBytes


class Clock(TrainerCallback):
    """Times every step up to the optimizer's, and can be told to count what is exchanged in it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.traffic: CollectiveBytes | None = None
        self.counting = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.counting:
            self.traffic = CollectiveBytes()
            self.traffic.__enter__()
        self.start = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)
        if self.counting:
            self.traffic.__exit__(None, None, None)


class Run:
    """A run that can be taken a step further at a time."""

    def __init__(self, tasks: int, options: argparse.Namespace, folder: str):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=options.vocabulary,
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            intermediate_size=4 * options.width,
        )
        world = int(os.environ.get("WORLD_SIZE", 1))
        declared = {f"task{number}": Classification(num_labels=3) for number in range(tasks)}
        model = MultiTaskModel.from_encoder(BertModel(config), declared, pooling="mean")
        args = MultiTaskTrainingArguments(
            output_dir=folder,
            balancer=options.balancer,
            per_device_train_batch_size=max(1, options.rows // world),
            max_steps=options.steps + 2,
            learning_rate=1e-4,
            optim="sgd",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            fsdp=options.fsdp,
        )
        self.clock = Clock()
        ids = torch.randint(options.vocabulary, (4 * options.rows, options.length)).tolist()
        data = Dataset.from_dict({"input_ids": ids, "labels": [row[0] % 3 for row in ids]})
        self.trainer = MultiTaskTrainer(
            model, args, train_dataset=dict.fromkeys(declared, data), callbacks=[self.clock]
        )
        self.trainer._get_grad_norm = lambda *_, **__: 0.0  # the stock Trainer's, for a log that is off


@contextmanager
def waiting() -> Iterator[list[float]]:
    """How long this process waits for gradients that are on their way (DDP)."""
    seconds: list[float] = []
    original = ReplicatedGradients._wait

    def wait(works: list) -> None:
        start = time.perf_counter()
        original(works)
        seconds.append(time.perf_counter() - start)

    ReplicatedGradients._wait = staticmethod(wait)
    try:
        yield seconds
    finally:
        ReplicatedGradients._wait = staticmethod(original)


def measure(tasks: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, waiting() as waited:
        run = Run(tasks, options, folder)
        run.trainer.train()
        seconds = run.clock.seconds[2:]
        share = sum(waited[2 * len(waited) // (options.steps + 2) :])  # of the same steps
        found = {"tasks": tasks, "seconds": median(seconds), "waiting": share / sum(seconds)}
        run.clock.counting, run.trainer.args.max_steps = True, 1
        run.trainer.train()
        found["bytes"] = 0
        if dist.is_initialized():
            found["bytes"] = round(sum(run.clock.traffic.volume(one) for one in RING))
    return found


def line(found: list[dict[str, Any]]) -> tuple[float, float, float]:
    """The seconds of a step without tasks, those of each task, and how far the times are from such a line, as a share."""
    tasks = np.array([one["tasks"] for one in found])
    seconds = np.array([one["seconds"] for one in found])
    slope, base = np.polyfit(tasks, seconds, 1, w=1 / seconds) if len(found) > 1 else (seconds[0], 0.0)
    return float(base), float(slope), float(np.abs((base + slope * tasks) / seconds - 1).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--balancer", default="db_mtl")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="how often every number of tasks has its turn")
    parser.add_argument("--rows", type=int, default=8, help="of each task in a step, over all processes")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--fsdp", action="store_true", help="on GPUs")
    parser.add_argument("--output", help="a JSON file for the figures")
    options = parser.parse_args()
    logging.set_verbosity_error()
    turns = [[measure(tasks, options) for tasks in options.tasks] for _ in range(options.repeats)]
    found = [min(of_one, key=lambda one: one["seconds"]) for of_one in zip(*turns)]
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"{'tasks':>5} {'s/step':>9} {'s/step/task':>12} {'waiting':>8} {'bytes':>14}")
        for one in found:
            each = one["seconds"] / one["tasks"]
            print(f"{one['tasks']:>5} {one['seconds']:>9.4f} {each:>12.5f} {one['waiting']:>8.1%} {one['bytes']:>14,}")
        base, slope, off = line(found)
        print(f"{base:.4f} s and {slope:.4f} s for every task; off this line by at most {off:.1%}")
        if options.output:
            with open(options.output, "w", encoding="utf-8") as file:
                json.dump({"options": vars(options), "world": os.environ.get("WORLD_SIZE", "1"), "runs": found}, file)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
