r"""The equation $(G w)_t = w_t^{-1/\alpha}$, $w > 0$, of FairGrad's weights and, with $\alpha = 1$, Nash-MTL's."""

from __future__ import annotations

import torch
from torch import Tensor

from .gramian import Equilibrated


__all__ = ["ORDINARY", "at_ordinary_scale", "solve_fair"]

# Root mean square norms of the gradients at which the libraries' solvers, which are tuned to numbers around 1, are
# handed the Gramian as it is, as the authors' codes do.
ORDINARY = (1e-3, 1e3)


def at_ordinary_scale(gramian: Tensor, alpha: float) -> tuple[Tensor, float]:
    """The Gramian, rescaled where it is far from ordinary, and the factor that brings the weights back."""
    scale = gramian.diagonal().mean().sqrt().item()
    if ORDINARY[0] <= scale <= ORDINARY[1]:
        return gramian, 1.0
    return gramian / scale / scale, scale ** (-2.0 * alpha / (1.0 + alpha))


def solve_fair(gramian: Tensor, alpha: float) -> Tensor:
    r"""
    Solves the equation by Newton's method: it says that the gradient of the convex function
    $\frac12 w^T G w - \sum_t \int w_t^{-1/\alpha}$ is zero.

    For $y_t = w_t n_t$ with the norms $n$ and cosines $C$ of the gradients it reads $(C y)_t = k_t y_t^{-1/\alpha}$
    with $k_t = n_t^{1/\alpha - 1}$, which is 1 for $\alpha = 1$ however far apart the norms are.

    Args:
        gramian (`torch.Tensor` of shape `(tasks, tasks)`):
            $G$, no gradient of which is zero.
        alpha (`float`):
            $\alpha > 0$.

    Returns:
        `torch.Tensor` of shape `(tasks,)`: $w$. At a Pareto stationary point, where there is no solution since it lies
        at infinity, that with 1e-8 added to the diagonal of $C$; where a weight is smaller than float64 can say, with
        $\alpha$ of several hundreds, the weights of orthogonal gradients.
    """
    known = Equilibrated(gramian)
    middle = known.norms.log().mean().exp()  # taken out first, so that $k$ stays near 1 for any alpha
    power = 1.0 / alpha
    alone = (known.norms / middle) ** ((power - 1.0) / (power + 1.0))
    for ridge in (0.0, 1e-8):
        products = known.cosines + ridge * torch.eye(len(alone), dtype=gramian.dtype)
        solution = _newton(products, alone, power)
        if solution is not None:
            break
    else:
        solution = alone
    return solution / known.norms * middle ** ((power - 1.0) / (power + 1.0))


def _newton(products: Tensor, alone: Tensor, power: float) -> Tensor | None:
    """
    Newton steps on $C y = k y^{-p}$ from the solution for orthogonal gradients, `alone`, whose power of $1 + p$ is $k$, which
    may be too large a number to write down; `None` where they do not converge. The function is convex: a step is short
    enough where the slope at its end does not point uphill as steeply as it began.
    """
    y = alone
    for _ in range(1000):
        pull = alone * (y / alone) ** -power
        residual = products @ y - pull
        if (residual.abs() <= 1e-13 * (pull + products.abs() @ y)).all():
            return y
        step = -torch.linalg.solve_ex(products + torch.diag(power * pull / y), residual).result
        if not step.isfinite().all():
            return None
        start = (residual @ step).item()
        length = min(1.0, 0.9 / max((-step / y).max().item(), 0.9))  # y stays positive
        for _ in range(40):
            there = y + length * step
            if (products @ there - alone * (there / alone) ** -power) @ step <= -0.9 * start:
                break
            length /= 2
        y = there
    return None
