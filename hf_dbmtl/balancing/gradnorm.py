"""GradNorm: weights that are learned so that all tasks train at similar rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .learned import Learned, check_not_negative
from .weightings import NormWeighting


__all__ = ["GradNorm"]

LOWEST = 1e-8  # of a weight in the paper's parametrization, which a step could make negative


class GradNorm(NormWeighting):
    r"""
    Gradient normalization learns the weights so that the norm of every weighted gradient is the mean norm times the
    relative rate $r_t$ at which the task still has to train, to the power of $\alpha$ (*GradNorm: Gradient
    Normalization for Adaptive Loss Balancing in Deep Multitask Networks*, ICML 2018, arXiv 1711.02257, equation 2 and
    Algorithm 1):

    $$\sum_t w_t g_t, \qquad L = \sum_t \Big| w_t \|g_t\| - \bar G\, r_t^\alpha \Big|, \quad
    \bar G = \operatorname{mean}_t w_t \|g_t\|, \quad
    r_t = \frac{\ell_t / \ell_t^0}{\operatorname{mean}_s \ell_s / \ell_s^0},$$

    where $w$ follows $-\nabla_w L$ with $\bar G r_t^\alpha$ held constant, after the update of the model, and
    $\ell_t^0$ is the loss of the task's first balanced step, $\ell_t$ today's, neither transformed. Norms are those of
    the whole gradient of the shared parameters; the paper takes one layer. The heads follow their own gradients
    without a weight, as in LibMTL.

    A step without some of the tasks compares the tasks present, and leaves what is learned of the others.

    Args:
        alpha (`float`, *optional*, defaults to 1.5):
            $\alpha$, how strongly the rates are pulled together. The paper's for NYUv2; 0.12 for its symmetric toy
            problem.
        parametrization (`str`, *optional*, defaults to `"softmax"`):
            `"softmax"`: $w = T \operatorname{softmax}(s)$, and $s$ is learned, as in LibMTL; the weights stay
            positive. `"paper"`: $w$ itself is learned, and scaled to the sum $T$ after each step; kept positive, of
            which the paper does not speak.
        learning_rate (`float`, *optional*, defaults to 0.025):
            The learning rate of the weights, which the paper's algorithm leaves open.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            What steps the weights: `"sgd"` or `"adam"`. Plain gradient steps grow with the norms of the gradients.
    """

    holds = frozenset({"rotation_invariant", "permutation_equivariant"})
    paper = "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks, arXiv 1711.02257"
    memory = "two numbers per task, and its optimizer's"

    def __init__(
        self,
        alpha: float = 1.5,
        parametrization: str = "softmax",
        learning_rate: float = 0.025,
        optimizer: str = "sgd",
    ):
        if not 0.0 <= alpha < float("inf"):
            raise ValueError(f"`alpha` must be a finite number, zero or more, and is {alpha!r}: 1.5 is the default.")
        if parametrization not in ("softmax", "paper"):
            raise ValueError(f"`parametrization` must be 'softmax' or 'paper', and is {parametrization!r}.")
        self.alpha = alpha
        self.softmax = parametrization == "softmax"
        self.learned = Learned(learning_rate, optimizer)

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.learned.setup(tasks, 1.0)
        self.first_losses = torch.zeros(len(tasks), dtype=torch.float64)  # 0: not known yet
        self._read()

    def unit(self, norm: float, task: str = "") -> float:
        return self.weights[task]

    def scale(self, norms: Sequence[float]) -> float:
        return 1.0

    def update(self, losses: Mapping[str, float], norms: Mapping[str, float]) -> None:
        weights = torch.tensor([self.weights[task] for task in losses], dtype=torch.float64)
        norm = torch.tensor([norms[task] for task in losses], dtype=torch.float64)
        target = (weights * norm).mean() * self._rates(losses) ** self.alpha
        slopes = torch.sign(weights * norm - target) * norm
        if self.softmax:
            slopes = weights * (slopes - (slopes * weights).sum() / len(self.tasks))
        self.learned.step(dict(zip(losses, slopes.tolist())))
        if not self.softmax:
            self._renormalize(list(losses), weights.sum())
        self._read()

    def _rates(self, losses: Mapping[str, float]) -> Tensor:
        """$r_t$ of the tasks present; a task without a positive loss so far stands where it began."""
        for task, loss in losses.items():
            check_not_negative(task, loss, "GradNorm takes the ratio of losses, which must not be negative")
        present = [self.tasks.index(task) for task in losses]
        now = torch.tensor(list(losses.values()), dtype=torch.float64)
        first = self.first_losses[present]
        first = self.first_losses[present] = torch.where(first > 0, first, now)
        ratios = torch.where(first > 0, now / first, 1.0)
        return ratios / ratios.mean().clamp(min=torch.finfo(ratios.dtype).tiny)

    def _renormalize(self, present: Sequence[str], together: Tensor) -> None:
        """Brings the weights of the tasks present back to the sum that they had."""
        found = self.learned.values(present).clamp(min=LOWEST)
        renewed = dict(zip(present, (found * (together / found.sum())).tolist()))
        self.learned.set([renewed.get(task, self.learned[task]) for task in self.tasks])

    def _read(self) -> None:
        values = self.learned.values()
        found = len(self.tasks) * values.softmax(0) if self.softmax else values
        self.weights = dict(zip(self.tasks, found.tolist()))

    def state_dict(self) -> dict[str, Tensor]:
        return {"first_losses": self.first_losses.clone(), **self.learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.first_losses = state["first_losses"].clone()
        self.learned.load_state_dict(state)
        self._read()
