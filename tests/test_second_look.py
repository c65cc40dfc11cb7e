"""The second look: the losses of the same rows after the optimizer's step (FAMO)."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TASKS, arguments, flat, tiny_data, tiny_model
from test_faults import BAD_STEP, Poisoned
from test_layout import FixedBatches
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.balancing.famo import FAMO
from hf_dbmtl.second_look import random_numbers_aside


FAST = {"balancer": "famo", "balancer_kwargs": {"learning_rate": 0.5}}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The losses that FAMO is shown."""
    shown: list[dict[str, float]] = []
    look_again = FAMO.look_again
    monkeypatch.setattr(FAMO, "look_again", lambda self, losses: shown.append(dict(losses)) or look_again(self, losses))
    return shown


class AfterStep(TrainerCallback):
    """The losses of all rows of the step at once, with the parameters that the optimizer left."""

    def __init__(self) -> None:
        self.batches: list[dict] = []
        self.losses: list[dict[str, float]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        with torch.no_grad():
            batch = self.batches[state.global_step - 1]
            self.losses.append({task: model(task=task, **one).loss.item() for task, one in batch.items()})


@pytest.mark.parametrize("cuts", [[(0, 8)], [(0, 4), (4, 8)], [(0, 1), (1, 3), (3, 8)]], ids=len)
def test_it_is_the_mean_over_all_rows_of_the_step(cuts: list[tuple[int, int]], looks: list, tmp_path: Path) -> None:
    data = tiny_data(rows=16, missing=0.3)
    probe = MultiTaskTrainer(model=tiny_model(), args=arguments(tmp_path), train_dataset=data)

    def batch(start: int, stop: int) -> dict:
        return {task: probe.collators[task]([data[task][row] for row in range(start, stop)]) for task in TASKS}

    kind = type("Fixed", (FixedBatches,), {"micro_batches": []})
    kind.micro_batches = [batch(first + start, first + stop) for first in (0, 8) for start, stop in cuts]
    callback = AfterStep()
    callback.batches = [batch(0, 8), batch(8, 16)]
    args = arguments(tmp_path, gradient_accumulation_steps=len(cuts), learning_rate=0.1, **FAST)
    trainer = kind(model=tiny_model(), args=args, train_dataset=data, callbacks=[callback])
    trainer.train()
    assert len(looks) == len(callback.losses) == 2
    for found, expected in zip(looks, callback.losses):
        assert found == {task: pytest.approx(loss, rel=1e-12) for task, loss in expected.items()}
    before = [record for record in trainer.state.log_history if "loss" in record]
    for found, record in zip(looks, before):  # not the losses before the step
        assert all(abs(found[task] / record[f"loss/{task}"] - 1) > 1e-5 for task in TASKS)


class Noticing(MultiTaskTrainer):
    """Notes under which conditions every loss is computed."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.computed: list[tuple[bool, bool, float]] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.computed.append((model.training, torch.is_grad_enabled(), loss.item()))
        return (loss, outputs) if return_outputs else loss


def run(folder: Path, kind: type = Noticing, dropout: float = 0.3, **options) -> MultiTaskTrainer:
    args = arguments(folder, **{**FAST, **options})
    trainer = kind(model=tiny_model(dropout=dropout), args=args, train_dataset=tiny_data(rows=24))
    trainer.train()
    return trainer


def test_it_is_in_training_mode_and_without_gradients(tmp_path: Path) -> None:
    trainer = run(tmp_path)
    modes = [(training, grad) for training, grad, _ in trainer.computed]
    assert modes == ([(True, True)] * len(TASKS) + [(True, False)] * len(TASKS)) * 3
    # with masks of its own in every step: at a learning rate of zero only these tell the two looks apart
    trainer = run(tmp_path, learning_rate=0.0)
    first, second = trainer.computed[: len(TASKS)], trainer.computed[len(TASKS) : 2 * len(TASKS)]
    assert all(abs(one[2] - other[2]) > 1e-6 for one, other in zip(first, second))
    trainer = run(tmp_path, learning_rate=0.0, dropout=0.0)
    first, second = trainer.computed[: len(TASKS)], trainer.computed[len(TASKS) : 2 * len(TASKS)]
    assert [one[2] for one in first] == [one[2] for one in second]


def test_no_other_balancer_pays_for_it(tmp_path: Path) -> None:
    assert len(run(tmp_path, balancer="gls", balancer_kwargs={}).computed) == 3 * len(TASKS)


def test_the_random_numbers_of_the_run_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With logits that never move a run with second looks is the run without them, dropout and all."""
    frozen = {"balancer": "famo", "balancer_kwargs": {"learning_rate": 0.0}}
    with_looks = flat(run(tmp_path, MultiTaskTrainer, **frozen).model.parameters())
    with monkeypatch.context() as patch:
        patch.setattr(FAMO, "looks_again", False)
        without = flat(run(tmp_path, MultiTaskTrainer, **frozen).model.parameters())
    assert torch.equal(with_looks, without)
    monkeypatch.setattr("hf_dbmtl.second_look.random_numbers_aside", lambda device, seed: contextlib.nullcontext())
    assert not torch.equal(flat(run(tmp_path, MultiTaskTrainer, **frozen).model.parameters()), without)


def test_random_numbers_aside() -> None:
    def draw() -> list[float]:
        return [random.random(), np.random.random(), torch.rand(()).item()]

    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    first = [draw() for _ in range(3)]
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    found, inside = [], []
    for seed in (5, 5, 6 + (7 << 40)):
        found.append(draw())
        with random_numbers_aside(torch.device("cpu"), seed):
            inside.append(draw())
    assert found == first
    assert inside[0] == inside[1] and not set(inside[0]) & set(inside[2])
    with pytest.raises(KeyError), random_numbers_aside(torch.device("cpu"), 5):
        raise KeyError
    assert not set(draw()) & set(inside[0])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_skipped_step_is_not_looked_at_again(accumulation: int, looks: list, tmp_path: Path) -> None:
    class States(TrainerCallback):
        def __init__(self) -> None:
            self.states: list[dict[str, torch.Tensor]] = []

        def on_step_end(self, args, state, control, **kwargs) -> None:
            self.states.append({name: one.clone() for name, one in trainer.balancer.state_dict()["tensors"].items()})

    callback = States()
    args = arguments(
        tmp_path, gradient_accumulation_steps=accumulation, per_device_train_batch_size=8 // accumulation, **FAST
    )
    trainer = Poisoned(model=tiny_model(), args=args, train_dataset=tiny_data(rows=24), callbacks=[callback])
    trainer.train()
    assert trainer.state.global_step == 3 and len(looks) == 2
    before, bad, after = callback.states
    assert BAD_STEP == 2 and all(torch.equal(before[name], bad[name]) for name in before)
    assert not torch.equal(after["transform/learned"], bad["transform/learned"])


def test_a_step_that_the_optimizer_skipped_is_not_looked_at_again(looks: list, tmp_path: Path) -> None:
    class Skipping(MultiTaskTrainer):
        def create_optimizer(self, model=None):
            optimizer = super().create_optimizer(model)
            step = optimizer.step

            def sometimes(*args, **kwargs):
                self.accelerator._optimizers[0]._is_overflow = self.state.global_step == 1  # as the scaler would say
                return None if self.state.global_step == 1 else step(*args, **kwargs)

            optimizer.step = sometimes
            return optimizer

    trainer = run(tmp_path, Skipping)
    assert trainer.balancer.steps == 3 and len(looks) == 2
