"""Stop after a step and go on: bit for bit on as many processes, to rounding on another number of them (G5)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoint_scenarios import STOP, resume, save  # noqa: E402
from helpers import distance  # noqa: E402
from launching import Group, started  # noqa: E402
from parts import CHECKPOINTS  # noqa: E402


LAYOUTS = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def folder(pair: Group) -> Path:
    """Two processes have saved, and resumed what they have saved; a single one resumes it too, and saves."""
    for name in CHECKPOINTS:
        pair.of(name)
    save(pair.folder, "single")
    save(pair.folder, "ddp")
    resume(pair.folder, "ddp", "2")
    return pair.folder


def steps(folder: Path, name: str, rank: int = 0) -> list[dict]:
    return torch.load(folder / name / f"steps-{rank}.pt", weights_only=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resume_at_the_same_layout_is_exact(layout: str, folder: Path) -> None:
    for rank in range(2):
        whole, resumed = steps(folder, f"{layout}-2", rank), steps(folder, f"{layout}-2-2-{STOP}", rank)
        assert len(resumed) == 6 - STOP
        assert distance(whole[STOP:], resumed) == 0.0
        assert distance(whole[STOP - 1 : -1], resumed) > 1e-3  # another step would show


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_processes_train_as_one(layout: str, folder: Path) -> None:
    assert distance(steps(folder, "single-1"), steps(folder, f"{layout}-2")) < 1e-10


@pytest.mark.parametrize("name", ["save:ddp", "save:fsdp", "resume:ddp:2", "resume:fsdp:2"])
def test_what_no_task_reaches_has_no_state(name: str, pair: Group) -> None:
    """The optimizer's state of a sharded model is read although a trainable parameter has none, and it has none then."""
    for outcome in pair.of(f"checkpoint_scenarios:{name}"):
        assert outcome["stateless"] == ["encoder.pooler.dense.weight", "encoder.pooler.dense.bias"]


def test_an_optimizer_that_keeps_nothing(pair: Group) -> None:
    for outcome in pair.of("checkpoint_scenarios:keeps_nothing"):
        assert outcome["distance"] == 0.0 and outcome["control"] > 1e-3
        assert outcome["rates"] == pytest.approx([0.01 * (1 - step / 3) for step in range(3)])


def test_a_file_that_one_process_cannot_read_ends_all(pair: Group) -> None:
    for outcome in pair.of("checkpoint_scenarios:unreadable"):
        assert "optimizer.bin' cannot be read" in outcome["refused"]


def test_one_process_resumes_what_two_saved(folder: Path) -> None:
    assert distance(steps(folder, "single-1")[STOP:], steps(folder, f"ddp-2-1-{STOP}")) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resharded(layout: str, folder: Path, tmp_path: Path) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    whole = steps(own, "single-1")
    several(4, own, f"save:{layout}", f"resume:{layout}:2", f"resume:{layout}:2:4")
    several(1, own, f"save:{layout}", f"resume:{layout}:2", f"resume:{layout}:4")
    several(2, own, f"resume:{layout}:1", f"resume:{layout}:4", f"resume_without_skipping:{layout}:1")
    for saved_by, resumed_by in ((2, 4), (2, 1), (4, 1), (1, 2), (4, 2)):
        for rank in range(resumed_by):
            found = steps(own, f"{layout}-{saved_by}-{resumed_by}-{STOP}", rank)
            assert distance(whole[STOP:], found) < 1e-10, (saved_by, resumed_by)
    assert distance(whole[4:], steps(own, f"{layout}-2-4-4")) < 1e-10
    anew = steps(own, f"{layout}-1-anew")
    assert distance([{"update": whole[STOP]["update"]}], [{"update": anew[0]["update"]}]) > 1e-3


def several(processes: int, folder: Path, *names: str) -> None:
    names = tuple(f"checkpoint_scenarios:{name}" for name in names)
    group = started(processes, folder, names, again=True)
    for name in names:
        group.of(name)
