"""Datasets without a length on two processes: the steps of one process, also after a checkpoint of the other number."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoint_scenarios import STOP  # noqa: E402
from helpers import distance  # noqa: E402
from launching import Group  # noqa: E402
from parts import STREAMS  # noqa: E402
from stream_scenarios import run  # noqa: E402


@pytest.fixture(scope="module")
def folder(pair: Group) -> Path:
    for name in STREAMS:
        pair.of(name)
    run(pair.folder, "ddp")
    run(pair.folder, "ddp", "2")
    return pair.folder


def steps(folder: Path, name: str, rank: int = 0) -> list[dict]:
    return torch.load(folder / f"streams-{name}" / f"steps-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_two_processes_train_as_one(layout: str, folder: Path) -> None:
    whole = steps(folder, "ddp-1")
    for rank in range(2):
        found = steps(folder, f"{layout}-2", rank)
        assert distance(whole, found) < 1e-10
        assert distance(whole[1:], found[:-1]) > 1e-3  # another step would show


def test_resumed(folder: Path) -> None:
    for rank in range(2):
        assert distance(steps(folder, "ddp-2", rank)[STOP:], steps(folder, "ddp-2-of-2", rank)) == 0.0
    assert distance(steps(folder, "ddp-1")[STOP:], steps(folder, "ddp-1-of-2")) < 1e-10
