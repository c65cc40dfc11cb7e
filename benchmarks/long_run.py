"""
A long run of tiny steps: what grows with it, and what must not.

Every few hundred steps, behind a collection of garbage, it counts the resident memory, the tensors and objects that are
alive, the open files, the files in the output folder, and the bytes of its log. Steps are poisoned now and then, so that
skipping is a part of it, and the run is evaluated on and saved as it goes.

    python benchmarks/long_run.py                       # 20,000 steps in float32, then in bfloat16
    python benchmarks/long_run.py --steps 2000 --dtype float32
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import math
import os
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from datasets import Dataset
from transformers import BertConfig, BertModel, TrainerCallback

from hf_dbmtl import Classification, MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, Regression


RECORDS = 40  # of the log, whatever the number of steps
POISONED_EVERY = 97


def make_model(dtype: torch.dtype) -> MultiTaskModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=8,
    )
    tasks = {"topic": Classification(3), "score": Regression()}
    return MultiTaskModel.from_encoder(BertModel(config, add_pooling_layer=False), tasks, pooling="mean").to(dtype)


def make_data(rows: int) -> dict[str, Dataset]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, (rows, 4), generator=generator).tolist()
    labels = {"topic": [sum(row) % 3 for row in ids], "score": [float(sum(row)) for row in ids]}
    return {task: Dataset.from_dict({"input_ids": ids, "labels": values}) for task, values in labels.items()}


class Poisoned(MultiTaskTrainer):
    """One task's loss is not finite every now and then."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if self.state.global_step % POISONED_EVERY == 1 and model.training and inputs["task"] == "score":
            loss = loss * math.nan
        return (loss, outputs) if return_outputs else loss


class Lines(logging.Handler):
    """Counts the bytes that the package and transformers log."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.bytes += len(self.format(record)) + 1


class Gauge(TrainerCallback):
    """Counts what is there, at even distances."""

    def __init__(self, every: int, lines: Lines) -> None:
        self.every, self.lines, self.samples = every, lines, []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % self.every == 0:
            self.samples.append(
                {"step": state.global_step, **count(Path(args.output_dir)), "log_bytes": self.lines.bytes}
            )


def count(folder: Path) -> dict[str, int]:
    gc.collect()
    objects = gc.get_objects()
    return {
        "resident_kib": resident(),
        "objects": len(objects),
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in objects),
        "open_files": len(os.listdir("/proc/self/fd")),
        "files": sum(path.is_file() for path in folder.rglob("*")),
    }


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def growth(samples: list[dict[str, int]], key: str) -> float:
    """The slope over the second half of the run, by least squares, times the steps of the whole run."""
    late = samples[len(samples) // 2 :]
    steps = torch.tensor([sample["step"] for sample in late], dtype=torch.float64)
    values = torch.tensor([sample[key] for sample in late], dtype=torch.float64)
    slope = ((steps - steps.mean()) * (values - values.mean())).sum() / ((steps - steps.mean()) ** 2).sum()
    return float(slope * samples[-1]["step"])


def run(steps: int, dtype: str, samples: int = 40) -> dict[str, Any]:
    """
    Trains, and returns what was counted.

    Args:
        steps (`int`):
            How many steps.
        dtype (`str`):
            Of the parameters and the averages, `"float32"` or `"bfloat16"`.
        samples (`int`, *optional*, defaults to 40):
            How often to count.
    """
    lines = Lines()
    for name in ("transformers", "hf_dbmtl"):
        logging.getLogger(name).addHandler(lines)
    gauge = Gauge(max(1, steps // samples), lines)
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            balancer_kwargs={"ema_dtype": dtype},
            logging_steps=max(1, steps // RECORDS),
            eval_strategy="steps",
            eval_steps=max(1, steps // 10),
            save_strategy="steps",
            save_steps=max(1, steps // 10),
            save_total_limit=2,
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Poisoned(
            make_model(getattr(torch, dtype)),
            args,
            train_dataset=make_data(64),
            eval_dataset=make_data(8),
            callbacks=[gauge],
        )
        start = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - start
    for name in ("transformers", "hf_dbmtl"):
        logging.getLogger(name).removeHandler(lines)
    rows = [value for row in trainer.balancer.memory.rows.values() for value in row.tensors if value is not None]
    skipped = sum(record.get("skipped_steps", 0) for record in trainer.state.log_history)
    return {
        "dtype": dtype,
        "steps": trainer.state.global_step,
        "skipped": skipped,
        "balanced": trainer.balancer.steps,
        "finite": all(bool(value.isfinite().all()) for value in (*rows, *trainer.model.parameters())),
        "records": len(trainer.state.log_history),
        "grown": {key: round(growth(gauge.samples, key), 1) for key in gauge.samples[0] if key != "step"},
        "first": gauge.samples[len(gauge.samples) // 2],
        "last": gauge.samples[-1],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, help="where to write the figures, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {
        "command": f"python benchmarks/long_run.py --steps {given.steps} --dtype {' '.join(given.dtype)}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, CPU",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "runs": [],
    }
    for dtype in given.dtype:
        figures["runs"].append(run(given.steps, dtype))
        print(json.dumps(figures["runs"][-1], indent=1), flush=True)
        if given.output is not None:  # after each: a run takes its time
            given.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
