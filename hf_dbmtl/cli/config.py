"""From a YAML file and the command line to checked settings. The file gives defaults, the command line wins."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import yaml

from hf_dbmtl_cli import CommandError

from ..configuration import check_task_name
from ..training_args import MultiTaskTrainingArguments
from .settings import Setting, TrainSettings, settings_of
from .values import fit, nearest, takes_mapping
from .yaml_file import load_yaml, parse_yaml


__all__ = ["read_config", "training_settings"]

# 50 records in a run of any length, so that there is something to plot; transformers' 500 steps are more than many runs have
LOGGING_STEPS = 0.02
# what transformers leaves to scripts: this one trains and evaluates
FIXED = {"do_train": True, "do_eval": True, "do_predict": False}


def read_config(path: str, overrides: Sequence[str] = ()) -> tuple[TrainSettings, MultiTaskTrainingArguments]:
    """
    Reads and checks the settings of a run.

    Args:
        path (`str`):
            The YAML file.
        overrides (`Sequence[str]`, *optional*):
            What the command line holds behind it: `--name value`, `--name=value` or `--name value value`; a dot leads into
            a mapping (`--tasks.mrpc.text`).

    Raises:
        [`CommandError`]: an unknown setting, a value of the wrong type, one missing, or what the training arguments refuse.
            It names the file (or the command line), the setting and the nearest name.
    """
    known = run_settings() | training_settings()
    merged = _check(load_yaml(path), known, f"{path}: ")
    for keys, tokens in _split(overrides):
        _override(merged, keys, tokens, known, path)
    own = {name: merged.pop(name) for name in run_settings() if name in merged}
    settings = _build(TrainSettings, own, path, "")
    if not settings.tasks:
        raise CommandError(f"{path}: `tasks` must name one task at least.")
    return settings, _training_arguments(merged, path)


@cache
def run_settings() -> dict[str, Setting]:
    return settings_of(TrainSettings)


@cache
def training_settings() -> dict[str, Setting]:
    """The training arguments by name."""
    known = settings_of(MultiTaskTrainingArguments)
    # `true` stands for the newest checkpoint in the output folder
    known["resume_from_checkpoint"] = replace(known["resume_from_checkpoint"], hint=str | bool | None)
    return known


def _check(values: Mapping[Any, Any], known: Mapping[str, Setting], where: str) -> dict[str, Any]:
    """The settings in a mapping, each of its type; the same for those within."""
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise CommandError(f"{where}{name}: there is no such setting{_hint(name, value, known)}")
        checked[name] = _check_value(value, known[name], f"{where}{name}")
    return checked


def _check_value(value: Any, setting: Setting, where: str) -> Any:
    if setting.group_by_name is not None and isinstance(value, Mapping):
        return {name: _check_task(name, one, setting.group_by_name, where) for name, one in value.items()}
    if setting.group is not None and isinstance(value, Mapping):
        return _check(value, settings_of(setting.group), f"{where}.")
    try:
        return fit(value, setting.hint, setting.choices)
    except ValueError as error:
        raise CommandError(f"{where}: it {error}") from error


def _check_task(name: Any, value: Any, group: type, where: str) -> dict[str, Any]:
    try:
        check_task_name(name)
    except (TypeError, ValueError) as error:
        raise CommandError(f"{where}: {error}") from error
    if not isinstance(value, Mapping):
        raise CommandError(f"{where}.{name}: it must be a mapping of {', '.join(settings_of(group))}, and is {value!r}.")
    return _check(value, settings_of(group), f"{where}.{name}.")


def _hint(name: Any, value: Any, known: Mapping[str, Setting]) -> str:
    """What an unknown setting may have been meant for."""
    top = run_settings() | training_settings()
    if near := nearest(name, known):
        return near
    if known.keys() != top.keys():
        elsewhere = name in top
        listed = f": the settings here are {', '.join(known)}."
        return f": it is a setting of the whole run, to stand at the top of the file, without indentation{listed if not elsewhere else '.'}" if elsewhere else listed
    if isinstance(value, Mapping) and set(value) & set(top):
        return f": put {', '.join(one for one in value if one in top)} at the top of the file, without '{name}:' above."
    task = run_settings()["tasks"].group_by_name
    if name in settings_of(task):
        return ": it is a setting of a task, to stand below the task's name."
    return ": `hf-dbmtl train --help_all` lists them."


def _split(overrides: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """The settings on the command line, each as the keys that lead to it and the words of its value."""
    found: list[tuple[list[str], list[str]]] = []
    for word in overrides:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            first, *rest = name.split(".")
            found.append(([first.replace("-", "_"), *rest], [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise CommandError(f"command line: {word!r} stands before any setting: write --name value.")
    return iter(found)


def _override(
    merged: dict[str, Any], keys: list[str], words: list[str], known: Mapping[str, Setting], path: str
) -> None:
    """Puts a setting of the command line into those of the file."""
    where, target, setting = "command line: --" + ".".join(keys), merged, None
    for depth, key in enumerate(keys):
        if depth:
            inside = target.get(keys[depth - 1])
            target[keys[depth - 1]] = target = dict(inside) if isinstance(inside, Mapping) else {}
        if known is None:  # inside a free mapping, such as `balancer_kwargs`
            continue
        if key not in known:
            before = "command line: --" + "".join(f"{one}." for one in keys[:depth])
            raise CommandError(f"{before}{key}: there is no such setting{_hint(key, None, known)}")
        setting = known[key]
        if depth + 1 == len(keys):
            break
        known = _within(setting, target.get(key), keys[depth + 1], where, path)
    free = known is None
    target[keys[-1]] = _read_words(words, Setting(Any, None, "", None, False) if free else setting, where)
