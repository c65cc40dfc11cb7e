"""The cosines between the tasks' gradients: against autograd done by hand, and without a trace in the run."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import TASKS, arguments, distance, tiny_data, tiny_model, train

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.conflicts import ConflictCallback, mean_cosines
from hf_dbmtl.step_cost import StepCostCallback


NAMES = list(TASKS)


class Attached(MultiTaskTrainer):
    """Measures in every second step."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.add_callback(ConflictCallback(self, every=2, rows=5))


def test_against_autograd(tmp_path):
    model, data = tiny_model(), tiny_data(rows=6)
    trainer, _ = train(model, arguments(tmp_path, max_steps=1), data)
    found = ConflictCallback(trainer, every=1, rows=99).cosines()  # all rows
    assert list(found) == list(itertools.combinations(NAMES, 2))
    gradients = {}
    for task in NAMES:
        model.eval().zero_grad()
        batch = trainer.collators[task](list(data[task]))
        model(task=task, **batch).loss.backward()
        gradients[task] = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.encoder.parameters()]
        )
    for (one, other), value in found.items():
        expected = torch.cosine_similarity(gradients[one], gradients[other], dim=0).item()
        assert value == pytest.approx(expected, abs=1e-10)
    wrong = torch.cosine_similarity(gradients["topic"], gradients["tags"], dim=0).item()  # the control
    assert abs(found["topic", "score"] - wrong) > 1e-3


def test_a_balancer_that_knows_them_logs_the_mean_and_the_lowest(tmp_path):
    """Those of the rows of the step, here all of them; one that needs no products of gradients takes none for it."""
    logged = {}
    for balancer in ("pcgrad", "db_mtl"):
        options = {"balancer": balancer, "max_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 0.0}
        trainer, _ = train(tiny_model(), arguments(tmp_path, **options), tiny_data(rows=4))
        logged[balancer] = trainer.state.log_history[0]
    expected = list(ConflictCallback(trainer, every=1, rows=4).cosines().values())
    assert logged["pcgrad"]["cosine/mean"] == pytest.approx(np.mean(expected), abs=1e-10)
    assert logged["pcgrad"]["cosine/min"] == pytest.approx(min(expected), abs=1e-10)
    assert max(expected) - min(expected) > 1e-3
    assert not any(key.startswith("cosine/") for key in logged["db_mtl"])


def test_leaves_the_run_as_it_is(tmp_path):
    """Dropout and the order of rows included: bit for bit."""
    runs = []
    for kind, seed in ((MultiTaskTrainer, 1), (Attached, 1), (MultiTaskTrainer, 2)):
        args = arguments(tmp_path, max_steps=5, optim="adamw_torch", seed=seed)
        runs.append(train(tiny_model(dropout=0.2), args, tiny_data(), trainer=kind))
    (_, without), (measured, with_it), (_, other) = runs
    assert distance(without, with_it) == 0.0
    assert distance(without, other) > 1e-3
    logged = [record for record in measured.state.log_history if "cosine/topic/score" in record]
    assert [record["step"] for record in logged] == [2, 4]


def test_share_of_the_steps(tmp_path):
    class Share(MultiTaskTrainer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.add_callback(ConflictCallback(self, every=0.5))

    trainer, _ = train(tiny_model(), arguments(tmp_path, max_steps=6), tiny_data(), trainer=Share)
    assert [one["step"] for one in trainer.state.log_history if "cosine/topic/score" in one] == [3, 6]
    with pytest.raises(ValueError, match="must be positive"):
        ConflictCallback(trainer, every=0)


def test_a_frozen_encoder_has_no_conflicts(tmp_path):
    trainer, _ = train(
        tiny_model(), arguments(tmp_path, max_steps=2, freeze_encoder=True), tiny_data(), trainer=Attached
    )
    assert ConflictCallback(trainer, every=1).cosines() == {}
    assert not any(key.startswith("cosine/") for record in trainer.state.log_history for key in record)


def test_streams_are_refused(tmp_path):
    data = {task: rows.to_iterable_dataset() for task, rows in tiny_data().items()}
    trainer = MultiTaskTrainer(tiny_model(), arguments(tmp_path, max_steps=1), train_dataset=data)
    with pytest.raises(ValueError, match=r"these have no length: leave ConflictCallback \(conflict_steps\) out"):
        ConflictCallback(trainer, every=1)


def test_mean_cosines():
    log = [{"cosine/a/b": 0.5}, {"loss": 1.0}, {"cosine/a/b": -0.1, "cosine/mean": 9.0}]
    np.testing.assert_allclose(mean_cosines(log, ["a", "b"]), [[1.0, 0.2], [0.2, 1.0]])
    assert np.isnan(mean_cosines(log, ["a", "b", "c"])[0, 2])


def test_step_cost(tmp_path):
    cost = StepCostCallback()
    assert cost.seconds is None and cost.memory is None
    train(tiny_model(), arguments(tmp_path, max_steps=4), tiny_data(), callbacks=[cost])
    assert len(cost.times) == 4
    assert cost.seconds == pytest.approx(np.median(cost.times[2:]))
    assert cost.memory >= 0
