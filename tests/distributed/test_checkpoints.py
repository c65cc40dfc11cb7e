"""Stop after a step and go on: bit for bit on as many processes, to rounding on another number of them (G5)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from checkpoint_scenarios import STOP, resume, save  # noqa: E402
from helpers import distance  # noqa: E402
from launching import outcomes  # noqa: E402


LAYOUTS = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes save, and resume what they have saved; a single one resumes it too, and saves."""
    folder = tmp_path_factory.mktemp("checkpoints")
    several(2, folder, *(f"save:{layout}" for layout in LAYOUTS), *(f"resume:{layout}:2" for layout in LAYOUTS))
    save(folder, "single")
    save(folder, "ddp")
    resume(folder, "ddp", "2")
    return folder


def several(processes: int, folder: Path, *names: str) -> None:
    names = tuple(f"checkpoint_scenarios:{name}" for name in names)
    for outcome in outcomes(processes, "worker.py", folder, *names):
        for name in names:
            assert "error" not in outcome[name], outcome[name]["error"]


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


def test_one_process_resumes_what_two_saved(folder: Path) -> None:
    assert distance(steps(folder, "single-1")[STOP:], steps(folder, f"ddp-2-1-{STOP}")) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_resharded(layout: str, folder: Path) -> None:
    whole = steps(folder, "single-1")
    several(4, folder, f"save:{layout}", f"resume:{layout}:2", f"resume:{layout}:2:4")
    several(1, folder, f"save:{layout}", f"resume:{layout}:2", f"resume:{layout}:4")
    several(2, folder, f"resume:{layout}:1", f"resume:{layout}:4", f"resume_without_skipping:{layout}:1")
    for saved_by, resumed_by in ((2, 4), (2, 1), (4, 1), (1, 2), (4, 2)):
        for rank in range(resumed_by):
            found = steps(folder, f"{layout}-{saved_by}-{resumed_by}-{STOP}", rank)
            assert distance(whole[STOP:], found) < 1e-10, (saved_by, resumed_by)
    assert distance(whole[4:], steps(folder, f"{layout}-2-4-4")) < 1e-10
    anew = steps(folder, f"{layout}-1-anew")
    assert distance([{"update": whole[STOP]["update"]}], [{"update": anew[0]["update"]}]) > 1e-3
