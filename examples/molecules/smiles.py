"""
Molecules as SMILES strings, drawn from a small grammar, and twelve properties that are read off the string: the data of the
example, made offline and the same every time.

A molecule is a chain of fragments that each bind to two neighbours (an atom, a carbonyl, a ring that is left at its far side),
between two ends. Every string that the grammar gives is valid SMILES.
"""

from __future__ import annotations

import re

import numpy as np
from datasets import Dataset


ENDS = ["C", "C", "C", "N", "O", "F", "Cl", "Br", "[NH3+]", "[O-]"]
MIDDLES = [
    *("C", "C", "C", "C", "N", "O", "S"),
    *("C(=O)", "C(C)", "C(F)", "C(Cl)", "C(O)", "C=C", "C#C"),
    *("c1ccc(cc1)", "c1cnc(cc1)", "C1CCC(CC1)"),
]
TOKEN = re.compile(r"\[[^\]]*\]|Br|Cl|.")
MASSES = {"C": 12.011, "N": 14.007, "O": 15.999, "S": 32.06, "F": 18.998, "Cl": 35.45, "Br": 79.904}

REGRESSIONS = ["weight", "atoms", "carbon_share", "hetero_atoms", "rings", "halogens", "multiple_bonds", "branches"]
CLASSES = {
    "charge": ["negative", "neutral", "positive"],
    "aromatic": ["no", "yes"],
    "carbonyl": ["no", "yes"],
    "sulfur": ["no", "yes"],
}
PROPERTIES = [*REGRESSIONS, *CLASSES]


def draw(generator: np.random.Generator) -> str:
    """One molecule: two to eight fragments between two ends."""
    middles = generator.choice(MIDDLES, size=generator.integers(2, 9))
    first, last = generator.choice(ENDS, size=2)
    return "".join([first, *middles, last])


def tokens(smiles: str) -> list[str]:
    """The atoms, bonds, branches and ring marks of a string, one by one."""
    return TOKEN.findall(smiles)


def element(token: str) -> str | None:
    """The element of an atom (aromatic ones are written small), `None` for what is no atom."""
    symbol = token.strip("[]").rstrip("+-0123456789H")
    symbol = symbol.capitalize() if symbol in ("c", "n") else symbol
    return symbol if symbol in MASSES else None


def properties(smiles: str) -> dict[str, float | int]:
    """All twelve properties. `weight` is that of the atoms but hydrogen, in unified atomic mass units."""
    parts = tokens(smiles)
    atoms = [symbol for part in parts if (symbol := element(part)) is not None]
    charge = smiles.count("+]") - smiles.count("-]")
    return {
        "weight": sum(MASSES[symbol] for symbol in atoms),
        "atoms": len(atoms),
        "carbon_share": atoms.count("C") / len(atoms),
        "hetero_atoms": sum(symbol in ("N", "O", "S") for symbol in atoms),
        "rings": parts.count("1") // 2,
        "halogens": sum(symbol in ("F", "Cl", "Br") for symbol in atoms),
        "multiple_bonds": parts.count("=") + parts.count("#"),
        "branches": parts.count("("),
        "charge": int(np.sign(charge)) + 1,
        "aromatic": int("c1" in smiles),
        "carbonyl": int("C(=O)" in smiles),
        "sulfur": int("S" in parts),
    }


def build(count: int, missing: float = 0.4, seed: int = 0) -> dict[str, Dataset]:
    """
    One table of different molecules, split into `train` and `test`: the string, and a column for every property. As in tables
    put together from many laboratories, a share of the labels is missing (`None`). Those that are numbers are in units of
    their standard deviation over the training rows, about their mean.

    Args:
        count (`int`):
            The number of molecules; a fifth is for the test.
        missing (`float`, *optional*, defaults to 0.4):
            The share of the labels that are missing.
        seed (`int`, *optional*, defaults to 0):
            The seed.
    """
    generator = np.random.default_rng(seed)
    molecules: dict[str, None] = {}
    while len(molecules) < count:
        molecules[draw(generator)] = None
    found = [properties(smiles) for smiles in molecules]
    train = count - count // 5
    columns: dict[str, list] = {"smiles": list(molecules)}
    for name in PROPERTIES:
        values = np.array([one[name] for one in found])
        if name in REGRESSIONS:
            values = (values - values[:train].mean()) / values[:train].std()
        gone = generator.random(count) < missing
        columns[name] = [None if lost else value for lost, value in zip(gone.tolist(), values.tolist())]
    rows = Dataset.from_dict(columns)
    return {"train": rows.select(range(train)), "test": rows.select(range(train, count))}
