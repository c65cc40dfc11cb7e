"""MOML: weights that serve every validation loss at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .auto_lambda import TunedWeights
from .gramian import Equilibrated
from .learned import Learned
from .mgda import shortest


__all__ = ["MOML"]


class MOML(TunedWeights):
    r"""
    Weights that descend towards Pareto optimal validation losses, from *Multi-Objective Meta Learning* (NeurIPS 2021;
    AIJ 2024): weights $w = \mathrm{softmax}(\xi)$ over the tasks present, and in every step a virtual one, $\theta' =
    \theta - \alpha \sum_t w_t g_t$ at the learning rate $\alpha$ of the run. Each validation loss $L_s(\theta')$ has a
    gradient by $\xi$, $-\alpha (\nabla L_s(\theta') \cdot g_t)_t \frac{\partial w}{\partial \xi}$; these are divided by
    their norms, $\xi$ descends along the shortest vector in their convex hull (MGDA), and then the model is updated
    with the new weights, which heads carry. A task absent from a step keeps its $\xi$; one without validation data is
    trained on and is no objective.

    This is the case of one inner step, in which LibMTL has the method, too. As there and in the authors' code the
    gradients are normalised; the shortest vector is exact here. The authors draw the batch of the virtual step and that
    of the update separately; here it is the same.

    Args:
        learning_rate (`float`, *optional*, defaults to 0.001):
            The learning rate of $\xi$.
        optimizer (`str`, *optional*, defaults to `"adam"`):
            `"adam"` or `"sgd"`.
    """

    paper = "Multi-Objective Meta Learning, NeurIPS 2021"
    coupled = True

    def __init__(self, learning_rate: float = 1e-3, optimizer: str = "adam"):
        self.logits = Learned(learning_rate, optimizer)

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.logits.setup(tasks, 0.0)

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        return dict(zip(tasks, self.logits.values(tasks).softmax(0).tolist()))

    def tune(self, products: Tensor, tasks: Sequence[str], learning_rate: float) -> None:
        w = self.logits.values(tasks).softmax(0)
        gradients = -learning_rate * products @ (w.diag() - w[:, None] * w)
        norms = gradients.norm(dim=1, keepdim=True)
        units = (gradients / norms)[norms[:, 0] > 0]
        if len(units):
            known = Equilibrated(units @ units.T)
            self.logits.step(dict(zip(tasks, (shortest(known, known.norms) @ units).tolist())))

    def late(self, task: str) -> float:
        return math.exp(self.logits[task] - self.logits.values().max().item())

    def scale(self, losses: Mapping[str, float]) -> float:
        return 1.0 / max(math.fsum(self.late(task) for task in losses), torch.finfo(torch.float64).tiny)

    def state_dict(self) -> dict[str, Tensor]:
        return self.logits.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.logits.load_state_dict(state)
