"""GradDrop: in every coordinate, the gradients of one sign, chosen at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .vectors import Vector
from .weightings import CoordinateWeighting


__all__ = ["GradDrop", "uniform"]


class GradDrop(CoordinateWeighting):
    r"""
    Gradient sign dropout keeps, in every coordinate, either the positive or the negative entries, the likelier the
    more of the total they make up (*Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout*,
    NeurIPS 2020, arXiv 2010.06808, Algorithm 1):

    $$P = \tfrac12 \Big(1 + \frac{\sum_t g_t}{\sum_t |g_t|}\Big), \quad
    M_t = [P > U][g_t > 0] + [P < U][g_t < 0], \quad \sum_t (\lambda_t + (1 - \lambda_t) M_t) \, g_t,
    \qquad U \sim \mathcal U(0, 1).$$

    The paper applies this to the gradients of the activations that the tasks share, times the sign of the activations
    and summed over the batch, and LibMTL does so too. Here, as in TorchJD, it is applied to the gradients of the
    shared parameters, so that it does not depend on how a batch is cut into micro-batches. The paper's monotone
    function $f(P)$ is the identity, as in its experiments.

    $U$ is a pure function of the seed, the balanced step, the parameter and the position in it, never of how a
    parameter is cut, so that all processes draw the same numbers.

    Args:
        leak (`float` or `dict[str, float]`, *optional*, defaults to 0.0):
            $\lambda_t$ in [0, 1], how much of what is dropped comes through; for all tasks, or by task (0 where
            silent).
    """

    holds = frozenset({"permutation_equivariant", "random"})
    paper = "Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, arXiv 2010.06808"

    def __init__(self, leak: float | Mapping[str, float] = 0.0):
        for value in leak.values() if isinstance(leak, Mapping) else [leak]:
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`leak` must be in [0, 1], and is {value!r}: 0 drops, 1 lets everything through.")
        self.leak = leak

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        unknown = [task for task in self.leak if task not in self.tasks] if isinstance(self.leak, Mapping) else []
        if unknown:
            raise ValueError(f"`leak` names the task '{unknown[0]}', and the tasks are {list(self.tasks)}.")

    def combine(
        self, rows: Mapping[str, Vector], losses: Sequence[float], step: int, task_weights: Sequence[float]
    ) -> tuple[Vector, dict[str, float]]:
        leaks = [self.leak.get(task, 0.0) if isinstance(self.leak, Mapping) else self.leak for task in rows]

        def keep(pieces: Tensor, parameter: int, start: int) -> Tensor:
            weights = pieces.new_tensor(task_weights)
            positive, negative = pieces.clamp(min=0), pieces.clamp(max=0)
            upwards = positive.sum(0)
            draws = uniform(self.seed, step, parameter, start, pieces.shape[1], pieces.device)
            chosen = draws * (upwards - negative.sum(0)) < upwards  # U < P, without a division
            update = torch.where(chosen, weights @ positive, weights @ negative)
            if any(leaks):
                weights = weights * pieces.new_tensor(leaks)
                update += torch.where(chosen, weights @ negative, weights @ positive)
            return update

        first, *others = rows.values()
        return first.map(others, keep), {}


def uniform(seed: int, step: int, parameter: int, start: int, count: int, device: torch.device) -> Tensor:
    """
    Random numbers in [0, 1) for `count` entries of a flattened parameter from entry `start` on, each a function of the
    first three arguments and of its place: SplitMix64 on a counter, the same on every device.
    """
    key = torch.zeros((), dtype=torch.int64)
    for part in (seed, step, parameter):
        key = _mix(key + GOLDEN + part)
    counters = torch.arange(start + 1, start + 1 + count, device=device)
    return _shift(_mix(counters * GOLDEN + key.item()), 11).double().mul_(2.0**-53)


# The constants of SplitMix64, as signed integers: int64 arithmetic wraps around.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def _mix(x: Tensor) -> Tensor:
    for bits, factor in zip((30, 27), FACTORS):
        x = (x ^ _shift(x, bits)).mul_(factor)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """The logical shift to the right; torch's own keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
