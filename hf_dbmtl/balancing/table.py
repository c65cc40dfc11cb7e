"""The table of names: which parts make which balancer, and how their options are given."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .aligned_mtl import AlignedMTL
from .auto_lambda import AutoLambda
from .balancer import Balancer
from .cagrad import CAGrad
from .config import ConFIG
from .db_mtl import EMA, Log, MaxNorm
from .dualproj import DualProj
from .dwa import DWA
from .excess_mtl import ExcessMTL
from .fairgrad import FairGrad
from .famo import FAMO
from .gls import GLS
from .graddrop import GradDrop
from .gradnorm import GradNorm
from .gradvac import GradVac
from .imtl_g import IMTLG
from .imtl_l import IMTLL
from .mgda import MGDA
from .moco import MoCo
from .moml import MOML
from .nash_mtl import NashMTL
from .part import Part
from .pcgrad import PCGrad
from .rlw import RLW
from .stch import STCH
from .transforms import Identity
from .upgrad import UPGrad
from .uw import UW
from .weightings import Equal


__all__ = ["COMPOSED", "MEMORIES", "TRANSFORMS", "WEIGHTINGS", "balancer_names", "describe_balancer", "make_balancer"]

TRANSFORMS: dict[str, type] = {
    "log": Log,
    "uw": UW,
    "dwa": DWA,
    "rlw": RLW,
    "gls": GLS,
    "imtl_l": IMTLL,
    "famo": FAMO,
    "stch": STCH,
    "auto_lambda": AutoLambda,
    "moml": MOML,
}
MEMORIES: dict[str, type] = {"ema": EMA}
WEIGHTINGS: dict[str, type] = {
    "ew": Equal,
    "max_norm": MaxNorm,
    "mgda": MGDA,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "gradvac": GradVac,
    "graddrop": GradDrop,
    "imtl_g": IMTLG,
    "cagrad": CAGrad,
    "moco": MoCo,
    "nash_mtl": NashMTL,
    "aligned_mtl": AlignedMTL,
    "fairgrad": FairGrad,
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "config": ConFIG,
    "excess_mtl": ExcessMTL,
}
COMPOSED: dict[str, str] = {"db_mtl": "log+ema+max_norm", "imtl": "imtl_l+imtl_g"}

_TWO_BATCHES = (
    "its weights come from products of gradients of independent batches, which a step has as its micro-batches at "
    "most: the update would depend on how the batch is cut into them, and there would be none without accumulation. "
    "Nearest to it are 'mgda' and 'moco'"
)
LEFT_OUT = {"sdmgrad": _TWO_BATCHES, "modo": _TWO_BATCHES}


def balancer_names() -> list[str]:
    """The names that `balancer=` takes, each also a part to compose with `+` where it is not composed itself."""
    return [*COMPOSED, *TRANSFORMS, *MEMORIES, *WEIGHTINGS]


def make_balancer(
    name: str | Any, options: Mapping[str, Any] | None = None, task_weights: Mapping[str, float] | None = None
) -> Balancer:
    """
    Makes a balancer from its name.

    Args:
        name (`str`, or an instance of a `Weighting`, an `Aggregator` or a `Scalarizer` of TorchJD):
            `"[transform+][ema+][weighting]"`, at most one of each, in that order, or the name of such a triple:
            `"db_mtl"` stands for `"log+ema+max_norm"`, `"ew"` for the plain sum. An object of TorchJD is copied.
        options (`Mapping`, *optional*):
            The options of its parts, flat (`{"beta": 0.9}`) or by part (`{"ema": {"beta": 0.9}}`).
        task_weights (`Mapping[str, float]`, *optional*):
            The user's weights by task, see [`Balancer`].

    Raises:
        `ValueError`: for an unknown name or option (the nearest ones are named), parts out of order, or an option's value.
        `TypeError`: for an option of the wrong type, such as a number in quotes.
    """
    if not isinstance(name, str):
        from .scalarizer import adapt

        return adapt(name, options, task_weights)
    parts = _parse(name)
    for part, kind in parts.items():
        for other in parts:
            if other in kind.refuses:
                raise ValueError(f"The balancer '{name}' has no meaning: {kind.refuses[other]}.")
    by_part = _options_by_part(name, parts, options or {})
    for part, kind in parts.items():
        _check_types(name, kind, by_part[part])
    made: dict[str, Any] = {part: kind(**by_part[part]) for part, kind in parts.items()}
    memory = next((part for part in made.values() if isinstance(part, EMA)), None)
    if memory is not None and memory.beta == 0.0:
        memory = None  # the average of nothing but the present: no rows to keep
    return Balancer(
        transform=next((made[part] for part in parts if part in TRANSFORMS), Identity()),
        memory=memory,
        weighting=next((made[part] for part in parts if part in WEIGHTINGS), Equal()),
        task_weights=task_weights,
    )


def describe_balancer(balancer: str | Any) -> str:
    """A name as it is, and of an object of TorchJD how it was made, in one line that is the same in every run."""
    if isinstance(balancer, str):
        return balancer
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(balancer).split()))


def _parse(name: str) -> dict[str, type[Part]]:
    """The parts of a name and their classes, in the order of the triple."""
    words = COMPOSED.get(name, name).split("+")
    places = {word: place for place, room in enumerate((TRANSFORMS, MEMORIES, WEIGHTINGS)) for word in room}
    for word in words:
        if word in COMPOSED:
            raise ValueError(f"'{word}' stands for '{COMPOSED[word]}': write its parts to compose them otherwise.")
        if word in LEFT_OUT:
            raise ValueError(f"The balancer '{word}' is not offered: {LEFT_OUT[word]}.")
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
    takes = {part: list(inspect.signature(kind).parameters) for part, kind in parts.items()}
    sorted_out: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for key, value in options.items():
        by_part = key in parts and isinstance(value, Mapping)
        within = [key] if by_part else list(parts)
        for option, given in value.items() if by_part else [(key, value)]:
            owners = [part for part in within if option in takes[part]]
            if not owners:
                what = f"The part '{key}' of the balancer '{name}'" if by_part else f"The balancer '{name}'"
                known = sorted({one for part in within for one in takes[part]})
                hint = f"{_nearest(option, known)} Its options are {known}." if known else "; it takes none."
                raise ValueError(f"{what} has no option '{option}'{hint}")
            if len(owners) > 1:
                raise ValueError(
                    f"Several parts of the balancer '{name}' have an option '{option}': say which one is meant, as in "
                    f"{{'{owners[0]}': {{'{option}': {given!r}}}}}."
                )
            if option in sorted_out[owners[0]]:
                raise ValueError(f"The option '{option}' of the balancer '{name}' is given twice: keep one of the two.")
            sorted_out[owners[0]][option] = given
    return sorted_out


def _check_types(name: str, kind: Any, options: Mapping[str, Any]) -> None:
    """Compares options with their annotations, so that no class has to: JSON tells numbers from strings, users may not."""
    hints = get_type_hints(kind.__init__) if options else {}
    for option, value in options.items():
        hint = hints[option]
        several = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        kinds = tuple({float: Real, int: Integral}.get(one, get_origin(one) or one) for one in several)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            words = {float: "a number", int: "a whole number", str: "a string", type(None): "None"}
            wanted = " or ".join(words.get(one, getattr(one, "__name__", str(one))) for one in several)
            raise TypeError(f"The option '{option}' of the balancer '{name}' must be {wanted}, and is {value!r}.")


def _nearest(word: Any, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word).lower(), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else "."
