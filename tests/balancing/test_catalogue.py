"""Every balancer of the table, checked for what it declares and for what is asked of all."""

from __future__ import annotations

import pytest
from cases import CASES, VARIANTS, run
from catalogue import CHECKS, check_property

from hf_dbmtl.balancing import balancer_names, make_balancer
from hf_dbmtl.balancing.properties import holds, needs
from hf_dbmtl.balancing.table import MEMORIES, TRANSFORMS, WEIGHTINGS
from hf_dbmtl.gradients import GradientVector


ROOMS = {**TRANSFORMS, **MEMORIES, **WEIGHTINGS}
NAMES = balancer_names()
REFUSALS = [(name, part) for name, kind in ROOMS.items() for part in kind.refuses]


SOLVED = ("nash_mtl", "fairgrad")  # by iterating: forty tasks take them seconds


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            check,
            marks=pytest.mark.slow if name in SOLVED and "forty tasks" in check else (),
            id=f"{check}-{name}",
        )
        for check in CHECKS
        for name in (*NAMES, *VARIANTS)
    ],
)
def test_catalogue(name: str, check: str) -> None:
    CHECKS[check](name)


def compositions(prefix: str) -> list[str]:
    """The weightings behind a prefix, but for those that refuse a part of it."""
    parts = set(prefix.split("+"))
    return [f"{prefix}+{name}" for name in WEIGHTINGS if not parts & set(ROOMS[name].refuses)]


@pytest.mark.parametrize("name", [*compositions("log"), *compositions("log+ema")])
def test_under_a_logarithm_the_scale_of_a_loss_is_immaterial(name: str) -> None:
    check_property(name, "loss_scale_invariant", CASES[1:3])


@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_any_transform_goes_with_any_weighting(transform: str) -> None:
    for name in compositions(transform):
        assert all(update.isfinite().all() and update.norm() > 0 for update in run(name, CASES[0])), name


@pytest.mark.parametrize("name", NAMES)
def test_the_gramian_is_made_only_where_it_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    gramian = GradientVector.gramian
    monkeypatch.setattr(GradientVector, "gramian", lambda self, others: made.append(1) or gramian(self, others))
    run(name, CASES[0])
    assert bool(made) == (needs(make_balancer(name)) == "gramian")


@pytest.mark.parametrize(("name", "part"), REFUSALS)
def test_what_a_part_refuses(name: str, part: str) -> None:
    words = f"{part}+{name}" if name in WEIGHTINGS else f"{name}+{part}"
    with pytest.raises(ValueError, match="has no meaning"):
        make_balancer(words)


@pytest.mark.parametrize("name", ["sdmgrad", "log+modo"])
def test_what_is_left_out_is_told_with_the_reason(name: str) -> None:
    with pytest.raises(ValueError, match="is not offered: its weights come from products"):
        make_balancer(name)


def test_properties_of_a_composition() -> None:
    assert "loss_scale_invariant" in holds(make_balancer("log+graddrop"))
    assert "loss_scale_invariant" not in holds(make_balancer("log+moco"))
    assert "random" in holds(make_balancer("log+ema+graddrop"))
    assert "rotation_invariant" not in holds(make_balancer("log+ema+graddrop"))
