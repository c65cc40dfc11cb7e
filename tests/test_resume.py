"""Stop after any step, resume from its checkpoint, and the run goes on bit for bit (G5)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import arguments, tiny_data, tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.checkpoint import BALANCER_NAME
from hf_dbmtl.manifest import MANIFEST_NAME
from hf_dbmtl.saving import SavingMixin


STEPS = 6  # two epochs of three


def run(
    folder: Path, resume: Path | None = None, data: dict | None = None, model_seed: int = 0, **options
) -> MultiTaskTrainer:
    defaults = {
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch_fused",
        "save_strategy": "steps",
        "save_steps": 1,
    }
    args = arguments(folder, **{**defaults, **options})
    model = tiny_model(dropout=0.1, dtype=torch.float32, seed=model_seed)
    trainer = MultiTaskTrainer(model=model, args=args, train_dataset=data or tiny_data(rows=24, missing=0.2))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def state_of(trainer: MultiTaskTrainer) -> dict[str, torch.Tensor]:
    """Everything that a further step would depend on."""
    state = {f"weights {name}": value for name, value in trainer.model.state_dict().items()}
    for i, values in trainer.optimizer.state_dict()["state"].items():
        state |= {f"optimizer {i} {name}": value for name, value in values.items()}
    for task, row in (trainer.balancer.memory.rows if trainer.balancer.memory else {}).items():
        state |= {f"average {task} {i}": value for i, value in enumerate(row.tensors) if value is not None}
    state |= {f"balancer {name}": value for name, value in trainer.balancer.state_dict()["tensors"].items()}
    state["balanced steps"] = torch.tensor(trainer.balancer.steps)
    state["learning rate"] = torch.tensor(trainer.lr_scheduler.get_last_lr())
    state["random numbers"] = torch.get_rng_state()
    return state


def to_change(checkpoint: Path) -> Path:
    """The balancer's file of a checkpoint that is to be changed on purpose, which would otherwise be told as damage."""
    (checkpoint / MANIFEST_NAME).unlink()
    return checkpoint / BALANCER_NAME


def losses_of(trainer: MultiTaskTrainer) -> list[tuple]:
    keys = ("step", "loss/topic", "loss/score", "loss/traits", "loss/tags", "weight/score", "grad_norm/tags")
    return [tuple(record[key] for key in keys) for record in trainer.state.log_history if "loss" in record]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_any_step(workers: int, tmp_path: Path) -> None:
    options = {"dataloader_num_workers": workers}
    whole = run(tmp_path / "whole", **options)
    end, losses = state_of(whole), losses_of(whole)
    assert whole.state.global_step == STEPS
    for step in range(1, STEPS + 1) if workers == 0 else (2, 3):  # in the middle of an epoch, and at its end
        resumed = run(tmp_path / f"from-{step}", tmp_path / "whole" / f"checkpoint-{step}", model_seed=1, **options)
        assert losses_of(resumed) == losses, f"resumed after step {step}"
        found = state_of(resumed)
        if step == STEPS:  # no epoch is begun, and so no random numbers are taken up
            found["random numbers"] = end["random numbers"]
        assert same(found, end), f"resumed after step {step}"


def test_a_run_that_has_ended_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is started again after its end; and one that is to go on from there."""
    options = {"max_steps": 5, "lr_scheduler_type": "constant"}  # the end is in the middle of an epoch
    whole = run(tmp_path / "whole", **options)
    last = tmp_path / "whole" / "checkpoint-5"
    again = run(tmp_path / "whole", last, model_seed=1, **options)
    assert again.state.global_step == 5 and losses_of(again) == losses_of(whole)
    assert same(state_of(again), state_of(whole))
    longer = run(tmp_path / "longer", **{**options, "max_steps": 7})
    gone_on = run(tmp_path / "whole", last, model_seed=1, **{**options, "max_steps": 7})
    assert same(state_of(gone_on), state_of(longer)) and losses_of(gone_on) == losses_of(longer)
    monkeypatch.delattr(SavingMixin, "_run_epoch")  # the control: transformers' own loop takes a step first
    stock = run(tmp_path / "stock", last, model_seed=1, **options)
    assert stock.state.global_step == 6 and not same(state_of(stock), state_of(whole))


@pytest.mark.parametrize("balancer", ["ew", "max_norm", "ema+max_norm"])
def test_resume_of_other_balancers(balancer: str, tmp_path: Path) -> None:
    options = {"balancer": balancer}
    whole = run(tmp_path / "whole", **options)
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-4", model_seed=1, **options)
    assert same(state_of(resumed), state_of(whole))


# What is run, and after which steps it is resumed: in the middle of an epoch of three steps and at its end.
LOSS_SIDE = {
    "uw": ({"balancer_kwargs": {"learning_rate": 0.05, "optimizer": "adam"}}, (2,)),
    "imtl_l": ({"balancer_kwargs": {"learning_rate": 0.01}}, (3,)),
    "dwa": ({"num_train_epochs": 4, "balancer_kwargs": {"temperature": 0.5}}, (6, 8)),
    "rlw": ({}, (4,)),
    "famo": ({}, (3, 4)),
    "stch": ({"balancer_kwargs": {"variant": "official", "warmup_epochs": 0}}, (2, 3)),
}


OFTEN = ("uw", "famo")  # a learned weight, and a second look


@pytest.mark.parametrize(
    "balancer", [one if one in OFTEN else pytest.param(one, marks=pytest.mark.slow) for one in LOSS_SIDE]
)
def test_resume_of_the_loss_side(balancer: str, tmp_path: Path) -> None:
    options, after = LOSS_SIDE[balancer]
    options = {"balancer": balancer, "lr_scheduler_type": "constant", **options}
    whole = run(tmp_path / "whole", **options)
    for step in after:
        resumed = run(tmp_path / f"from-{step}", tmp_path / "whole" / f"checkpoint-{step}", model_seed=1, **options)
        assert losses_of(resumed) == losses_of(whole), f"resumed after step {step}"
        assert same(state_of(resumed), state_of(whole)), f"resumed after step {step}"
    path = to_change(tmp_path / "whole" / f"checkpoint-{after[0]}")  # the control: begun anew it is another run
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(
        {name: torch.zeros_like(value) for name, value in load_file(path).items()}, path, {**metadata, "steps": "0"}
    )
    anew = run(tmp_path / "anew", tmp_path / "whole" / f"checkpoint-{after[0]}", **options)
    assert [record[1:] for record in losses_of(anew)] != [record[1:] for record in losses_of(whole)]


def test_a_lost_memory_would_show(tmp_path: Path) -> None:
    """The control: with averages that begin anew the same comparison fails."""
    whole = run(tmp_path / "whole")
    path = to_change(tmp_path / "whole" / "checkpoint-4")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path, metadata)
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-4")
    assert not same(state_of(resumed), state_of(whole))


def test_the_counter_is_kept(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    path = to_change(tmp_path / "whole" / "checkpoint-4")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["steps"] == "4"
    save_file(load_file(path), path, {**metadata, "steps": "3"})
    resumed = run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-4")
    assert not same(state_of(resumed), state_of(whole))


def test_checkpoint_is_in_logical_form(tmp_path: Path) -> None:
    trainer = run(tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / f"checkpoint-{STEPS}" / BALANCER_NAME)
    names = list(trainer.gradients.shared)
    for task, row in trainer.balancer.memory.rows.items():
        for name, value in zip(names, trainer.gradients.full(row)):
            if value is not None:
                assert torch.equal(tensors.pop(f"vectors/memory/ema/{task}/{name}/0"), value)
    assert not tensors
    assert not [key for key in load_file(tmp_path / "whole" / f"checkpoint-{STEPS}" / BALANCER_NAME) if "pooler" in key]


def test_checkpoint_of_the_stock_trainer_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    to_change(tmp_path / "whole" / "checkpoint-2").unlink()
    with pytest.raises(ValueError, match="would silently begin anew"):
        run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2")


def test_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    path = to_change(tmp_path / "whole" / "checkpoint-2")
    tensors = load_file(path)
    tensors["vectors/memory/ema/score/encoder.other.weight/0"] = torch.zeros(2)
    with safe_open(path, "pt") as file:
        save_file(tensors, path, file.metadata())
    with pytest.raises(ValueError, match="task 'score' for a parameter 'encoder.other.weight' that is not shared"):
        run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-2")


def test_another_balancer_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path / "whole")
    with caplog.at_level("WARNING"):
        run(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-5", balancer_kwargs={"beta": 0.5})
    assert 'resumed with balancer_kwargs={"beta": 0.5}' in caplog.text
