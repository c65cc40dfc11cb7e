"""What `hf-dbmtl compare` has to run: every method with every seed, each in a folder of its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_dbmtl_cli import CommandError

from ..balancing import make_balancer
from ..comparison import SINGLE_TASK
from .yaml_file import load_yaml, parse_yaml


__all__ = ["Method", "PlannedRun", "parse_methods", "parse_seeds", "plan_runs", "write_atomically"]

CONFIG, RESULT, ERROR = "config.yaml", "result.json", "error.txt"
# Settings that do not change what a run comes to: a finished run is taken as it is whatever they are now.
IMMATERIAL = {"disable_tqdm", "log_level", "run_name", "report_to", "output_dir", "dataloader_num_workers"}


@dataclass(frozen=True)
class Method:
    """A balancer with its options, by the name it has in the table."""

    name: str
    balancer: str
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_methods(words: str, config: Mapping[str, Any]) -> list[Method]:
    """
    The balancers to compare.

    Args:
        words (`str`):
            Names with commas between them, or a list in YAML whose entries are names, or names with their options:
            `[ew, db_mtl, {db_mtl: {beta: 0.5}}]`.
        config (`Mapping[str, Any]`):
            The settings: `balancer_kwargs` are the options of its `balancer` where that is named without options.

    Raises:
        [`CommandError`]: an unknown balancer or option, or the same method twice.
    """
    entries = (
        parse_yaml(words)
        if words.lstrip().startswith("[")
        else [one.strip() for one in words.split(",") if one.strip()]
    )
    methods: dict[str, Method] = {}
    for entry in entries:
        name, options = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, None)
        if not isinstance(name, str) or not isinstance(options, (Mapping, type(None))):
            raise CommandError(
                f"--balancers: {entry!r} must be a name, or a name with its options: {{db_mtl: {{beta: 0.5}}}}."
            )
        label = name if options is None else f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})"
        if options is None and name == config.get("balancer"):
            options = config.get("balancer_kwargs")
        try:
            make_balancer(name, options or {})
        except (TypeError, ValueError, ImportError) as error:
            raise CommandError(f"--balancers: {error}") from error
        if label in methods:
            raise CommandError(f"--balancers: '{label}' is there twice.")
        methods[label] = Method(label, name, dict(options or {}))
    if not methods:
        raise CommandError("--balancers: name one at least, as in --balancers ew,db_mtl.")
    return list(methods.values())


def parse_seeds(words: str, first: int) -> list[int]:
    """`3` is three seeds from `first` on, `0,7,9` are these."""
    try:
        seeds = [int(word) for word in words.strip("[] ").split(",")]
    except ValueError:
        raise CommandError(
            f"--seeds must be a number of seeds, or several with commas between, and is {words!r}."
        ) from None
    seeds = list(range(first, first + seeds[0])) if len(seeds) == 1 else seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise CommandError(f"--seeds: one at least, and each once, and they are {words}.")
    return seeds


@dataclass(frozen=True)
class PlannedRun:
    """
    One training run.

    Attributes:
        method (`str`): its method, `"single-task"` for a model of one task.
        seed (`int`): its seed.
        folder (`Path`): where its settings, its log and its result are.
        config (`dict[str, Any]`): its settings.
        task (`str`, *optional*): the only task that it trains on.
    """

    method: str
    seed: int
    folder: Path
    config: dict[str, Any]
    task: str | None = None

    def __str__(self) -> str:
        return f"{self.method}{f' {self.task}' if self.task else ''}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).is_file()

    def result(self) -> dict[str, Any]:
        """What the finished run left."""
        return json.loads((self.folder / RESULT).read_text())

    def check(self) -> None:
        """Refuses the result of another experiment that happens to lie where this one's would."""
        if not self.finished:
            return
        before, now = load_yaml(str(self.folder / CONFIG)), _plain(self.config)
        for key in sorted((before.keys() | now.keys()) - IMMATERIAL):
            if before.get(key) != now.get(key):
                raise CommandError(
                    f"{self.folder} was run with {key}: {before.get(key)!r}, and now it is {now.get(key)!r}. Give another "
                    "--output_dir, or remove the folder to run it again."
                )

    def prepare(self) -> None:
        """Makes the folder with the settings of the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ERROR).unlink(missing_ok=True)
        write_atomically(self.folder / CONFIG, yaml.safe_dump(_plain(self.config), sort_keys=False))


def plan_runs(
    config: Mapping[str, Any], folder: Path, methods: Sequence[Method], seeds: Sequence[int], tasks: Sequence[str]
) -> list[PlannedRun]:
    """
    All runs, seed by seed, so that every method has been seen once as early as can be.

    Args:
        config (`Mapping[str, Any]`):
            The settings that all have in common.
        folder (`Path`):
            Where the folders of the runs go.
        methods (`list[Method]`):
            The methods.
        seeds (`list[int]`):
            The seeds.
        tasks (`list[str]`):
            The tasks that get a model each; none where there is no single-task baseline.
    """
    runs = []
    for seed in seeds:
        for task in tasks:
            own: dict[str, Any] = {"balancer": "ew", "balancer_kwargs": None, "task_weights": None}
            place = folder / SINGLE_TASK / task / f"seed-{seed}"
            runs.append(PlannedRun(SINGLE_TASK, seed, place, _config(config, place, seed, own), task))
        for method in methods:
            own = {"balancer": method.balancer, "balancer_kwargs": dict(method.options) or None}
            place = folder / re.sub(r"[^\w+.=-]+", "_", method.name).strip("_") / f"seed-{seed}"
            runs.append(PlannedRun(method.name, seed, place, _config(config, place, seed, own)))
    return runs


def _config(config: Mapping[str, Any], place: Path, seed: int, own: Mapping[str, Any]) -> dict[str, Any]:
    kept = {"save_strategy": config.get("save_strategy", "steps") if config.get("load_best_model_at_end") else "no"}
    named = {
        "output_dir": str(place / "output"),
        "run_name": "-".join(place.parts[-2:]),
        "push_to_hub": False,
        "seed": seed,
    }
    return {**config, **kept, **named, **own, "resume_from_checkpoint": None}


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As YAML gives it back."""
    return json.loads(json.dumps(config))


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, whenever the process is killed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
