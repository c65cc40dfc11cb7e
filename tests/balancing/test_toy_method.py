"""A method is added by one line of the table, and the whole catalogue runs over it; what it gets wrong is found."""

from __future__ import annotations

import random

import pytest
from catalogue import CHECKS

from hf_dbmtl.balancing import Equal, NormWeighting, balancer_names
from hf_dbmtl.balancing.table import WEIGHTINGS


class Toy(NormWeighting):
    """Divides every gradient by the square root of its norm."""

    holds = frozenset({"rotation_invariant", "permutation_equivariant"})
    paper = "made up for this test"

    def unit(self, norm: float, task: str = "") -> float:
        return 1.0 / (norm + 1e-8) ** 0.5

    def scale(self, norms: list[float]) -> float:
        return 1.0


@pytest.mark.parametrize("check", CHECKS)
def test_a_method_added_to_the_table(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHTINGS, "toy", Toy)
    assert "toy" in balancer_names()
    CHECKS[check]("toy")


class TooStrong(Toy):
    holds = Toy.holds | {"non_conflicting"}


class TooWeak(Toy):
    holds = Toy.holds - {"rotation_invariant"}


class Modest(Toy):
    needs = "losses"


class Greedy(Equal):
    needs = "norms"


class Forgetful(Toy):
    """Counts the steps, and does not save the count."""

    memory = "a number"
    count = 0

    def scale(self, norms: list[float]) -> float:
        self.count += 1
        return float(self.count)


class Unsteady(Toy):
    holds = Toy.holds | {"random"}

    def unit(self, norm: float, task: str = "") -> float:
        return random.random()


class Infinite(Toy):
    def unit(self, norm: float, task: str = "") -> float:
        return float("inf") if norm == 0.0 else 1.0


class Careless(Toy):
    def scale(self, norms: list[float]) -> float:
        return float(str(norms[0]).removesuffix("e-12") + "x")


FAULTS = {
    "declares too much": (TooStrong, "property non_conflicting", "declares non_conflicting"),
    "declares too little": (TooWeak, "property rotation_invariant", "does not declare rotation_invariant"),
    "needs more than it says": (Modest, "needs", "looks at gradients"),
    "needs less than it says": (Greedy, "needs", "the same with others"),
    "does not save its state": (Forgetful, "state", "goes on differently"),
    "declares a memory and saves none": (Forgetful, "memory", "declares a memory, and saves nothing"),
    "draws from a generator of its own": (Unsteady, "random numbers", "draws by more than its seed"),
    "an update that is not finite": (Infinite, "degenerate a zero gradient", "what is not finite"),
    "an error of somebody else": (Careless, "degenerate one task", "breaks with one task"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_catalogue_finds(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, check, message = FAULTS[fault]
    monkeypatch.setitem(WEIGHTINGS, fault, kind)
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](fault)
