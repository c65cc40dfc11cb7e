"""A comparison by numbers worked out by hand, and what its tables hold."""

from __future__ import annotations

import csv
from io import StringIO
from statistics import stdev

import pytest

from hf_dbmtl.comparison import Run, Spread, shown, summarise
from hf_dbmtl.comparison_plots import plot_conflicts, plot_delta_p
from hf_dbmtl.comparison_text import to_csv, to_markdown, to_table


TASKS = {"a": ["accuracy"], "b": ["mae", "r2"]}


def run(method: str, seed: int, accuracy: float, mae: float, r2: float, **cost) -> Run:
    return Run(method, seed, {"a": {"accuracy": accuracy, "f1": 0.1}, "b": {"mae": mae, "r2": r2}}, **cost)


# The single-task means over both seeds: accuracy 0.5, mae 2.0, r2 0.8.
ALONE = [
    Run("single-task", 0, {"a": {"accuracy": 0.4}}, 0.01, 100),
    Run("single-task", 0, {"b": {"mae": 1.9, "r2": 0.7}}, 0.03, 300),
    Run("single-task", 1, {"a": {"accuracy": 0.6}}, 0.02, 100),
    Run("single-task", 1, {"b": {"mae": 2.1, "r2": 0.9}}, 0.04, 200),
]
# Seed 0: a +20 %; b: mae 1.8 is 10 % lower, so +10 %, r2 0.6 is -25 %: mean -7.5 %. Δp = (20 - 7.5) / 2 = 6.25 %.
# Seed 1: a -10 %; b: mae 2.4 is 20 % higher, so -20 %, r2 0.8 is 0 %: mean -10 %. Δp = (-10 - 10) / 2 = -10 %.
TOGETHER = [
    run("db_mtl", 0, 0.6, 1.8, 0.6, seconds=0.1, memory=1000),
    run("db_mtl", 1, 0.45, 2.4, 0.8, seconds=0.3, memory=3000),
]


def test_delta_p_by_hand():
    alone, together = summarise([*ALONE, *TOGETHER], TASKS)
    assert together.delta_p.values == pytest.approx((6.25, -10.0))
    assert together.delta_p.mean == pytest.approx(-1.875)
    assert together.delta_p.deviation == pytest.approx(stdev([6.25, -10.0]))
    assert together.delta_p_by_task["b"].values == pytest.approx((-7.5, -10.0))
    assert together.metrics["a"]["accuracy"].mean == pytest.approx(0.525)
    assert "f1" not in together.metrics["a"]
    assert together.average.values == pytest.approx(((0.6 + 1.8) / 2, (0.45 + 2.4) / 2))
    assert (together.seconds, together.memory, together.runs) == (pytest.approx(0.2), 2000, 2)
    # against its own mean: a -20 %, b (5 - 12.5) / 2 = -3.75 %
    assert alone.delta_p.values == pytest.approx(((-20 - 3.75) / 2, (20 + 3.75) / 2))
    assert alone.delta_p.mean == pytest.approx(0, abs=1e-12)
    # the models of a seed count as one: their steps one after the other, the memory of the largest
    assert (alone.runs, alone.seconds, alone.memory) == (2, pytest.approx(0.05), 250)


def test_over_tasks_not_over_metrics():
    """The control: the mean over all metrics at once, which others call Δm, is another number."""
    _, together = summarise([*ALONE, *TOGETHER], TASKS)
    assert together.delta_p.values[0] != pytest.approx((20 + 10 - 25) / 3)


def test_another_reference_and_direction():
    other = [run("ew", 0, 0.5, 2.0, 0.8), run("log", 0, 0.5, 1.0, 0.8)]
    ew, log = summarise(other, TASKS, reference="ew")
    assert (ew.delta_p.values, log.delta_p.values) == ((0.0,), (12.5,))
    assert log.delta_p.deviation is None
    (_, log) = summarise(other, TASKS, reference="ew", greater_is_better={"mae": True})
    assert log.delta_p.values == (-12.5,)


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (TOGETHER, "the reference 'single-task' has no result for a, b"),
        ([*ALONE[:1], *TOGETHER], "the reference 'single-task' has no result for b"),
        ([Run("single-task", 0, {"a": {"accuracy": 0.0}, "b": {"mae": 1.0, "r2": 1.0}}), *TOGETHER], "'accuracy' of 0"),
    ],
)
def test_without_delta_p(runs, why):
    found = summarise(runs, TASKS)[-1]
    assert found.delta_p is None and why in found.why
    assert found.metrics["b"]["r2"].mean == pytest.approx(0.7)
    assert why in to_markdown([found], TASKS)


def test_tables():
    summaries = summarise([*ALONE, *TOGETHER], TASKS)
    header, rows = to_table(summaries, TASKS)
    assert header == ["method", "runs", "a accuracy", "b mae", "b r2", "average", "Δp %", "ms/step", "MiB"]
    assert rows[1][:4] == ["db_mtl", "2", "0.5250 ± 0.1061", "2.1000 ± 0.4243"]
    assert rows[1][6:] == ["-1.88 ± 11.49", "200.0", "0"]
    marked = to_markdown(summaries, TASKS).splitlines()
    assert marked[3].split(" | ")[2].startswith("**0.5250")  # the higher accuracy
    assert marked[2].split(" | ")[3].startswith("**2.0000")  # the lower error
    read = {line["method"]: line for line in csv.DictReader(StringIO(to_csv(summaries, TASKS)))}
    assert float(read["db_mtl"]["delta_p_mean"]) == pytest.approx(-1.875)
    assert float(read["db_mtl"]["b_mae_std"]) == pytest.approx(stdev([1.8, 2.4]))
    assert (read["db_mtl"]["seconds_per_step"], read["db_mtl"]["memory_bytes"]) == ("0.2", "2000.0")


@pytest.mark.parametrize(("number", "text"), [(-0.001, "0.00"), (0.0, "0.00"), (-0.006, "-0.01"), (1.5, "+1.50")])
def test_no_negative_zero(number, text):
    assert shown(number, "+.2f") == text
    assert Spread((number,)).show("+.2f") == text


def test_pictures(tmp_path):
    summaries = summarise([*ALONE, *TOGETHER], TASKS)
    assert plot_delta_p(summaries, tmp_path / "delta.png", "single-task").stat().st_size > 5_000
    log = [{"step": step, "cosine/a/b": 0.1 * step, "loss": 1.0} for step in range(5)]
    assert plot_conflicts({"ew": log, "silent": []}, ["a", "b"], tmp_path / "conflicts.png").stat().st_size > 5_000
    several = {f"method {number}": log for number in range(5)}  # four in a row, and one below
    assert plot_conflicts(several, ["a", "b"], tmp_path / "five.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match="No log holds a cosine"):
        plot_conflicts({"silent": [{"step": 1, "loss": 1.0}]}, ["a", "b"], tmp_path / "none.png")
    with pytest.raises(ValueError, match="No method has a Δp"):
        plot_delta_p(summarise(TOGETHER, TASKS), tmp_path / "none.png", "single-task")
