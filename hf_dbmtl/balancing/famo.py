"""FAMO: fast adaptive multitask optimization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .db_mtl import EPSILON
from .learned import Learned
from .transforms import LossTransform


__all__ = ["FAMO"]


class FAMO(LossTransform):
    r"""
    Lets the logarithms of all losses fall at the same rate, from *FAMO: Fast Adaptive Multitask Optimization* (NeurIPS
    2023, arXiv 2306.03792, algorithm 1). With logits $\xi$, $z = \mathrm{softmax}(\xi)$ over the tasks present and the
    excess $d_t = \ell_t - b_t + \epsilon$ over a lower bound $b_t$, what is differentiated is

    $$c \sum_t z_t \log d_t, \qquad c = 1 / \sum_t (z_t / d_t) \text{ held constant},$$

    so that the update is a convex combination of the gradients, and heads carry the factor $c z_t / d_t$. After the
    optimizer's step the losses of the same micro-batches are computed again (in training mode and without gradients, as
    in the authors' code), and $\xi$ follows the change of $\log d$: $\delta_t = \log d_t - \log d_t'$, with the
    gradient $\frac{\partial z}{\partial \xi}^{\top} \delta$. A task that is absent keeps its logit.

    The authors' code clips the gradient of the shared parameters to norm 1 on top of the algorithm; neither the paper's
    algorithm nor LibMTL does, nor is it done here (`max_grad_norm` clips everything). Its default weight decay is 0.01,
    its scripts mostly set 1e-3, as LibMTL and TorchJD do.

    Args:
        learning_rate (`float`, *optional*, defaults to 0.025):
            The learning rate of the logits.
        weight_decay (`float`, *optional*, defaults to 0.001):
            $\gamma$, which draws the logits back to equal weights.
        optimizer (`str`, *optional*, defaults to `"adam"`):
            `"adam"` or `"sgd"`.
        min_losses (`Mapping[str, float]`, *optional*):
            The lower bound $b_t$ of a task's loss, 0 by default.
    """

    holds = frozenset({"permutation_equivariant"})
    paper = "FAMO: Fast Adaptive Multitask Optimization, arXiv 2306.03792"
    memory = "a number per task, and the optimizer's"
    coupled = True
    looks_again = True

    def __init__(
        self,
        learning_rate: float = 0.025,
        weight_decay: float = 1e-3,
        optimizer: str = "adam",
        min_losses: Mapping[str, float] | None = None,
    ):
        self.logits = Learned(learning_rate, optimizer, weight_decay)
        self.min_losses = dict(min_losses or {})
        self._before: dict[str, float] = {}

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        for task in self.min_losses:
            if task not in tasks:
                raise ValueError(f"`min_losses` names a task '{task}', and the tasks are {list(tasks)}.")
        self.logits.setup(tasks, 0.0)

    def begin(self, step: int, epoch: int = 0) -> None:
        self._z: dict[str, float] | None = None

    def check(self, task: str, loss: float) -> None:
        bound = self.min_losses.get(task, 0.0)
        if loss < bound:
            raise ValueError(
                f"Task '{task}': its loss is {loss:g}, below the lower bound {bound:g} over which `famo` takes the "
                f"logarithm of its excess. Lower it: balancer_kwargs={{'min_losses': {{'{task}': ...}}}}."
            )

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return self._share(task) / (loss - self.min_losses.get(task, 0.0) + EPSILON)

    def scale(self, losses: Mapping[str, float]) -> float:
        return 1.0 / math.fsum(self._share(task) / self._excess(task, loss) for task, loss in losses.items())

    def _share(self, task: str) -> float:
        """The softmax over all tasks: what it lacks to that over those present cancels in `scale`."""
        if self._z is None:
            z = self.logits.values().softmax(0).clamp(min=1e-300)  # logits that drift far apart: no sum of zero
            self._z = dict(zip(self.tasks, z.tolist()))
        return self._z[task]

    def _excess(self, task: str, loss: float) -> float:
        return max(loss - self.min_losses.get(task, 0.0), 0.0) + EPSILON

    def update(self, losses: Mapping[str, float]) -> None:
        self._before = dict(losses)

    def look_again(self, losses: Mapping[str, float]) -> None:
        before, self._before = self._before, {}
        tasks = [task for task in before if task in losses]
        if not tasks or not all(math.isfinite(losses[task]) for task in tasks):
            return  # the step led out of bounds; the logits remember nothing of that
        falls = [math.log(self._excess(task, before[task]) / self._excess(task, losses[task])) for task in tasks]
        z, delta = self.logits.values(tasks).softmax(0), torch.tensor(falls, dtype=torch.float64)
        self.logits.step(dict(zip(tasks, (z * (delta - z @ delta)).tolist())))

    def state_dict(self) -> dict[str, Tensor]:
        return self.logits.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.logits.load_state_dict(state)
        self._z = None
