"""
Real tasks, single-task models and balancers over several seeds, and the paper's Δp.

Every finished run is a file in the cache, and the same command goes on with those that are not there. The data are read
from a folder of Parquet files, `NAME/train.parquet` and `NAME/validation.parquet`, that the user gives.

    python benchmarks/quality.py --data FOLDER --suite molecules
    python benchmarks/quality.py --data FOLDER --suite molecules --arms figure1 alpha beta
    python benchmarks/quality.py --data FOLDER --suite images --tune       # the learning rates that were tried
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from quality_suites import SUITES, Suite, collate
from rich.console import Console
from rich.markdown import Markdown
from transformers import PrinterCallback, set_seed

from hf_dbmtl import MultiTaskTrainer, MultiTaskTrainingArguments
from hf_dbmtl.comparison import SINGLE_TASK, Run, summarise
from hf_dbmtl.comparison_text import to_markdown
from hf_dbmtl.metrics import main_metric
from hf_dbmtl.step_cost import StepCostCallback


FIGURE_1 = ("pcgrad", "gradvac", "imtl_g", "cagrad", "nash_mtl", "aligned_mtl")
# name: (balancer, its options, further training arguments)
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in ("ew", "log", "max_norm", "log+max_norm", "db_mtl", "ema+max_norm")},
    **{name: (name, {}, {}) for weighting in FIGURE_1 for name in (weighting, f"log+{weighting}")},
    **{f"alpha={a}": ("db_mtl", {"alpha": a}, {}) for a in ("min", "mean", "median", 0.1, 1.0, 10.0)},
    **{f"beta={b}": ("db_mtl", {"beta": b, "decay": 0.0}, {}) for b in (0.1, 0.5, 0.9)},
    **{f"beta={b}/sqrt(k)": ("db_mtl", {"beta": b}, {}) for b in (0.1, 0.5)},
    **{f"{name}, clipped": (name, {}, {"max_grad_norm": 1.0}) for name in ("ew", "log", "db_mtl")},
    **{f"{name}, SGD": (name, {}, {"optim": "sgd"}) for name in ("ew", "log", "db_mtl")},
}
GROUPS = {
    "ablation": [SINGLE_TASK, "ew", "log", "max_norm", "db_mtl", "log+max_norm"],
    "figure1": [name for weighting in FIGURE_1 for name in (weighting, f"log+{weighting}")],
    "alpha": [name for name in ARMS if name.startswith("alpha")],
    "beta": [name for name in ARMS if name.startswith("beta")],
    "clipped": [name for name in ARMS if name.endswith("clipped")],
}
EVERY = 25  # steps between records of losses, norms and weights


def train(suite: Suite, arm: str, tasks: list[str], seed: int, steps: int, rate: float, held: str) -> dict[str, Any]:
    """Trains and evaluates one model; returns the metrics by task, the seconds of a step and the records."""
    balancer, options, arguments = ("ew", {}, {}) if arm == SINGLE_TASK else ARMS[arm]
    set_seed(seed)
    cost = StepCostCallback()
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            output_dir=folder, max_steps=steps, seed=seed, balancer=balancer, balancer_kwargs=options,
            learning_rate=rate, warmup_steps=0.1, per_task_batch_size=dict.fromkeys(tasks, suite.rows),
            per_device_eval_batch_size=128, logging_steps=EVERY, save_strategy="no", remove_unused_columns=False,
            dataloader_pin_memory=False, disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            **{"optim": "adamw_torch", **arguments},
        )  # fmt: skip
        trainer = MultiTaskTrainer(
            model=suite.model(tasks),
            args=args,
            data_collator=collate,
            train_dataset={task: suite.train[task] for task in tasks},
            eval_dataset={task: getattr(suite, held)[task] for task in tasks},
            callbacks=[cost],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        found = trainer.evaluate()
    metrics = {
        task: {key.removeprefix(f"eval_{task}_"): v for key, v in found.items() if key.startswith(f"eval_{task}_")}
        for task in tasks
    }
    records = [
        {key: float(f"{value:.4g}") for key, value in record.items() if key.startswith(("loss/", "grad_norm/", "weight/"))}
        for record in trainer.state.log_history
    ]
    return {"metrics": metrics, "seconds": cost.seconds, "records": [record for record in records if record]}


def cached(options: argparse.Namespace, suite: Suite, arm: str, task: str | None, seed: int, **how: Any) -> dict[str, Any]:
    """The run, from the cache where it is there with the same settings."""
    settings = {"suite": options.suite, "arm": arm, "task": task, "seed": seed, "rows": suite.rows, **how}
    settings["what"] = ARMS.get(arm)
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    place = options.cache / options.suite / f"{arm}-{task or 'all'}-{seed}-{name}.json".replace("/", "_")
    if not place.exists():
        found = train(suite, arm, [task] if task else list(suite.tasks), seed, **how)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(".part")
        beside.write_text(json.dumps({"settings": settings, **found}))
        beside.replace(place)
        print(f"{options.suite} {arm} {task or ''} seed {seed}: {1e3 * found['seconds']:.0f} ms/step", flush=True)
    return json.loads(place.read_text())


def runs(options: argparse.Namespace, suite: Suite, arms: list[str], **how: Any) -> list[Run]:
    found = []
    for seed in options.seeds:
        for arm in arms:
            for task in suite.tasks if arm == SINGLE_TASK else [None]:
                one = cached(options, suite, arm, task, seed, **how)
                found.append(Run(arm, seed, one["metrics"], one["seconds"]))
    return found


def tune(options: argparse.Namespace, suite: Suite, steps: int, console: Console) -> None:
    """Δp of single-task models and of equal weighting at every rate, against single-task models at the first."""
    metrics = {name: [main_metric(task)] for name, task in suite.tasks.items()}
    options.seeds = options.seeds[:1]
    found = []
    for rate in suite.grid:
        for one in runs(options, suite, [SINGLE_TASK, "ew"], steps=steps, rate=rate, held="tuning"):
            found.append(Run(f"{one.method} at {rate:g}", one.seed, one.metrics, one.seconds))
    summaries = summarise(found, metrics, reference=f"{SINGLE_TASK} at {suite.grid[0]:g}")
    console.print(Markdown(to_markdown(summaries, metrics, f"{SINGLE_TASK} at {suite.grid[0]:g}")))
    for one in summaries:
        print(one.method, "average", one.average and one.average.mean, "Δp", one.delta_p and round(one.delta_p.mean, 2))


def write(options: argparse.Namespace, suite: Suite, found: list[Run], how: dict[str, Any]) -> None:
    """A row per run and task, and beside it what made it."""
    place = options.results / f"quality_{options.suite}.csv"
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["method", "seed", "task", "metric", "value", "ms_per_step"])
        for run in found:
            for task, values in run.metrics.items():
                metric = main_metric(suite.tasks[task])
                table.writerow([run.method, run.seed, task, metric, f"{values[metric]:.6g}", round(1e3 * run.seconds, 1)])
    about = {
        "command": f"python benchmarks/quality.py --data FOLDER --suite {options.suite} --arms {' '.join(options.arms)} "
        f"--seeds {' '.join(map(str, options.seeds))}",
        "steps": how["steps"],
        "rows_of_a_task_in_a_step": suite.rows,
        "learning_rate": how["rate"],
        "seeds": options.seeds,
        "test_rows": {name: len(rows) for name, rows in suite.test.items()},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, shared: the times are no measurement",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    place.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--suite", choices=list(SUITES), required=True, help="which tasks")
    parser.add_argument(
        "--arms", nargs="+", default=["ablation"], help=f"groups ({', '.join(GROUPS)}) or arms: {', '.join(ARMS)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--steps", type=int, help="steps of a run (default: the suite's)")
    parser.add_argument("--learning_rate", type=float, help="learning rate (default: the suite's)")
    parser.add_argument("--tune", action="store_true", help="run the grid of learning rates, for half as many steps")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--cache", type=Path, default=Path("quality_cache"), help="where finished runs are kept")
    parser.add_argument("--results", type=Path, help="folder to write the CSV and JSON into")
    options = parser.parse_args()
    arms = list(dict.fromkeys(arm for given in options.arms for arm in GROUPS.get(given, [given])))
    if unknown := [arm for arm in arms if arm not in ARMS and arm != SINGLE_TASK]:
        sys.exit(f"--arms: there is no {', '.join(unknown)}; groups are {', '.join(GROUPS)}, arms {', '.join(ARMS)}.")
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    suite, console = SUITES[options.suite](options.data, options.cache), Console(width=160)
    steps = options.steps or suite.steps
    if options.tune:
        tune(options, suite, max(1, steps // 2), console)
        return
    how = {"steps": steps, "rate": options.learning_rate or suite.learning_rate, "held": "test"}
    found = runs(options, suite, arms, **how)
    metrics = {name: [main_metric(task)] for name, task in suite.tasks.items()}
    reference = SINGLE_TASK if SINGLE_TASK in arms else arms[0]
    summaries = summarise(found, metrics, reference)
    console.print(Markdown(to_markdown(summaries, metrics, reference)))
    for one in summaries:
        print(f"{one.method}: Δp {one.delta_p.show('+.2f') if one.delta_p else one.why}")
    if options.results:
        write(options, suite, found, how)


if __name__ == "__main__":
    main()
