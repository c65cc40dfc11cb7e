"""The update depends on the rows of a step alone, not on how they are cut into micro-batches (G1, G2)."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import TASKS, arguments, distance, tiny_data, tiny_model, train
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.gradients import LocalGradients


LAYOUTS = {"8": (8, 1), "4x2": (4, 2), "2x4": (2, 4)}
BALANCERS = {
    "db_mtl": {"balancer": "db_mtl"},
    "db_mtl without memory": {"balancer": "db_mtl", "balancer_kwargs": {"beta": 0.0}},
    "ew": {"balancer": "ew"},
    "log": {"balancer": "log"},
    "max_norm": {"balancer": "max_norm", "balancer_kwargs": {"alpha": "median"}},
    "uw": {"balancer": "uw", "balancer_kwargs": {"learning_rate": 0.1}},
    "gls": {"balancer": "gls"},
    "famo": {"balancer": "famo", "balancer_kwargs": {"learning_rate": 0.1}},
    "stch": {"balancer": "stch"},
    "dwa": {"balancer": "dwa", "balancer_kwargs": {"period": 1, "temperature": 0.5}},
    "rlw": {"balancer": "rlw"},
    "stch+max_norm": {"balancer": "stch+max_norm"},
}


def steps_of(folder: Path, rows: int, accumulation: int, dtype=torch.float64, kind=MultiTaskTrainer, **options):
    args = arguments(
        folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=1e-3,
        **options,
    )
    # 20 rows do not fill three steps of 8: the last one begins anew with each task's rows
    data = tiny_data(rows=20, missing=0.2)
    trainer, steps = train(tiny_model(dtype=dtype), args, data, trainer=kind)
    assert trainer.state.global_step == len(steps) == 6
    return steps


@pytest.mark.parametrize("name", BALANCERS)
def test_layouts_agree(name: str, tmp_path: Path) -> None:
    agree(name, torch.float64, 1e-10, tmp_path)


SINGLE = [name if name in ("db_mtl", "log") else pytest.param(name, marks=pytest.mark.slow) for name in BALANCERS]


@pytest.mark.parametrize("name", SINGLE)
def test_layouts_agree_in_single_precision(name: str, tmp_path: Path) -> None:
    agree(name, torch.float32, 5e-6, tmp_path)


def agree(name: str, dtype: torch.dtype, bound: float, tmp_path: Path) -> None:
    if name == "famo" and dtype is torch.float32:
        bound = 1e-4  # Adam steps by the sign of a difference of two losses that float32 hardly tells apart
    whole = steps_of(tmp_path, *LAYOUTS["8"], dtype=dtype, **BALANCERS[name])
    for layout in ("4x2", "2x4"):
        assert distance(whole, steps_of(tmp_path, *LAYOUTS[layout], dtype=dtype, **BALANCERS[name])) < bound, layout


@pytest.mark.parametrize("layout", ["8", "4x2"])
@pytest.mark.parametrize("name", [*BALANCERS, "log+pcgrad"])
def test_a_step_is_the_same_whether_it_is_logged_or_not(name: str, layout: str, tmp_path: Path) -> None:
    """What is not logged asks for no norms, and may go another way."""
    options = BALANCERS.get(name, {"balancer": name})
    logged, quiet = (
        [{key: value for key, value in step.items() if not key.startswith("loss/")} for step in steps]
        for steps in (steps_of(tmp_path, *LAYOUTS[layout], logging_steps=often, **options) for often in (1, 100))
    )
    assert distance(logged, quiet) < 1e-10


class Counter(TrainerCallback):
    """How many tensors of the size of a gradient of all shared parameters there are when the optimizer is about to step."""

    def __init__(self) -> None:
        self.found: list[int] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        shared = list(model.encoder.parameters())
        size = sum(parameter.numel() * parameter.element_size() for parameter in shared)
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        tensors += [parameter.grad for parameter in shared if parameter.grad is not None]
        storages = [tensor.untyped_storage() for tensor in tensors]
        self.found.append(len({storage.data_ptr() for storage in storages if storage.nbytes() == size}))


@pytest.mark.parametrize(
    ("balancer", "beta", "gradients"),
    [
        ("db_mtl", 0.9, len(TASKS) + 1),
        ("db_mtl", 0.0, 2),
        ("ew", None, 1),
        # an update that is made anew: beside it the one of the step before, and one for the tasks
        ("ema+graddrop", None, len(TASKS) + 3),
    ],
)
def test_the_gradients_that_a_process_keeps(balancer: str, beta: float | None, gradients: int, tmp_path: Path) -> None:
    """
    The averages and one more, which holds the tasks' gradients one after the other and then the update; and no more after
    many steps than after three.
    """
    options = {} if beta is None else {"beta": beta}
    args = arguments(tmp_path, max_steps=9, balancer=balancer, balancer_kwargs=options, logging_steps=100)
    counter = Counter()
    train(tiny_model(), args, tiny_data(), callbacks=[counter])
    assert counter.found[2:] == [gradients] * 7
    assert max(counter.found) == gradients


class MeanOfLogs(LocalGradients):
    """The mistake to be caught: the gradient of the mean over micro-batches of each one's log loss."""

    def each(self, units, batches, how):
        how = replace(how, summed=False)
        for unit, tasks in units.items():
            (task,), parts = tasks, []
            for batch in batches(unit):
                for _, part in super().each({unit: tasks}, lambda unit, batch=batch: [batch], how):
                    part.shared = part.shared.take()
                    parts += [part] if part.num_items else []
            first = parts[0]
            for part in parts[1:]:
                first.shared.add_(part.shared)
                first.heads.add_(part.heads)
            first.shared.mul_(1 / len(parts))
            first.heads.mul_(1 / len(parts))
            first.norm = first.shared.norm()
            yield task, first


class MeanOfMeans(MeanOfLogs):
    """Another: micro-batches of different item counts weighted alike. Shows without any logarithm."""


def wrong_trainer(gradients: type[LocalGradients]) -> type[MultiTaskTrainer]:
    class Wrong(MultiTaskTrainer):
        def create_scheduler(self, *args, **kwargs):
            scheduler = super().create_scheduler(*args, **kwargs)
            self.gradients.__class__ = gradients
            return scheduler

    return Wrong


@pytest.mark.parametrize(("gradients", "balancer"), [(MeanOfLogs, "db_mtl"), (MeanOfMeans, "ew")])
def test_wrong_variants_are_caught(gradients: type, balancer: str, tmp_path: Path) -> None:
    whole = steps_of(tmp_path, *LAYOUTS["8"], balancer=balancer)
    wrong = steps_of(tmp_path, *LAYOUTS["2x4"], balancer=balancer, kind=wrong_trainer(gradients))
    first_updates = [[{"update": steps[0]["update"]}] for steps in (whole, wrong)]
    assert distance(*first_updates) > 1e-3


class FixedBatches(MultiTaskTrainer):
    """Trains on the micro-batches it is given, so that the last window can be incomplete."""

    micro_batches: list

    def get_train_dataloader(self) -> DataLoader:
        return self.accelerator.prepare(DataLoader(self.micro_batches, batch_size=None))


def fixed_steps(folder: Path, cuts: list[tuple[int, int]], accumulation: int, **options):
    """Trains on rows cut at the given places; every micro-batch holds the same rows of each task."""
    data = tiny_data(rows=12, missing=0.2)
    kind = type("Fixed", (FixedBatches,), {})
    probe = MultiTaskTrainer(model=tiny_model(), args=arguments(folder), train_dataset=data)
    kind.micro_batches = [
        {task: probe.collators[task]([data[task][row] for row in range(*cut)]) for task in TASKS} for cut in cuts
    ]
    args = arguments(folder, gradient_accumulation_steps=accumulation, **options)
    return train(tiny_model(), args, data, trainer=kind)[1]


@pytest.mark.parametrize("name", ["db_mtl", "ew"])
def test_incomplete_last_window(name: str, tmp_path: Path) -> None:
    whole = fixed_steps(tmp_path, [(0, 8), (8, 12)], 1, **BALANCERS[name])
    cut = fixed_steps(tmp_path, [(0, 3), (3, 6), (6, 8), (8, 9), (9, 12)], 3, **BALANCERS[name])
    assert len(whole) == len(cut) == 2
    assert distance(whole, cut) < 1e-10
    other = fixed_steps(tmp_path, [(0, 3), (3, 6), (6, 9), (9, 10), (10, 12)], 3, **BALANCERS[name])
    assert distance(whole, other) > 1e-3  # other rows, another step
