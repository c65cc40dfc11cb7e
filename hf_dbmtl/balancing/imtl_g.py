"""IMTL-G: the gradient side of impartial multi-task learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .gramian import Equilibrated
from .weightings import GramianWeighting


__all__ = ["IMTLG"]


class IMTLG(GramianWeighting):
    r"""
    The weights, of sum 1, with which the update has the same projection onto all gradients (*Towards Impartial
    Multi-task Learning*, ICLR 2021, section 3.1, equation 6). With the norms $n$ and the cosines $C$ of the gradients

    $$\sum_t w_t g_t, \qquad w_t = \frac{v_t / n_t}{\sum_s v_s / n_s}, \qquad v = C^+ \mathbf 1 .$$

    The pseudo-inverse extends the paper's formula to gradients that depend on one another, as in TorchJD, whose own
    $G^+ n$ loses small gradients beside large ones (elsewhere the two agree). Weights may be negative. Where their sum
    before the division vanishes (as among opposite gradients) the update is zero. A gradient of zero has no direction
    and the weight 0. The weights are the same for all gradients times one number.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant"})
    paper = "Towards Impartial Multi-task Learning, ICLR 2021"

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        known = Equilibrated(gramian)
        scale = known.norms.max().clamp(min=torch.finfo(gramian.dtype).tiny)
        parts = torch.linalg.pinv(known.cosines, hermitian=True) @ (known.norms > 0).to(gramian)
        weights = parts * (scale / known.safe)
        total = weights.sum()
        return weights / total if total.abs() > 1e-12 * weights.abs().sum() else torch.zeros_like(weights)
