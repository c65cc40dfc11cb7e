"""The benchmarks of quality and of the peers run at a tiny size, on generated data. Their figures are for real data and time."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[tuple[ModuleType, ModuleType]]:
    sys.path.insert(0, str(BENCHMARKS))
    import peers
    import quality

    yield quality, peers
    sys.path.remove(str(BENCHMARKS))


def write(folder: Path, name: str, make: object) -> None:
    (folder / name).mkdir(parents=True)
    for split, rows in (("train", 40), ("validation", 150)):
        Dataset.from_dict(make(np.random.default_rng(rows), rows)).to_parquet(folder / name / f"{split}.parquet")


def digits(draw: np.random.Generator, rows: int) -> dict[str, list]:
    images = [Image.fromarray(draw.integers(0, 256, (36, 36), dtype=np.uint8)) for _ in range(rows)]
    return {"image": images, "left": draw.integers(0, 10, rows), "right": draw.integers(0, 10, rows)}


def clothes(draw: np.random.Generator, rows: int) -> dict[str, list]:
    images = [Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(rows)]
    return {"image": images, "label": draw.integers(0, 15, rows), "kids": draw.integers(0, 2, rows)}


def characters(draw: np.random.Generator, rows: int) -> dict[str, list]:
    images = [Image.fromarray(draw.integers(0, 256, (52, 52), dtype=np.uint8)) for _ in range(rows)]
    numbers = {"num_strokes": draw.integers(1, 5, rows), "duration_ms": draw.integers(500, 50_000, rows)}
    return {"image": images, "alphabet": draw.integers(0, 5, rows), **numbers}


def molecules(draw: np.random.Generator, rows: int) -> dict[str, list]:
    import quality_suites

    smiles = ["".join(draw.choice(list("CNO=#1()"), draw.integers(2, 20))) for _ in range(rows)]
    scales = {name: 10.0 ** (3 - k) for k, name in enumerate(quality_suites.QM9)}
    return {"smiles": smiles, **{name: draw.normal(5 * scale, scale, rows) for name, scale in scales.items()}}


@pytest.mark.parametrize(
    ("suite", "source", "make", "tasks", "further", "rates"),
    [
        ("images", "multi_mnist", digits, ("left", "right"), [], {"0.001", "0.002"}),
        (
            "characters",
            "omniglot_small",
            characters,
            ("alphabet", "num_strokes", "duration_ms"),
            [],
            {"0.0005", "0.001", "0.002"},
        ),
        (
            "clothing",
            "clothing64",
            clothes,
            ("label", "kids"),
            ["--grid", "0.1", "0.3", "--optim", "sgd", "--tune_each"],
            {"0.1", "0.3"},
        ),
    ],
)
def test_quality_runs_and_goes_on_from_its_cache(
    modules: tuple[ModuleType, ModuleType],
    suite: str,
    source: str,
    make: Callable,
    tasks: tuple[str, ...],
    further: list[str],
    rates: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quality, _ = modules
    monkeypatch.setattr(quality, "EVERY", 1)
    write(tmp_path / "data", source, make)
    words = ["--data", tmp_path / "data", "--suite", suite, "--arms", "single-task", "ew", "db_mtl", "--seeds", "0"]
    words += ["--steps", "2", "--cache", tmp_path / "cache", "--results", tmp_path / "results", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, words), *further])
    quality.main()
    results = tmp_path / "results" / f"quality_{suite}.csv"
    with open(results) as file:
        rows = list(csv.DictReader(file))
    assert {(row["method"], row["task"]) for row in rows} == set(
        itertools.product(("single-task", "ew", "db_mtl"), tasks)
    )
    assert all((-1 if row["metric"] == "spearman" else 0) <= float(row["value"]) <= 1 for row in rows)
    about = json.loads(results.with_suffix(".json").read_text())
    assert set(about["tuning"]) == rates and about["test_rows"] == dict.fromkeys(tasks, 100)
    assert " ".join(further) in about["command"]
    arms = {"single-task", "ew", "db_mtl"}
    assert set().union(*about["tuning"].values()) == (arms if "--tune_each" in further else arms - {"db_mtl"})
    with open(results.with_name(f"quality_{suite}_records.csv")) as file:
        records = list(csv.DictReader(file))
    assert [(row["method"], row["step"]) for row in records] == list(itertools.product(("ew", "db_mtl"), "12"))
    assert all(float(row[f"{what}/{task}"]) > 0 for row in records for what in ("loss", "weight") for task in tasks)
    before = results.read_text()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(quality, "train", refuse)
    quality.main()
    assert results.read_text() == before
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "3"])
    with pytest.raises(AssertionError, match="trained again"):  # other settings are another run
        quality.main()


@pytest.mark.parametrize(
    ("how", "rates", "diverged"),
    [
        (["--tune_each"], {"single-task": 0.1, "ew": 0.2, "log": 0.1, "db_mtl": 0.3}, []),
        ([], 0.1, []),
        (["--learning_rate", "0.3"], 0.3, ["log, seed 0"]),
    ],
)
def test_learning_rates_by_what_is_not_tested_on_and_does_not_diverge(
    modules: tuple[ModuleType, ModuleType],
    how: list[str],
    rates: float | dict[str, float],
    diverged: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quality, _ = modules
    write(tmp_path / "data", "multi_mnist", digits)
    best = {"single-task": 0.1, "ew": 0.2, "log": 0.3, "db_mtl": 0.3}

    def pretend(suite: object, arm: str, tasks: list[str], seed: int, steps: int, rate: float) -> dict:
        if (arm, rate) == ("log", 0.3):
            return {
                "tuning": {},
                "test": {},
                "seconds": None,
                "records": [],
                "diverged": "Task 'left': its loss is NaN.",
            }
        good = rate == best[arm]
        scores = {
            part: dict.fromkeys(tasks, {"accuracy": 0.5 + 0.4 * one})
            for part, one in (("tuning", good), ("test", not good))
        }
        return {**scores, "seconds": 1.0, "records": []}

    monkeypatch.setattr(quality, "train", pretend)
    words = ["--data", tmp_path / "data", "--suite", "images", "--seeds", "0", "--arms", *best]
    words += ["--grid", "0.1", "0.2", "0.3"]
    words += ["--cache", tmp_path / "cache", "--results", tmp_path, *how]
    monkeypatch.setattr(sys, "argv", ["quality.py", *map(str, words)])
    quality.main()
    about = json.loads((tmp_path / "quality_images.json").read_text())
    assert about["learning_rate"] == rates and about["diverged"] == diverged
    with open(tmp_path / "quality_images.csv") as file:
        assert ("log" in {row["method"] for row in csv.DictReader(file)}) == (not diverged)


def test_molecules_keep_their_units_unless_standardised(modules: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    quality, _ = modules
    write(tmp_path, "qm9_small", molecules)
    raw, standardised = (quality.SUITES[name](tmp_path, tmp_path) for name in ("molecules", "molecules_standardised"))
    for suite, largest in ((raw, 1e3), (standardised, 1.0)):
        deviations = [float(rows.columns["labels"].std()) for rows in suite.train.values()]
        assert max(deviations) == pytest.approx(largest, rel=0.5)
        assert (max(deviations) > 1e9 * min(deviations)) == (suite is raw)
        assert all(abs(float(rows.columns["labels"].mean())) < 1e-4 * largest for rows in suite.train.values())
    torch.manual_seed(0)
    outputs = [suite.model(["mu"])(task="mu", **raw.train["mu"].batch(torch.arange(20))).logits for suite in (raw, raw)]
    assert outputs[0].std() > 10 and not outputs[0].equal(outputs[1])


def how(inputs: str, libmtl: Path | None = None, bf16: bool = False) -> argparse.Namespace:
    where = {"device": "cpu", "bf16": bf16, "rows": None, "tokens": None}
    return argparse.Namespace(inputs=inputs, libmtl=libmtl, peers=["LibMTL"], **where)


def update(peers: ModuleType, arm: str, inputs: str, bf16: bool = False) -> torch.Tensor:
    before = peers.make_model("tiny", 2).state_dict()
    after = peers.train(arm, "tiny", 2, 3, how(inputs, bf16=bf16), sgd=True).state_dict()
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


@pytest.mark.parametrize("inputs", ["separate", "shared"])
def test_torchjd_makes_our_update_and_summed_losses_do_not(modules: tuple[ModuleType, ModuleType], inputs: str) -> None:
    _, peers = modules
    ours = update(peers, "hf_dbmtl", inputs)
    for arm in ("TorchJD", "TorchJD, one task at a time"):
        assert (update(peers, arm, inputs) - ours).norm() < 1e-5 * ours.norm()
    assert (update(peers, peers.FLOOR, inputs) - ours).norm() > 1e-2 * ours.norm()


@pytest.mark.parametrize("inputs", ["separate", "shared"])
def test_the_release_of_libmtl_makes_our_updates_method_by_method(
    modules: tuple[ModuleType, ModuleType], inputs: str
) -> None:
    """Its own code, which `make test` installs."""
    _, peers = modules
    theirs = [arm for arm in peers.arms_of(how(inputs)) if arm.startswith("LibMTL")]
    assert theirs == ["LibMTL, EW", "LibMTL, UW", "LibMTL, DWA", "LibMTL, RLW", "LibMTL, GLS"]
    updates = {}
    for arm in theirs:
        if ours := peers.counterpart(arm):  # not for RLW, whose draws are its own
            updates[arm], own = update(peers, arm, inputs), update(peers, ours, inputs)
            assert (updates[arm] - own).norm() < 1e-5 * own.norm(), arm
    assert set(theirs) - set(updates) == {"LibMTL, RLW"}
    for one, other in itertools.combinations(updates.values(), 2):  # the methods are not one and the same
        assert (one - other).norm() > 1e-4 * one.norm()


@pytest.mark.parametrize("arm", ["hf_dbmtl", "TorchJD", "hf_dbmtl, GLS", "LibMTL, GLS", "stock Trainer, summed losses"])
def test_every_library_computes_in_bfloat16_where_it_is_asked_to(
    modules: tuple[ModuleType, ModuleType], arm: str
) -> None:
    _, peers = modules
    whole, half = update(peers, arm, "separate"), update(peers, arm, "separate", bf16=True)
    assert 1e-4 * whole.norm() < (half - whole).norm() < 5e-2 * whole.norm()


def test_the_bytes_of_the_roofline(modules: tuple[ModuleType, ModuleType]) -> None:
    import peers_roofline

    one, two = torch.ones(1000), torch.ones(1000)
    for moved, run in (
        (0, lambda: one.view(10, 100)[2:5].T),
        (0, lambda: torch.empty(1000)),
        (1, lambda: one.zero_()),
        (2, lambda: one.copy_(two)),
        (2, lambda: one.mul_(3.0)),
        (3, lambda: torch.add(one, two)),
        (3, lambda: torch.mul(one, two, out=torch.empty(1000))),
        (3, lambda: torch._foreach_lerp_([one], [two], 0.5)),
        (1.001, lambda: one.sum()),
        (0.2, lambda: one[:100].mul_(3.0)),
    ):
        with peers_roofline.Traffic() as traffic:
            run()
        assert traffic.bytes == pytest.approx(4000 * moved)
    found = peers_roofline.roofline(tasks=3, size=100_000, device="cpu", steps=2)
    # an average takes three, its norm one, the sum of the first task two and of every other three
    assert found["bytes"] == pytest.approx(4 * 100_000 * (3 * 4 + 2 + 2 * 3), rel=1e-2)
    assert found["least_bytes"] == 4 * 100_000 * 13
    assert found["bandwidth"] * found["roofline_milliseconds"] == pytest.approx(1e3 * found["bytes"], rel=1e-2)
    assert found["share"] > 0


def test_libmtl_is_compared_by_its_db_mtl_where_it_has_one(
    modules: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    _, peers = modules
    with pytest.raises(SystemExit, match="clone"):
        peers.arms_of(how("separate", tmp_path))
    place = tmp_path / "LibMTL" / "weighting"
    place.mkdir(parents=True)
    (place / "EW.py").touch()
    assert "LibMTL, EW" in peers.arms_of(how("separate", tmp_path))
    (place / "DB_MTL.py").touch()
    assert [arm for arm in peers.arms_of(how("separate", tmp_path)) if arm.startswith("LibMTL")] == ["LibMTL"]


@pytest.mark.slow
def test_peers_take_turns_in_processes(tmp_path: Path) -> None:
    words = "--sizes tiny --tasks 2 --peers TorchJD --steps 3 --threads 1 --device cpu".split()
    subprocess.run(
        [sys.executable, str(BENCHMARKS / "peers.py"), *words, "--output", str(tmp_path / "found.json")],
        check=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)},
        capture_output=True,
    )
    (result,) = json.loads((tmp_path / "found.json").read_text())["results"]
    assert set(result["arms"]) == {"stock Trainer, summed losses", "hf_dbmtl", "TorchJD"}
    assert all(row["ratio"] > 0 and row["peak_MiB"] > 0 for row in result["arms"].values())
    assert result["arms"]["hf_dbmtl"]["roofline"]["bytes"] > result["arms"]["hf_dbmtl"]["roofline"]["least_bytes"]
    assert result["arms"]["TorchJD"]["difference_float32"] < 1e-5
    assert result["arms"]["TorchJD"]["difference_float64"] < 1e-12
