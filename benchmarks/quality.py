"""
Real tasks, single-task models and balancers over several seeds, and the paper's Δp.

Every finished run is a file in the cache, and the same command goes on with those that are not there. The data are read
from a folder of Parquet files, `NAME/train.parquet` and `NAME/validation.parquet`, that the user gives.

    python benchmarks/quality.py --data FOLDER --suite molecules images texts
    python benchmarks/quality.py --data FOLDER --suite molecules --arms figure1 alpha beta

The learning rate of a suite is the better of its grid for single-task models and equal weighting together, by Δp on rows
that are not tested on, with the first seed; the balancers take it over. With `--tune_each` every arm has the best of the
grid for itself, by the same measure.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from quality_suites import SUITES, Suite, collate
from rich.console import Console
from rich.markdown import Markdown
from step_cost import as_given
from transformers import PrinterCallback, set_seed

from hf_dbmtl import MultiTaskTrainer, MultiTaskTrainingArguments
from hf_dbmtl.balancing.table import balancer_names
from hf_dbmtl.comparison import SINGLE_TASK, Run, summarise
from hf_dbmtl.comparison_text import to_markdown
from hf_dbmtl.metrics import main_metric
from hf_dbmtl.step_cost import StepCostCallback


FIGURE_1 = ("pcgrad", "gradvac", "imtl_g", "cagrad", "nash_mtl", "aligned_mtl")
# name: (balancer, its options, further training arguments)
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in (*balancer_names(), "log+max_norm", "ema+max_norm")},
    **{f"log+{weighting}": (f"log+{weighting}", {}, {}) for weighting in FIGURE_1},
    **{f"alpha={a}": ("db_mtl", {"alpha": a}, {}) for a in ("min", "mean", "median", 0.1, 1.0, 10.0)},
    **{f"beta={b}": ("db_mtl", {"beta": b, "decay": 0.0}, {}) for b in (0.1, 0.5, 0.9)},
    **{f"beta={b}/sqrt(k)": ("db_mtl", {"beta": b}, {}) for b in (0.1, 0.5)},
    **{f"{name}, clipped": (name, {}, {"max_grad_norm": 1.0}) for name in ("ew", "log", "db_mtl")},
    # as many rows in a step, but more of the tasks that have more of them
    **{
        f"{name}, {mixing}": (name, {}, {"mixing": mixing})
        for name in ("ew", "log", "max_norm", "db_mtl")
        for mixing in ("temperature", "proportional")
    },
    # Adam after an average of weight b takes steps up to sqrt((1 + b) / (1 - b)) times as long: with that taken out
    **{
        f"beta={b}, shorter steps": (
            "db_mtl",
            {"beta": b, "decay": 0.0},
            {"encoder_lr_multiplier": math.sqrt((1 - b) / (1 + b))},
        )
        for b in (0.5, 0.9)
    },
}
GROUPS = {
    "all": [SINGLE_TASK, *balancer_names()],
    "ablation": [SINGLE_TASK, "ew", "log", "max_norm", "db_mtl", "log+max_norm"],
    "figure1": [name for weighting in FIGURE_1 for name in (weighting, f"log+{weighting}")],
    "alpha": [name for name in ARMS if name.startswith("alpha")],
    "beta": [name for name in ARMS if name.startswith("beta")],
    "clipped": [name for name in ARMS if name.endswith("clipped")],
    "mixing": [name for name in ARMS if name.endswith((", temperature", ", proportional"))],
    "shorter": [name for name in ARMS if name.endswith("shorter steps")],
}
RECORDED = (*GROUPS["ablation"][1:], "ema", "gls")
EVERY = 25  # steps between records of losses, norms and weights
RECORDS = 20  # at most, of a run in the results


def train(
    suite: Suite, arm: str, tasks: list[str], seed: int, steps: int, rate: float, optim: str = "adamw_torch"
) -> dict[str, Any]:
    """
    Trains and evaluates one model: the metrics on both parts by task, the seconds of a step and the records. Of a run that
    diverged there are none.
    """
    balancer, options, arguments = ("ew", {}, {}) if arm == SINGLE_TASK else ARMS[arm]
    set_seed(seed)
    cost = StepCostCallback()
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            output_dir=folder, max_steps=steps, seed=seed, balancer=balancer, balancer_kwargs=options,
            learning_rate=rate, optim=optim, warmup_steps=0.1, per_device_train_batch_size=suite.rows,
            per_device_eval_batch_size=128, logging_steps=EVERY, save_strategy="no", remove_unused_columns=False,
            dataloader_pin_memory=False, disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
            **arguments,
        )  # fmt: skip
        trainer = MultiTaskTrainer(
            model=suite.model(tasks),
            args=args,
            data_collator=collate,
            train_dataset={task: suite.train[task] for task in tasks},
            # for what learns from other rows, those that the learning rate was chosen on
            validation_dataset={task: suite.tuning[task] for task in tasks} if args.make_balancer().validates else None,
            callbacks=[cost],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        except FloatingPointError as error:
            return {"tuning": {}, "test": {}, "seconds": None, "records": [], "diverged": str(error)}
        found = {}
        for part in ("tuning", "test"):
            values = trainer.evaluate({task: getattr(suite, part)[task] for task in tasks})
            found[part] = {
                task: {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
                for task, start in zip(tasks, (f"eval_{task}_" for task in tasks))
            }
    kept = ("loss/", "grad_norm/", "weight/")
    records = [
        {key: float(f"{value:.4g}") for key, value in record.items() if key.startswith(kept)}
        for record in trainer.state.log_history
    ]
    return {**found, "seconds": cost.seconds, "records": [record for record in records if record]}


def cached(
    options: argparse.Namespace, name: str, suite: Suite, arm: str, task: str | None, seed: int, **how: Any
) -> dict[str, Any]:
    """The run, from the cache where it is there with the same settings."""
    settings = {"suite": name, "arm": arm, "task": task, "seed": seed, "rows": suite.rows, **how}
    settings["what"] = ARMS.get(arm)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    place = options.cache / name / f"{arm}-{task or 'all'}-{seed}-{digest}.json".replace("/", "_")
    if not place.exists():
        found = train(suite, arm, [task] if task else list(suite.tasks), seed, **how)
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(".part")
        beside.write_text(json.dumps({"settings": settings, **found}))
        beside.replace(place)
        came_of_it = f"{1e3 * found['seconds']:.0f} ms/step" if found["seconds"] else found["diverged"]
        print(f"{name} {arm} {task or ''} seed {seed}: {came_of_it}", flush=True)
    return json.loads(place.read_text())


def runs(
    options: argparse.Namespace,
    name: str,
    suite: Suite,
    rates: Mapping[str, float],
    seeds: list[int],
    part: str = "test",
    **how: Any,
) -> list[Run]:
    """The arms that `rates` has a learning rate for."""
    found = []
    for seed in seeds:
        for arm, rate in rates.items():
            for task in suite.tasks if arm == SINGLE_TASK else [None]:
                one = cached(options, name, suite, arm, task, seed, **how, rate=rate)
                found.append(Run(arm, seed, one[part], one["seconds"]))
    return found


def tune(
    options: argparse.Namespace, name: str, suite: Suite, arms: list[str], **how: Any
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The learning rates of the arms, and by rate the Δp that they were chosen by, against single-task models at the first."""
    metrics = {task: [main_metric(declared)] for task, declared in suite.tasks.items()}
    asked = list(dict.fromkeys([SINGLE_TASK, *arms])) if options.tune_each else [SINGLE_TASK, "ew"]
    found = []
    grid = options.grid or suite.grid
    for rate in grid:
        for one in runs(options, name, suite, dict.fromkeys(asked, rate), options.seeds[:1], "tuning", **how):
            found.append(Run(f"{one.method}@{rate:g}", one.seed, one.metrics, one.seconds))
    by_rate: dict[str, dict[str, float]] = {f"{rate:g}": {} for rate in grid}
    for one in summarise(found, metrics, reference=f"{SINGLE_TASK}@{grid[0]:g}"):
        arm, at = one.method.split("@")
        if one.delta_p is not None:
            by_rate[at][arm] = round(one.delta_p.mean, 2)
        elif not options.tune_each:
            sys.exit(f"{name}: no learning rate can be chosen, since of {one.method} there is no Δp: {one.why}")
    if not options.tune_each:
        return dict.fromkeys(arms, max(grid, key=lambda rate: sum(by_rate[f"{rate:g}"].values()))), by_rate
    rates = {}
    for arm in asked:
        trained = [rate for rate in grid if arm in by_rate[f"{rate:g}"]]  # and did not diverge
        if not trained:
            sys.exit(f"{name}: {arm} has a Δp at no learning rate of {', '.join(by_rate)}.")
        rates[arm] = max(trained, key=lambda rate: by_rate[f"{rate:g}"][arm])
    return {arm: rates[arm] for arm in arms}, by_rate


def write(
    options: argparse.Namespace,
    name: str,
    suite: Suite,
    found: list[Run],
    steps: int,
    rates: dict[str, float],
    tuning: dict[str, Any],
) -> None:
    """A row per run and task, and beside it what made it."""
    matter = ("arms", "seeds", "steps", "learning_rate", "grid", "optim", "tune_each")
    given = argparse.Namespace(suite=name, **{key: getattr(options, key) for key in matter})
    one_for_all = len(set(rates.values())) == 1
    place = options.results / f"quality_{name}.csv"
    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["method", "seed", "task", "metric", "value", "ms_per_step"])
        for run in found:
            for task, values in run.metrics.items():
                metric = main_metric(suite.tasks[task])
                table.writerow(
                    [run.method, run.seed, task, metric, f"{values[metric]:.6g}", round(1e3 * run.seconds, 1)]
                )
    about = {
        "command": " ".join(["python benchmarks/quality.py --data FOLDER", *as_given(given)]),
        "steps": steps,
        "rows_of_a_task_in_a_step": suite.rows,
        "learning_rate": next(iter(rates.values())) if one_for_all else rates,
        "tuning": tuning,
        "seeds": sorted({run.seed for run in found}),
        "diverged": sorted({f"{run.method}, seed {run.seed}" for run in found if not run.metrics}),
        "test_rows": {task: len(rows) for task, rows in suite.test.items()},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread, shared: the times are no measurement",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    place.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


def write_records(
    options: argparse.Namespace, name: str, suite: Suite, rates: Mapping[str, float], seeds: list[int], **how: Any
) -> None:
    """The losses, norms and weights on the way, of some arms, the last of every run among them."""
    rows = []
    for seed in seeds:
        for arm, rate in rates.items():
            if arm in RECORDED:
                records = cached(options, name, suite, arm, None, seed, **how, rate=rate)["records"]
                apart = math.ceil(len(records) / RECORDS)
                for number, record in enumerate(records, start=1):
                    if (len(records) - number) % apart == 0:
                        rows.append({"method": arm, "seed": seed, "step": EVERY * number, **record})
    if rows:
        with open(options.results / f"quality_{name}_records.csv", "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--suite", nargs="+", choices=list(SUITES), required=True, help="which tasks")
    parser.add_argument(
        "--arms", nargs="+", default=["ablation"], help=f"groups ({', '.join(GROUPS)}) or arms: {', '.join(ARMS)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--steps", type=int, help="steps of a run (default: the suite's)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--learning_rate", type=float, help="learning rate (default: the best of the suite's grid)")
    rate.add_argument("--tune_each", action="store_true", help="a learning rate of its own for every arm")
    parser.add_argument("--grid", type=float, nargs="+", help="learning rates to choose from (default: the suite's)")
    parser.add_argument("--optim", help="the optimizer of all runs, by transformers' name (default: adamw_torch)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--cache", type=Path, default=Path("quality_cache"), help="where finished runs are kept")
    parser.add_argument("--results", type=Path, help="folder to write the CSV and JSON into")
    options = parser.parse_args()
    arms = list(dict.fromkeys(arm for given in options.arms for arm in GROUPS.get(given, [given])))
    if unknown := [arm for arm in arms if arm not in ARMS and arm != SINGLE_TASK]:
        sys.exit(f"--arms: there is no {', '.join(unknown)}; groups are {', '.join(GROUPS)}, arms {', '.join(ARMS)}.")
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    suites, console = {name: SUITES[name](options.data, options.cache) for name in options.suite}, Console(width=160)
    for count in range(1, len(options.seeds) + 1):  # every suite has been seen once as early as can be
        for name, suite in suites.items():
            report(options, name, suite, arms, options.seeds[:count], console)


def report(
    options: argparse.Namespace, name: str, suite: Suite, arms: list[str], seeds: list[int], console: Console
) -> None:
    how: dict[str, Any] = {"steps": options.steps or suite.steps}
    if options.optim:
        how["optim"] = options.optim
    if options.learning_rate:
        rates, tuning = dict.fromkeys(arms, options.learning_rate), {}
    else:
        rates, tuning = tune(options, name, suite, arms, **how)
    found = runs(options, name, suite, rates, seeds, **how)
    metrics = {task: [main_metric(declared)] for task, declared in suite.tasks.items()}
    reference = SINGLE_TASK if SINGLE_TASK in arms else arms[0]
    summaries = summarise(found, metrics, reference)
    console.print(Markdown(to_markdown(summaries, metrics, reference)))
    print(f"{name}, learning rates {rates} of {tuning}, seeds {seeds}")
    for one in summaries:
        print(f"{one.method}: Δp {one.delta_p.show('+.2f') if one.delta_p else one.why}", flush=True)
    if options.results:
        write(options, name, suite, found, how["steps"], rates, tuning)
        write_records(options, name, suite, rates, seeds, **how)


if __name__ == "__main__":
    main()
