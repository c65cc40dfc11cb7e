"""Weights tuned on validation data (Auto-λ, MOML): autograd through the virtual step, and what the Trainer does."""

from __future__ import annotations

import math
import zlib
from itertools import chain, combinations
from pathlib import Path

import pytest
import torch
from helpers import TASKS, arguments, distance, flat, tiny_data, tiny_model, train
from test_faults import Poisoned
from test_reference import CASES, Batches, Quadratic, Trajectory, deviation
from torch import Tensor
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.validation import ValidationRows


FAST = {
    "auto_lambda": {"learning_rate": 0.05, "init": 0.5},
    "moml": {"learning_rate": 0.3},
}


def validation_data(rows: int = 10) -> dict:
    return tiny_data(rows=rows, missing=0.1, seed=70)


# ---- The weights -----------------------------------------------------------------------------------------------------


def losses_of(case: dict, k: int, theta: Tensor, psi: Tensor) -> Tensor:
    """The losses of the tasks on the batch of step k."""
    A, b = (torch.tensor(case[name][k], dtype=torch.float64) for name in ("A", "b"))
    residuals = torch.einsum("tmd,d->tm", A, theta) + psi[:, None] - b
    return torch.tensor(case["scales"]) * (0.5 * residuals.square().mean(1) + case["constant"])


def shortest(rows: Tensor) -> Tensor:
    """The shortest vector in the convex hull of the rows, by trying all faces."""
    best = rows[0]
    for face in chain.from_iterable(combinations(range(len(rows)), n) for n in range(1, len(rows) + 1)):
        some = rows[list(face)]
        system = torch.ones(len(face) + 1, len(face) + 1, dtype=torch.float64)
        system[:-1, :-1], system[-1, -1] = some @ some.T, 0.0
        target = torch.zeros(len(face) + 1, dtype=torch.float64)
        target[-1] = 1.0
        weights = torch.linalg.lstsq(system, target).solution[:-1]
        if (weights >= -1e-12).all() and (weights @ some).norm() < best.norm():
            best = weights @ some
    return best


def by_autograd(case: dict, method: str, objectives: list[int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What theta, psi and the weights are after every step, by differentiating through the virtual step."""
    rate, T = case["lr"], case["T"]
    theta, psi = (torch.tensor(case[name], dtype=torch.float64) for name in ("theta0", "psi0"))
    x = torch.full((T,), 0.5 if method == "auto_lambda" else 0.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([x], lr=FAST[method]["learning_rate"])
    weigh = (lambda x: x) if method == "auto_lambda" else (lambda x: x.softmax(0))
    rows = [ValidationRows(case["K"], (42 << 32) + zlib.crc32(f"task{t}".encode())) for t in range(T)]
    thetas, psis, weights = [], [], []
    for k in range(case["K"]):
        leaves = [one.clone().requires_grad_() for one in (theta, psi)]
        gradients = torch.autograd.grad((weigh(x) * losses_of(case, k, *leaves)).sum(), leaves, create_graph=True)
        virtual = [leaf - rate * gradient for leaf, gradient in zip(leaves, gradients)]
        after = torch.stack([losses_of(case, rows[t].of_step(k, 1)[0], *virtual)[t] for t in objectives])
        by_weights = torch.stack([torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in after])
        if method == "moml":
            x.grad = shortest(by_weights / by_weights.norm(dim=1, keepdim=True))
        else:
            x.grad = by_weights.sum(0)
        optimizer.step()
        leaves = [one.clone().requires_grad_() for one in (theta, psi)]
        gradients = torch.autograd.grad((weigh(x).detach() * losses_of(case, k, *leaves)).sum(), leaves)
        theta, psi = (leaf.detach() - rate * gradient for leaf, gradient in zip(leaves, gradients))
        thetas.append(theta), psis.append(psi), weights.append(weigh(x).detach().clone())
    return thetas, psis, weights


@pytest.mark.parametrize("objectives", [[0, 1, 2], [2, 0]], ids=len)
@pytest.mark.parametrize("method", FAST)
def test_against_autograd_through_the_virtual_step(method: str, objectives: list[int], tmp_path: Path) -> None:
    case = CASES["three_tasks"]
    trajectory = Trajectory()
    args = arguments(
        tmp_path,
        per_device_train_batch_size=1,
        learning_rate=case["lr"],
        train_sampling_strategy="sequential",
        balancer=method,
        balancer_kwargs=FAST[method],
    )
    data = {f"task{t}": Batches(case, t) for t in range(3)}
    given = {f"task{t}": data[f"task{t}"] for t in objectives}
    trainer = MultiTaskTrainer(
        model=Quadratic(case), args=args, train_dataset=data, callbacks=[trajectory], validation_dataset=given
    )
    trainer.train()
    theta, psi, weights = by_autograd(case, method, sorted(objectives))
    assert deviation(trajectory.theta, torch.stack(theta).tolist(), case["theta0"]) < 1e-9
    assert deviation(trajectory.psi, torch.stack(psi).tolist(), case["psi0"]) < 1e-9
    found = torch.tensor(list(trainer.balancer.transform.weights([f"task{t}" for t in range(3)]).values()))
    torch.testing.assert_close(found, weights[-1].to(found.dtype), rtol=1e-6, atol=0)
    assert (weights[-1] - weights[0]).abs().max() > 0.03  # they have moved
    other, _, _ = by_autograd(case, method, [2])
    assert deviation(other, torch.stack(theta).tolist(), case["theta0"]) > 1e-3  # other objectives, another run


def test_rows_of_a_step() -> None:
    rows = ValidationRows(10, 3)
    seen = [rows.of_step(step, 4) for step in range(5)]
    assert sorted(chain(*seen)) == sorted(list(range(10)) * 2)  # two passes over all of them
    assert list(chain(*seen))[:10] != list(chain(*seen))[10:]
    assert ValidationRows(10, 3).of_step(3, 4) == seen[3]
    assert ValidationRows(10, 4).of_step(3, 4) != seen[3]
    several = ValidationRows(3, 0).of_step(0, 7)  # a set smaller than a step is gone through more than once in it
    assert sorted(several[:3]) == sorted(several[3:6]) == [0, 1, 2]


# ---- What the Trainer owes them --------------------------------------------------------------------------------------


def run(folder: Path, method: str, resume: Path | None = None, **options) -> MultiTaskTrainer:
    options = {"balancer_kwargs": FAST.get(method), "learning_rate": 0.02, **options}
    args = arguments(folder, balancer=method, num_train_epochs=2, **options)
    trainer = MultiTaskTrainer(
        model=tiny_model(dropout=0.2),
        args=args,
        train_dataset=tiny_data(rows=24, missing=0.2),
        validation_dataset=validation_data(),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def state_of(trainer: MultiTaskTrainer) -> list[Tensor]:
    return [flat(trainer.model.parameters()), *trainer.balancer.state_dict()["tensors"].values(), torch.get_rng_state()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(one, other) for one, other in zip(a, b))


def test_the_model_and_the_random_numbers_stay_as_they_were(tmp_path: Path) -> None:
    """With weights of 1 that are never moved a tuned run is the plain sum, dropout and all."""
    frozen = run(tmp_path, "auto_lambda", balancer_kwargs={"init": 1.0, "learning_rate": 0.0})
    plain = run(tmp_path, "ew", balancer_kwargs=None)
    assert same([state_of(frozen)[0], state_of(frozen)[-1]], [state_of(plain)[0], state_of(plain)[-1]])
    moving = run(tmp_path, "auto_lambda", balancer_kwargs={"init": 1.0, "learning_rate": 0.01})
    assert not same(state_of(moving)[:1], state_of(plain)[:1])


class WithBuffer(torch.nn.Module):
    """A module whose buffer counts, as BatchNorm's do."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(3, 2)
        self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(2, 1) for task in "ab"})
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, task: str, x: Tensor, labels: Tensor):
        self.calls += self.training
        return {"loss": (self.heads[task](self.body(x)).squeeze(1) - labels).square().mean()}


def test_buffers_stay_as_they_were(tmp_path: Path) -> None:
    rows = [{"x": torch.randn(3), "labels": torch.randn(())} for _ in range(16)]
    args = arguments(tmp_path, balancer="moml", num_train_epochs=1)
    data = {"a": rows, "b": rows}
    trainer = MultiTaskTrainer(model=WithBuffer(), args=args, train_dataset=data, validation_dataset=data)
    trainer.train()
    assert trainer.model.calls == 2 * trainer.state.global_step == 4


@pytest.mark.parametrize("method", FAST)
def test_layouts_agree(method: str, tmp_path: Path) -> None:
    steps = {}
    for rows, accumulation in ((8, 1), (4, 2), (2, 4)):
        args = arguments(
            tmp_path,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=2,
            balancer=method,
            balancer_kwargs=FAST[method],
        )
        data = tiny_data(rows=20, missing=0.2)
        steps[rows] = train(tiny_model(), args, data, validation_dataset=validation_data())[1]
    assert distance(steps[8], steps[4]) < 1e-10 and distance(steps[8], steps[2]) < 1e-10
    args = arguments(tmp_path, num_train_epochs=2, balancer=method, balancer_kwargs=FAST[method])
    others = train(tiny_model(), args, data, validation_dataset=validation_data(rows=9))[1]
    assert distance(steps[8], others) > 1e-3  # other validation rows


@pytest.mark.parametrize("method", FAST)
def test_resume(method: str, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 1}
    whole = run(tmp_path / "whole", method, **options)
    for step in (1, 4):
        resumed = run(tmp_path / f"from-{step}", method, tmp_path / "whole" / f"checkpoint-{step}", **options)
        assert same(state_of(resumed), state_of(whole))
    assert not same(state_of(run(tmp_path / "other", method, seed=7))[1:2], state_of(whole)[1:2])


class States(TrainerCallback):
    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_step_end(self, args, state, control, **kwargs) -> None:
        tensors = self.trainer.balancer.state_dict()["tensors"]
        self.states.append({name: tensor.clone() for name, tensor in tensors.items()})


def watched(folder: Path, method: str, kind: type, **datasets) -> tuple[MultiTaskTrainer, list[dict[str, Tensor]]]:
    callback = States()
    args = arguments(folder, balancer=method, balancer_kwargs=FAST[method])
    given = {"train_dataset": tiny_data(rows=24), "validation_dataset": validation_data(), **datasets}
    callback.trainer = kind(model=tiny_model(), args=args, callbacks=[callback], **given)
    callback.trainer.train()
    return callback.trainer, callback.states


@pytest.mark.parametrize("method", FAST)
def test_a_skipped_step_leaves_the_weights(method: str, tmp_path: Path) -> None:
    _, (first, bad, last) = watched(tmp_path, method, Poisoned)
    assert all(torch.equal(first[name], bad[name]) for name in first)
    assert not torch.equal(last["transform/learned"], bad["transform/learned"])


@pytest.mark.parametrize("method", FAST)
def test_a_validation_loss_that_is_not_finite_leaves_the_weights(method: str, tmp_path: Path, caplog) -> None:
    class BadValidation(MultiTaskTrainer):
        tuning = False

        def _tune_on_validation(self, *args):
            self.tuning = self.state.global_step == 1
            super()._tune_on_validation(*args)
            self.tuning = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
            loss = loss * math.nan if self.tuning and inputs["task"] == "traits" else loss
            return (loss, outputs) if return_outputs else loss

    with caplog.at_level("WARNING"):
        trainer, (first, bad, last) = watched(tmp_path, method, BadValidation)
    assert "Step 2: the validation loss of task 'traits' or its gradient is not finite" in caplog.text
    assert all(torch.equal(first[name], bad[name]) for name in first)
    assert not torch.equal(last["transform/learned"], bad["transform/learned"])
    assert trainer.balancer.steps == 3  # the step itself is made
    assert torch.isfinite(flat(trainer.model.parameters())).all()


@pytest.mark.parametrize("method", FAST)
def test_a_task_absent_from_a_step_keeps_its_weight(method: str, tmp_path: Path) -> None:
    data = tiny_data(rows=24)
    unlabelled = data["score"].map(lambda row: {"labels": None if row["input_ids"][0] >= 0 else 0.0})
    few = unlabelled.select(range(23)).add_item(data["score"][0])  # one labelled row: present in one step
    _, states = watched(tmp_path, method, MultiTaskTrainer, train_dataset={**data, "score": few})
    place = list(TASKS).index("score")
    start = {"auto_lambda": 0.5, "moml": 0.0}[method]
    first = torch.full((4,), start, dtype=torch.float64)
    values = torch.stack([first, *(state["transform/learned"] for state in states)])
    moved = (values[1:] != values[:-1]).tolist()
    assert sum(step[place] for step in moved) == 1
    assert all(any(step[other] for step in moved) for other in range(4))  # MOML's step may be none: opposed objectives


def test_the_weights_serve_the_tasks_with_validation_data(tmp_path: Path) -> None:
    """The auxiliary tasks are trained on, and weighted for what they do to `topic`."""
    topic = {"topic": validation_data()["topic"]}
    trainer, _ = watched(tmp_path, "auto_lambda", MultiTaskTrainer, validation_dataset=topic)
    found = trainer.balancer.transform.weights(list(TASKS))
    assert found["topic"] > 0.5  # its own gradient helps it
    assert all(weight != 0.5 for weight in found.values())


@pytest.mark.parametrize("name", ["auto_lambda+max_norm", "moml+ema", "auto_lambda+pcgrad"])
def test_composed(name: str, tmp_path: Path) -> None:
    trainer = run(tmp_path, name)
    assert torch.isfinite(flat(trainer.model.parameters())).all() and trainer.balancer.steps == 6


def test_what_is_missing_or_wrong(tmp_path: Path) -> None:
    def make(balancer: str, given) -> None:
        args = arguments(tmp_path, balancer=balancer)
        MultiTaskTrainer(model=tiny_model(), args=args, train_dataset=tiny_data(), validation_dataset=given)

    with pytest.raises(ValueError, match="'moml' tunes its weights on validation data: give MultiTaskTrainer"):
        make("moml", None)
    with pytest.raises(ValueError, match="`validation_dataset` names a task 'topics'.*did you mean 'topic'"):
        make("moml", {"topics": validation_data()["topic"]})
    with pytest.raises(ValueError, match="Task 'topic': its validation dataset is empty"):
        make("auto_lambda", {"topic": validation_data()["topic"].select([])})
    with pytest.raises(TypeError, match="`validation_dataset` must be a dictionary"):
        make("auto_lambda", validation_data()["topic"])
    with pytest.raises(ValueError, match="`init` must be positive"):
        arguments(tmp_path, balancer="auto_lambda", balancer_kwargs={"init": 0.0})
    make("ew", validation_data())  # which does not look at it
