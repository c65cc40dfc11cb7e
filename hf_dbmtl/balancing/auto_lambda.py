"""Auto-λ: weights that serve the validation losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from .learned import Learned
from .transforms import LossTransform


__all__ = ["AutoLambda", "TunedWeights"]


class TunedWeights(LossTransform):
    r"""
    Weights that are tuned on validation data. They multiply the gradients at the end of a step, after
    [`~TunedWeights.tune`] has been told what they do to the validation losses: behind a step of gradient descent
    $\theta' = \theta - \alpha \sum_t w_t g_t$ the loss $L_s$ of objective $s$ has, by $w_t$, the derivative
    $-\alpha \, \nabla L_s(\theta') \cdot g_t$.
    """

    needs = "validation"
    holds = frozenset({"permutation_equivariant"})
    memory = "a number per task, and the optimizer's"

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return loss.new_ones(())

    @abstractmethod
    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        """The weights of the tasks present, as they are now."""

    @abstractmethod
    def tune(self, products: Tensor, tasks: Sequence[str], learning_rate: float) -> None:
        r"""
        Args:
            products (`torch.Tensor` of shape `(objectives, tasks)`, float64, on the CPU):
                $\nabla L_s(\theta') \cdot g_t$.
            tasks (`Sequence[str]`):
                The names of the tasks present.
            learning_rate (`float`):
                $\alpha$.
        """


class AutoLambda(TunedWeights):
    r"""
    Weights $\lambda_t$ that lower the sum of the validation losses, from *Auto-Lambda: Disentangling Dynamic Task
    Relationships* (TMLR 2022, arXiv 2202.03091, section 4): in every step, with the batch's gradients $g_t$, a virtual
    step $\theta' = \theta - \alpha \sum_t \lambda_t g_t$ at the learning rate $\alpha$ of the run is taken, $\lambda$
    descends along $\nabla_\lambda \sum_s L_s(\theta') = -\alpha \sum_s \nabla L_s(\theta') \cdot g_t$, and then the
    model is updated with the new weights, which heads carry. The sum is over the tasks that have validation data: leave
    the auxiliary ones out of `validation_dataset` to learn with them, not for them. A task absent from a step keeps its
    weight.

    The authors' code and LibMTL approximate the products with finite differences, two more forward passes with
    parameters moved along the validation gradient; here, where the gradients of the tasks are at hand, they are
    computed. The virtual step is plain gradient descent, whatever the optimizer; the authors' adds the momentum and
    weight decay of theirs. As there, weights may become negative. LibMTL's variant is a softmax of the numbers learned,
    as in `moml`.

    Args:
        init (`float`, *optional*, defaults to 0.1):
            The weight that every task starts with.
        learning_rate (`float`, *optional*, defaults to 0.0001):
            The learning rate of the weights.
        optimizer (`str`, *optional*, defaults to `"adam"`):
            `"adam"` or `"sgd"`.
    """

    paper = "Auto-Lambda: Disentangling Dynamic Task Relationships, arXiv 2202.03091"

    def __init__(self, init: float = 0.1, learning_rate: float = 1e-4, optimizer: str = "adam"):
        if not 0.0 < init < float("inf"):
            raise ValueError(f"`init` must be positive, the weight that every task starts with, and is {init}.")
        self.init = init
        self.lambdas = Learned(learning_rate, optimizer)

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        super().setup(tasks, seed)
        self.lambdas.setup(tasks, self.init)

    def weights(self, tasks: Sequence[str]) -> dict[str, float]:
        return {task: self.lambdas[task] for task in tasks}

    def tune(self, products: Tensor, tasks: Sequence[str], learning_rate: float) -> None:
        gradient = -learning_rate * products.sum(0)
        self.lambdas.step(dict(zip(tasks, gradient.tolist())))

    def late(self, task: str) -> float:
        return self.lambdas[task]

    def state_dict(self) -> dict[str, Tensor]:
        return self.lambdas.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.lambdas.load_state_dict(state)
