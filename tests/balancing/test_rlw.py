"""RLW: what its draws depend on, and how they are distributed."""

from __future__ import annotations

import torch
from stepping import TASKS, Step, made, play


def weights(count: int, tasks=TASKS, seed: int = 0, present=None) -> list[dict[str, float]]:
    return play(made("rlw", tasks=tasks, seed=seed), [Step(dict.fromkeys(present or tasks, 1.0))] * count)[1]


def test_they_are_the_softmax_of_normal_numbers() -> None:
    tasks = [f"t{i}" for i in range(8)]
    found = torch.tensor([list(one.values()) for one in weights(500, tasks)], dtype=torch.float64)
    torch.testing.assert_close(found.sum(1), torch.ones(500, dtype=torch.float64), rtol=1e-14, atol=0)
    # log w is z up to a number common to the step: centred, of variance 1 - 1/T
    z = found.log() - found.log().mean(1, keepdim=True)
    assert z.mean(0).abs().max() < 0.15
    assert abs(z.var().item() - 7 / 8) < 0.05
    assert abs((z**4).mean().item() / z.var().item() ** 2 - 3) < 0.3  # not uniform (1.8), nor exponential (over 6)
    assert z.T.corrcoef().fill_diagonal_(-1 / 7).sub(-1 / 7).abs().max() < 0.15  # of centred independent numbers
    lagged = torch.stack([z[1:].reshape(-1), z[:-1].reshape(-1)]).corrcoef()[0, 1]
    assert abs(lagged) < 0.1  # from step to step as well


def test_they_depend_on_seed_step_and_name_alone() -> None:
    found = weights(5)
    assert weights(5) == found
    assert weights(5, seed=1) != found
    assert len({one["a"] for one in found}) == 5
    for there, alone in zip(found, weights(5, present="b")):
        assert alone == {"b": there["b"]}  # whether the others are present or not
    for one, other in zip(found, weights(5, tasks="cab")):
        assert all(abs(one[task] - other[task]) < 1e-15 for task in TASKS)  # in whatever order they are declared
    renamed = weights(5, tasks="abd")
    assert all(abs(one["a"] / one["b"] - other["a"] / other["b"]) < 1e-12 for one, other in zip(found, renamed))
    assert all(abs(one["c"] - other["d"]) > 1e-6 for one, other in zip(found, renamed))
