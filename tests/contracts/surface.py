"""
The public surface: the names, their signatures, the fields of our arguments and configuration, the balancers, and the
command line with its settings, as one readable file. What changes it is a change for users, to be made on purpose.

    python tests/contracts/surface.py            # shows what differs from the file
    python tests/contracts/surface.py --write    # `make snapshot`: takes the difference as meant
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, TrainingArguments

import hf_dbmtl
from hf_dbmtl import MultiTaskTrainingArguments
from hf_dbmtl.balancing import balancer_names
from hf_dbmtl.cli.config import run_settings
from hf_dbmtl.cli.settings import Setting, settings_of
from hf_dbmtl_cli.commands import make_parser


SNAPSHOT = Path(__file__).with_name("surface.txt")
MODULES = ("hf_dbmtl", "hf_dbmtl.balancing", "hf_dbmtl_cli")


def surface() -> str:
    """The whole of it."""
    parts = {module: list(_names(module)) for module in MODULES}
    parts["training arguments of its own"] = list(_own_arguments())
    parts["balancers"] = list(balancer_names())
    parts["command line"] = list(_commands(make_parser(), ""))
    parts["settings of the command line, beside the training arguments"] = list(_settings(run_settings(), ""))
    return "".join(f"# {title}\n" + "".join(f"{line}\n" for line in lines) + "\n" for title, lines in parts.items())


def _names(module: str) -> Iterator[str]:
    loaded = importlib.import_module(module)
    for name in sorted(loaded.__all__):
        value = getattr(loaded, name)
        yield f"{name}{_signature(value)}"
        if inspect.isclass(value):
            yield from (f"    .{line}" for line in _members(value))


def _members(cls: type) -> Iterator[str]:
    """What a class of ours adds to what it inherits from elsewhere."""
    if issubclass(cls, enum.Enum):
        yield from (member.name for member in cls)
        return
    seen = {}
    for one in reversed(cls.__mro__):
        if one.__module__.split(".")[0] in ("hf_dbmtl", "hf_dbmtl_cli"):
            seen |= {name: value for name, value in vars(one).items() if not name.startswith("_")}
    fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for name, value in sorted(seen.items()):
        unbound = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(value, property):
            yield f"{name} (property)"
        elif inspect.isfunction(unbound):
            yield f"{name}{_signature(unbound)}"
        elif name not in fields and not name.startswith("_"):
            yield name


def _signature(value: Any) -> str:
    if not callable(value):
        return ""
    if inspect.isclass(value):
        if not getattr(value.__init__, "__module__", "").startswith("hf_dbmtl"):  # of transformers, and its to change
            return ""
        if issubclass(value, (PreTrainedConfig, TrainingArguments)):
            return f"({', '.join(inspect.get_annotations(value))})"
    parameters = [one for one in inspect.signature(value).parameters.values() if one.name != "self"]
    return str(inspect.Signature([one.replace(annotation=one.empty) for one in parameters]))


def _own_arguments() -> Iterator[str]:
    stock = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(MultiTaskTrainingArguments):
        if field.name not in stock or field.default != stock[field.name]:
            yield f"{field.name} = {field.default!r}"


def _commands(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in sorted(action.choices.items()):
                yield f"{path}{name}"
                yield from _commands(one, f"{path}{name} ")
        else:
            yield f"{path}{'/'.join(action.option_strings) or action.metavar or action.dest}"


def _settings(known: dict[str, Setting], path: str) -> Iterator[str]:
    for name, setting in known.items():
        yield f"{path}{name}{' (required)' if setting.required else f' = {setting.default!r}'}"
        if setting.group_by_name is not None:
            yield from _settings(settings_of(setting.group_by_name), f"{path}{name}.NAME.")
        elif setting.group is not None:
            yield from _settings(settings_of(setting.group), f"{path}{name}.")


def difference() -> str:
    """What has changed since the file was written, as a diff; empty where nothing has."""
    before = SNAPSHOT.read_text(encoding="utf-8").splitlines(keepends=True) if SNAPSHOT.exists() else []
    return "".join(difflib.unified_diff(before, surface().splitlines(keepends=True), "as frozen", "as it is"))


def main() -> None:
    parser = argparse.ArgumentParser(description="The public surface against the file that froze it.")
    parser.add_argument("--write", action="store_true", help="take it as it is")
    found = difference()
    print(found or f"Nothing has changed ({len(hf_dbmtl.__all__)} public names).")
    if parser.parse_args().write:
        SNAPSHOT.write_text(surface(), encoding="utf-8")
    elif found:
        sys.exit(1)


if __name__ == "__main__":
    main()
