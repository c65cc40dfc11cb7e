"""Whether a value is of the type that a setting declares, and what to say where it is not."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from .yaml_file import parse_yaml


__all__ = ["alternatives", "fit", "nearest", "takes_mapping"]

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string", type(None): "null"}
SHOWN = 12  # choices that fit into a message


def alternatives(hint: Any) -> list[Any]:
    """The types that a type hint admits, one by one."""
    if get_origin(hint) in (Union, types.UnionType):
        return [kind for part in get_args(hint) for kind in alternatives(part)]
    return [hint]


def takes_mapping(hint: Any) -> bool:
    return any(kind is dict or get_origin(kind) is dict for kind in alternatives(hint))


def fit(value: Any, hint: Any, choices: Iterable[Any] | None = None) -> Any:
    """
    `value` as a type hint wants it: words such as `yes` and `off` become booleans, whole floats (`1e3`) integers, and
    JSON in a string the mapping it describes, each where the hint has no use for what it was.

    Args:
        value (`Any`):
            The value.
        hint (`Any`):
            The type hint.
        choices (`Iterable`, *optional*):
            The values there are; those of an enumeration in the hint are taken by themselves.

    Raises:
        `ValueError`: it does not fit. The message goes on behind the name of the setting.
    """
    kinds = alternatives(hint)
    if isinstance(value, str) and value.lstrip().startswith("{") and takes_mapping(hint):
        try:
            value = parse_yaml(value)
        except yaml.YAMLError as error:
            raise ValueError(f"must be a mapping (JSON), and is {value!r}: {' '.join(str(error).split())}") from error
    if not any(_is(value, kind) for kind in kinds):
        if bool in kinds and isinstance(value, str) and value.lower() in BOOLEANS:
            value = BOOLEANS[value.lower()]
        elif int in kinds and isinstance(value, float) and value.is_integer():
            value = int(value)
        else:
            shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
            raise ValueError(f"must be {_describe(kinds)}, and is {shown}{_quotes(value, kinds)}")
    names = [choice.value for kind in kinds if _is_enum(kind) for choice in kind] or list(choices or ())
    if names and value is not None and value not in names:
        listed = f" It is one of {', '.join(map(str, names))}." if len(names) <= SHOWN else ""
        raise ValueError(f"cannot be {value!r}{nearest(value, names) or '.'}{listed}")
    return value


def nearest(name: Any, known: Iterable[str]) -> str:
    """`: did you mean ...?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(str(name).lower(), list(map(str, known)), n=2)
    return f": did you mean {' or '.join(repr(one) for one in near)}?" if near else ""


def _is(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return any(value is choice or (isinstance(value, str) and value == choice) for choice in inner)
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if kind is list or origin is list:
        return isinstance(value, list) and all(_fits(one, inner[0] if inner else Any) for one in value)
    if kind is dict or origin is dict:
        return (
            isinstance(value, Mapping)
            and all(isinstance(key, str) for key in value)
            and all(_fits(one, inner[1] if inner else Any) for one in value.values())
        )
    # an enumeration and what else is not written in YAML come with `str` beside them, or cannot be given here
    return isinstance(kind, type) and not _is_enum(kind) and not is_dataclass(kind) and isinstance(value, kind)


def _fits(value: Any, hint: Any) -> bool:
    return any(_is(value, kind) for kind in alternatives(hint))


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def _describe(kinds: list[Any]) -> str:
    words = []
    for kind in kinds:
        origin, inner = get_origin(kind), get_args(kind)
        if origin is Literal:
            words += [str(choice).lower() for choice in inner]
        elif kind is list or origin is list:
            words.append("a list of strings" if inner == (str,) else "a list")
        elif kind is dict or origin is dict:
            words.append("a mapping")
        elif is_dataclass(kind) and isinstance(kind, type):
            words.append(f"a mapping of {', '.join(kind.__dataclass_fields__)}")
        elif kind in WORDS and not (kind is type(None) and len(kinds) > 1):
            words.append(WORDS[kind])
    return " or ".join(dict.fromkeys(words)) or "left out here"


def _quotes(value: Any, kinds: list[Any]) -> str:
    """The usual reasons: a number in quotes, or a word without them."""
    if isinstance(value, str) and {int, float} & set(kinds) and str not in kinds:
        try:
            float(value)
        except ValueError:
            return "."
        return ": take the quotes off."
    if isinstance(value, (bool, int, float)) and str in kinds:
        return ": put it in quotes."
    if isinstance(value, list) and any(not isinstance(one, str) for one in value) and list[str] in kinds:
        return ": put its entries in quotes."
    return "."
