"""
The demo's five tasks as files for the command line: JSON lines for each task, and the YAML that reads them.

    python examples/python_functions/tables.py FOLDER            # all rows; --tiny: a few of a few modules
    hf-dbmtl compare FOLDER/compare.yaml --balancers ew,log,max_norm,db_mtl,pcgrad --seeds 2
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from data import LABELLED_ROLES, PACKAGES, TASKS, read_functions, split_by_module, visible_text
from source_code import KINDS_OF_RETURN, TRAITS, Function
from train import TINY, bundled_encoder


LABELS = {"package": PACKAGES, "returns": KINDS_OF_RETURN, "traits": TRAITS, "roles": LABELLED_ROLES}
TINY_ROWS = {"train": 64, "test": 24}


def rows_of(task: str, functions: Iterable[Function]) -> list[dict[str, Any]]:
    """The rows of a task: a text and its label, or the tokens of Python and the role of each."""
    rows = []
    for function in functions:
        package = function.module.partition(".")[0]
        label = {
            "package": package if package in PACKAGES else None,
            "returns": function.returns,
            "traits": sorted(function.traits),
            "size": function.num_statements,
        }
        if task == "roles":
            tokens = [function.code[start:end] for start, end, _ in function.roles]
            tags = [role if role in LABELLED_ROLES else None for _, _, role in function.roles]
            rows.append({"text": tokens, "label": tags})
        elif label[task] is not None:
            rows.append({"text": visible_text(task, function), "label": label[task]})
    return rows


def configuration(folder: Path, tiny: bool) -> dict[str, Any]:
    tasks = {}
    for name, task in TASKS.items():
        files = {"train": str(folder / f"{name}-train.jsonl"), "eval": str(folder / f"{name}-test.jsonl")}
        tasks[name] = {"kind": task.kind, "dataset": {"data_files": files}}
        if name in LABELS:
            tasks[name]["label_names"] = list(LABELS[name])
    size = {"max_steps": 4, "per_device_train_batch_size": 4, "max_length": 48} if tiny else {"max_steps": 110}
    return {
        "model_name_or_path": bundled_encoder(),
        "output_dir": str(folder / "outputs"),
        "tasks": tasks,
        "max_length": 128,
        "per_device_train_batch_size": 8,
        "learning_rate": 2e-4,
        **size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--tiny", action="store_true", help="few rows and steps, to see that it runs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    splits = split_by_module(read_functions(TINY if options.tiny else None))
    for split in ("train", "test"):  # the modules that the demo evaluates on
        for task in TASKS:
            rows = rows_of(task, splits[split])
            rows = rows[: TINY_ROWS[split]] if options.tiny else rows
            path = options.folder / f"{task}-{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = options.folder / "compare.yaml"
    path.write_text(yaml.safe_dump(configuration(options.folder.absolute(), options.tiny), sort_keys=False))
    print(f"hf-dbmtl compare {path} --balancers ew,log,max_norm,db_mtl,pcgrad --seeds 2")


if __name__ == "__main__":
    main()
