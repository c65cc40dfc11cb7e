"""
Tasks that share their input: one dataset with the labels of all of them makes the same steps as a dataset per task with the
same rows, with one forward pass of the encoder in place of one per task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import TASKS, arguments, distance, tiny_dataset, tiny_model, train

from hf_dbmtl import Classification, MultiTaskTrainer, QuestionAnswering, Regression
from hf_dbmtl.units import Unit


BALANCERS: dict[str, dict[str, Any]] = {
    "db_mtl": {"balancer": "db_mtl"},
    "db_mtl_beta0": {"balancer": "db_mtl", "balancer_kwargs": {"beta": 0.0}},
    "log+pcgrad": {"balancer": "log+pcgrad"},
    "cagrad": {"balancer": "cagrad"},
    "uw": {"balancer": "uw", "balancer_kwargs": {"learning_rate": 0.1}},
    "graddrop": {"balancer": "graddrop"},
    "ew": {"balancer": "ew"},
    "famo": {"balancer": "famo", "balancer_kwargs": {"optimizer": "sgd", "learning_rate": 1.0}},
}
ROWS = 24


def shared(tasks: dict[str, Any] = TASKS, rows: int = ROWS, missing: float = 0.3, seed: int = 0) -> Dataset:
    """One dataset whose labels are in a column per task, a share of each missing."""
    columns: dict[str, list] = {}
    for position, (name, task) in enumerate(tasks.items()):
        own = tiny_dataset(task, rows, seed + position, missing)
        columns.setdefault("input_ids", own["input_ids"][:])
        columns.setdefault("attention_mask", own["attention_mask"][:])
        columns[name] = own["labels"][:]
    return Dataset.from_dict(columns)


def separate(group: Dataset, tasks: Any) -> dict[str, Dataset]:
    """The same rows once more for each task, with its labels alone."""
    return {
        task: group.select_columns(["input_ids", "attention_mask", task]).rename_column(task, "labels")
        for task in tasks
    }


def steps_of(
    folder: Path, data: Any, tasks: dict[str, Any] = TASKS, dtype: torch.dtype = torch.float64, **options: Any
):
    trainer = options.pop("trainer", MultiTaskTrainer)
    # in order: rows are drawn anew for every dataset, and would differ
    args = arguments(folder, train_sampling_strategy="sequential", per_device_train_batch_size=4, **options)
    return train(tiny_model(tasks, dtype=dtype), args, data, trainer=trainer)


class ShiftedTrainer(MultiTaskTrainer):
    """A mistake to be caught: the number of items is that of the rows, labelled or not."""

    @staticmethod
    def _num_items(outputs: Any, batch: Any, task: str) -> Any:
        return len(batch["input_ids"])


CELLS = [(balancer, accumulation) for accumulation in (1, 2, 4) for balancer in BALANCERS]
FAST = [
    ("db_mtl", 2),
    ("db_mtl_beta0", 1),
    ("log+pcgrad", 1),
    ("cagrad", 2),
    ("uw", 2),
    ("graddrop", 1),
    ("ew", 1),
    ("famo", 2),
]


@pytest.mark.parametrize(
    ("balancer", "accumulation"),
    [cell if cell in FAST else pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS],
)
def test_the_same_steps_as_separate_datasets(balancer: str, accumulation: int, tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": accumulation, "max_steps": 2, **BALANCERS[balancer]}
    group = shared()
    _, one = steps_of(tmp_path, {"group": group}, **options)
    _, many = steps_of(tmp_path, separate(group, TASKS), **options)
    assert distance(one, many) < (1e-7 if balancer == "cagrad" else 1e-10)
    if accumulation == 2 and balancer == "db_mtl":
        _, wrong = steps_of(tmp_path, {"group": group}, trainer=ShiftedTrainer, **options)
        assert distance(wrong, many) > 1e-3


def test_in_single_precision(tmp_path: Path) -> None:
    group = shared()
    _, one = steps_of(tmp_path, {"group": group}, dtype=torch.float32, max_steps=2)
    _, many = steps_of(tmp_path, separate(group, TASKS), dtype=torch.float32, max_steps=2)
    assert distance(one, many) < 1e-6


@pytest.mark.parametrize("balancer", ["db_mtl", "ew"])
def test_a_group_beside_a_task_of_its_own(balancer: str, tmp_path: Path) -> None:
    group = shared()
    own = tiny_dataset(TASKS["score"], ROWS, seed=9)
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, **BALANCERS[balancer]}
    trainer, one = steps_of(tmp_path, {"g": group.remove_columns("score"), "score": own}, **options)
    _, many = steps_of(tmp_path, {**separate(group, TASKS), "score": own}, **options)
    assert trainer.units == {"g": Unit("g", ("topic", "traits", "tags")), "score": Unit.alone("score")}
    assert distance(one, many) < 1e-10


def test_twelve_tasks(tmp_path: Path) -> None:
    tasks = {f"p{i}": Classification(2) if i % 3 == 2 else Regression() for i in range(12)}
    group = shared(tasks, missing=0.5)
    _, one = steps_of(tmp_path, {"molecules": group}, tasks, max_steps=2)
    _, many = steps_of(tmp_path, separate(group, tasks), tasks, max_steps=2)
    assert distance(one, many) < 1e-10


@pytest.mark.parametrize("balancer", ["db_mtl", "uw"])
def test_a_task_without_a_label_in_a_step_is_absent(balancer: str, tmp_path: Path) -> None:
    group = shared(missing=0.0)
    blank = [None if 4 <= row < 8 else label for row, label in enumerate(group["score"][:])]  # of the second step
    group = group.remove_columns("score").add_column("score", blank)
    _, one = steps_of(tmp_path, {"group": group}, max_steps=3, **BALANCERS[balancer])
    _, many = steps_of(tmp_path, separate(group, TASKS), max_steps=3, **BALANCERS[balancer])
    assert distance(one, many) < 1e-10
    assert "loss/score" in one[0] and "loss/score" not in one[1] and "loss/score" in one[2]
    assert one[1]["head heads.score.linear.weight"].numel() == 0 < one[0]["head heads.score.linear.weight"].numel()


def test_the_encoder_runs_once_per_batch(tmp_path: Path) -> None:
    counts = []
    for data in ({"group": shared()}, separate(shared(), TASKS)):
        model, seen = tiny_model(), []
        model.encoder.register_forward_hook(lambda *_: seen.append(1))
        train(model, arguments(tmp_path, max_steps=2), data)
        counts.append(len(seen))
    assert counts == [2, 8]


def backward_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every backward pass from now on."""
    seen: list[int] = []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **options: (seen.append(1), backward(*args, **options)))
    return seen


@pytest.mark.parametrize(
    ("balancer", "blank", "accumulation"),
    [
        *(("ew", None, parts) for parts in (1, 2, 4)),
        *(("uw", "topic", parts) for parts in (1, 2)),
        ("log", "score", 1),  # whose factor is known before the backward pass of a single micro-batch only
        ("rlw", None, 1),
        ("rlw", "score", 2),
        ("dwa", None, 2),
        ("imtl_l", "topic", 2),
    ],
)
def test_one_backward_pass_where_factors_are_known(
    balancer: str, blank: str | None, accumulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = shared()
    if blank is not None:  # the last rows have no label of it, and the task is absent
        labels = [None if row >= ROWS // 2 else label for row, label in enumerate(group[blank][:])]
        group = group.remove_columns(blank).add_column(blank, labels)
    own = tiny_dataset(TASKS["traits"], ROWS, seed=9)
    options = {
        "max_steps": 4,
        "gradient_accumulation_steps": accumulation,
        **BALANCERS.get(balancer, {"balancer": balancer}),
    }
    seen = backward_passes(monkeypatch)
    _, one = steps_of(  # logs in none of its steps, and wants no norms
        tmp_path, {"g": group.remove_columns("traits"), "traits": own}, logging_steps=50, **options
    )
    assert len(seen) == 2 * 4 * accumulation
    seen.clear()
    _, many = steps_of(tmp_path, {**separate(group, TASKS), "traits": own}, **options)
    assert len(seen) >= 4 * 4 * accumulation - 3 * accumulation
    assert distance([{"update": step["update"]} for step in one], [{"update": step["update"]} for step in many]) < 1e-10
    heads = [[{key: step[key] for key in step if key.startswith("head")} for step in run] for run in (one, many)]
    assert distance(*heads) < 1e-10


def test_a_backward_pass_per_task_where_gradients_are_balanced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = backward_passes(monkeypatch)
    steps_of(tmp_path, shared(), max_steps=2, logging_steps=50)
    assert len(seen) == 2 * len(TASKS)


class Overflow(torch.autograd.Function):
    """A finite number whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * torch.inf


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("balancer", ["ew", "db_mtl"])
def test_the_task_to_blame_is_told(what: str, balancer: str, tmp_path: Path) -> None:
    class Bad(MultiTaskTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            if self.state.global_step == 1:
                loss = {
                    **loss,
                    "traits": loss["traits"] * torch.nan if what == "loss" else Overflow.apply(loss["traits"]),
                }
            return (loss, outputs) if return_outputs else loss

    trainer, steps = steps_of(tmp_path, shared(), trainer=Bad, max_steps=3, logging_steps=3, balancer=balancer)
    record = next(record for record in trainer.state.log_history if "skipped_steps" in record)
    assert {key: value for key, value in record.items() if "skipped" in key} == {
        "skipped_steps": 1,
        "skipped/traits": 1,
    }
    assert steps[1]["update"].numel() == 0 < steps[2]["update"].isfinite().sum()


class Scaled(MultiTaskTrainer):
    """Has a gradient scaler on the CPU."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
        self.accelerator.unscale_gradients = lambda: self.accelerator.scaler.unscale_(self.optimizer.optimizer)


@pytest.mark.parametrize("balancer", ["db_mtl", "ew"])
def test_under_a_gradient_scaler(balancer: str, tmp_path: Path) -> None:
    options = {"max_steps": 2, "logging_steps": 50, "optim": "adamw_torch", "trainer": Scaled, "balancer": balancer}
    group = shared()
    trainer, one = steps_of(tmp_path, {"group": group}, **options)
    _, many = steps_of(tmp_path, separate(group, TASKS), **options)
    assert trainer.accelerator.scaler.get_scale() == 64.0
    assert distance(one, many) < 1e-10


@pytest.mark.parametrize("options", [{}, pytest.param({"balancer": "uw"}, marks=pytest.mark.slow)])
def test_resuming_is_exact(options: dict[str, Any], tmp_path: Path) -> None:
    data = {"g": shared().remove_columns("score"), "score": tiny_dataset(TASKS["score"], 17, seed=9)}
    common = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "optim": "adamw_torch", **options}

    def run(folder: str, resume: Any = None, **more: Any):
        args = arguments(
            tmp_path / folder, save_strategy="steps", save_steps=4, save_only_model=False, **common, **more
        )
        return train(tiny_model(dropout=0.1), args, data, resume=resume)

    whole, steps = run("whole")
    again, rest = run("again", resume=str(tmp_path / "whole" / "checkpoint-4"))
    assert len(rest) == len(steps) - 4 > 0
    assert distance(steps[4:], rest) == 0.0
    ends = zip(whole.model.parameters(), again.model.parameters())
    assert all(torch.equal(one, other) for one, other in ends)


def test_evaluation_and_prediction_are_those_of_separate_datasets(tmp_path: Path) -> None:
    group = shared(rows=13)
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    one = MultiTaskTrainer(model=tiny_model(), args=args, eval_dataset=group)
    many = MultiTaskTrainer(model=tiny_model(), args=args, eval_dataset=separate(group, TASKS))
    seen: list[int] = []
    one.model.encoder.register_forward_hook(lambda *_: seen.append(1))
    speed = ("runtime", "per_second", "preparation_time")
    found, expected = (
        {key: value for key, value in trainer.evaluate().items() if not key.endswith(speed)} for trainer in (one, many)
    )
    assert len(seen) == 4
    assert found == pytest.approx(expected, rel=1e-12) and "eval_average" in found and "eval_score_loss" in found
    for trainer, data in ((one, {"all": group}), (many, separate(group, TASKS))):
        outputs = trainer.predict(data)
        assert list(outputs) == list(TASKS)
        assert outputs["tags"].predictions.shape[:2] == (13, 7) and outputs["score"].label_ids.shape[0] == 13
    assert outputs["topic"].metrics == pytest.approx(
        {key.replace("eval", "test"): value for key, value in expected.items() if "_topic_" in key}
    )
    unlabelled = one.predict({"all": group.select_columns(["input_ids", "attention_mask"])})
    assert list(unlabelled) == list(TASKS) and unlabelled["topic"].label_ids is None
    assert unlabelled["topic"].metrics == {}
    assert torch.equal(
        torch.tensor(unlabelled["topic"].predictions), torch.tensor(one.predict(group)["topic"].predictions)
    )


def test_questions_beside_other_labels_of_their_texts(tmp_path: Path) -> None:
    tasks = {"topic": TASKS["topic"], "answer": QuestionAnswering()}
    spans = [None if row % 5 == 1 else [row % 3, row % 3 + row % 4] for row in range(ROWS)]
    group = shared({"topic": TASKS["topic"]}).add_column("answer", spans)
    trainer, one = steps_of(tmp_path, {"texts": group}, tasks, max_steps=2, gradient_accumulation_steps=2)
    other, many = steps_of(tmp_path, separate(group, tasks), tasks, max_steps=2, gradient_accumulation_steps=2)
    assert distance(one, many) < 1e-10
    turned = group.remove_columns("answer").add_column("answer", spans[::-1])
    _, wrong = steps_of(tmp_path, {"texts": turned}, tasks, max_steps=2, gradient_accumulation_steps=2)
    assert distance(wrong, many) > 1e-3
    found, expected = trainer.evaluate({"texts": group}), other.evaluate(separate(group, tasks))
    keys = ["eval_topic_accuracy", "eval_answer_exact_match", "eval_answer_f1", "eval_answer_loss"]
    assert [found[key] for key in keys] == pytest.approx([expected[key] for key in keys], rel=1e-12)
