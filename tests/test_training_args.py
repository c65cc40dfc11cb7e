"""Our own training arguments: what each does, what it must not be, and how they are given on the command line."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import tiny_data, tiny_model
from probes import TWO, Probe, Seeing, logged, make, run, weights
from transformers import HfArgumentParser, TrainingArguments

from hf_dbmtl import MultiTaskTrainingArguments


OWN = {field.name for field in fields(MultiTaskTrainingArguments)} - {field.name for field in fields(TrainingArguments)}

OWN_PROBES: dict[str, Probe] = {}
# without an effect in one process: tests/distributed/test_exchange.py
OVER_PROCESSES = {"consistency_check_steps"}


def own(function: Probe) -> Probe:
    """Registers the probe of one of our own fields, which the function is named after."""
    OWN_PROBES[function.__name__] = function
    return function


def uneven(topic: int = 24, score: int = 8) -> dict[str, Dataset]:
    return {"topic": tiny_data(TWO, rows=topic)["topic"], "score": tiny_data(TWO, rows=score)["score"]}


def rows_of(trainer: Seeing) -> dict[str, int]:
    return {task: len(rows) for task, rows in trainer.seen[0].items()}


def moved(trainer: Seeing) -> dict[str, float]:
    """How far the encoder and each head have gone from where they began."""
    start = tiny_model(TWO, dtype=torch.float32).state_dict()
    way: dict[str, float] = {"encoder": 0.0, "heads.topic": 0.0, "heads.score": 0.0}
    for name, value in trainer.model.state_dict().items():
        part = next(part for part in way if name.startswith(part))
        way[part] += (value - start[name]).abs().sum().item()
    return way


@own
def balancer(folder: Path, plain: Seeing) -> None:
    ends = {name: run(folder, balancer=name) for name in ("ew", "log", "max_norm", "log+max_norm", "db_mtl")}
    assert torch.equal(weights(ends["db_mtl"]), weights(plain))  # the default
    every = [weights(trainer) for trainer in ends.values()]
    assert all(not torch.allclose(a, b, atol=1e-6) for i, a in enumerate(every) for b in every[:i])


@own
def balancer_kwargs(folder: Path, plain: Seeing) -> None:
    default = {"beta": 0.9, "decay": 0.5, "alpha": "max"}
    assert torch.equal(weights(run(folder, balancer_kwargs=default)), weights(plain))
    for options in ({"beta": 0.5}, {"decay": 0}, {"alpha": "min"}, '{"alpha": 0.01}'):
        assert not torch.allclose(weights(run(folder, balancer_kwargs=options)), weights(plain), atol=1e-6), options
    assert run(folder, balancer_kwargs={"beta": 0}).balancer.memory is None


@own
def mixing(folder: Path, plain: Seeing) -> None:
    options = {"data": uneven(), "per_device_train_batch_size": 4}
    assert rows_of(run(folder, **options)) == {"topic": 4, "score": 4}
    assert rows_of(run(folder, **options, mixing="proportional")) == {"topic": 6, "score": 2}
    assert rows_of(run(folder, **options, mixing="temperature")) == {"topic": 5, "score": 3}


@own
def mixing_temperature(folder: Path, plain: Seeing) -> None:
    options = {"data": uneven(), "per_device_train_batch_size": 4, "mixing": "temperature"}
    assert rows_of(run(folder, **options, mixing_temperature=1.0)) == {"topic": 6, "score": 2}
    assert rows_of(run(folder, **options, mixing_temperature=100.0)) == {"topic": 4, "score": 4}


@own
def per_task_batch_size(folder: Path, plain: Seeing) -> None:
    options = {"data": uneven(), "per_device_train_batch_size": 4, "per_task_batch_size": {"score": 1}}
    assert rows_of(run(folder, **options)) == {"topic": 4, "score": 1}
    assert rows_of(run(folder, **options, mixing="proportional")) == {"topic": 6, "score": 1}


@own
def stopping_strategy(folder: Path, plain: Seeing) -> None:
    options = {"data": uneven(), "per_device_train_batch_size": 4}
    assert run(folder, **options).state.global_step == 6
    assert run(folder, **options, stopping_strategy="first_exhausted").state.global_step == 2


@own
def task_weights(folder: Path, plain: Seeing) -> None:
    options = {"balancer": "ew", "max_steps": 1}
    way = moved(run(folder, **options))
    without = moved(run(folder, **options, task_weights={"score": 0}))
    assert without["heads.score"] == 0 < way["heads.score"] and without["heads.topic"] == way["heads.topic"]
    assert 0 < without["encoder"] < way["encoder"]
    twice = moved(run(folder, **options, task_weights='{"topic": 2.0, "score": 2.0}'))
    assert twice == pytest.approx({part: 2 * length for part, length in way.items()}, rel=1e-3)
    assert logged(run(folder, task_weights={"score": 3.0}), "weight/score")[0] == pytest.approx(
        3 * logged(plain, "weight/score")[0]
    )


@own
def encoder_lr_multiplier(folder: Path, plain: Seeing) -> None:
    way, slower = moved(plain), moved(run(folder, encoder_lr_multiplier=0.0))
    assert slower["encoder"] == 0 < way["encoder"] and slower["heads.topic"] > 0
    options = {"max_steps": 2, "lr_scheduler_type": "linear", "weight_decay": 0.1, "optim": "adamw_torch"}
    groups = run(folder, **options, encoder_lr_multiplier=0.5).optimizer.param_groups
    rates = [(group["initial_lr"], group["weight_decay"]) for group in groups]
    assert rates == [(0.005, 0.1), (0.01, 0.1), (0.005, 0.0), (0.01, 0.0)]


@own
def heads_lr_multiplier(folder: Path, plain: Seeing) -> None:
    way, faster = moved(run(folder, max_steps=1)), moved(run(folder, max_steps=1, heads_lr_multiplier=3.0))
    assert faster["encoder"] == way["encoder"]
    for head in ("heads.topic", "heads.score"):
        assert faster[head] == pytest.approx(3 * way[head], rel=1e-3)


@own
def task_lr_multipliers(folder: Path, plain: Seeing) -> None:
    way = moved(run(folder, max_steps=1))
    faster = moved(run(folder, max_steps=1, task_lr_multipliers='{"topic": 3.0}'))
    assert faster["heads.topic"] == pytest.approx(3 * way["heads.topic"], rel=1e-3)
    assert faster["heads.score"] == way["heads.score"] and faster["encoder"] == way["encoder"]


@own
def freeze_encoder(folder: Path, plain: Seeing) -> None:
    way, frozen = moved(plain), moved(run(folder, freeze_encoder=True))
    assert frozen["encoder"] == 0 < way["encoder"] and frozen["heads.topic"] > 0


@own
def freeze_layers(folder: Path, plain: Seeing) -> None:
    ways = [moved(run(folder, max_steps=1, freeze_layers=count))["encoder"] for count in (0, 1, 2)]
    assert ways[0] > ways[1] > ways[2] == 0  # of a BERT with two layers, whose pooler no head looks at


@own
def freeze_batch_norm(folder: Path, plain: Seeing) -> None:
    assert torch.equal(weights(run(folder, freeze_batch_norm=True)), weights(plain))  # there is none: see the ResNet


@own
def non_finite_strategy(folder: Path, plain: Seeing) -> None:
    kind = type("Poisoned", (Seeing,), {"poison": math.nan})
    assert torch.isfinite(weights(run(folder, kind=kind))).all()
    with pytest.raises(FloatingPointError, match="Task 'topic'"):
        run(folder, kind=kind, non_finite_strategy="raise")


@own
def max_skipped_steps(folder: Path, plain: Seeing) -> None:
    kind = type("Poisoned", (Seeing,), {"poison": math.nan})
    assert run(folder, kind=kind, max_skipped_steps=2).state.global_step == plain.state.global_step
    with pytest.raises(FloatingPointError, match="Task 'topic'.* 1 steps in a row were skipped"):
        run(folder, kind=kind, max_skipped_steps=1)
    assert (folder / "checkpoint-1").is_dir()


WRONG: dict[str, list[tuple[object, str]]] = {
    "balancer": [
        ("dbmtl", "Unknown balancer 'dbmtl'; did you mean 'db_mtl'"),
        ("max_norm+log", r"'max_norm\+log' is not of the form '\[transform\+\]\[ema\+\]\[weighting\]'"),
    ],
    "balancer_kwargs": [
        ({"betta": 0.5}, "no option 'betta'; did you mean 'beta'"),
        ({"beta": 1.0}, r"`beta` must be in \[0, 1\), and is 1.0"),
        ({"alpha": "largest"}, "`alpha` must be one of .*'largest'"),
        ("[0.9]", r"`balancer_kwargs` must be a dictionary .*'\[0.9\]'"),
        ('{"beta": 0.9', "`balancer_kwargs` must be a dictionary in JSON"),
    ],
    "mixing": [("uniform", "`mixing` must be one of .* is 'uniform'")],
    "mixing_temperature": [
        (value, f"`mixing_temperature` must be a positive number, and is {value!r}")
        for value in (0, -1.0, math.inf, math.nan, "hot")
    ],
    "per_task_batch_size": [
        ({"score": 0}, r"`per_task_batch_size\['score'\]` must be a whole number"),
        ({"score": 1.5}, r"`per_task_batch_size\['score'\]` must be a whole number"),
        ({"score": True}, r"`per_task_batch_size\['score'\]` must be a whole number"),
        ({"scores": 4}, "`per_task_batch_size` names a task 'scores', .* did you mean 'score'"),
        (4, "`per_task_batch_size` must be a dictionary"),
    ],
    "stopping_strategy": [("longest", "`stopping_strategy` must be one of .* is 'longest'")],
    "task_weights": [
        ({"score": -1.0}, r"`task_weights\['score'\]` must be a number of 0 or more, and is -1.0"),
        ({"score": "much"}, r"`task_weights\['score'\]` must be a number"),
        ({"scores": 1.0}, "`task_weights` names a task 'scores', .* did you mean 'score'"),
    ],
    "encoder_lr_multiplier": [(-1.0, "`encoder_lr_multiplier` must be a number of 0 or more")],
    "heads_lr_multiplier": [(None, "`heads_lr_multiplier` must be a number of 0 or more")],
    "task_lr_multipliers": [
        ({"score": -1.0}, r"`task_lr_multipliers\['score'\]` must be a number of 0 or more, and is -1.0"),
        ({"scores": 1.0}, "`task_lr_multipliers` names a task 'scores', .* did you mean 'score'"),
    ],
    "freeze_encoder": [("yes", "`freeze_encoder` must be True or False, and is 'yes'")],
    "freeze_layers": [
        (-1, "`freeze_layers` must be a number of layers, and is -1"),
        (9, r"`freeze_layers` is 9, and the encoder \(BertModel\) has 2 layers"),
    ],
    "freeze_batch_norm": [(1, "`freeze_batch_norm` must be True or False, and is 1")],
    "non_finite_strategy": [("ignore", "`non_finite_strategy` must be one of .* is 'ignore'")],
    "consistency_check_steps": [
        (value, f"`consistency_check_steps` must be a whole number of 0 or more, and is {value!r}")
        for value in (-1, 2.5, "often")
    ],
    "max_skipped_steps": [
        (value, f"`max_skipped_steps` must be a whole number of 1 or more, or None, and is {value!r}")
        for value in (0, -1, 2.5, True)
    ],
}


def test_the_table_holds_every_field() -> None:
    assert OWN_PROBES.keys() | OVER_PROCESSES == WRONG.keys() == OWN
    assert not OWN_PROBES.keys() & OVER_PROCESSES


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Seeing:
    return run(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", OWN_PROBES)
def test_it_works(name: str, tmp_path: Path, plain: Seeing) -> None:
    OWN_PROBES[name](tmp_path, plain)


@pytest.mark.parametrize(
    ("name", "value", "message"), [(name, *case) for name, cases in WRONG.items() for case in cases]
)
def test_it_is_refused(name: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **{name: value})


@pytest.mark.parametrize("name", ["encoder_lr_multiplier", "heads_lr_multiplier"])
def test_multipliers_are_not_for_a_ready_optimizer(name: str, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(tiny_model(TWO).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"`{name}`"):
        make(tmp_path, optimizers=(optimizer, None), **{name: 2.0})


# ---- the command line


def test_the_command_line(tmp_path: Path) -> None:
    given = {
        "balancer": "log+max_norm",
        "balancer_kwargs": {"alpha": "min"},
        "mixing": "temperature",
        "mixing_temperature": 4.0,
        "per_task_batch_size": {"mrpc": 4, "stsb": 8},
        "stopping_strategy": "first_exhausted",
        "task_weights": {"mrpc": 2.0, "stsb": 0.5},
        "encoder_lr_multiplier": 0.5,
        "heads_lr_multiplier": 2.0,
        "task_lr_multipliers": {"mrpc": 10.0},
        "freeze_encoder": True,
        "freeze_layers": 2,
        "freeze_batch_norm": True,
        "non_finite_strategy": "raise",
        "max_skipped_steps": 7,
        "consistency_check_steps": 5,
    }
    assert given.keys() == OWN
    words = [f"--output_dir={tmp_path}"]
    for name, value in given.items():
        words += [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
    (args,) = HfArgumentParser(MultiTaskTrainingArguments).parse_args_into_dataclasses(words)
    assert {name: getattr(args, name) for name in given} == given
    (defaults,) = HfArgumentParser(MultiTaskTrainingArguments).parse_args_into_dataclasses(words[:1])
    assert defaults.balancer == "db_mtl" and defaults.balancer_kwargs is None and defaults.max_grad_norm == 0
    (again,) = HfArgumentParser(MultiTaskTrainingArguments).parse_dict({**given, "output_dir": str(tmp_path)})
    assert {name: getattr(again, name) for name in given} == given


@pytest.mark.parametrize("name", ["mixing", "stopping_strategy", "non_finite_strategy"])
def test_the_command_line_knows_the_choices(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        HfArgumentParser(MultiTaskTrainingArguments).parse_args_into_dataclasses([f"--{name}=wrong"])
    assert f"argument --{name}" in capsys.readouterr().err


def test_every_field_has_help() -> None:
    for field in fields(MultiTaskTrainingArguments):
        if field.name in OWN | {"max_grad_norm", "per_device_train_batch_size"}:
            assert len(field.metadata["help"]) > 20, field.name
        if field.name == "max_grad_norm":
            assert "would undo" in field.metadata["help"]
