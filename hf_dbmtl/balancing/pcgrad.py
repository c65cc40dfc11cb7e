"""PCGrad: gradient surgery."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .weightings import GramianWeighting


__all__ = ["PCGrad", "by_name", "lifted"]

EPSILON = 1e-8  # LibMTL's, beside the squared norm that is divided by


class PCGrad(GramianWeighting):
    r"""
    Takes from every gradient, one after the other, its components along the gradients that oppose it, in an order drawn
    at random, and adds up what remains (*Gradient Surgery for Multi-Task Learning*, NeurIPS 2020, arXiv 2001.06782,
    Algorithm 1):

    $$g_i^{PC} \leftarrow g_i^{PC} - \frac{\min(g_i^{PC} \cdot g_j, 0)}{\|g_j\|^2 + \epsilon} g_j, \qquad
    \sum_i g_i^{PC}.$$

    The update is a sum over the tasks, as in the authors' code and LibMTL. The orders are a function of the seed, the
    step and the names of the tasks present. The weights are the same for all gradients times one number: where the mean
    squared norm is below 1e-4, all are scaled up to it first, so that $\epsilon$ never matters.

    Args:
        epsilon (`float`, *optional*, defaults to 1e-8):
            $\epsilon$, zero or more. LibMTL's; the paper and TorchJD have none.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "random"})
    paper = "Gradient Surgery for Multi-Task Learning, arXiv 2001.06782"

    def __init__(self, epsilon: float = EPSILON):
        if not 0.0 <= epsilon < float("inf"):
            raise ValueError(f"`epsilon` must be a finite number, zero or more, and is {epsilon}.")
        self.epsilon = epsilon

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        order = by_name(tasks)
        products = lifted(gramian)[order][:, order]
        count = len(order)
        generator = self.generator(step)
        total = [0.0] * count
        rows = products.tolist()
        for i in range(count):
            mine = [float(i == j) for j in range(count)]
            towards = rows[i]  # the products of what is left of gradient i with every gradient
            for j in torch.randperm(count, generator=generator).tolist():
                if j != i and towards[j] < 0:
                    factor = -towards[j] / (rows[j][j] + self.epsilon)
                    mine[j] += factor
                    towards = [one + factor * other for one, other in zip(towards, rows[j])]
            total = [one + other for one, other in zip(total, mine)]
        weights = torch.empty(count, dtype=gramian.dtype)
        weights[order] = torch.tensor(total, dtype=gramian.dtype)
        return weights


def by_name(tasks: Sequence[str]) -> Tensor:
    """The order of tasks by name: what is drawn for them in it does not depend on the order they come in."""
    return torch.tensor(sorted(range(len(tasks)), key=lambda i: tasks[i]))


def lifted(gramian: Tensor) -> Tensor:
    """
    The Gramian of all gradients times one number, 1 where their mean squared norm is 1e-4 or more, and else so that it
    is: an epsilon of 1e-8 is that of LibMTL's code among ordinary gradients, and small among tiny ones as well.
    """
    mean = gramian.diagonal().mean()
    return gramian * (1e-4 / mean) if 0 < mean < 1e-4 else gramian
