"""UPGrad: every gradient freed of conflict by itself, then averaged."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .weightings import GramianWeighting


__all__ = ["UPGrad"]


class UPGrad(GramianWeighting):
    r"""
    Projects every gradient onto the dual cone of all of them, the directions that oppose none, and averages the
    projections (*Jacobian Descent for Multi-Objective Optimization*, arXiv 2406.16232, section 3):

    $$\frac 1 T \sum_t \pi(g_t), \qquad
    \pi(g) = \arg\min_{d} \|d - g\| \ \text{ with } g_s \cdot d \ge 0 \text{ for all } s.$$

    The computation is TorchJD's, with a projection of this package, which is exact, see [`DualCone`]. It is a mean of
    the gradients, not a sum.

    Args:
        norm_eps (`float`, *optional*, defaults to 0.0):
            Below this sum of squared norms nothing is projected. TorchJD and LibMTL take 1e-4, which small gradients,
            such as those near the end of a training, fall below; 0 leaves the weights the same for all gradients times
            one number.
        reg_eps (`float`, *optional*, defaults to 0.0):
            What is added to the diagonal of the Gramian, relative to the sum of squared norms. 0 is the paper's
            projection; TorchJD and LibMTL take 1e-4, for the sake of their solver, and leave a conflict of that order.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "non_conflicting"})
    paper = "Jacobian Descent for Multi-Objective Optimization, arXiv 2406.16232"

    def __init__(self, norm_eps: float = 0.0, reg_eps: float = 0.0):
        from torchjd.aggregation import UPGradWeighting

        from .dual_cone import DualCone

        self.norm_eps = norm_eps
        self.reg_eps = reg_eps
        if reg_eps > 0:
            self.holds = UPGrad.holds - {"non_conflicting"}
        self._weighting = UPGradWeighting(projector=DualCone("upgrad", norm_eps, reg_eps))

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        return self._weighting(gramian)
