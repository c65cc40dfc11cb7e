"""A run that is killed again and again ends where one left alone does, bit for bit; only whole checkpoints are resumed from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import arguments, tiny_data, tiny_model
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.checkpoint import BALANCER_NAME
from hf_dbmtl.manifest import MANIFEST_NAME, last_whole_checkpoint, what_is_wrong, write_manifest


HARNESS = Path(__file__).with_name("kill_harness.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "layout"), [(50, []), (15, ["--processes", "2"]), (15, ["--processes", "2", "--fsdp"])]
)
def test_killed_again_and_again(kills: int, layout: list[str], tmp_path: Path) -> None:
    output = tmp_path / "kills.json"
    command = [sys.executable, str(HARNESS), "--kills", str(kills), *layout, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outcome = json.loads(output.read_text())
    assert outcome["equal"] and outcome["kills"] == kills
    assert outcome["half_written"] > 0, "no kill hit a checkpoint while it was written"
    assert outcome["at"].get("step") and outcome["at"].get("evaluation")
    assert (outcome["survivors"] > 0) == bool(layout), "no process outlived another"


def run(folder: Path, resume: str | bool | None = None, kind: type = MultiTaskTrainer, **options) -> MultiTaskTrainer:
    defaults = {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch", "max_steps": 3}
    trainer = kind(
        model=tiny_model(dropout=0.1, dtype=torch.float32),
        args=arguments(folder, **{**defaults, **options}),
        train_dataset=tiny_data(),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: MultiTaskTrainer) -> torch.Tensor:
    return torch.cat([value.reshape(-1) for value in trainer.model.state_dict().values()])


def shorten(folder: Path) -> None:
    path = folder / "optimizer.pt"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # in the middle of a number: nothing else would notice
    path.write_bytes(content)


def unlisted(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


DAMAGE = {
    "shortened": (shorten, r"'optimizer.pt' has \d+ bytes of \d+"),
    "a flipped bit": (flip, "'model.safetensors' has other contents than were written"),
    "a lost file": (lambda folder: (folder / "scheduler.pt").unlink(), "'scheduler.pt' is missing"),
    "no list": (unlisted, f"it has no {MANIFEST_NAME}"),
    "half a list": (
        lambda folder: (folder / MANIFEST_NAME).write_text('{"files": {"model'),
        f"its {MANIFEST_NAME} cannot be read",
    ),
    "an empty list": (lambda folder: (folder / MANIFEST_NAME).write_text("[]"), "it lists no files"),
    "a list that leads elsewhere": (
        lambda folder: (folder / MANIFEST_NAME).write_text('{"files": {"../../x": [1, 2]}}'),
        "'../../x' lies outside the checkpoint",
    ),
    "a list without numbers": (
        lambda folder: (folder / MANIFEST_NAME).write_text('{"files": {"x": [1e999, "2"]}}'),
        "'x' has no size and checksum",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, weights(run(folder))


def copy_of(folder: Path, to: Path) -> Path:
    subprocess.run(["cp", "-r", str(folder), str(to)], check=True)
    return to


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(
    name: str, whole: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = DAMAGE[name]
    folder = copy_of(whole[0], tmp_path / "run")
    assert what_is_wrong(folder / "checkpoint-3") is None
    damage(folder / "checkpoint-3")
    with caplog.at_level("WARNING"):
        trainer = run(folder, resume=True)
    assert re.search(f"checkpoint-3' is passed over: .*{reason}", caplog.text)
    assert torch.equal(weights(trainer), whole[1])
    assert what_is_wrong(folder / "checkpoint-3") is None  # written anew


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name(
    name: str, whole: tuple, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, reason = DAMAGE[name]
    folder = copy_of(whole[0], tmp_path / "run")
    damage(folder / "checkpoint-2")
    if name == "no list":  # one of an earlier release, or the stock Trainer's: what is there is checked as it is read
        with caplog.at_level("WARNING"):
            run(folder, resume=str(folder / "checkpoint-2"))
        assert "whole cannot be told" in caplog.text
        return
    with pytest.raises(ValueError, match=f"checkpoint-2' is damaged: .*{reason}"):
        run(folder, resume=str(folder / "checkpoint-2"))


def test_nothing_whole_to_resume_from(whole: tuple, tmp_path: Path) -> None:
    folder = copy_of(whole[0], tmp_path / "run")
    for checkpoint in folder.glob("checkpoint-*"):
        shorten(checkpoint)
    with pytest.raises(ValueError, match=r"no whole checkpoint in `output_dir`.*checkpoint-1': 'optimizer.pt' has"):
        run(folder, resume=True)
    with pytest.raises(ValueError, match="no whole checkpoint in `output_dir`.*it holds none"):
        run(tmp_path / "empty", resume=True)


def test_without_the_list_the_wrong_one_would_be_taken(whole: tuple, tmp_path: Path) -> None:
    """The control: what the stock Trainer takes for the newest checkpoint gives another run, or none."""
    folder = copy_of(whole[0], tmp_path / "run")
    path = folder / "checkpoint-2" / BALANCER_NAME
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path, {"steps": "2"})
    (folder / "checkpoint-3").rename(tmp_path / "aside")
    assert get_last_checkpoint(folder) == str(folder / "checkpoint-2")
    assert last_whole_checkpoint(folder)[0] == str(folder / "checkpoint-1")
    stock = type("Stock", (MultiTaskTrainer,), {"train": Trainer.train})
    assert not torch.equal(weights(run(folder, resume=True, kind=stock)), whole[1])


def test_older_ones_go_when_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[list[str]] = []

    def watched(folder: str) -> None:
        there.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        write_manifest(folder)

    monkeypatch.setattr("hf_dbmtl.saving.write_manifest", watched)
    left = tmp_path / "checkpoint-1"
    trainer = run(tmp_path, save_total_limit=1)
    assert there == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert trainer.args.save_total_limit == 1
    saved = torch.load(tmp_path / "checkpoint-3" / "training_args.bin", weights_only=False)
    assert saved.save_total_limit == 1  # as it was given
    left.mkdir()  # half-written: it counts for nothing, and does not push a whole one out
    run(tmp_path, resume=True, save_total_limit=2, max_steps=4)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
