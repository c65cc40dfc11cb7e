"""Bytes and buffers by counters; evaluation and BatchNorm over processes; runs that come apart end on every process."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from distributed_cases import shared_data  # noqa: E402
from exchange_scenarios import metrics_of, some_maps  # noqa: E402
from helpers import TASKS, arguments, distance, tiny_data, tiny_dataset, tiny_model, train  # noqa: E402
from launching import Group, started  # noqa: E402
from paper_arithmetic import averages, ddp_buffers, ddp_sent, fsdp_sent, reducing_each, table  # noqa: E402
from scenes import MAPS, model_of  # noqa: E402

from hf_dbmtl import MultiTaskTrainer  # noqa: E402


W, T = 2, len(TASKS)


def sizes(shapes: list[list[int]]) -> tuple[int, int, int]:
    """The shared parameters; padded to slices of equal length; each padded to W times as many rows (FSDP)."""
    whole = sum(map(math.prod, shapes))
    rows = sum(-(-shape[0] // W) * W * math.prod(shape[1:]) for shape in shapes)
    return whole, -(-whole // W) * W, rows


@pytest.mark.parametrize("run", ["db_mtl 1", "db_mtl 2", "log+pcgrad 1"])
def test_ddp(run: str, pair: Group) -> None:
    for outcome in pair.of("exchange_scenarios:counted"):
        found = outcome[f"ddp {run}"]
        whole, padded, _ = sizes(found["shapes"])
        assert whole != padded
        assert found["calls"]["reduce_scatter"] == T and found["calls"]["all_gather"] == 1
        assert found["sizes"]["reduce_scatter"] == T * padded * 4 and found["sizes"]["all_gather"] == padded * 4
        volume = found["volumes"]["reduce_scatter"] + found["volumes"]["all_gather"]
        assert volume == ddp_sent(T, padded, W)
        padding = volume - ddp_sent(T, whole, W)
        assert volume - padding <= reducing_each(T, whole, W) * (T + 1) / (2 * T)
        # beside it the heads once, and a few numbers for every task: reached parameters, losses, norms
        assert found["sizes"]["all_reduce"] - found["heads"] * 4 <= T * 8 * (found["parameters"] + 4 + T * T + 2)
        assert sum(found["rows"]) == averages(T, padded, W)
        assert sum(found["buffers"]) == ddp_buffers(padded)


@pytest.mark.parametrize("run", ["ew 1", "ew 2"])
def test_a_plain_sum_is_exchanged_once(run: str, pair: Group) -> None:
    for outcome in pair.of("exchange_scenarios:counted"):
        found = outcome[f"ddp {run}"]
        _, padded, _ = sizes(found["shapes"])
        assert found["calls"]["reduce_scatter"] == 1 and found["calls"]["all_gather"] == 1
        assert found["volumes"]["reduce_scatter"] + found["volumes"]["all_gather"] == ddp_sent(1, padded, W)
        # items before the passes; losses, items, reached parameters and norms behind them
        assert found["sizes"]["all_reduce"] - found["heads"] * 4 <= 8 * (found["parameters"] + 4 * T + 2)
        assert sum(found["buffers"]) <= ddp_buffers(padded)
        assert sum(outcome[f"fsdp {run}"]["calls"].values()) < sum(outcome["fsdp db_mtl 1"]["calls"].values()) * int(
            run[-1]
        )


@pytest.mark.parametrize("run", ["db_mtl 1", "db_mtl 2", "log+pcgrad 1"])
def test_fsdp(run: str, pair: Group) -> None:
    passes = T * int(run[-1])
    for outcome in pair.of("exchange_scenarios:counted"):
        found = outcome[f"fsdp {run}"]
        whole, _, padded = sizes(found["shapes"])
        reached = padded - sizes([shape for shape in found["shapes"] if shape == [8, 8]][-1:])[2] - 8  # no pooler
        assert found["sizes"]["reduce_scatter"] == passes * reached * 4
        # for every forward pass, and again for every backward pass of what is not kept
        assert passes * whole * 4 <= found["sizes"]["all_gather"] <= 2 * passes * padded * 4
        sent = found["volumes"]["reduce_scatter"] + found["volumes"]["all_gather"]
        assert sent <= fsdp_sent(T, padded, W, passes // T, size=4)
        assert len(found["rows"]) == T and sum(found["rows"]) <= averages(T, padded, W)
        assert sum(found["buffers"]) == 0  # everything shared is sharded


def test_the_whole_rows_would_be_more(pair: Group) -> None:
    """The control: what is counted depends on the layout and on the micro-batches."""
    (one, _) = pair.of("exchange_scenarios:counted")
    assert one["ddp db_mtl 1"]["sizes"] == one["ddp db_mtl 2"]["sizes"]
    assert one["fsdp db_mtl 2"]["sizes"]["reduce_scatter"] == 2 * one["fsdp db_mtl 1"]["sizes"]["reduce_scatter"]


def test_the_table_is_that_of_the_formulas() -> None:
    assert table() in (ROOT / "docs" / "scaling.md").read_text()


def test_buffers_are_averaged(pair: Group) -> None:
    one, other = pair.of("exchange_scenarios:averaged_buffers")
    assert one["before"] != other["before"]
    mean = [(a + b) / 2 for a, b in zip(one["before"], other["before"])]
    assert one["after"] == other["after"] == pytest.approx(mean, rel=1e-6)
    assert one["evaluated"] == other["evaluated"]
    assert one["counted"] == other["counted"] == 4


def test_evaluation_is_that_of_one_process(pair: Group, tmp_path: Path) -> None:
    data = {
        task: tiny_dataset(TASKS[task], rows, seed, 0.3)
        for seed, (task, rows) in enumerate(zip(TASKS, (10, 13, 3, 16), strict=True))
    }
    trainer = MultiTaskTrainer(
        model=tiny_model(), args=arguments(tmp_path), train_dataset=tiny_data(rows=24), eval_dataset=data
    )
    expected = {key: value for key, value in trainer.evaluate().items() if key.endswith("_loss")}
    assert len(expected) == T + 1
    shared = metrics_of(trainer.evaluate(shared_data(13)))
    assert len(shared) > 2 * T
    maps = metrics_of(MultiTaskTrainer(model_of(MAPS), arguments(tmp_path)).evaluate({"scenes": some_maps()}))
    assert "eval_depth_delta_1" in maps
    for outcome in pair.of("exchange_scenarios:evaluated"):
        assert outcome["ddp, shared"] == pytest.approx(shared, rel=1e-9)
        assert outcome["fsdp, shared"] == pytest.approx(shared, rel=1e-9)
        assert outcome["maps"] == pytest.approx(maps, rel=1e-9)
        assert outcome["ddp"] == pytest.approx(expected, rel=1e-9)
        assert outcome["fsdp"] == pytest.approx(expected, rel=1e-9)


def test_a_nan_on_one_process(pair: Group) -> None:
    one, other = pair.of("exchange_scenarios:poisoned")
    assert one == other
    assert one["updates"][1] == 0 < one["updates"][0] and one["balanced"] == 2
    assert math.isfinite(one["weights"]) and "Task 'traits'" in one["raised"]


@pytest.mark.parametrize("balancer", ["db_mtl", "ew"])
def test_a_loss_over_no_items_on_one_process(balancer: str, pair: Group) -> None:
    """All of them end, and the one that knows tells the numbers."""
    quiet, knows = (outcome[balancer] for outcome in pair.of("exchange_scenarios:contradicted"))
    assert re.match(r"Task 'score': its loss is [\d.]+ over num_items=0\.", knows)
    assert quiet.startswith("Task 'score': its loss is nan over num_items=0.")


def test_frozen_heads(pair: Group, tmp_path: Path) -> None:
    model = tiny_model()
    model.heads.requires_grad_(False)
    _, expected = train(model, arguments(tmp_path), tiny_data(rows=24))
    for rank, outcome in enumerate(pair.of("exchange_scenarios:frozen_heads")):
        assert outcome["heads"] == 0 and outcome["distance"] < 1e-10
        assert distance(expected, torch.load(pair.folder / f"frozen_heads-{rank}.pt", weights_only=True)) < 1e-10


def test_one_process_writes_the_card(pair: Group) -> None:
    assert [outcome["written"] for outcome in pair.of("exchange_scenarios:cards")] == [True, False]


def test_what_several_processes_are_refused(pair: Group) -> None:
    one, other = pair.of("exchange_scenarios:refused")
    assert one == other
    assert re.match(r"`fsdp` has no effect on this device \(cpu\), .*: leave it out, or use GPUs", one["fsdp"])
    assert re.match("TorchJD's GradDrop looks at whole gradients, .* one process only.*'graddrop'", one["aggregator"])


def test_processes_that_come_apart(pair: Group) -> None:
    one, other = pair.of("exchange_scenarios:come_apart")
    assert one == other
    assert one["same"] == one["rows, unchecked"] == one["drift, unchecked"] == ""
    assert one["size"].startswith("The processes of this run differ in the number of steps")
    assert "the number of rows of task 'score'" in one["size"]
    for rows in ("rows", "rows, as tensors"):
        assert one[rows].startswith("The processes of this run differ in the rows of task 'score'.")
    assert one["drift"].startswith("The processes of this run differ in the parameter 'heads.topic.linear.bias'.")


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    names = [f"exchange_scenarios:compiled:{layout}" for layout in ("ddp", "fsdp")]
    group = started(W, tmp_path / "compiled", names)
    for outcome in (*group.of(names[0]), *group.of(names[1])):
        assert outcome["compiled"] and outcome["distance"] < 1e-10
