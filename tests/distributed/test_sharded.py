"""FSDP2: what is sharded and what is not, whoever lacks a task, skipped steps, and the Trainer's other arguments."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import distance  # noqa: E402
from launching import Group  # noqa: E402
from sharded_scenarios import MultiTaskTrainer, of_a_users_module  # noqa: E402


def test_a_users_module(pair: Group, tmp_path: Path) -> None:
    one, other = pair.of("sharded_scenarios:users_module")
    assert {name for name, sharded in one["sharded"].items() if not sharded} == {
        name for name in one["sharded"] if name.startswith("heads.")
    }
    assert one["heads"] == other["heads"]
    _, expected = of_a_users_module(tmp_path, MultiTaskTrainer)
    for rank in range(2):
        assert distance(expected, torch.load(pair.folder / f"users_module-{rank}.pt", weights_only=True)) < 1e-10


def test_parameters_left_whole_are_counted_once(pair: Group, tmp_path: Path) -> None:
    one, other = pair.of("sharded_scenarios:partly_whole")
    assert [name for name, sharded in one["sharded"].items() if sharded] == ["trunk.first.weight", "trunk.first.bias"]
    _, expected = of_a_users_module(tmp_path, MultiTaskTrainer)
    for rank in range(2):
        assert distance(expected, torch.load(pair.folder / f"partly_whole-{rank}.pt", weights_only=True)) < 1e-10
    assert one["resumed"] == other["resumed"] == 0.0
    # 5 rows of 3 + 1 are cut 3 to 2, and the 30 entries left whole in halves
    assert [one["held"], other["held"]] == [[12 + 15] * 2, [8 + 15] * 2]


def test_a_nan_on_one_process_skips_the_step_on_all(pair: Group) -> None:
    for outcome in pair.of("sharded_scenarios:skipped_step"):
        assert outcome["moved"] == [False, True, False]  # at the second step, the third, and the end of the epoch
        assert outcome["updates"][1] == 0 < outcome["updates"][0]
        assert outcome["finite"] and outcome["balanced"] == 2
        assert outcome["skipped"] == [None, 1, None]


@pytest.mark.parametrize("name", ["plain", "clipped and multiplied", "checkpointing"])
def test_other_arguments(name: str, pair: Group) -> None:
    for outcome in pair.of("sharded_scenarios:other_arguments"):
        assert outcome[name]["steps"] < 1e-10 > outcome[name]["weights"]
        assert outcome[name]["loss"] < 1e-10
        differs = outcome[name]["sum"] != pytest.approx(outcome["plain"]["sum"], rel=1e-9)
        assert differs == (name == "clipped and multiplied")


def test_other_placements_are_refused(pair: Group) -> None:
    for outcome in pair.of("sharded_scenarios:refused"):
        for name, place in (("columns", r"\(Shard\(dim=1\),\)"), ("whole", r"\(Replicate\(\),\)")):
            assert re.match(f"FSDP has placed 'weight' as {place}, .* Use FSDP2 without a hybrid", outcome[name])
        assert re.match("FSDP has sharded 'weight', a parameter that is not shared by all tasks", outcome["head"])


def test_own_checkpointing(pair: Group) -> None:
    for outcome in pair.of("sharded_scenarios:own_checkpointing"):
        assert outcome["steps"] < 1e-10
        assert outcome["names"] and outcome["wrapped"]
