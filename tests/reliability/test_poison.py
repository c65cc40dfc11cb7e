"""NaN and infinity in one task's input, loss or gradient, in every precision: nothing remembers them (G3)."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from helpers import TASKS, arguments, flat, tiny_data, tiny_model
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.balancing.db_mtl import EMA
from hf_dbmtl.gradients import TaskGradient
from hf_dbmtl.manifest import last_whole_checkpoint


STEPS = 6
WHERE = ("input", "loss", "shared gradient", "head's gradient")
VALUES = (math.nan, math.inf, -math.inf)
PRECISIONS = ("float64", "float32", "bf16", "fp16")
TASK = "traits"  # the third of four: two have been taken in when it turns out to be bad


class Poisoned(MultiTaskTrainer):
    """Puts a bad number into one task at the steps named."""

    where, value, bad_steps, precision = "loss", math.nan, (2,), "float32"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.precision == "fp16":
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def compute_loss_context_manager(self):
        if self.precision == "fp16":  # which transformers does on a GPU only
            return torch.autocast("cpu", dtype=torch.float16)
        return super().compute_loss_context_manager()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if inputs["task"] != TASK or self.state.global_step + 1 not in self.bad_steps:
            return super().compute_loss(model, inputs, return_outputs)
        hook = None
        if self.where == "input":
            embedding = self.model.get_input_embeddings()
            hook = embedding.register_forward_hook(lambda module, given, output: output * self.value)
        elif "gradient" in self.where:
            name = (
                "encoder.embeddings.word_embeddings.weight" if "shared" in self.where else f"heads.{TASK}.linear.bias"
            )
            parameter = self.model.get_parameter(name)
            hook = parameter.register_hook(lambda gradient: gradient * self.value)
            self.pending.append(hook)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if self.where == "input":
            hook.remove()
        if self.where == "loss":
            loss = loss * self.value
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args, **kwargs):
        self.pending: list = []
        try:
            return super().training_step(*args, **kwargs)
        finally:
            for hook in self.pending:
                hook.remove()


class Watch(TrainerCallback):
    """What there is after every step."""

    def __init__(self) -> None:
        self.after: list[dict] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        balancer = self.trainer.balancer
        self.after.append(
            {
                "weights": flat(model.parameters()),
                "rows": {task: flat(row.tensors) for task, row in balancer.memory.rows.items()},
                "balanced": balancer.steps,
                "state": {name: value.clone() for name, value in balancer.state_dict()["tensors"].items()},
            }
        )


def run(folder: Path, where="loss", value=math.nan, bad=(2,), precision="float32", **options):
    kind = type("Kind", (Poisoned,), {"where": where, "value": value, "bad_steps": bad, "precision": precision})
    options = {"max_steps": STEPS, "optim": "adamw_torch", "learning_rate": 1e-3, **options}
    args = arguments(folder, bf16=precision == "bf16", **options)
    model = tiny_model(dtype=torch.float64 if precision == "float64" else torch.float32)
    watch = Watch()
    trainer = kind(model=model, args=args, train_dataset=tiny_data(rows=24), callbacks=[watch])
    watch.trainer = trainer
    trainer.train()
    return trainer, watch.after


CASES = list(itertools.product(PRECISIONS, WHERE, VALUES))


@pytest.mark.parametrize(
    ("precision", "where", "value"),
    [
        pytest.param(*case, marks=() if i % 3 == (i // 3) % 3 else pytest.mark.slow)  # every value with some place
        for i, case in enumerate(CASES)
    ],
)
def test_a_bad_step_leaves_nothing(precision: str, where: str, value: float, tmp_path: Path, caplog) -> None:
    bad = (2, 4, 5)
    with caplog.at_level("WARNING"):
        trainer, after = run(tmp_path, where, value, bad, precision, non_finite_strategy="skip")
    for step in range(2, STEPS + 1):
        now, before = after[step - 1], after[step - 2]
        assert torch.equal(now["weights"], before["weights"]) == (step in bad), step
        for task in (TASK, "tags"):  # the bad one, and one behind it
            assert torch.equal(now["rows"][task], before["rows"][task]) == (step in bad), (step, task)
        assert not torch.equal(now["rows"]["topic"], before["rows"]["topic"])  # taken in before it turned out
        assert now["balanced"] == before["balanced"] + (step not in bad)
        for vector in (now["weights"], *now["rows"].values()):
            assert torch.isfinite(vector).all()
    for step in bad:
        assert f"Step {step} is skipped" in caplog.text
    assert caplog.text.count(f"of task '{TASK}' is not finite") == len(bad)
    records = [record for record in trainer.state.log_history if "loss/topic" in record or "skipped_steps" in record]
    assert [record["step"] for record in records if f"skipped/{TASK}" in record] == list(bad)
    assert sum(record.get("skipped_steps", 0) for record in records) == len(bad)
    assert trainer.state.global_step == STEPS
    if precision == "fp16":
        assert trainer.accelerator.scaler.get_scale() < 1024.0  # the scaler has seen them
    for parameters in trainer.optimizer.state_dict()["state"].values():
        assert all(torch.isfinite(value).all() for value in parameters.values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("where", WHERE)
def test_without_the_check_it_would_stay(precision: str, where: str, tmp_path: Path, monkeypatch) -> None:
    """The control: neither the loss nor the gradient is looked at, and what is remembered takes it in."""

    def remember(self: EMA, task: str, gradient, step: int, blended: bool):
        row = self.rows.setdefault(task, gradient.new_zero())
        if blended:
            return row.swap_(gradient), 1.0
        return row.lerp_(gradient, 1.0 - self.beta / step**self.decay), 1.0

    monkeypatch.setattr(TaskGradient, "is_finite", True)
    monkeypatch.setattr(EMA, "update", remember)
    _, after = run(tmp_path, where, math.nan, precision=precision)
    if (precision, where) == ("fp16", "head's gradient"):  # which the scaler finds as well, and nothing else remembers
        assert after[1]["balanced"] == 2
        return
    vectors = [after[-1]["weights"], *after[-1]["rows"].values()]
    assert not all(torch.isfinite(vector).all() for vector in vectors)


BALANCERS = ("uw", "famo", "imtl_l", "dwa", "stch", "moco", "gradnorm", "excess_mtl", "ema+cagrad", "graddrop", "rlw")


@pytest.mark.parametrize("balancer", [*BALANCERS])
def test_what_other_balancers_learn_stays(balancer: str, tmp_path: Path) -> None:
    kind = type("Kind", (Poisoned,), {"where": "shared gradient", "bad_steps": (2,)})
    states = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            saved = trainer.balancer.state_dict()
            tensors = {name: value.clone() for name, value in saved["tensors"].items()}
            for key, rows in saved["vectors"].items():
                tensors |= {f"{key} {task}": flat(row.tensors) for task, row in rows.items() if task != "topic"}
                tensors |= {f"{key} {task}": flat(row.tensors) for task, row in rows.items() if key != "memory/ema"}
            states.append((saved["steps"], tensors))

    args = arguments(tmp_path, max_steps=4, balancer=balancer)
    trainer = kind(tiny_model(), args, train_dataset=tiny_data(rows=32), callbacks=[Keep()])
    trainer.train()
    assert [steps for steps, _ in states] == [1, 1, 2, 3]
    before, after = states[0][1], states[1][1]
    kept = {name for name in before if not name.endswith((" topic", " score"))}  # those two were taken in before
    assert all(torch.equal(before[name], after[name]) for name in kept)
    if kept:  # the control: a good step moves some of it
        moved = states[3][1]
        assert any(
            before[name].shape != moved[name].shape or not torch.equal(before[name], moved[name]) for name in kept
        )
    assert all(torch.isfinite(value).all() for _, tensors in states for value in tensors.values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_too_many_in_a_row_end_the_run(accumulation: int, tmp_path: Path) -> None:
    options = {"max_skipped_steps": 3, "save_strategy": "steps", "save_steps": 100}
    options |= {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 8 // accumulation}
    with pytest.raises(FloatingPointError, match=rf"Task '{TASK}': .* 3 steps in a row .* up to step 5") as error:
        run(tmp_path, bad=(1, 3, 4, 5, 6), **options)
    assert "is saved" in str(error.value)
    newest, broken = last_whole_checkpoint(tmp_path)
    assert newest.endswith("checkpoint-5") and not broken
    # the weights are those of the last good step, and from there it goes on once the data are mended
    good = {name: value for name, value in options.items() if name != "max_skipped_steps"}
    _, after = run(tmp_path / "other", bad=(1, 3, 4, 5, 6), **good)
    saved = tiny_model(dtype=torch.float32).from_pretrained(newest)
    assert torch.equal(flat(saved.parameters()), after[1]["weights"])
    kind = type("Kind", (Poisoned,), {"bad_steps": ()})
    args = arguments(tmp_path, max_steps=STEPS, optim="adamw_torch", **options)
    resumed = kind(tiny_model(dtype=torch.float32), args, train_dataset=tiny_data(rows=24))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == STEPS and resumed.balancer.steps == 2
    assert torch.isfinite(flat(resumed.model.parameters())).all()


def test_a_broken_model_is_told_at_once_and_not_saved(tmp_path: Path) -> None:
    """Parameters that have become infinite by the optimizer's own doing: no batch is to blame, and no step helps."""

    class Breaks(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
            if state.global_step == 2:  # in the third step
                with torch.no_grad():
                    model.heads["tags"].linear.bias[0] = math.inf

    args = arguments(tmp_path, max_steps=STEPS, save_strategy="steps", save_steps=2)
    trainer = MultiTaskTrainer(tiny_model(), args, train_dataset=tiny_data(), callbacks=[Breaks()])
    with pytest.raises(FloatingPointError, match=r"Task 'tags': the parameter 'heads.tags.linear.bias' has become NaN"):
        trainer.train()
    assert trainer.state.global_step == 4
    args = arguments(tmp_path / "other", max_steps=STEPS, save_strategy="steps", save_steps=3)
    trainer = MultiTaskTrainer(tiny_model(), args, train_dataset=tiny_data(), callbacks=[Breaks()])
    with pytest.raises(FloatingPointError, match=r"'heads.tags.linear.bias' is not finite at step 3: .* not written"):
        trainer.train()
    assert last_whole_checkpoint(tmp_path)[0].endswith("checkpoint-2")
    assert last_whole_checkpoint(tmp_path / "other") == (None, {})


def test_every_task_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Turns(MultiTaskTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            if list(TASKS).index(inputs["task"]) == self.state.global_step:
                loss = loss * math.nan
            return (loss, outputs) if return_outputs else loss

    args = arguments(tmp_path, max_steps=5, logging_steps=5)
    with caplog.at_level("WARNING"):
        trainer = Turns(tiny_model(), args, train_dataset=tiny_data())
        trainer.train()
    for step, task in enumerate(TASKS, 1):
        assert f"Step {step} is skipped: the loss (nan) of task '{task}' is not finite." in caplog.text
    record = trainer.state.log_history[0]
    assert record["skipped_steps"] == 4 and all(record[f"skipped/{task}"] == 1 for task in TASKS)
