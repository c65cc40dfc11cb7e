"""What the property-based tests draw from, and how often: a few hundred inputs in the fast suite, thousands in the slow."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


SECONDS = 10  # of the processor that one input may take; most take milliseconds
EXAMPLES = pytest.mark.parametrize("examples", [60, pytest.param(1500, marks=pytest.mark.slow)])


def fuzz(examples: int, check: Callable, *strategies: st.SearchStrategy, **named: st.SearchStrategy) -> None:
    """Calls `check` with so many inputs, the same in every run."""

    @functools.wraps(check)
    def timed(*values: Any, **others: Any) -> None:
        start = time.process_time()
        check(*values, **others)
        assert time.process_time() - start < SECONDS

    options = settings(
        max_examples=examples,
        deadline=None,  # which would count the time of other processes too
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    options(given(*strategies, **named)(timed))()


NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.integers(),
    st.sampled_from([-100, 10**6, 10**9, 2**31, 2**63, -(2**63), 10**30]),
    st.floats(),
)
WORDS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["../x", "a.b", "a b", "", "\x00", "\x1b[2J", "\ud800", "task", "keys", "None", "true", "1e9", "nan"]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)


def json_like(leaves: st.SearchStrategy = SCALARS, size: int = 12) -> st.SearchStrategy[Any]:
    """Anything that JSON can hold, and some that it cannot."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
        max_leaves=size,
    )


def nearly(values: dict[str, st.SearchStrategy], anything: st.SearchStrategy | None = None) -> st.SearchStrategy[dict]:
    """A mapping of known names, some left out, whose values are as they should be or anything at all."""
    anything = json_like() if anything is None else anything
    kept = {name: st.integers(0, 7).flatmap(lambda i, one=one: one if i else anything) for name, one in values.items()}
    return st.fixed_dictionaries({}, optional=kept)
