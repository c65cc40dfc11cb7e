"""Aligned-MTL: the gradients made orthogonal and equally long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from .gramian import normalized
from .weightings import GramianWeighting


__all__ = ["AlignedMTL"]

SCALES = ("min", "median", "rmse")


class AlignedMTL(GramianWeighting):
    r"""
    Replaces the matrix $J$ of gradients by the nearest one whose singular values are all alike, and adds up its rows
    (*Independent Component Alignment for Multi-Task Learning*, CVPR 2023, arXiv 2305.19000, Algorithm 1): with the
    eigenvectors $V$ and the positive eigenvalues $\lambda$ of the Gramian

    $$\sum_t w_t g_t, \qquad w = B^T \mathbf 1, \qquad
    B = \sqrt{\lambda_{\min}}\, V \operatorname{diag}(\lambda)^{-1/2} V^T .$$

    The computation is TorchJD's. The weights are the same for all gradients times one number. Eigenvalues below the
    rounding error of the largest are left out, and with them what gradients a hundred million times smaller than others
    add.

    Args:
        scale (`str`, *optional*, defaults to `"min"`):
            To what the singular values are brought: that of the smallest eigenvalue (`"min"`, the paper's), of the
            `"median"`, or of their mean (`"rmse"`).
        reduction (`str`, *optional*, defaults to `"sum"`):
            Whether the rows are added up (`"sum"`, as in LibMTL, after the authors' code) or averaged (`"mean"`, as in
            TorchJD, a factor T less).
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant"})
    paper = "Independent Component Alignment for Multi-Task Learning, arXiv 2305.19000"

    def __init__(self, scale: str = "min", reduction: str = "sum"):
        from torchjd.aggregation import AlignedMTLWeighting

        if scale not in SCALES:
            raise ValueError(f"`scale` must be one of {list(SCALES)}, and is {scale!r}.")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"`reduction` must be 'sum' or 'mean', and is {reduction!r}.")
        self.scale = scale
        self.reduction = reduction
        self._weighting = AlignedMTLWeighting(scale_mode=cast(Any, scale))

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        means = self._weighting(normalized(gramian)[0])
        return means * len(tasks) if self.reduction == "sum" else means
