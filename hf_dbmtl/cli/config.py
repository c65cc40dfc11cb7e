"""From a YAML file and the command line to checked settings. The file gives defaults, the command line wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from typing import Any

import yaml

from hf_dbmtl_cli import CommandError

from ..configuration import check_task_name
from ..training_args import MultiTaskTrainingArguments
from .columns import check_kind
from .settings import GroupSettings, Setting, TaskSettings, TrainSettings, settings_of
from .streamed import check_streamed
from .values import alternatives, fit, nearest, takes_mapping
from .yaml_file import load_yaml, parse_yaml


__all__ = ["build_config", "merge_config", "read_config", "run_settings", "training_settings"]

# 50 records in a run of any length, so that there is something to plot: many have fewer than transformers' 500 steps
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
            What the command line holds behind it: `--name value`, `--name=value` or `--name value value`; a dot leads
            into a mapping (`--tasks.mrpc.text`).

    Raises:
        [`CommandError`]: an unknown setting, a value of the wrong type, one missing, or what the training arguments
            refuse. It names the file (or the command line), the setting and the nearest name.
    """
    return build_config(merge_config(path, overrides), f"{path} and the command line" if overrides else path)


def merge_config(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a file and a command line as one mapping, each checked for its name and type. See [`read_config`]."""
    known = run_settings() | training_settings()
    merged = _check(load_yaml(path), known, f"{path}: ")
    for keys, words in _split(overrides):
        _override(merged, known, keys, words, "command line: --")
    return merged


def build_config(merged: Mapping[str, Any], where: str) -> tuple[TrainSettings, MultiTaskTrainingArguments]:
    """
    The settings of a run from the mapping that [`merge_config`] made.

    Args:
        merged (`Mapping[str, Any]`):
            The settings by name.
        where (`str`):
            Where they are from, for errors.
    """
    path = where.removesuffix(" and the command line")
    own = {name: merged[name] for name in run_settings() if name in merged}
    settings = _build(TrainSettings, own, path, "")
    if not settings.tasks:
        raise CommandError(f"{path}: `tasks` must name one task at least.")
    _check_groups(settings, path)
    for name in ("max_length", "max_train_samples", "max_eval_samples", "early_stopping_patience"):
        if (count := getattr(settings, name)) is not None and count < 1:
            raise CommandError(f"{path}: {name}: it must be 1 or more, and is {count}.")
    if settings.conflict_steps is not None and not settings.conflict_steps > 0:
        raise CommandError(f"{path}: conflict_steps: it must be positive, and is {settings.conflict_steps}.")
    args = _training_arguments({name: merged[name] for name in merged if name not in own}, where)
    check_streamed(settings, args, path)
    return settings, args


def _check_groups(settings: TrainSettings, path: str) -> None:
    """That every task has rows, by `dataset` or by `group`, and what its kind needs; and every group tasks."""
    known = list(settings.groups)
    for name, task in settings.tasks.items():
        where = f"{path}: tasks.{name}."
        if name in settings.groups:
            raise CommandError(f"{path}: groups.{name}: it is the name of a task: call the group otherwise.")
        if task.group is None and task.dataset is None:
            raise CommandError(
                f"{where}dataset is missing: where the data come from (or `group`, where tasks share them)."
            )
        if task.group is None:
            check_kind(where, task, task.image)
            continue
        if task.group not in settings.groups:
            there = f", only {', '.join(known)}." if known else ": `groups` is not there."
            raise CommandError(f"{where}group: there is no group '{task.group}'{nearest(task.group, known) or there}")
        for one in fields(GroupSettings):
            if getattr(task, one.name) != settings_of(TaskSettings)[one.name].default:
                raise CommandError(
                    f"{where}{one.name}: the rows of the task are those of its group, where this stands: "
                    f"groups.{task.group}.{one.name}."
                )
        check_kind(where, task, settings.groups[task.group].image)
    for name in known:
        if not settings.members(name):
            raise CommandError(f"{path}: groups.{name}: no task has `group: {name}`: give it tasks, or leave it out.")


@cache
def run_settings() -> dict[str, Setting]:
    return settings_of(TrainSettings)


@cache
def training_settings() -> dict[str, Setting]:
    """The training arguments by name."""
    known = settings_of(MultiTaskTrainingArguments)
    # `true` stands for the newest checkpoint in the output folder
    known["resume_from_checkpoint"] = replace(known["resume_from_checkpoint"], hint=str | bool | None)
    known["parallelism_config"] = replace(known["parallelism_config"], hint=type(None))  # an object, and refused anyway
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
        names = ", ".join(settings_of(group))
        raise CommandError(f"{where}.{name}: it must be a mapping of {names}, and is {value!r}.")
    return _check(value, settings_of(group), f"{where}.{name}.")


def _hint(name: Any, value: Any, known: Mapping[str, Setting]) -> str:
    """What an unknown setting may have been meant for."""
    run = run_settings() | training_settings()
    at_top = known.keys() == run.keys()
    inside = [one for one in value if one in run] if isinstance(value, Mapping) else []
    if at_top and inside:
        return f": put {', '.join(inside)} at the top of the file, without '{name}:' above."
    if near := nearest(name, known):
        return near
    if not at_top and name in run:
        return ": it is a setting of the whole run, to stand at the top of the file, without indentation."
    if not at_top:
        return f": those here are {', '.join(known)}."
    if name in settings_of(TaskSettings):
        return ": it is a setting of a task, to stand below the task's name."
    return ": `hf-dbmtl train --help_all` lists them."


def _split(overrides: Sequence[str]) -> list[tuple[list[str], list[str]]]:
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
    return found


def _override(
    values: dict[str, Any], known: Mapping[str, Setting], keys: Sequence[str], words: Sequence[str], where: str
) -> None:
    """Puts a setting of the command line into those of the file."""
    key, *rest = keys
    if key not in known:
        raise CommandError(f"{where}{key}: there is no such setting{_hint(key, None, known)}")
    setting, here = known[key], f"{where}{key}"
    if not rest:
        values[key] = _read_words(words, setting, here)
        return
    inside = dict(values[key]) if isinstance(values.get(key), Mapping) else {}
    group = setting.group
    if setting.group_by_name is not None:
        name, *deeper = rest
        if name not in inside:
            listed = f"; the file has {', '.join(inside)}." if inside else "; the file has none."
            what = key.removesuffix("s")
            raise CommandError(f"{here}.{name}: there is no such {what}{nearest(name, inside) or listed}")
        if deeper:
            _override(inside[name], settings_of(setting.group_by_name), deeper, words, f"{here}.{name}.")
        else:
            inside[name] = _check_task(name, _parse(words), setting.group_by_name, here)
    elif group is not None:
        _override(inside, settings_of(group), rest, words, f"{here}.")
    elif takes_mapping(setting.hint):
        target = inside
        for one in rest[:-1]:
            target[one] = target = dict(target[one]) if isinstance(target.get(one), Mapping) else {}
        target[rest[-1]] = _parse(words)
    else:
        raise CommandError(f"{here}.{'.'.join(rest)}: `{key}` has no settings within.")
    values[key] = inside


def _read_words(words: Sequence[str], setting: Setting, where: str) -> Any:
    """A value of the command line, of whatever kind the setting takes: `5` is a string for one that takes strings."""
    candidates = [_parse(words), *words, list(words)] if len(words) == 1 else [_parse(words), list(words)]
    errors = []
    for candidate in candidates:
        try:
            return _check_value(candidate, setting, where)
        except CommandError as error:
            errors.append(error)
    raise errors[1 if len(words) == 1 and str in alternatives(setting.hint) else 0]


def _parse(words: Sequence[str]) -> Any:
    """No word is `true`, one the value it stands for in YAML, several a list."""
    values = []
    for word in words:
        try:
            values.append(parse_yaml(word))
        except yaml.YAMLError:
            values.append(word)
    return values if len(values) > 1 else values[0] if values else True


def _build(cls: type, values: Mapping[str, Any], path: str, where: str) -> Any:
    """The dataclass that checked settings describe."""
    known = settings_of(cls)
    for name, setting in known.items():
        if setting.required and values.get(name) is None:
            raise CommandError(f"{path}: {where}{name} is missing: {setting.help[0].lower()}{setting.help[1:]}")
    made = {}
    for name, value in values.items():
        group, by_name = known[name].group, known[name].group_by_name
        if by_name is not None and isinstance(value, Mapping):
            made[name] = {key: _build(by_name, one, path, f"{where}{name}.{key}.") for key, one in value.items()}
        else:
            nested = isinstance(value, Mapping)
            made[name] = _build(group, value, path, f"{where}{name}.") if group is not None and nested else value
    return cls(**made)


def _training_arguments(values: dict[str, Any], path: str) -> MultiTaskTrainingArguments:
    for name, meant in FIXED.items():
        if values.pop(name, meant) != meant:
            raise CommandError(f"{path}: {name} cannot be changed: `hf-dbmtl train` trains, and then evaluates.")
    evaluates_as_it_logs = values.get("eval_strategy") == "steps" and "eval_steps" not in values
    if not evaluates_as_it_logs:
        values.setdefault("logging_steps", LOGGING_STEPS)
    try:
        return MultiTaskTrainingArguments(**values)
    except (TypeError, ValueError, ImportError, OSError) as error:  # some settings may name a file of their own
        raise CommandError(f"{path}: {error}") from error
