"""GradVac, against the algorithm written out for vectors."""

from __future__ import annotations

import pytest
import torch
from gramians import names, random_gradients, relative, weigh
from torch import Tensor

from hf_dbmtl.balancing.gradvac import GradVac


def vaccinated(
    gradients: Tensor, targets: Tensor, orders: list[list[int]], beta: float, epsilon: float = 1e-8
) -> Tensor:
    """Algorithm 1 of the paper; `targets` are updated in place."""
    total = torch.zeros_like(gradients[0])
    for i, order in enumerate(orders):
        mine = gradients[i].clone()
        for j in order:
            other, target = gradients[j], targets[i, j].clone()
            cosine = mine @ other / (mine.norm() * other.norm() + epsilon)
            if cosine < target:
                straight, turned = (1 - target**2).sqrt(), (1 - cosine**2).sqrt()
                mine = (
                    mine
                    + mine.norm() * (target * turned - cosine * straight) / (other.norm() * straight + epsilon) * other
                )
            targets[i, j] = (1 - beta) * target + beta * cosine
        total += mine
    return total


def orders_of(part: GradVac, tasks: int, step: int) -> list[list[int]]:
    generator, found = part.generator(step), []
    for i in range(tasks):
        others = [j for j in range(tasks) if j != i]
        found.append([others[k] for k in torch.randperm(tasks - 1, generator=generator).tolist()])
    return found


@pytest.mark.parametrize("beta", [0.01, 0.5])
@pytest.mark.parametrize("tasks", [2, 5])
def test_against_vectors(tasks: int, beta: float) -> None:
    part, targets = GradVac(beta), torch.zeros(tasks, tasks, dtype=torch.float64)
    part.setup(names(tasks), 0)
    for step in range(1, 6):
        gradients = random_gradients(tasks, 4, seed=step, spread=1.0)
        found = weigh(part, gradients, step=step, setup=False) @ gradients
        assert relative(found, vaccinated(gradients, targets, orders_of(part, tasks, step), beta)) < 1e-10
        assert relative(part.targets, targets) < 1e-12
        if step > 2:  # the control: without the averages it is PCGrad
            fresh = torch.zeros_like(targets)
            assert relative(found, vaccinated(gradients, fresh, orders_of(part, tasks, step), beta)) > 1e-5


def test_tiny_gradients() -> None:
    """The epsilon in the denominators does not decide what is in conflict."""
    gradients = random_gradients(4, 3, seed=1)
    assert relative(weigh(GradVac(), 1e-9 * gradients), weigh(GradVac(), gradients)) < 1e-3


def test_a_step_with_some_of_the_tasks() -> None:
    part = GradVac(0.5)
    part.setup(names(4), 0)
    weigh(part, random_gradients(4, 6, seed=1), setup=False)
    before = part.targets.clone()
    gradients = random_gradients(2, 6, seed=2)
    targets = before[[1, 3]][:, [1, 3]].clone()
    found = weigh(part, gradients, step=2, tasks=["t1", "t3"], setup=False) @ gradients
    assert relative(found, vaccinated(gradients, targets, orders_of(part, 2, 2), 0.5)) < 1e-10
    moved = part.targets != before
    assert moved.nonzero().tolist() == [[1, 3], [3, 1]]


def test_options() -> None:
    with pytest.raises(ValueError, match=r"`beta` must be in \[0, 1\]"):
        GradVac(beta=1.5)
