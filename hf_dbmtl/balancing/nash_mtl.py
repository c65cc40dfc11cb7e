"""Nash-MTL: the tasks bargain for the update."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .fair import at_ordinary_scale, solve_fair
from .gramian import Equilibrated, require
from .weightings import GramianWeighting


__all__ = ["NashMTL"]

CLOSE = 1e-3  # relative, to the solution: what the sequence of convex problems leaves open depends on rounding errors


class NashMTL(GramianWeighting):
    r"""
    The Nash bargaining solution, the update that maximizes the product of what the tasks gain from it (*Multi-Task
    Learning as a Bargaining Game*, ICML 2022, arXiv 2202.01017, claim 3.1 and Algorithm 1):

    $$\sum_t w_t g_t \quad \text{with} \quad (G w)_t = 1 / w_t, \ w > 0, \quad G_{st} = g_s \cdot g_t,$$

    shortened to the norm `max_norm`. The heads carry the weights as well, without that bound, as in the authors' code,
    which back-propagates the weighted sum of the losses and then clips the shared gradient. A task whose gradient of
    the shared parameters is zero takes no part, and has weight 1. In a step without some of the tasks the others
    bargain.

    Args:
        max_norm (`float`, *optional*, defaults to 1.0):
            The largest norm of the update of the shared parameters; 0 for no bound.
        optim_niter (`int`, *optional*, defaults to 20):
            The largest number of convex problems solved per step, with `solver="ccp"`.
        update_weights_every (`int`, *optional*, defaults to 1):
            The weights are computed at every so many balanced steps, and kept in between.
        solver (`str`, *optional*, defaults to `"ccp"`):
            `"ccp"`: the paper's sequence of convex problems, which begins at the last step's weights, as TorchJD solves
            it with ECOS; needs `hf-dbmtl[solvers]`. Like the authors' code and LibMTL it sometimes stops before the
            solution, where norms are far apart or gradients oppose one another, and it takes tens of milliseconds a
            step and more. Where it comes within 1e-3 of the solution that is taken. It is given the gradients rescaled,
            and begins at weights of one, where the root mean square of their norms is not between 1e-3 and 1e3.
            `"newton"`: the solution of the same equation to rounding error, in a millisecond, for gradients of any
            norm; needs no other package. Takes the place of the former where ECOS breaks.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant"})
    paper = "Multi-Task Learning as a Bargaining Game, arXiv 2202.01017"
    memory = "a number per task"
    weights_heads = True

    def __init__(
        self, max_norm: float = 1.0, optim_niter: int = 20, update_weights_every: int = 1, solver: str = "ccp"
    ):
        if not 0.0 <= max_norm < float("inf"):
            raise ValueError(f"`max_norm` must be a finite number, zero or more, and is {max_norm}: 0 sets no bound.")
        for name, value in (("optim_niter", optim_niter), ("update_weights_every", update_weights_every)):
            if value < 1:
                raise ValueError(f"`{name}` must be 1 or more, and is {value}.")
        if solver not in ("ccp", "newton"):
            raise ValueError(f"`solver` must be 'ccp' or 'newton', and is {solver!r}.")
        if solver == "ccp":
            require("cvxpy", "nash_mtl")
            require("ecos", "nash_mtl")
        self.max_norm = max_norm
        self.optim_niter = optim_niter
        self.update_weights_every = update_weights_every
        self.solver = solver
        self._bound = 1.0
        if solver == "newton":
            self.holds = NashMTL.holds | {"scale_invariant", "loss_scale_invariant"}

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.last = torch.ones(len(tasks), dtype=torch.float64)

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        moves = gramian.diagonal() > 0
        present = torch.tensor([self.tasks.index(task) for task in tasks])
        if (step - 1) % self.update_weights_every == 0 and moves.any():
            self.last[present[moves]] = self._solve(gramian[moves][:, moves], self.last[present[moves]])
        weights = torch.where(moves, self.last[present], 1.0)
        norm = (weights @ gramian @ weights).clamp(min=0).sqrt().item()
        self._bound = min(1.0, self.max_norm / norm) if self.max_norm > 0 and norm > 0 else 1.0
        return self._bound * weights

    def head_weights(self, weights: Mapping[str, float]) -> Mapping[str, float]:
        return {task: weight / self._bound for task, weight in weights.items()}

    def _solve(self, gramian: Tensor, start: Tensor) -> Tensor:
        if self.solver == "ccp" and len(gramian) > 1:
            scaled, back = at_ordinary_scale(gramian, 1.0)
            found = self._sequence(scaled, start if back == 1.0 else torch.ones_like(start))
            if found.isfinite().all() and (found > 0).all():
                exact = solve_fair(scaled, 1.0)
                arrived = ((found - exact).abs() <= CLOSE * exact).all()
                return back * (exact if arrived else found)
        return solve_fair(gramian, 1.0)

    def _sequence(self, gramian: Tensor, start: Tensor) -> Tensor:
        """TorchJD's sequence of convex problems. All that it keeps from step to step is where the next one starts."""
        from torchjd.aggregation import NashMTL as TorchJDNashMTL

        known = Equilibrated(gramian)
        weighting = TorchJDNashMTL(len(gramian), max_norm=0.0, optim_niter=self.optim_niter).weighting
        weighting.prvs_alpha = start.numpy()
        with warnings.catch_warnings():
            # that the problem is compiled anew each time, that a solution may be inaccurate, that ECOS is deprecated
            warnings.simplefilter("ignore")
            return weighting((known.factor() * known.norms).T)

    def state_dict(self) -> dict[str, Tensor]:
        return {"last": self.last.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.last = state["last"].clone()
