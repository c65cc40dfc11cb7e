"""Nothing remembers a bad gradient (G3), and absent tasks take no part (G4)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers import TASKS, arguments, distance, flat, tiny_data, tiny_model, train
from test_layout import FixedBatches
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.balancing import Balancer
from hf_dbmtl.gradients import TaskGradient


BAD_STEP = 2  # of 1, 2, 3


class Poisoned(MultiTaskTrainer):
    """Puts a bad number into one task's loss, or only into its gradient, at one step."""

    where = "loss"
    value = math.nan

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if inputs["task"] == "traits" and self.state.global_step == BAD_STEP - 1:
            if self.where == "loss":
                loss = loss * self.value
            else:
                loss.register_hook(lambda gradient: gradient * self.value)
        return (loss, outputs) if return_outputs else loss


class Watch(TrainerCallback):
    """What is there before every optimizer step and after it."""

    def __init__(self) -> None:
        self.before: list[dict] = []
        self.after: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        trainer = self.trainer
        self.before.append(
            {
                "weights": flat(model.parameters()),
                "has_gradient": [name for name, p in model.named_parameters() if p.grad is not None],
                "rows": {task: flat(row.tensors) for task, row in trainer.balancer.memory.rows.items()},
                "steps": trainer.balancer.steps,
            }
        )

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.after.append(flat(model.parameters()))


def poisoned_run(folder: Path, where: str = "loss", value: float = math.nan, **options):
    kind = type("Kind", (Poisoned,), {"where": where, "value": value})
    watch = Watch()
    args = arguments(folder, num_train_epochs=1, optim="adamw_torch", **options)
    trainer = kind(model=tiny_model(), args=args, train_dataset=tiny_data(rows=24), callbacks=[watch])
    watch.trainer = trainer
    trainer.train()
    return trainer, watch


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("where", "value"), [("loss", math.nan), ("loss", math.inf), ("gradient", math.nan), ("gradient", -math.inf)]
)
def test_a_bad_step_is_skipped(where: str, value: float, accumulation: int, tmp_path: Path, caplog) -> None:
    with caplog.at_level("WARNING"):
        options = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
        trainer, watch = poisoned_run(tmp_path, where, value, **options)
    first, bad, last = watch.before
    assert bad["has_gradient"] == []
    assert torch.equal(watch.after[1], watch.after[0])
    assert not torch.equal(watch.after[2], watch.after[1])  # training goes on
    assert torch.isfinite(watch.after[2]).all()
    # the bad task and those after it keep their rows, those before it keep what they took
    assert torch.equal(bad["rows"]["traits"], first["rows"]["traits"])
    assert torch.equal(bad["rows"]["tags"], first["rows"]["tags"])
    assert not torch.equal(bad["rows"]["topic"], first["rows"]["topic"])
    assert [one["steps"] for one in watch.before] == [1, 1, 2]
    assert trainer.state.global_step == 3
    assert f"Step {BAD_STEP} is skipped" in caplog.text and "task 'traits'" in caplog.text
    assert [record.get("skipped_steps") for record in trainer.state.log_history if "loss" in record] == [None, 1, None]
    for record in trainer.state.log_history:
        assert all(math.isfinite(value) for value in record.values())


def test_the_run_can_end_instead(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"Task 'traits': its loss \(nan\) is not finite at step 2"):
        poisoned_run(tmp_path, non_finite_strategy="raise")


def test_poison_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without the checks the same run ends with NaN in its parameters."""
    take = Balancer.take
    args = arguments(tmp_path, balancer="max_norm")
    trainer = Poisoned(model=tiny_model(), args=args, train_dataset=tiny_data(rows=24))
    monkeypatch.setattr(TaskGradient, "is_finite", True)
    monkeypatch.setattr(Balancer, "take", lambda *args: take(*args) or True)
    trainer.train()
    assert not torch.isfinite(flat(trainer.model.parameters())).all()


def absent_run(
    folder: Path, absent: tuple[int, ...], present: tuple[str, ...] = tuple(TASKS), empty: str = "rows", **options
):
    """Four steps on the same rows; at the steps named, `score` has no label, or no row at all."""
    data = tiny_data(rows=8)
    probe = MultiTaskTrainer(model=tiny_model(), args=arguments(folder), train_dataset=data)
    kind = type("Kind", (FixedBatches,), {"micro_batches": []})
    for step in range(4):
        batch = {task: probe.collators[task]([data[task][row] for row in range(8)]) for task in TASKS}
        if step in absent and empty == "rows":
            del batch["score"]
        elif step in absent:
            batch["score"]["labels"] = torch.full_like(batch["score"]["labels"], math.nan)
        kind.micro_batches.append(batch)
    tasks = {task: TASKS[task] for task in present}
    args = arguments(folder, learning_rate=1e-3, **options)
    model = tiny_model(tasks)
    model.load_state_dict(
        {name: value for name, value in tiny_model().state_dict().items() if name in model.state_dict()}
    )
    return train(model, args, {task: data[task] for task in present}, trainer=kind)


@pytest.mark.parametrize("empty", ["rows", "labels"])
def test_an_absent_task_takes_no_part(empty: str, tmp_path: Path) -> None:
    trainer, steps = absent_run(tmp_path, (1, 2), empty=empty)
    heads = [key for key in steps[0] if key.startswith("head heads.score")]
    assert heads
    for key in heads:
        assert [len(step[key]) > 0 for step in steps] == [True, False, False, True]
    assert torch.equal(steps[1]["ema score"], steps[0]["ema score"])
    assert torch.equal(steps[2]["ema score"], steps[0]["ema score"])
    assert not torch.equal(steps[3]["ema score"], steps[2]["ema score"])
    records = [record for record in trainer.state.log_history if "loss" in record]
    assert ["weight/score" in record for record in records] == [True, False, False, True]


def test_an_absent_task_leaves_the_others_alone(tmp_path: Path) -> None:
    """A task that is never there might as well not exist; there, it makes a difference."""
    others = tuple(task for task in TASKS if task != "score")
    _, without = absent_run(tmp_path, (), others)
    _, absent = absent_run(tmp_path, (0, 1, 2, 3))
    _, present = absent_run(tmp_path, ())
    keys = [key for key in without[0] if not key.startswith("head")]
    assert distance(*([{key: step[key] for key in keys} for step in steps] for steps in (without, absent))) < 1e-12
    assert distance(*([{"update": step["update"]} for step in steps] for steps in (without, present))) > 1e-3


def test_a_step_without_any_task_changes_nothing(tmp_path: Path) -> None:
    data = tiny_data({"score": TASKS["score"], "topic": TASKS["topic"]}, rows=8)
    probe = MultiTaskTrainer(
        model=tiny_model({name: TASKS[name] for name in data}), args=arguments(tmp_path), train_dataset=data
    )
    full = {task: probe.collators[task]([data[task][row] for row in range(8)]) for task in data}
    empty = {
        task: {**batch, "labels": torch.full_like(batch["labels"], -100 if task == "topic" else math.nan)}
        for task, batch in full.items()
    }
    kind = type("Kind", (FixedBatches,), {"micro_batches": [full, empty, full]})
    watch = Watch()
    args = arguments(tmp_path, optim="adamw_torch", weight_decay=0.1)
    model = tiny_model({name: TASKS[name] for name in data})
    trainer = kind(model=model, args=args, train_dataset=data, callbacks=[watch])
    watch.trainer = trainer
    trainer.train()
    assert watch.before[1]["has_gradient"] == []
    assert torch.equal(watch.after[1], watch.after[0])
    assert [one["steps"] for one in watch.before] == [1, 1, 2]
