"""ConFIG: the direction that makes the same angle with all gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gramian import Equilibrated
from .weightings import GramianWeighting


__all__ = ["ConFIG"]


class ConFIG(GramianWeighting):
    r"""
    The direction with the same, positive cosine to all gradients, as long as the sum of their projections onto it
    (*ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks*, ICLR 2025, arXiv 2408.11104, equation
    2):

    $$d = \Big(\sum_t g_t \cdot u\Big) u, \qquad u = \frac{U^+ \mathbf 1}{\|U^+ \mathbf 1\|},$$

    where the rows of $U$ are the unit gradients. With $U^+ = U^T (U U^T)^+$ the Gramian is enough: $u$ is a sum of the
    unit gradients with the coefficients $C^+ \mathbf 1$, where $C$ are their cosines. Where there is no such direction,
    as among opposite gradients, it is the least squares solution, and the update may be zero. A gradient of zero has no
    direction and is left out.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "scale_invariant"})
    paper = "ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, arXiv 2408.11104"

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        known = Equilibrated(gramian)
        parts = torch.linalg.pinv(known.cosines, hermitian=True) @ (known.norms > 0).to(gramian)
        projections = known.cosines @ parts
        square = parts @ projections  # of the norm of the direction before it is normalized
        if not square > torch.finfo(gramian.dtype).eps * parts.square().sum():
            return torch.zeros_like(parts)
        return (known.norms @ projections / square) * parts / known.safe
