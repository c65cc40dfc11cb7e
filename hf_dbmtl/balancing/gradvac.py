"""GradVac: gradient vaccine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .gramian import drawing_from
from .pcgrad import by_name, lifted
from .weightings import GramianWeighting


__all__ = ["GradVac"]


class GradVac(GramianWeighting):
    r"""
    Turns every gradient towards each of the others, in an order drawn at random, where their cosine is below its moving
    average, and adds up what results (*Gradient Vaccine: Investigating and Improving Multi-task Optimization in
    Massively Multilingual Models*, ICLR 2021, arXiv 2010.05874, equation 4 and Algorithm 1): with the cosine
    $\phi_{ij}$ of $g_i'$ and $g_j$

    $$g_i' \leftarrow g_i' + \frac{\|g_i'\| \big(\hat\phi_{ij} \sqrt{1 - \phi_{ij}^2}
    - \phi_{ij} \sqrt{1 - \hat\phi_{ij}^2}\big)}{\|g_j\| \sqrt{1 - \hat\phi_{ij}^2}} g_j
    \ \text{ where } \phi_{ij} < \hat\phi_{ij}, \qquad
    \hat\phi_{ij} \leftarrow (1 - \beta) \hat\phi_{ij} + \beta \phi_{ij}.$$

    The averages start from zero, so that the first step is that of PCGrad. They are of the whole gradients; the paper's
    finer groups of parameters are not offered. The computation is TorchJD's, of which the numbers drawn, the averages
    and what becomes of them where a task is absent are kept here: the averages of its pairs stay. The weights are the
    same for all gradients times one number: where the mean squared norm is below 1e-4, all are scaled up to it first,
    so that the epsilon of 1e-8 in the denominators, LibMTL's and TorchJD's, never matters.

    Args:
        beta (`float`, *optional*, defaults to 0.01):
            $\beta$ in [0, 1], the paper's. LibMTL and TorchJD take 0.5.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "random"})
    paper = "Gradient Vaccine, arXiv 2010.05874"
    memory = "a number per pair of tasks"

    def __init__(self, beta: float = 0.01):
        from torchjd.aggregation import GradVacWeighting

        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"`beta` must be in [0, 1], and is {beta}: 0.01 is the default.")
        self.beta = beta
        self._weighting = GradVacWeighting(beta=beta)

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.targets = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        order = by_name(tasks)
        present = torch.tensor([self.tasks.index(tasks[i]) for i in order])
        weighting: Any = self._weighting  # whose state TorchJD declares as None
        weighting._ensure_state(len(tasks), gramian.dtype)
        weighting._phi_t = self.targets[present[:, None], present]
        with drawing_from(self.generator(step)):
            found = weighting(lifted(gramian)[order][:, order])
        self.targets[present[:, None], present] = weighting._phi_t
        weights = torch.empty_like(found)
        weights[order] = found
        return weights

    def state_dict(self) -> dict[str, Tensor]:
        return {"targets": self.targets.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.targets = state["targets"].clone()
