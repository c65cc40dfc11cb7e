"""The table of names: what a name is made of, and how its options reach its parts."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from hf_dbmtl.balancing import EMA, Equal, Identity, Log, MaxNorm, NormWeighting, balancer_names, make_balancer, table


TRIPLES: dict[str, tuple[type, type | None, type]] = {
    "ew": (Identity, None, Equal),
    "log": (Log, None, Equal),
    "ema": (Identity, EMA, Equal),
    "max_norm": (Identity, None, MaxNorm),
    "log+ew": (Log, None, Equal),
    "log+max_norm": (Log, None, MaxNorm),
    "log+ema": (Log, EMA, Equal),
    "ema+max_norm": (Identity, EMA, MaxNorm),
    "log+ema+max_norm": (Log, EMA, MaxNorm),
    "db_mtl": (Log, EMA, MaxNorm),
}


@pytest.mark.parametrize("name", TRIPLES)
def test_a_name_is_a_triple(name: str) -> None:
    balancer = make_balancer(name)
    memory = None if balancer.memory is None else type(balancer.memory)
    assert (type(balancer.transform), memory, type(balancer.weighting)) == TRIPLES[name]


def test_every_name_makes_a_balancer_of_its_own() -> None:
    names = balancer_names()
    assert len(names) == len(set(names)) and {"db_mtl", "ew", "log", "ema", "max_norm"} <= set(names)
    for name in names:
        one, other = make_balancer(name), make_balancer(name)
        assert one.weighting is not other.weighting and one.transform is not other.transform, name
        assert one.memory is None or one.memory is not other.memory, name


def test_the_defaults_are_the_papers() -> None:
    balancer = make_balancer("db_mtl")
    assert (balancer.memory.beta, balancer.memory.decay, balancer.memory.dtype) == (0.9, 0.5, None)
    assert balancer.weighting.alpha == "max"


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.3, "decay": 1.0, "alpha": "min", "ema_dtype": "bfloat16"},
        {"ema": {"beta": 0.3, "decay": 1.0, "ema_dtype": "bfloat16"}, "max_norm": {"alpha": "min"}},
        {"ema": {"beta": 0.3, "ema_dtype": "bfloat16"}, "decay": 1.0, "alpha": "min"},
        {"beta": 0.3, "decay": 1.0, "ema": {"ema_dtype": "bfloat16"}, "max_norm": {"alpha": "min"}},
    ],
    ids=["flat", "by part", "flat after parts", "flat before parts"],
)
@pytest.mark.parametrize("name", ["db_mtl", "log+ema+max_norm", "ema+max_norm"])
def test_options_flat_or_by_part(name: str, options: dict[str, Any]) -> None:
    balancer = make_balancer(name, options)
    assert (balancer.memory.beta, balancer.memory.decay, balancer.memory.dtype) == (0.3, 1.0, torch.bfloat16)
    assert balancer.weighting.alpha == "min"


def test_no_memory_where_beta_is_zero() -> None:
    for name in ("db_mtl", "ema", "ema+max_norm"):
        assert make_balancer(name, {"beta": 0}).memory is None
        assert make_balancer(name, {"beta": 1e-9}).memory is not None


def test_task_weights_reach_the_balancer() -> None:
    balancer = make_balancer("log", task_weights={"a": 2})
    assert (balancer.task_weight("a"), balancer.task_weight("b")) == (2, 1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("db-mtl", {}, r"Unknown balancer 'db-mtl'; did you mean 'db_mtl'.*\? The balancers are \['db_mtl', "),
        ("DBMTL", {}, r"Unknown balancer 'DBMTL'; did you mean 'db_mtl'"),
        ("maxnorm", {}, r"Unknown balancer 'maxnorm'; did you mean 'max_norm'"),
        ("log+maxnorm", {}, r"Unknown balancer 'maxnorm' in 'log\+maxnorm'; did you mean 'max_norm'"),
        ("log + max_norm", {}, r"Unknown balancer 'log ' in 'log \+ max_norm'; did you mean 'log'"),
        ("", {}, r"Unknown balancer ''\. The balancers are"),
        ("+", {}, r"Unknown balancer '' in '\+'"),
        ("db_mtl+max_norm", {}, r"'db_mtl' stands for 'log\+ema\+max_norm': write its parts"),
        ("max_norm+log", {}, r"'max_norm\+log' is not of the form '\[transform\+\]\[ema\+\]\[weighting\]'"),
        ("ema+log", {}, r"'ema\+log' is not of the form"),
        ("log+log", {}, r"'log\+log' is not of the form"),
        ("ew+max_norm", {}, r"'ew\+max_norm' is not of the form .*one of each, in that order"),
        (
            "db_mtl",
            {"bete": 0.5},
            r"'db_mtl' has no option 'bete'; did you mean 'beta'.*\? Its options are \['alpha', ",
        ),
        ("db_mtl", {"learning_rate": 1}, r"'db_mtl' has no option 'learning_rate'\. Its options are \['alpha', "),
        (
            "db_mtl",
            {"ema": {"bete": 0.5}},
            r"The part 'ema' of the balancer 'db_mtl' has no option 'bete'; did you mean 'beta'",
        ),
        ("db_mtl", {"ema": 0.5}, r"'db_mtl' has no option 'ema'"),
        (
            "db_mtl",
            {"beta": 0.5, "ema": {"beta": 0.4}},
            r"option 'beta' of the balancer 'db_mtl' is given twice: keep one",
        ),
        ("ew", {"ew": {"beta": 0.5}}, r"The part 'ew' of the balancer 'ew' has no option 'beta'; it takes none\."),
        ("ew", {"beta": 0.5}, r"'ew' has no option 'beta'; it takes none\."),
        ("log", {"alpha": "max"}, r"'log' has no option 'alpha'; it takes none\."),
        ("max_norm", {"beta": 0.5}, r"'max_norm' has no option 'beta'.* Its options are \['alpha'\]"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balancer(name, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1}, r"`beta` must be in \[0, 1\), and is 1"),
        ({"beta": 1.5}, r"`beta` must be in \[0, 1\), and is 1.5"),
        ({"beta": -0.1}, r"`beta` must be in \[0, 1\), and is -0.1"),
        ({"beta": math.nan}, r"`beta` must be in \[0, 1\), and is nan"),
        ({"decay": -1}, r"`decay` must be zero or more, and is -1"),
        ({"decay": math.nan}, r"`decay` must be zero or more, and is nan"),
        ({"alpha": "maximum"}, r"`alpha` must be one of \['max', 'min', .*or a positive number, and is 'maximum'"),
        ({"alpha": "0.5"}, r"`alpha` must be one of .*or a positive number, and is '0.5'"),
        ({"alpha": 0}, r"`alpha` must be one of .*or a positive number, and is 0"),
        ({"alpha": -1.0}, r"`alpha` must be one of .*or a positive number, and is -1.0"),
        ({"alpha": math.inf}, r"`alpha` must be one of .*or a positive number, and is inf"),
        ({"alpha": math.nan}, r"`alpha` must be one of .*or a positive number, and is nan"),
        ({"ema_dtype": "bf16"}, r"`ema_dtype` must name a floating point type such as 'bfloat16', and is 'bf16'"),
        ({"ema_dtype": "int8"}, r"`ema_dtype` must name a floating point type such as 'bfloat16', and is torch.int8"),
        ({"ema_dtype": "nn"}, r"`ema_dtype` must name a floating point type"),
    ],
)
def test_impossible_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_balancer("db_mtl", options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": "0.9"}, r"The option 'beta' of the balancer 'db_mtl' must be a number, and is '0.9'"),
        ({"beta": True}, r"'beta' .* must be a number, and is True"),
        ({"beta": None}, r"'beta' .* must be a number, and is None"),
        ({"ema": {"decay": [0.5]}}, r"'decay' .* must be a number, and is \[0.5\]"),
        ({"alpha": None}, r"'alpha' .* must be a string or a number, and is None"),
        ({"alpha": True}, r"'alpha' .* must be a string or a number, and is True"),
        ({"ema_dtype": 16}, r"'ema_dtype' .* must be a string or dtype or None, and is 16"),
    ],
)
def test_options_of_the_wrong_type_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_balancer("db_mtl", options)


def test_numbers_of_numpy_are_numbers() -> None:
    balancer = make_balancer("db_mtl", {"beta": np.float32(0.5), "decay": np.int64(1), "alpha": np.float64(2)})
    assert (balancer.memory.beta, balancer.memory.decay, balancer.weighting.alpha) == (0.5, 1, 2.0)


@pytest.mark.parametrize("name", [None, 3, ["log", "ema"], EMA])
def test_a_name_is_a_string(name: Any) -> None:
    with pytest.raises(
        TypeError, match=r"`balancer` must be a name such as 'db_mtl'.*, and is " + re.escape(repr(name))
    ):
        make_balancer(name)


class Slow(NormWeighting):
    """A weighting with an option that the memory has as well."""

    paper = "none"

    def __init__(self, beta: float = 1.0):
        self.beta = beta

    def unit(self, norm: float, task: str = "") -> float:
        return self.beta

    def scale(self, norms: list[float]) -> float:
        return 1.0


def test_an_option_of_two_parts_must_say_whose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(table.WEIGHTINGS, "slow", Slow)
    with pytest.raises(
        ValueError, match=r"Several parts .*'ema\+slow' have an option 'beta'.*\{'ema': \{'beta': 0.5\}\}"
    ):
        make_balancer("ema+slow", {"beta": 0.5})
    balancer = make_balancer("ema+slow", {"ema": {"beta": 0.5}, "slow": {"beta": 3.0}})
    assert (balancer.memory.beta, balancer.weighting.beta) == (0.5, 3.0)
    assert make_balancer("slow", {"beta": 2.0}).weighting.beta == 2.0
