"""The table of names: which parts make which balancer, and how their options are given."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from .balancer import Balancer
from .db_mtl import EMA, Log, MaxNorm
from .transforms import Identity
from .weightings import Equal


__all__ = ["COMPOSED", "MEMORIES", "TRANSFORMS", "WEIGHTINGS", "balancer_names", "make_balancer"]

TRANSFORMS: dict[str, type] = {"log": Log}
MEMORIES: dict[str, type] = {"ema": EMA}
WEIGHTINGS: dict[str, type] = {"ew": Equal, "max_norm": MaxNorm}
COMPOSED: dict[str, str] = {"db_mtl": "log+ema+max_norm"}


def balancer_names() -> list[str]:
    """The names that `balancer=` takes, each also a part to compose with `+` where it is not composed itself."""
    return [*COMPOSED, *TRANSFORMS, *MEMORIES, *WEIGHTINGS]


def make_balancer(
    name: str, options: Mapping[str, Any] | None = None, task_weights: Mapping[str, float] | None = None
) -> Balancer:
    """
    Makes a balancer from its name.

    Args:
        name (`str`):
            `"[transform+][ema+][weighting]"`, at most one of each, in that order, or the name of such a triple:
            `"db_mtl"` stands for `"log+ema+max_norm"`, `"ew"` for the plain sum.
        options (`Mapping`, *optional*):
            The options of its parts, flat (`{"beta": 0.9}`) or by part (`{"ema": {"beta": 0.9}}`).
        task_weights (`Mapping[str, float]`, *optional*):
            The user's weights by task, see [`Balancer`].

    Raises:
        `ValueError`: for an unknown name or option (the nearest ones are named), parts out of order, or an option's value.
    """
    parts = _parse(name)
    by_part = _options_by_part(name, parts, options or {})
    made = {part: kind(**by_part[part]) for part, kind in parts.items()}
    memory = next((part for part in made.values() if isinstance(part, EMA)), None)
    if memory is not None and memory.beta == 0.0:
        memory = None  # the average of nothing but the present: no rows to keep
    return Balancer(
        transform=next((made[part] for part in parts if part in TRANSFORMS), Identity()),
        memory=memory,
        weighting=next((made[part] for part in parts if part in WEIGHTINGS), Equal()),
        task_weights=task_weights,
    )


def _parse(name: str) -> dict[str, type]:
    """The parts of a name and their classes, in the order of the triple."""
    if not isinstance(name, str):
        raise TypeError(f"`balancer` must be a name such as 'db_mtl' or 'log+max_norm', and is {name!r}.")
    words = COMPOSED.get(name, name).split("+")
    places = {word: place for place, room in enumerate((TRANSFORMS, MEMORIES, WEIGHTINGS)) for word in room}
    for word in words:
        if word not in places:
            raise ValueError(
                f"Unknown balancer '{word}'{'' if word == name else f' in {name!r}'}{_nearest(word, balancer_names())}"
                f" The balancers are {balancer_names()}."
            )
    order = [places[word] for word in words]
    if order != sorted(set(order)):
        raise ValueError(
            f"The balancer '{name}' is not of the form '[transform+][ema+][weighting]', one of each, in that order: "
            f"transforms {list(TRANSFORMS)}, memory {list(MEMORIES)}, weightings {list(WEIGHTINGS)}."
        )
    return {word: (TRANSFORMS, MEMORIES, WEIGHTINGS)[places[word]][word] for word in words}


def _options_by_part(name: str, parts: Mapping[str, type], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorts options given flat or by part into one dictionary per part."""
    takes = {part: [key for key in inspect.signature(kind).parameters] for part, kind in parts.items()}
    known = sorted({key for keys in takes.values() for key in keys})
    sorted_out: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for key, value in options.items():
        if key in parts and isinstance(value, Mapping):
            for option in value:
                if option not in takes[key]:
                    raise ValueError(
                        f"'{key}' of the balancer '{name}' has no option '{option}'{_nearest(option, takes[key])}"
                        f" Its options are {takes[key]}."
                    )
            sorted_out[key].update(value)
            continue
        owners = [part for part in parts if key in takes[part]]
        if not owners:
            raise ValueError(
                f"The balancer '{name}' has no option '{key}'{_nearest(key, known)} Its options are {known}."
            )
        if len(owners) > 1:
            raise ValueError(
                f"Several parts of the balancer '{name}' have an option '{key}': say which one is meant, as in "
                f"{{'{owners[0]}': {{'{key}': {value!r}}}}}."
            )
        sorted_out[owners[0]][key] = value
    return sorted_out


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else "."
