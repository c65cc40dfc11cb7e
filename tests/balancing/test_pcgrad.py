"""PCGrad, against the algorithm written out for vectors."""

from __future__ import annotations

import pytest
import torch
from gramians import names, random_gradients, relative, weigh
from torch import Tensor
from torchjd.aggregation import PCGradWeighting

from hf_dbmtl.balancing.pcgrad import PCGrad


def projected(gradients: Tensor, orders: list[list[int]], epsilon: float = 1e-8) -> Tensor:
    """Algorithm 1 of the paper."""
    total = torch.zeros_like(gradients[0])
    for i, order in enumerate(orders):
        mine = gradients[i].clone()
        for j in order:
            if j != i and mine @ gradients[j] < 0:
                mine -= mine @ gradients[j] / (gradients[j].square().sum() + epsilon) * gradients[j]
        total += mine
    return total


def orders_of(part: PCGrad, tasks: int, step: int) -> list[list[int]]:
    generator = part.generator(step)
    return [torch.randperm(tasks, generator=generator).tolist() for _ in range(tasks)]


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize(("tasks", "size"), [(2, 3), (5, 4), (9, 4)])
def test_against_vectors(tasks: int, size: int, step: int) -> None:
    gradients, part = random_gradients(tasks, size, seed=step, spread=1.0), PCGrad()
    found = weigh(part, gradients, step=step) @ gradients
    assert relative(found, projected(gradients, orders_of(part, tasks, step))) < 1e-12
    if tasks > 2:  # with other orders it comes to something else
        assert relative(found, projected(gradients, orders_of(part, tasks, step + 7))) > 1e-3


def test_epsilon() -> None:
    gradients = random_gradients(2, 3, seed=1)
    assert gradients[0] @ gradients[1] < 0
    exact = weigh(PCGrad(epsilon=0.0), gradients)
    assert relative(exact, PCGradWeighting()(gradients @ gradients.T)) < 1e-14
    with_epsilon = weigh(PCGrad(), gradients)
    assert 1e-10 < relative(with_epsilon, exact) < 1e-7
    # a conflict among tiny gradients is resolved as well
    assert relative(weigh(PCGrad(), 1e-9 * gradients), exact) < 1e-3


def test_the_order_of_the_tasks_is_immaterial() -> None:
    gradients, tasks = random_gradients(6, 4, seed=2), names(6)
    order = [3, 0, 5, 1, 4, 2]
    found = weigh(PCGrad(), gradients[order], tasks=[tasks[i] for i in order])
    torch.testing.assert_close(found, weigh(PCGrad(), gradients)[order], rtol=1e-12, atol=1e-12)


def test_options() -> None:
    with pytest.raises(ValueError, match="`epsilon` must be a finite number"):
        PCGrad(epsilon=-1.0)
