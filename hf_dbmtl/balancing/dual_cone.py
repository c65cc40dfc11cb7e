"""The projection onto the dual cone of the gradients, for `upgrad` and `dualproj`, imported when they are made."""

from __future__ import annotations

import torch
from torch import Tensor
from torchjd.linalg import DualConeProjector

from .gramian import Equilibrated, nonnegative_least_squares


__all__ = ["DualCone"]


class DualCone(DualConeProjector):
    r"""
    Finds, for a combination $\sum_t u_t g_t$ of gradients, the weights of its projection onto the directions that
    oppose none of them: $w = \arg\min_{w \ge u} \|\sum_t w_t g_t\|$. With $w = u + z$ it is a problem of non-negative
    least squares for $z$, which an active set method solves exactly, also where the gradients depend on one another.
    TorchJD's own projection hands the Gramian to a solver that needs it to be positive definite, and adds 1e-4 to its
    diagonal for that.

    Args:
        method (`str`):
            The name of the balancer, for errors.
        norm_eps (`float`):
            Below this sum of squared norms nothing is projected.
        reg_eps (`float`):
            What is added to the diagonal of the Gramian, relative to the sum of squared norms.
    """

    def __init__(self, method: str, norm_eps: float = 0.0, reg_eps: float = 0.0):
        for name, value in (("norm_eps", norm_eps), ("reg_eps", reg_eps)):
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a finite number, zero or more, and is {value}.")
        self.method = method
        self.norm_eps = norm_eps
        self.reg_eps = reg_eps

    def __call__(self, U: Tensor, G: Tensor) -> Tensor:
        total = G.diagonal().sum()
        if total == 0 or total < self.norm_eps:
            return U
        known = Equilibrated(G)
        norms = known.norms / total.sqrt()
        moves = norms > 0  # a gradient of zero asks for nothing
        system = known.factor()
        if self.reg_eps > 0:
            units = torch.ones_like(norms)
            system = torch.cat([system * norms, self.reg_eps**0.5 * torch.eye(len(norms), dtype=norms.dtype)])
        else:
            units = torch.where(moves, norms, 1.0)  # z_t n_t: columns of length 1 however far apart the norms are
        columns = system[:, moves]
        rows = U.reshape(-1, len(norms)).clone()
        for row, target in zip(rows, -(rows * units) @ system.T):
            largest = target.abs().max().clamp(min=torch.finfo(target.dtype).tiny)
            row[moves] += nonnegative_least_squares(columns, target / largest, self.method) * largest / units[moves]
        return rows.reshape(U.shape)
