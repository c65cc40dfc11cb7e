"""TorchJD's scalarizers as loss transforms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchjd import aggregation as jd
from torchjd.scalarization import DWA, FAMO, Scalarizer

from .balancer import Balancer
from .learned import OPTIMIZERS
from .snapshot import Snapshot
from .torchjd import DERIVED, Adapted, TorchJDAggregator, TorchJDWeighting, rebuild, stat_of
from .transforms import Identity, LossTransform
from .weightings import Equal


__all__ = ["TorchJDScalarizer", "adapt"]


class TorchJDScalarizer(Adapted, LossTransform):
    r"""
    A TorchJD scalarizer, differentiated at the mean losses of the step: the gradient of task $t$ is weighed by
    $\partial \Phi / \partial \ell_t$, and so is its head's. Since that may follow from all losses, the gradients of all
    tasks are kept to the end of the step; the transforms of this package that have a name mostly need not.

    What a scalarizer learns (UW, IMTL-L) is stepped after each balanced step by an optimizer of its own. FAMO looks at
    the losses again after the step of the model's optimizer; DWA's averages are of epochs.

    Args:
        given (`Scalarizer`):
            The object.
        learning_rate (`float`, *optional*, defaults to 0.0025):
            The learning rate of what is learned, as for `uw`.
        optimizer (`str`, *optional*, defaults to `"sgd"`):
            `"sgd"` or `"adam"`.
    """

    holds = frozenset()
    entangled = True

    def __init__(self, given: Scalarizer, learning_rate: float = 2.5e-3, optimizer: str = "sgd"):
        super().__init__(given)
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"`optimizer` must be one of {list(OPTIMIZERS)}, and is {optimizer!r}.")
        if not 0.0 <= learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be a finite number, zero or more, and is {learning_rate}.")
        self.looks_again = isinstance(given, FAMO)
        self.learning_rate, self.optimizer = learning_rate, optimizer
        self.learned = [] if self.looks_again else [one for one in self.source.parameters() if one.requires_grad]
        # one module with all that there is to be saved
        self.kept = cast(Any, nn.Module())
        self.kept.source = self.source
        self.kept.optimizer = OPTIMIZERS[optimizer](self.learned, lr=learning_rate) if self.learned else None
        self.kept.epoch = 0
        self.snapshot = Snapshot(self.kept, rebuild, DERIVED)
        self._late: dict[str, float] = {}
        self._slopes: Sequence[Tensor | None] = []

    def begin(self, step: int, epoch: int = 0) -> None:
        self._step, self._epoch = step, epoch

    def derivative(self, task: str, loss: Tensor) -> Tensor:
        return loss.new_ones(())

    def scale(self, losses: Mapping[str, float]) -> float:
        if isinstance(self.source, DWA) and self._epoch > self.kept.epoch:
            self.source.step()
            self.kept.epoch = self._epoch
        values = torch.tensor(list(losses.values()), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            total = self.call(self.source, values, list(losses), self._step)
        found, *self._slopes = torch.autograd.grad(total, [values, *self.learned], allow_unused=True)
        if not found.isfinite().all():
            raise ValueError(
                f"{self} has the derivatives {found.tolist()} at the losses {dict(losses)}: not finite. Choose a loss "
                "transform of this package by its name."
            )
        self._late = dict(zip(losses, found.tolist()))
        return 1.0

    def late(self, task: str) -> float:
        return self._late[task]

    def update(self, losses: Mapping[str, float]) -> None:
        if self.kept.optimizer is not None:
            for number, slope in zip(self.learned, self._slopes):
                number.grad = slope
            self.kept.optimizer.step()
            self.kept.optimizer.zero_grad()

    def look_again(self, losses: Mapping[str, float]) -> None:
        found = [losses.get(task, math.nan) for task in self.tasks]
        if isinstance(self.source, FAMO) and all(map(math.isfinite, found)):
            self.source.update(torch.tensor(found, dtype=torch.float64))


def adapt(
    source: Any, options: Mapping[str, Any] | None = None, task_weights: Mapping[str, float] | None = None
) -> Balancer:
    """
    Makes a balancer of a TorchJD object.

    Args:
        source (`Weighting`, `Aggregator` or `Scalarizer`):
            The object, which is copied.
        options (`Mapping`, *optional*):
            `learning_rate` and `optimizer`, for a scalarizer that learns something.
        task_weights (`Mapping[str, float]`, *optional*):
            The user's weights by task, see [`Balancer`].

    Raises:
        `TypeError`: where it is no such object.
        `ValueError`: for options that it does not take.
    """
    if not isinstance(source, (jd.Weighting, jd.Aggregator, Scalarizer)):
        raise TypeError(
            "`balancer` must be a name such as 'db_mtl' or 'log+max_norm', or an instance of a Weighting, an "
            f"Aggregator or a Scalarizer of TorchJD, and is {source!r}."
        )
    learns = isinstance(source, Scalarizer) and not isinstance(source, FAMO) and any(True for _ in source.parameters())
    takes = ["learning_rate", "optimizer"] if learns else []
    for option in options or {}:
        if option not in takes:
            raise ValueError(
                f"TorchJD's {type(source).__name__} is given as an object, and has no option '{option}' in "
                "`balancer_kwargs`"
                + (f": they are {takes}." if learns else ": its options are those that it was made with.")
            )
    if isinstance(source, Scalarizer):
        return Balancer(TorchJDScalarizer(source, **(options or {})), None, Equal(), task_weights)
    weighting, stat = stat_of(source)
    if weighting is None and any(weight != 1.0 for weight in (task_weights or {}).values()):
        raise ValueError(
            f"`task_weights` multiply the terms of a sum over the tasks, and TorchJD's {type(source).__name__} gives a "
            "vector that is not one. Leave them out."
        )
    kind = TorchJDAggregator if stat == "matrix" else TorchJDWeighting
    return Balancer(Identity(), None, kind(source), task_weights)
