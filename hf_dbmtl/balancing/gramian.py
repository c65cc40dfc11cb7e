"""What several weightings do with a Gramian first: take its scale out, find vectors that have it, and solve for it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor


__all__ = ["Equilibrated", "drawing_from", "nonnegative_least_squares", "normalized", "require"]


def require(package: str, method: str) -> ModuleType:
    """
    Imports a package that is needed by one method only.

    Raises:
        `ImportError`: where it is missing, with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"The balancer '{method}' needs the package '{package}', which is not installed. Install the solvers with: "
            'pip install "hf-dbmtl[solvers]"'
        ) from error


def nonnegative_least_squares(system: Tensor, target: Tensor, method: str) -> Tensor:
    r"""
    $\arg\min_{x \ge 0} \|A x - b\|$, exactly, by an active set method.

    Args:
        system (`torch.Tensor` of shape `(rows, columns)`, float64):
            $A$.
        target (`torch.Tensor` of shape `(rows,)`):
            $b$.
        method (`str`):
            The name of the balancer, for errors.
    """
    nnls = require("scipy.optimize", method).nnls
    try:
        solution, _ = nnls(system.numpy(), target.numpy(), maxiter=100 * system.shape[1])
    except RuntimeError as error:
        raise ValueError(
            f"The balancer '{method}' found no solution for gradients whose products are "
            f"{(system.T @ system).tolist()}: {error}"
        ) from error
    return torch.from_numpy(solution)


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Lets code that draws from torch's own generator (of the CPU) draw from `generator`, and leaves that one alone."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(generator.get_state())
        yield


def normalized(gramian: Tensor) -> tuple[Tensor, float]:
    """
    The Gramian of all gradients divided by one number, so that their mean squared norm is 1, and that number: what is
    tuned to ordinary numbers (a solver, an epsilon) then works at every scale. Of zeros the number is 1.
    """
    scale = gramian.diagonal().mean().sqrt().item()
    return (gramian / scale / scale, scale) if scale > 0 else (gramian, 1.0)


class Equilibrated:
    r"""
    A Gramian as norms and cosines, $G = D C D$ with $D = \operatorname{diag}(n)$. Norms that are 24 orders of magnitude
    apart leave nothing of the smaller in the eigenvectors of $G$; those of $C$ do not see them.

    Args:
        gramian (`torch.Tensor` of shape `(tasks, tasks)`):
            $G$.

    Attributes:
        norms (`torch.Tensor` of shape `(tasks,)`):
            The norms of the gradients.
        cosines (`torch.Tensor` of shape `(tasks, tasks)`):
            $C$: cosines, 1 on the diagonal; 0 in the rows and columns of gradients that are zero.
    """

    def __init__(self, gramian: Tensor):
        self.norms = gramian.diagonal().clamp(min=0).sqrt()
        self.safe = torch.where(self.norms > 0, self.norms, 1.0)
        self.cosines = (gramian / self.safe[:, None] / self.safe).clamp(-1.0, 1.0)
        self.cosines.diagonal().copy_((self.norms > 0).to(gramian))

    def factor(self) -> Tensor:
        """
        A matrix $F$ of shape `(tasks, tasks)` with $F^T F = C$, whose columns stand for the unit gradients. Eigenvalues
        within the rounding error of zero are zero in it, else their roots would be half as many digits above it.
        """
        values, vectors = torch.linalg.eigh(self.cosines)
        values = torch.where(values > len(values) * torch.finfo(values.dtype).eps * values.max(), values, 0.0)
        return values.sqrt()[:, None] * vectors.T
