"""DualProj: the mean gradient freed of conflict."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .weightings import GramianWeighting


__all__ = ["DualProj"]


class DualProj(GramianWeighting):
    r"""
    The mean gradient, projected onto the dual cone of the gradients, the directions that oppose none (*Gradient
    Episodic Memory for Continual Learning*, NeurIPS 2017, arXiv 1706.08840, equation 11; *Jacobian Descent for
    Multi-Objective Optimization*, arXiv 2406.16232):

    $$\pi\Big(\frac 1 T \sum_t g_t\Big), \qquad
    \pi(g) = \arg\min_{d} \|d - g\| \ \text{ with } g_s \cdot d \ge 0 \text{ for all } s.$$

    The computation is TorchJD's, with a projection of this package, which is exact, see [`DualCone`]. It is near a mean
    of the gradients, not a sum.

    Args:
        norm_eps (`float`, *optional*, defaults to 0.0):
            Below this sum of squared norms nothing is projected. TorchJD takes 1e-4, which small gradients, such as
            those near the end of a training, fall below; 0 leaves the weights the same for all gradients times one
            number.
        reg_eps (`float`, *optional*, defaults to 0.0):
            What is added to the diagonal of the Gramian, relative to the sum of squared norms. 0 is the papers'
            projection; TorchJD takes 1e-4, for the sake of its solver, and leaves a conflict of that order.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "non_conflicting"})
    paper = "Gradient Episodic Memory for Continual Learning, arXiv 1706.08840"

    def __init__(self, norm_eps: float = 0.0, reg_eps: float = 0.0):
        from torchjd.aggregation import DualProjWeighting

        from .dual_cone import DualCone

        self.norm_eps = norm_eps
        self.reg_eps = reg_eps
        if reg_eps > 0:
            self.holds = DualProj.holds - {"non_conflicting"}
        self._weighting = DualProjWeighting(projector=DualCone("dualproj", norm_eps, reg_eps))

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        return self._weighting(gramian)
