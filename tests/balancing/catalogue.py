"""
What every balancer of the table is checked for. Each check takes the name of a balancer and raises an `AssertionError`
that says what is wrong; `test_catalogue.py` runs all of them over all names.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

import hf_dbmtl
from hf_dbmtl.balancing import Balancer, make_balancer
from hf_dbmtl.balancing.part import NEEDS, PROPERTIES
from hf_dbmtl.balancing.properties import holds, needs
from hf_dbmtl.gradients import GradientVector


STEPS = 4  # an epoch each
HOLDS, FAILS = 1e-6, 1e-4  # of a property: at most the one where it is declared, more than the other where it is not


@dataclass(frozen=True)
class Item:
    """What a task brings to a step: its loss, its gradient, and the loss of the same batch after the optimizer's step."""

    loss: float
    gradient: Tensor
    later: float


Step = dict[str, Item]


def draw(tasks: int, size: int, seed: int, spread: float = 1.0, steps: int = STEPS, common: float = 0.0) -> list[Step]:
    """
    Steps of `tasks` tasks with gradients of `size` entries and norms that are `spread` apart, which share a direction as far
    as `common` says; losses from 0.1 to 3.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = (spread * random(tasks)).exp()
    drawn = []
    for _ in range(steps):
        gradients = scales[:, None] * (random(tasks, size) + (common * random(size) if common else 0.0))
        losses = 0.1 + 2.9 * torch.rand(tasks, generator=generator, dtype=torch.float64)
        later = losses * (1 - 0.3 * torch.rand(tasks, generator=generator, dtype=torch.float64))
        drawn.append({f"t{i}": Item(losses[i].item(), gradients[i], later[i].item()) for i in range(tasks)})
    return drawn


# Three tasks in many dimensions, with norms alike and far apart; two tasks; more tasks than dimensions, in conflict; and
# tasks that mostly agree.
CASES = [draw(3, 12, 0), draw(3, 12, 1, spread=2.0), draw(2, 5, 2), draw(8, 4, 3), draw(4, 6, 9, common=2.0)]


def change(steps: list[Step], function: Callable[[str, Item], Item]) -> list[Step]:
    return [{task: function(task, item) for task, item in step.items()} for step in steps]


# Options beside the defaults under which a balancer is checked as well, by what it is called here.
VARIANTS = {
    "max_norm of alpha 1": ("max_norm", {"alpha": 1.0}),
    "gradnorm, the paper's": ("gradnorm", {"parametrization": "paper", "optimizer": "adam"}),
    "moco, the paper's": ("moco", {"normalize": False, "projection": "simplex"}),
    "excess_mtl, the paper's": ("excess_mtl", {"initial_weight": "1/T", "warmup_steps": 2}),
    "mgda of unit gradients": ("mgda", {"normalization": "l2"}),
    "mgda, its authors'": ("mgda", {"normalization": "loss+", "combine": "raw"}),
    "nash_mtl by newton": ("nash_mtl", {"solver": "newton", "max_norm": 0.0, "update_weights_every": 2}),
    "fairgrad by newton": ("fairgrad", {"solver": "newton", "alpha": 2.0}),
    "upgrad, torchjd's": ("upgrad", {"norm_eps": 1e-4, "reg_eps": 1e-4}),
    "cagrad of c 1": ("cagrad", {"c": 1.0, "rescale": 0}),
    "graddrop with a leak": ("graddrop", {"leak": 0.3}),
}


def build(name: str) -> Balancer:
    return make_balancer(*VARIANTS.get(name, (name,)))


def make(name: str, tasks: list[str], seed: int = 0) -> Balancer:
    return build(name).setup(tasks, seed)


def vector(gradient: Tensor) -> GradientVector:
    """A gradient as two parameters."""
    half = len(gradient) // 2
    return GradientVector([gradient[:half].clone(), gradient[half:].clone()])


def flat(update: GradientVector, like: Tensor) -> Tensor:
    """An update as one vector in float64; what no task reached is zero."""
    half = len(like) // 2
    pieces = zip(update.tensors, (like[:half], like[half:]))
    return torch.cat([torch.zeros_like(piece) if one is None else one for one, piece in pieces]).double()


def play(balancer: Balancer, steps: list[Step], epoch: int | None = None) -> tuple[list[Tensor], list[dict[str, float]]]:
    """The updates, and the factors that they put on the tasks' gradients, as far as the balancer tells them."""
    updates, factors = [], []
    for step in steps:
        balancer.begin(epoch=balancer.steps if epoch is None else epoch)
        derivatives = {}
        for task, item in step.items():
            loss = torch.tensor(item.loss, dtype=torch.float64)
            derivatives[task] = balancer.derivative(task, loss).item()
            balancer.take(task, item.loss, vector(item.gradient).mul_(derivatives[task]))
        balanced = balancer.balance()
        updates.append(flat(balanced.update, next(iter(step.values())).gradient))
        factors.append({task: balanced.weights[task] * derivatives[task] for task in step})
        if balancer.looks_again:
            balancer.look_again({task: item.later for task, item in step.items()})
    return updates, factors


def run(name: str, steps: list[Step], seed: int = 0) -> list[Tensor]:
    return play(make(name, list(steps[0]), seed), steps)[0]


_KNOWN: dict[tuple[str, int], list[Tensor]] = {}


def known(name: str, steps: list[Step]) -> list[Tensor]:
    """`run` on one of the CASES, once for all the checks that compare with it."""
    key = (name, id(steps))
    if key not in _KNOWN:
        _KNOWN[key] = run(name, steps)
    return _KNOWN[key]


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of an update, relative to its size."""
    sizes = [max(one.norm(), two.norm(), torch.tensor(1e-300)) for one, two in zip(found, expected)]
    return max(((one - two).norm() / size).item() for one, two, size in zip(found, expected, sizes))


# ---- Properties: how far a balancer is from having one, case by case ------------------------------------------------


def _rotation_invariant(name: str, steps: list[Step]) -> float:
    size = len(steps[0]["t0"].gradient)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    rotated = change(steps, lambda task, item: replace(item, gradient=rotation @ item.gradient))
    return distance(run(name, rotated), [rotation @ update for update in known(name, steps)])


def _permutation_equivariant(name: str, steps: list[Step]) -> float:
    tasks = list(steps[0])
    order = [*tasks[1::2], *tasks[::2]]
    return distance(run(name, [{task: step[task] for task in order} for step in steps]), known(name, steps))


def _non_conflicting(name: str, steps: list[Step]) -> float:
    worst = 0.0
    for update, step in zip(known(name, steps), steps):
        gradients = torch.stack([item.gradient for item in step.values()])
        norms = gradients.norm(dim=1)
        worst = max(worst, -(gradients @ update / norms).min().item() / max(norms.max().item(), update.norm().item()))
    return worst


def _scale_invariant(name: str, steps: list[Step]) -> float:
    if len(steps[0]) > len(steps[0]["t0"].gradient):
        return 0.0  # where a combination is zero there is no direction
    scaled = change(steps, lambda task, item: replace(item, gradient=item.gradient * (7.0 if task == "t0" else 1.0)))
    found, expected = ([update / update.norm() for update in one] for one in (run(name, scaled), known(name, steps)))
    return distance(found, expected)


def _loss_scale_invariant(name: str, steps: list[Step]) -> float:
    def times_1000(task: str, item: Item) -> Item:
        return Item(1e3 * item.loss, 1e3 * item.gradient, 1e3 * item.later) if task == "t0" else item

    return distance(run(name, change(steps, times_1000)), known(name, steps))


def _random(name: str, steps: list[Step]) -> float:
    if "random" in holds(build(name)) and steps is not CASES[0]:
        return 0.0  # one case in which the numbers matter is enough
    return float(all(distance(run(name, one, seed=1), known(name, one)) <= FAILS for one in CASES))


def _coordinate_state(name: str, steps: list[Step]) -> float:
    balancer = make(name, list(steps[0]))
    play(balancer, steps)
    return float(not any(balancer.state_dict()["vectors"].values()))


MEASURES = {name: globals()[f"_{name}"] for name in PROPERTIES}


def check_property(name: str, property_: str) -> None:
    """A declared property holds in every case; one that is not declared fails in some case."""
    declared = property_ in holds(build(name))
    worst = 0.0
    for steps in CASES:
        worst = max(worst, MEASURES[property_](name, steps))
        if not declared and worst > FAILS:
            return
    if declared:
        assert worst <= HOLDS, f"'{name}' declares {property_}, and is {worst:.1e} from it."
    else:
        raise AssertionError(f"'{name}' does not declare {property_}, and was never more than {worst:.1e} from it.")


def check_random_numbers(name: str) -> None:
    """What is drawn is a function of the seed and the balanced step: not of a step given up, nor of torch's generator."""
    steps = CASES[0]
    expected = known(name, steps)
    balancer = make(name, list(steps[0]))
    balancer.derivative("t0", torch.tensor(1.0, dtype=torch.float64))  # of a step that is then given up
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert distance(play(balancer, steps)[0], expected) == 0.0, f"'{name}' draws by more than its seed and step."
    assert torch.equal(torch.get_rng_state(), state), f"'{name}' draws from torch's own generator."


# ---- What it looks at ------------------------------------------------------------------------------------------------


def check_needs(name: str) -> None:
    """
    The weights are a function of what a balancer declares to need, and of no less: with the same losses (and norms, and
    Gramian) they are the same whatever the gradients are, and without the dearest of them they are not.
    """
    balancer = build(name)
    if balancer.memory is not None:
        return  # what its weights look at are the remembered gradients: its weighting is checked without them
    needed = needs(balancer)
    generator = torch.Generator().manual_seed(5)

    def turned(task: str, item: Item) -> Item:
        direction = torch.randn(len(item.gradient), generator=generator, dtype=torch.float64)
        return replace(item, gradient=direction * (item.gradient.norm() / direction.norm()))

    def other(task: str, item: Item) -> Item:
        return replace(item, gradient=item.gradient * (2.0 if task == "t1" else 0.5))

    by_norms, by_losses = (
        any(_differs(_factors(name, change(steps, one)), _factors(name, steps)) for steps in (CASES[1], CASES[3]))
        for one in (turned, other)
    )
    if needed == "losses":
        assert not by_norms and not by_losses, f"'{name}' declares to need the losses alone, and looks at gradients."
    elif needed == "norms":
        assert not by_norms, f"'{name}' declares to need the norms alone, and looks at products."
        assert by_losses, f"'{name}' declares to need norms, and its weights are the same with others."
    elif needed == "gramian":
        assert by_norms, f"'{name}' declares to need the Gramian, and its weights follow from the norms."
        assert "rotation_invariant" in holds(balancer), f"'{name}' declares to need no more than the Gramian."
    else:
        assert "rotation_invariant" not in holds(balancer), f"'{name}' declares to need coordinates: a Gramian would do."


def _factors(name: str, steps: list[Step]) -> list[Tensor]:
    found = play(make(name, list(steps[0])), steps)[1]
    return [torch.tensor(list(one.values()), dtype=torch.float64) for one in found]


def _differs(found: list[Tensor], expected: list[Tensor]) -> bool:
    return distance(found, expected) > FAILS


# ---- Degenerate gradients --------------------------------------------------------------------------------------------


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
    yield "norms from 1e-12 to 1e12", (random(5, 6) * torch.logspace(-12, 12, 5, dtype=torch.float64)[:, None]).float()
    yield "norms of 1e-12", (1e-12 * random(3, 6)).float()
    yield "norms of 1e12", (1e12 * random(3, 6)).float()


DEGENERATE = dict(_gradients())


def check_degenerate(name: str, case: str) -> None:
    """Three steps with such gradients, the middle one scaled by 1000: finite updates, or a `ValueError` of this package."""
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
        assert all(update.isfinite().all() for update in updates), f"'{name}' makes an update that is not finite of {case}."


# ---- State -----------------------------------------------------------------------------------------------------------


def saved(balancer: Balancer) -> dict:
    """The state as a checkpoint keeps it: by name, copied."""
    state = balancer.state_dict()
    for key, tensor in state["tensors"].items():
        assert tensor.device.type == "cpu", f"{key} is not on the CPU"
    return {
        "steps": state["steps"],
        "tensors": {key: tensor.detach().contiguous().clone() for key, tensor in state["tensors"].items()},
        "vectors": {
            key: {task: GradientVector([None if one is None else one.clone() for one in row.tensors]) for task, row in rows.items()}
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
        assert distance(play(second, steps[cut:])[0], whole[cut:]) == 0.0, f"'{name}' goes on differently after step {cut}."


def check_memory(name: str) -> None:
    """A balancer that declares no memory saves nothing; of one that does, what is saved makes a difference."""
    balancer = make(name, list(CASES[1][0]))
    play(balancer, CASES[1][:3])
    state = saved(balancer)
    declared = not all(part.memory.startswith("none") for part in (balancer.transform, balancer.memory, balancer.weighting) if part)
    if not declared:
        assert not state["tensors"] and not state["vectors"], f"'{name}' declares no memory, and saves {list(state)}."
        return
    assert state["tensors"] or any(state["vectors"].values()), f"'{name}' declares a memory, and saves nothing."

    def forgets(steps: list[Step]) -> bool:
        fresh = make(name, list(steps[0]))
        fresh.load_state_dict({**saved(fresh), "steps": 3})
        return distance(play(fresh, steps[3:])[0], known(name, steps)[3:]) == 0.0  # be it a start for a solver: bit for bit

    assert not all(forgets(steps) for steps in (CASES[1], CASES[3])), f"'{name}' makes no use of its memory."


def check_absent(name: str) -> None:
    """A task that is absent from a step keeps its state, and the step is balanced among the others."""
    steps = draw(4, 12, 4, steps=5)
    tasks = list(steps[0])
    balancer = make(name, tasks)
    play(balancer, steps[:3])
    before = saved(balancer)
    updates, _ = play(balancer, [{task: steps[3][task] for task in ("t1", "t3")}], epoch=balancer.epoch)
    after = saved(balancer)
    assert updates[0].isfinite().all() and updates[0].norm() > 0, f"'{name}' makes nothing of a step without some tasks."
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


CHECKS = {
    "random numbers": check_random_numbers,
    "needs": check_needs,
    "state": check_state,
    "memory": check_memory,
    "absent": check_absent,
    **{f"property {one}": (lambda name, one=one: check_property(name, one)) for one in PROPERTIES},
    **{f"degenerate {case}": (lambda name, case=case: check_degenerate(name, case)) for case in DEGENERATE},
}
