"""Every balancer of the table through the Trainer: stopped at a checkpoint and resumed, it goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import arguments
from test_catalogue import NAMES
from test_reference import CASES, Batches, Quadratic
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.balancing import make_balancer
from hf_dbmtl.checkpoint import BALANCER_NAME
from hf_dbmtl.manifest import MANIFEST_NAME


CASE = CASES["three_tasks"]
DATA = {f"task{t}": Batches(CASE, t) for t in range(3)}


def end(folder: Path, name: str, resume: Path | None = None) -> dict[str, torch.Tensor]:
    """The parameters after four steps, with a checkpoint after every second, and the state of the balancer."""
    args = arguments(
        folder,
        balancer=name,
        per_device_train_batch_size=1,
        learning_rate=CASE["lr"],
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
        save_only_model=False,
        logging_strategy="no",
    )
    validation = DATA if make_balancer(name).validates else None
    trainer = MultiTaskTrainer(Quadratic(CASE), args, train_dataset=DATA, validation_dataset=validation)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    state = trainer.balancer.state_dict()
    rows = {f"{key} {task}": row for key, by_task in state["vectors"].items() for task, row in by_task.items()}
    tensors = {key: torch.cat([tensor.reshape(-1) for tensor in row.tensors]) for key, row in rows.items()}
    return {**trainer.model.state_dict(), **state["tensors"], **tensors}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", NAMES)
def test_resume(name: str, tmp_path: Path) -> None:
    whole = end(tmp_path, name)
    assert same(end(tmp_path / "resumed", name, tmp_path / "checkpoint-2"), whole)


@pytest.mark.parametrize("name", ["gradnorm", "gradvac", "moco", "excess_mtl"])
def test_without_its_state_it_is_another_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = end(tmp_path, name)
    kind = type(make_balancer(name).weighting)
    monkeypatch.setattr(kind, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(kind, "load_vectors", lambda self, vectors: None)
    assert (tmp_path / "checkpoint-2" / BALANCER_NAME).is_file()
    assert not same(end(tmp_path / "resumed", name, tmp_path / "checkpoint-2"), whole)


def test_an_optimizer_saved_under_fsdp_is_told(tmp_path: Path) -> None:
    end(tmp_path, "db_mtl")
    checkpoint = tmp_path / "checkpoint-2"
    (checkpoint / OPTIMIZER_NAME).rename(checkpoint / OPTIMIZER_NAME_BIN)  # as it is called there
    (checkpoint / MANIFEST_NAME).unlink()
    with pytest.raises(
        ValueError, match="checkpoint-2' was saved with FSDP, .*Resume as it was saved .* start a new run"
    ):
        end(tmp_path / "resumed", "db_mtl", checkpoint)


def test_a_checkpoint_of_the_model_alone_begins_the_averages_anew(tmp_path: Path, caplog) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "logging_strategy": "no", "per_device_train_batch_size": 1}
    args = arguments(tmp_path, max_steps=2, save_only_model=True, **options)
    MultiTaskTrainer(Quadratic(CASE), args, train_dataset=DATA).train()
    assert not (tmp_path / "checkpoint-2" / BALANCER_NAME).exists()
    trainer = MultiTaskTrainer(Quadratic(CASE), arguments(tmp_path, max_steps=3, **options), train_dataset=DATA)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (trainer.state.global_step, trainer.balancer.steps) == (3, 1)
    assert "checkpoint-2' was saved without optimizer and balancer: both begin anew." in caplog.text
