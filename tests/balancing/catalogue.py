"""
What every balancer of the table is checked for. Each check takes the name of a balancer and raises an `AssertionError`
that says what is wrong; `test_catalogue.py` runs all of them over all names.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from cases import CASES, Item, Step, build, change, distance, known, make, play, run
from catalogue_faults import DEGENERATE, check_absent, check_degenerate, check_memory, check_state
from torch import Tensor

from hf_dbmtl.balancing.part import PROPERTIES
from hf_dbmtl.balancing.properties import holds, needs


HOLDS, FAILS = 1e-6, 1e-4  # of a property: at most the one where it is declared, more than the other where it is not


# ---- Properties: how far a balancer is from having one, case by case ------------------------------------------------


def _rotation_invariant(name: str, steps: list[Step]) -> float:
    size = len(steps[0]["t0"].gradient)
    generator = torch.Generator().manual_seed(9)
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
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


def check_property(name: str, property_: str, cases: list[list[Step]] = CASES) -> None:
    """A declared property holds in every case; one that is not declared fails in some case."""
    declared = property_ in holds(build(name))
    worst = 0.0
    for steps in cases:
        worst = max(worst, MEASURES[property_](name, steps))
        if not declared and worst > FAILS:
            return
    if declared:
        assert worst <= HOLDS, f"'{name}' declares {property_}, and is {worst:.1e} from it."
    else:
        raise AssertionError(f"'{name}' does not declare {property_}, and was never more than {worst:.1e} from it.")


def check_random_numbers(name: str) -> None:
    """What is drawn is a function of the seed and the balanced step, not of a step given up or torch's generator."""
    steps = CASES[0]
    expected = known(name, steps)
    balancer = make(name, list(steps[0]))
    balancer.derivative("t0", torch.tensor(1.0, dtype=torch.float64))  # of a step that is then given up
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert distance(play(balancer, steps)[0], expected) == 0.0, f"'{name}' draws by more than its seed and step."
    assert torch.equal(torch.get_rng_state(), state), f"'{name}' draws from torch's own generator."


# ---- What it looks at -----------------------------------------------------------------------------------------------


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
    elif needed == "validation":
        assert by_norms, f"'{name}' declares to be tuned on validation gradients, and does not look at them."
    else:
        assert "rotation_invariant" not in holds(balancer), f"'{name}' declares to need more than a Gramian."


def _factors(name: str, steps: list[Step]) -> list[Tensor]:
    found = play(make(name, list(steps[0])), steps)[1]
    return [torch.tensor(list(one.values()), dtype=torch.float64) for one in found]


def _differs(found: list[Tensor], expected: list[Tensor]) -> bool:
    return distance(found, expected) > FAILS


CHECKS = {
    "random numbers": check_random_numbers,
    "needs": check_needs,
    "state": check_state,
    "memory": check_memory,
    "absent": check_absent,
    **{f"property {one}": (lambda name, one=one: check_property(name, one)) for one in PROPERTIES},
    **{f"degenerate {case}": (lambda name, case=case: check_degenerate(name, case)) for case in DEGENERATE},
}
