"""MoCo: the steps of both variants, written out, and what becomes of absent tasks."""

from __future__ import annotations

import pytest
import torch
from cases import distance, draw, make, play

from hf_dbmtl.balancing import make_balancer
from hf_dbmtl.balancing.moco import _project_onto_simplex


STEPS = draw(3, 12, 5, steps=6)


def expected(options: dict, of_user: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[torch.Tensor]:
    """The paper's Algorithm 1, or the authors' code, in plain loops."""
    tracked, share, updates = torch.zeros(3, 12, dtype=torch.float64), torch.full((3,), 1 / 3, dtype=torch.float64), []
    for k, step in enumerate(STEPS, start=1):
        rows = torch.stack([item.gradient for item in step.values()])
        if options.get("normalize", True):
            rows = torch.stack([row / (row.norm() + 1e-8) * item.loss for row, item in zip(rows, step.values())])
        tracked = tracked - options.get("beta", 0.5) / k ** options.get("beta_decay", 0.5) * (tracked - rows)
        slope = (tracked @ tracked.T + options.get("rho", 0.0) * torch.eye(3, dtype=torch.float64)) @ share
        point = share - options.get("gamma", 0.1) / k ** options.get("gamma_decay", 0.5) * slope
        share = nearest(point) if options.get("projection") == "simplex" else torch.softmax(point, 0)
        updates.append((share * torch.tensor(of_user, dtype=torch.float64)) @ tracked)
    return updates


def nearest(point: torch.Tensor) -> torch.Tensor:
    """The projection onto the simplex, by trying all supports."""
    best = None
    for mask in range(1, 1 << len(point)):
        support = torch.tensor([bool(mask >> i & 1) for i in range(len(point))])
        candidate = torch.where(support, point + (1 - point[support].sum()) / support.sum(), 0.0)
        if candidate.min() >= 0 and (best is None or (candidate - point).norm() < (best - point).norm()):
            best = candidate
    return best


OPTIONS = {
    "default": {},
    "paper": {"normalize": False, "projection": "simplex"},
    "all": {"beta": 0.9, "beta_decay": 0.1, "gamma": 0.02, "gamma_decay": 0.3, "rho": 2.0, "normalize": False},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_steps(case: str) -> None:
    options = OPTIONS[case]
    found, _ = play(make_balancer("moco", options).setup(list(STEPS[0])), STEPS)
    torch.testing.assert_close(found, expected(options), rtol=1e-10, atol=1e-10)
    for name, value in {"beta": 0.4, "beta_decay": 0.7, "gamma": 0.2, "gamma_decay": 0.7, "rho": 50.0}.items():
        other = play(make_balancer("moco", {**options, name: value}).setup(list(STEPS[0])), STEPS)[0]
        assert distance(other, found) > 1e-4, f"{name} makes no difference"


def test_weights_of_the_user_multiply_the_terms() -> None:
    balancer = make_balancer("moco", {}, {"t0": 3.0, "t2": 0.0}).setup(list(STEPS[0]))
    torch.testing.assert_close(play(balancer, STEPS)[0], expected({}, (3.0, 1.0, 0.0)), rtol=1e-10, atol=1e-10)


def test_projection_onto_the_simplex() -> None:
    for seed in range(4):
        point = torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(_project_onto_simplex(point), nearest(point))


def test_those_present_share_what_they_had() -> None:
    balancer = make("moco", list(STEPS[0]))
    play(balancer, STEPS[:2])
    before = balancer.weighting.shares.clone()
    balancer.begin()
    balanced_tasks = {task: STEPS[2][task] for task in ("t0", "t2")}
    _, (factors,) = play(balancer, [balanced_tasks])
    after = balancer.weighting.shares
    assert sum(factors.values()) == pytest.approx(1.0)
    assert after[1] == before[1] and after[[0, 2]].sum().item() == pytest.approx(before[[0, 2]].sum().item())
    assert not torch.equal(after, before)


def test_a_second_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="'log\\+ema\\+moco' has no meaning: MoCo tracks the gradients itself"):
        make_balancer("log+ema+moco")


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"beta": 1.1}, {"gamma": -1.0}, {"rho": float("inf")}, {"projection": "l2"}]
)
def test_a_wrong_option_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        make_balancer("moco", options)
