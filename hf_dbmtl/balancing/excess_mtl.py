"""ExcessMTL: more weight to the tasks that are further from where they could be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .vectors import Vector
from .weightings import CoordinateWeighting


__all__ = ["ExcessMTL"]

EPSILON = 1e-7  # the authors' code's, under the root


class ExcessMTL(CoordinateWeighting):
    r"""
    The weights grow exponentially with the excess risk of their task, the distance of its loss from the lowest possible
    one, estimated with a diagonal Hessian (*Robust Multi-Task Learning with Excess Risks*, ICML 2024, arXiv 2402.02009,
    Algorithm 1, equations 6, 7 and 9):

    $$S_t \leftarrow S_t + g_t^2, \quad E_t = \sum_i \frac{g_{t,i}^2}{\sqrt{S_{t,i} + \epsilon}}, \quad
    w_t \leftarrow \frac{w_t \exp(\eta\, E_t / E_t^0)}{\text{(their sum)}}, \quad \sum_t w_t g_t.$$

    $E_t^0$ is the task's risk at its first step. The heads carry the weights as well, as in the authors' code, which
    back-propagates the weighted sum of the losses.

    A step without some of the tasks moves the weights of the tasks present, at an unchanged sum. A task whose gradient
    is zero has no risk to compare with: its first step is the first with a gradient.

    Args:
        step_size (`float`, *optional*, defaults to 0.01):
            $\eta$, the step size of the weights, zero or more.
        initial_weight (`str`, *optional*, defaults to `"1"`):
            What every weight starts from, and the mean of them stays: `"1"` as in the authors' code (and LibMTL),
            whose first update is the sum of the gradients, or `"1/T"` as in the paper (and TorchJD), whose first is
            their mean.
        warmup_steps (`int`, *optional*, defaults to 1):
            Over how many first steps of a task $E_t^0$ is the mean; the weights stay until then. The authors' code
            takes 1, the paper (appendix C.1) three epochs.
    """

    holds = frozenset({"permutation_equivariant", "coordinate_state"})
    paper = "Robust Multi-Task Learning with Excess Risks, arXiv 2402.02009"
    memory = "a squared gradient and three numbers per task"
    weights_heads = True

    def __init__(self, step_size: float = 0.01, initial_weight: str = "1", warmup_steps: int = 1):
        if not 0.0 <= step_size < math.inf:
            raise ValueError(f"`step_size` must be a finite number, zero or more, and is {step_size}.")
        if initial_weight not in ("1", "1/T"):
            raise ValueError(f"`initial_weight` must be '1' or '1/T', and is {initial_weight!r}.")
        if warmup_steps < 1:
            raise ValueError(f"`warmup_steps` must be 1 or more, and is {warmup_steps}.")
        self.step_size = step_size
        self.initial_weight = initial_weight
        self.warmup_steps = warmup_steps
        self.squares: dict[str, Vector] = {}

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        start = 0.0 if self.initial_weight == "1" else -math.log(len(tasks))
        self.log_weights = torch.full((len(tasks),), start, dtype=torch.float64)  # logarithms cannot overflow
        self.first_risks = torch.zeros(len(tasks), dtype=torch.float64)
        self.steps_seen = torch.zeros(len(tasks), dtype=torch.int64)

    def combine(
        self, rows: Mapping[str, Vector], losses: Sequence[float], step: int, task_weights: Sequence[float]
    ) -> tuple[Vector, dict[str, float]]:
        weights = self._grow(self._risks(rows), torch.tensor([self.tasks.index(task) for task in rows]))
        update = next(iter(rows.values())).new_zero()
        for row, weight, of_user in zip(rows.values(), weights, task_weights):
            update.add_(row, weight * of_user)
        return update, dict(zip(rows, weights))

    def _risks(self, rows: Mapping[str, Vector]) -> Tensor:
        """Takes the squares of the gradients in, and estimates the excess risks."""
        for task, row in rows.items():
            known = self.squares.get(task, row.new_zero())
            self.squares[task] = known.map([row], lambda pieces, *_: pieces[0] + pieces[1].square())
        first, *others = [*rows.values(), *(self.squares[task] for task in rows)]
        count = len(rows)

        def terms(pieces: Tensor, parameter: int, start: int) -> Tensor:
            risks = (pieces[:count].square() / (pieces[count:] + EPSILON).sqrt()).sum(1)
            return torch.cat([risks, risks]).diag()  # of the shape that `sums` has where there is nothing to add up

        return first.sums(others, terms).diagonal()[:count]

    def _grow(self, risks: Tensor, present: Tensor) -> list[float]:
        """Steps the weights of the tasks present."""
        before = self.log_weights[present]
        ready = self.steps_seen[present] >= self.warmup_steps
        relative = torch.where(ready, risks / self.first_risks[present], 0.0)
        after = before + self.step_size * relative
        if ready.any():
            after = after - after.logsumexp(0) + before.logsumexp(0)
        self.log_weights[present] = after
        begun = ~ready & (risks > 0)
        self.first_risks[present[begun]] += risks[begun] / self.warmup_steps
        self.steps_seen[present[begun]] += 1
        return after.exp().tolist()

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in ("log_weights", "first_risks", "steps_seen")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in ("log_weights", "first_risks", "steps_seen"):
            setattr(self, name, state[name].clone())

    def vectors(self) -> dict[str, dict[str, Vector]]:
        return {"squares": dict(self.squares)}

    def load_vectors(self, vectors: Mapping[str, dict[str, Vector]]) -> None:
        self.squares = dict(vectors.get("squares", {}))
