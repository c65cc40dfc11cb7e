"""Aligned-MTL, against the singular value decomposition of the gradients."""

from __future__ import annotations

import pytest
import torch
from gramians import random_gradients, relative, weigh

from hf_dbmtl.balancing.aligned_mtl import AlignedMTL


SCALES = {
    "min": lambda s: s.min(),
    "median": lambda s: s.square().median().sqrt(),
    "rmse": lambda s: s.square().mean().sqrt(),
}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("tasks", "size"), [(1, 5), (2, 5), (3, 12), (11, 40)])
def test_against_the_svd(tasks: int, size: int, scale: str) -> None:
    gradients = random_gradients(tasks, size, seed=tasks, spread=1.0)
    left, values, right = torch.linalg.svd(gradients, full_matrices=False)
    aligned = SCALES[scale](values) * left @ right
    assert relative(weigh(AlignedMTL(scale), gradients) @ gradients, aligned.sum(0)) < 1e-9
    assert relative(weigh(AlignedMTL(scale, reduction="mean"), gradients) @ gradients, aligned.mean(0)) < 1e-9
    if tasks > 1:
        assert relative(gradients.sum(0), aligned.sum(0)) > 1e-2


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_scale_of_all_gradients_is_immaterial(factor: float) -> None:
    gradients = random_gradients(3, 8, seed=2)
    assert relative(weigh(AlignedMTL(), factor * gradients), weigh(AlignedMTL(), gradients)) < 1e-10


@pytest.mark.parametrize("options", [{"scale": "max"}, {"reduction": "none"}])
def test_options(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        AlignedMTL(**options)
