"""GradNorm: its steps against autograd, the parametrizations, and losses that it cannot compare."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import change, distance, draw, play

from hf_dbmtl.balancing import make_balancer


STEPS = draw(3, 12, 6, steps=6)
TASKS = list(STEPS[0])
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def expected(alpha: float, parametrization: str, learning_rate: float, optimizer: str) -> list[torch.Tensor]:
    """The paper's Algorithm 1, differentiated by autograd."""
    learned = torch.ones(3, dtype=torch.float64, requires_grad=True)
    stepper = OPTIMIZERS[optimizer]([learned], lr=learning_rate)
    first = torch.tensor([item.loss for item in STEPS[0].values()], dtype=torch.float64)
    updates = []
    for step in STEPS:
        gradients = torch.stack([item.gradient for item in step.values()])
        weights = 3 * learned.softmax(0) if parametrization == "softmax" else learned
        updates.append(weights.detach() @ gradients)
        norms = (weights[:, None] * gradients).norm(dim=1)
        ratios = torch.tensor([item.loss for item in step.values()], dtype=torch.float64) / first
        target = (norms.mean() * (ratios / ratios.mean()) ** alpha).detach()
        stepper.zero_grad()
        (norms - target).abs().sum().backward()
        stepper.step()
        if parametrization == "paper":
            with torch.no_grad():
                learned.clamp_(min=1e-8)
                learned.mul_(3 / learned.sum())
    return updates


@pytest.mark.parametrize("parametrization", ["softmax", "paper"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps(parametrization: str, optimizer: str) -> None:
    options = {"alpha": 0.7, "parametrization": parametrization, "learning_rate": 0.05, "optimizer": optimizer}
    found, factors = play(make_balancer("gradnorm", options).setup(TASKS), STEPS)
    torch.testing.assert_close(found, expected(**options), rtol=1e-10, atol=1e-10)
    assert all(sum(one.values()) == pytest.approx(3.0) for one in factors)
    another = "paper" if parametrization == "softmax" else "softmax"
    for name, value in {"alpha": 3.0, "parametrization": another, "learning_rate": 0.02}.items():
        other = play(make_balancer("gradnorm", {**options, name: value}).setup(TASKS), STEPS)[0]
        assert distance(other, found) > 1e-3, f"{name} makes no difference"


def test_weights_stay_positive_under_large_gradients() -> None:
    large = change(STEPS, lambda task, item: replace(item, gradient=1e4 * item.gradient))
    for parametrization in ("softmax", "paper"):
        _, factors = play(make_balancer("gradnorm", {"parametrization": parametrization}).setup(TASKS), large)
        assert all(min(one.values()) >= 0 and sum(one.values()) == pytest.approx(3.0) for one in factors)


@pytest.mark.parametrize("parametrization", ["softmax", "paper"])
def test_first_loss_of_a_task_is_that_of_its_first_step(parametrization: str) -> None:
    balancer = make_balancer("gradnorm", {"parametrization": parametrization}).setup(TASKS)
    play(balancer, [{task: STEPS[0][task] for task in ("t0", "t2")}, *STEPS[1:3]])
    known = [STEPS[0]["t0"].loss, STEPS[1]["t1"].loss, STEPS[0]["t2"].loss]
    assert balancer.weighting.first_losses.tolist() == known


def test_losses_that_cannot_be_compared() -> None:
    zero = change(STEPS[:1], lambda task, item: replace(item, loss=0.0))
    found, _ = play(make_balancer("gradnorm").setup(TASKS), [*zero, *STEPS])
    assert all(update.isfinite().all() for update in found)
    negative = change(STEPS[:1], lambda task, item: replace(item, loss=-1.0))
    with pytest.raises(ValueError, match="Task 't0': its loss is -1, and GradNorm"):
        play(make_balancer("gradnorm").setup(TASKS), negative)


@pytest.mark.parametrize(
    "options", [{"alpha": -1.0}, {"parametrization": "exp"}, {"optimizer": "lion"}, {"learning_rate": -1.0}]
)
def test_a_wrong_option_is_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        make_balancer("gradnorm", options)
