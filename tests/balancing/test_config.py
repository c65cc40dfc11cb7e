"""ConFIG, against TorchJD's on the gradients themselves."""

from __future__ import annotations

import pytest
import torch
from gramians import random_gradients, relative, weigh
from torchjd.aggregation import ConFIG as TorchJDConFIG

from hf_dbmtl.balancing.config import ConFIG


@pytest.mark.parametrize(("tasks", "size"), [(1, 5), (2, 5), (3, 12), (11, 40), (8, 4), (40, 6)])
def test_against_torchjd(tasks: int, size: int) -> None:
    gradients = random_gradients(tasks, size, seed=tasks, spread=1.0)
    assert relative(weigh(ConFIG(), gradients) @ gradients, TorchJDConFIG()(gradients)) < 1e-9


def test_the_same_angle_with_all_gradients() -> None:
    gradients = random_gradients(5, 20, seed=1, spread=2.0)
    update = weigh(ConFIG(), gradients) @ gradients
    cosines = gradients @ update / (gradients.norm(dim=1) * update.norm())
    assert cosines.min() > 0 and (cosines.max() - cosines.min()) < 1e-12
    assert update.norm().item() == pytest.approx((cosines * gradients.norm(dim=1)).sum().item())
    mean = gradients.mean(0)
    assert (gradients @ mean / gradients.norm(dim=1)).std() / mean.norm() > 1e-2


def test_opposite_gradients_have_no_such_direction() -> None:
    one = random_gradients(1, 5)
    assert (weigh(ConFIG(), torch.cat([one, -2 * one])) == 0).all()
