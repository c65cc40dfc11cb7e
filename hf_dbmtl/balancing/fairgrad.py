"""FairGrad: fair resource allocation among the tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .fair import at_ordinary_scale, solve_fair
from .gramian import require
from .weightings import GramianWeighting


__all__ = ["FairGrad"]

LONGEST = 1000  # evaluations per step: scipy's own bound, 100 per task, takes seconds at 40 tasks without a solution


class FairGrad(GramianWeighting):
    r"""
    Weights that make the decreases of the losses, to first order, a fair allocation in the sense of $\alpha$ (*Fair
    Resource Allocation in Multi-Task Learning*, ICML 2024, arXiv 2402.15638, equation 4):

    $$\sum_t w_t g_t \quad \text{with} \quad (G w)_t = w_t^{-1/\alpha}, \ w > 0, \quad G_{st} = g_s \cdot g_t .$$

    $\alpha \to 0$ tends to the sum of the gradients, 1 is proportional fairness (Nash-MTL without its bound on the
    norm), $\alpha \to \infty$ max-min fairness. The heads carry the weights as well, as in the authors' code, which
    back-propagates the weighted sum of the losses; a task whose gradient of the shared parameters is zero takes no
    part, and has weight 1.

    Args:
        alpha (`float`, *optional*, defaults to 1.0):
            $\alpha > 0$, in the authors' code 1 by default, and 2 in some of the paper's experiments.
        solver (`str`, *optional*, defaults to `"least_squares"`):
            `"least_squares"`: TorchJD's, as in the authors' code and LibMTL; now and then it stops before the solution.
            `"newton"`: to rounding error, faster, and for gradients of any norm. The former is given the gradients
            rescaled where the root mean square of their norms is not between 1e-3 and 1e3, and replaced by the latter
            where it breaks.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant", "non_conflicting", "scale_invariant"})
    paper = "Fair Resource Allocation in Multi-Task Learning, arXiv 2402.15638"
    weights_heads = True

    def __init__(self, alpha: float = 1.0, solver: str = "least_squares"):
        if not 0.0 < alpha < float("inf"):
            raise ValueError(f"`alpha` must be a positive number, and is {alpha}: 1.0 is the default, 0 would be `ew`.")
        if solver not in ("least_squares", "newton"):
            raise ValueError(f"`solver` must be 'least_squares' or 'newton', and is {solver!r}.")
        self.alpha = alpha
        self.solver = solver
        if alpha != 1.0:
            self.holds = FairGrad.holds - {"scale_invariant"}
        if solver == "least_squares":
            require("scipy.optimize", "fairgrad")
            from torchjd.aggregation import FairGradWeighting

            self._weighting = FairGradWeighting(alpha=alpha)

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        weights = torch.ones_like(gramian.diagonal())
        moves = gramian.diagonal() > 0
        if moves.any():
            weights[moves] = self._solve(gramian[moves][:, moves])
        return weights

    def _solve(self, gramian: Tensor) -> Tensor:
        if self.solver == "least_squares":
            scaled, back = at_ordinary_scale(gramian, self.alpha)
            self._weighting.max_iters = min(100 * len(gramian), LONGEST)
            try:
                found = self._weighting(scaled)
            except (ValueError, ArithmeticError, torch.linalg.LinAlgError):
                found = None  # numbers too far apart for it
            if found is not None and found.isfinite().all() and (found > 0).all():
                return back * found
        return solve_fair(gramian, self.alpha)
