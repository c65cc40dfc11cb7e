"""The checks of the catalogue that ask what becomes of degenerate gradients, of the state, and of absent tasks."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from cases import CASES, Item, Step, distance, draw, known, make, play, run
from torch import Tensor

import hf_dbmtl
from hf_dbmtl.balancing import Balancer
from hf_dbmtl.gradients import GradientVector


def _gradients() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, b = random(2, 6)
    yield "one task", random(1, 6)
    yield "two tasks", random(2, 6)
    yield "forty tasks", random(40, 60)
    yield "a zero gradient", torch.stack([a, torch.zeros(6, dtype=torch.float64), b])
    yield "nothing but zeros", torch.zeros(3, 6, dtype=torch.float64)
    yield "one task, zero", torch.zeros(1, 6, dtype=torch.float64)
    yield "two parallel", torch.stack([a, 3 * a])
    yield "two equal", torch.stack([a, a])
    yield "two opposite", torch.stack([a, -2 * a])
    yield "two that cancel", torch.stack([a, -a])
    yield "rank two of five", random(5, 2) @ random(2, 6)
    yield "forty tasks in six dimensions", random(40, 6)
    yield "norms from 1e-12 to 1e12", (torch.logspace(-12, 12, 5)[:, None] * random(5, 6)).float()
    yield "norms of 1e-12", (1e-12 * random(3, 6)).float()
    yield "norms of 1e12", (1e12 * random(3, 6)).float()


DEGENERATE = dict(_gradients())


def check_degenerate(name: str, case: str) -> None:
    """Three steps with such gradients, the middle one times 1000: finite updates, or a `ValueError` of this package."""
    gradients = DEGENERATE[case]
    tasks = [f"t{i}" for i in range(len(gradients))]
    steps = [
        {task: Item(0.5 + i / 50, factor * gradients[i], 0.4) for i, task in enumerate(tasks)} for factor in (1, 1e3, 1)
    ]
    try:
        updates = run(name, steps)
    except ValueError as error:
        last = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        assert Path(hf_dbmtl.__file__).parent in last.parents, f"'{name}' breaks with {case}: '{error}' from {last}."
    else:
        assert all(update.isfinite().all() for update in updates), f"'{name}' makes of {case} what is not finite."


def saved(balancer: Balancer) -> dict:
    """The state as a checkpoint keeps it: by name, copied."""
    state = balancer.state_dict()
    for key, tensor in state["tensors"].items():
        assert tensor.device.type == "cpu", f"{key} is not on the CPU"
    return {
        "steps": state["steps"],
        "tensors": {key: tensor.detach().contiguous().clone() for key, tensor in state["tensors"].items()},
        "vectors": {
            key: {task: row.new_zero().add_(row) for task, row in rows.items()}
            for key, rows in state["vectors"].items()
        },
    }


def check_state(name: str) -> None:
    """Stopped and resumed it goes on bit for bit, and what it does not save makes no difference."""
    for steps, cut in product(CASES[:2], (1, 2, 3)):
        whole = known(name, steps)
        first, second = (make(name, list(steps[0])) for _ in range(2))
        play(first, steps[:cut])
        state = saved(first)
        play(first, steps[cut:])  # whatever becomes of the first run must not reach what was saved
        second.load_state_dict(state)
        rest, _ = play(second, steps[cut:])
        assert distance(rest, whole[cut:]) == 0.0, f"'{name}' goes on differently after step {cut}."


def check_memory(name: str) -> None:
    """A balancer that declares no memory saves nothing; of one that does, what is saved makes a difference."""
    balancer = make(name, list(CASES[1][0]))
    play(balancer, CASES[1][:3])
    state = saved(balancer)
    parts = [part for part in (balancer.transform, balancer.memory, balancer.weighting) if part is not None]
    declared = not all(part.memory.startswith("none") for part in parts)
    if not declared:
        assert not state["tensors"] and not state["vectors"], f"'{name}' declares no memory, and saves {list(state)}."
        return
    assert state["tensors"] or any(state["vectors"].values()), f"'{name}' declares a memory, and saves nothing."

    def forgets(steps: list[Step], cut: int) -> bool:
        fresh = make(name, list(steps[0]))
        fresh.load_state_dict({**saved(fresh), "steps": cut})
        # bit for bit: what is kept may be the start of a solver
        return distance(play(fresh, steps[cut:])[0], known(name, steps)[cut:]) == 0.0

    cuts = ((CASES[1], 3), (CASES[3], 3), (CASES[2], 1))
    assert not all(forgets(steps, cut) for steps, cut in cuts), f"'{name}' makes no use of its memory."


def check_absent(name: str) -> None:
    """A task that is absent from a step keeps its state, and the step is balanced among the others."""
    steps = draw(4, 12, 4, steps=5)
    tasks = list(steps[0])
    balancer = make(name, tasks)
    play(balancer, steps[:3])
    before = saved(balancer)
    updates, _ = play(balancer, [{task: steps[3][task] for task in ("t1", "t3")}], epoch=balancer.epoch)
    after = saved(balancer)
    assert updates[0].isfinite().all() and updates[0].norm() > 0, f"'{name}' makes nothing of a step without a task."
    for key, was in before["tensors"].items():
        absent = [tasks.index("t0"), tasks.index("t2")]
        if was.ndim and len(was) == len(tasks):
            assert torch.equal(after["tensors"][key][absent], was[absent]), f"'{name}' moves {key} of absent tasks."
    for key, rows in before["vectors"].items():
        for task in ("t0", "t2"):
            moved = distance([flat_row(after["vectors"][key][task])], [flat_row(rows[task])])
            assert moved == 0.0, f"'{name}' moves {key} of the absent task {task}."
    play(balancer, steps[4:])


def flat_row(row: GradientVector) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in row.tensors if tensor is not None]).double()
