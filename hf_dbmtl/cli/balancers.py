"""`hf-dbmtl balancers`: the balancing methods, what they need and where they come from."""

from __future__ import annotations

import argparse
import inspect
import json
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ..balancing.part import NEEDS, Part
from ..balancing.table import COMPOSED, MEMORIES, TRANSFORMS, WEIGHTINGS


__all__ = ["BalancerRow", "balancer_rows", "run"]

KINDS: dict[str, dict[str, type[Part]]] = {
    "loss transform": TRANSFORMS,
    "memory": MEMORIES,
    "weighting": WEIGHTINGS,
}
SHOWN_NEEDS = {
    "losses": "losses",
    "norms": "norms",
    "gramian": "Gramian",
    "coordinates": "every coordinate",
    "validation": "validation data",
}


@dataclass(frozen=True)
class BalancerRow:
    """
    A balancing method, by its name in `balancer=`.

    Attributes:
        name (`str`): its name.
        kind (`str`): `"composed"`, `"loss transform"`, `"memory"` or `"weighting"`.
        parts (`list[str]`): what a composed name stands for; else the name alone.
        needs (`list[str]`): what it looks at in a step, from the cheapest to the dearest.
        memory (`str`): what it keeps for the length of the run.
        paper (`str`): where it comes from.
        properties (`dict[str, list[str]]`): what holds for it with its default options, by part.
        options (`dict[str, Any]`): the options that `balancer_kwargs` takes, with their defaults, by part.
    """

    name: str
    kind: str
    parts: list[str]
    needs: list[str]
    memory: str
    paper: str
    properties: dict[str, list[str]]
    options: dict[str, dict[str, Any]]


def balancer_rows() -> list[BalancerRow]:
    """Every name that `balancer=` takes. No part is made, so that solvers need not be installed."""
    parts = {name: part for room in KINDS.values() for name, part in room.items()}
    rows = [
        _row(name, "composed", {one: parts[one] for one in made_of.split("+")}) for name, made_of in COMPOSED.items()
    ]
    return rows + [_row(name, kind, {name: part}) for kind, room in KINDS.items() for name, part in room.items()]


def _row(name: str, kind: str, parts: dict[str, type[Part]]) -> BalancerRow:
    # a memory sees every coordinate, but what a composition looks at to choose its weights is its other parts' to say
    looking = {part.needs for one, part in parts.items() if len(parts) == 1 or one not in MEMORIES}
    kept = [part.memory for part in parts.values() if part.memory != "none"]
    return BalancerRow(
        name=name,
        kind=kind,
        parts=list(parts),
        needs=sorted(looking, key=NEEDS.index),
        memory="; ".join(kept) or "none",
        paper="; ".join(dict.fromkeys(part.paper for part in parts.values())),
        properties={one: sorted(part.holds) for one, part in parts.items()},
        options={one: _options(part) for one, part in parts.items()},
    )


def _options(part: type[Part]) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(part).parameters.items()}


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    rows = balancer_rows()
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        Console().print(_table(rows))


def _table(rows: list[BalancerRow]) -> Table:
    table = Table(title="Balancers", title_justify="left", caption_justify="left")
    table.caption = (
        "[transform+][ema+][weighting] compose with +, as in log+pcgrad. needs: what it looks at in a step. "
        "memory: kept for the whole run; a gradient is as large as the shared parameters."
    )
    table.add_column("name", no_wrap=True)
    for column in ("kind", "needs", "memory"):
        table.add_column(column)
    table.add_column("paper", ratio=1)
    last = None
    for row in rows:
        if row.kind != last and last is not None:
            table.add_section()
        last = row.kind
        kind = "+".join(row.parts) if row.kind == "composed" else row.kind
        table.add_row(row.name, kind, ", ".join(SHOWN_NEEDS[need] for need in row.needs), row.memory, row.paper)
    return table
