"""TorchJD's own objects as parts of a balancer: any of its weightings and aggregators. `scalarizer.py` has the rest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchjd import Stateful
from torchjd import aggregation as jd
from torchjd._linalg import compute_gramian
from torchjd.aggregation._nash_mtl import _NashMTLWeighting
from torchjd.aggregation._weighting_bases import _Composition
from torchjd.scalarization import FAMO

from .gramian import Equilibrated, drawing_from
from .part import Part
from .snapshot import Snapshot
from .vectors import Vector
from .weightings import CoordinateWeighting, GramianWeighting


__all__ = ["Adapted", "TorchJDAggregator", "TorchJDWeighting", "stat_of"]

# Weightings of a matrix that are the same for every matrix with the same Gramian.
ROTATION_INVARIANT = (
    jd.ConstantWeighting,
    jd.MeanWeighting,
    jd.RandomWeighting,
    jd.SumWeighting,
    _NashMTLWeighting,
)
TWO_BATCHES = (jd.MoDoWeighting, jd.SDMGradWeighting)
# What Nash-MTL makes of its options before its first call, and again after its state is restored.
DERIVED = frozenset({"alpha_param", "prvs_alpha_param", "G_param", "normalization_factor_param", "phi_alpha", "prob"})


class Adapted(Part):
    """
    A part that calls an object of TorchJD: on a copy, so that every run begins with the object as the user made it, in
    float64, with random numbers that follow from the seed and the step, and with its state saved and restored here,
    since `state_dict` of TorchJD's objects has holes.

    Args:
        given (`nn.Module`):
            The object. The copy that the run works with is `source` of this part.
    """

    paper = "an object of TorchJD, torchjd.org"

    def __init__(self, given: nn.Module):
        self.source = in_double(copy.deepcopy(given), torch.device("cpu"))
        self.stateful = any(isinstance(part, Stateful) for part in self.source.modules())
        self.memory = "what the object keeps" if self.stateful else "none"
        self.snapshot = Snapshot(self.source, rebuild, DERIVED)

    def call(self, function: Callable[[Tensor], Any], stat: Tensor, tasks: Sequence[str], step: int) -> Any:
        """
        Calls a part of the object.

        Raises:
            `ValueError`: where the object has a state and a task is absent, where it fails, or what it gives is not
            finite.
        """
        if self.stateful and len(tasks) < len(self.tasks):
            absent = [task for task in self.tasks if task not in tasks]
            raise ValueError(
                f"No example of the task '{absent[0]}' has a label in balanced step {step}, and {self} keeps a state "
                f"for all of {list(self.tasks)}. Choose a balancer of this package by its name: those leave the state "
                "of an absent task alone."
            )
        try:
            with drawing_from(self.generator(step)):
                found = function(stat)
        except Exception as error:
            raise ValueError(f"{self} failed in balanced step {step}, with the tasks {list(tasks)}: {error}") from error
        if not found.isfinite().all():
            raise ValueError(
                f"{self} gave {found.tolist() if found.numel() < 50 else 'numbers'} in balanced step {step}, with the "
                f"tasks {list(tasks)}: not finite. The balancers that this package has a name for cope with any finite "
                "gradients."
            )
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return self.snapshot.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.snapshot.load_state_dict(state)

    def __str__(self) -> str:
        return f"TorchJD's {type(self.source).__name__}"


class TorchJDWeighting(Adapted, GramianWeighting):
    """
    A TorchJD weighting that looks at the Gramian, or at nothing of the matrix of gradients but its Gramian, or an
    aggregator made of such a one. The Gramian is not rescaled: epsilons and solvers of the object see the gradients as
    they are.

    MoDo and SDMGrad are defined for the product of the gradients of two independent batches; here they get the Gramian
    of the one batch of the step, and are then biased as MGDA is.

    Args:
        given (`nn.Module`):
            The object.
    """

    def __init__(self, given: nn.Module):
        super().__init__(given)
        self.weighting: Any
        self.weighting, self.stat = stat_of(self.source)
        if any(isinstance(part, TWO_BATCHES) for part in self.source.modules()):
            warnings.warn(
                f"{self} is given the Gramian of one batch; it is meant for two independent ones.", stacklevel=2
            )

    def weights(self, gramian: Tensor, tasks: Sequence[str], losses: Sequence[float], step: int) -> Tensor:
        stat = gramian
        if self.stat == "factor":
            known = Equilibrated(gramian)
            stat = (known.factor() * known.norms).T
        with torch.no_grad():
            return self.call(self.weighting, stat, tasks, step)


class TorchJDAggregator(Adapted, CoordinateWeighting):
    """
    A TorchJD aggregator or weighting that looks at the matrix of gradients itself, such as GradDrop, TrimmedMean,
    ConFIG or ExcessMTL. The matrix is put together in float64, `(tasks, parameters)`, and so only in one process.

    Args:
        given (`nn.Module`):
            The object.

    Raises:
        `ValueError`: with several processes.
    """

    def __init__(self, given: nn.Module):
        super().__init__(given)
        self.weighting, _ = stat_of(self.source)

    def combine(
        self, rows: Mapping[str, Vector], losses: Sequence[float], step: int, task_weights: Sequence[float]
    ) -> tuple[Vector, dict[str, float]]:
        if (
            torch.distributed.is_available()
            and torch.distributed.is_initialized()
            and torch.distributed.get_world_size() > 1
        ):
            raise ValueError(
                f"{self} looks at whole gradients, and works in one process only. Choose a balancer of this package by "
                "its name, such as 'graddrop', 'config' or 'excess_mtl'."
            )
        first, *others = rows.values()
        pieces: list[Tensor] = []

        def collect(stretch: Tensor, parameter: int, start: int) -> Tensor:
            pieces.append(stretch)
            return stretch.new_zeros(1)

        first.sums(others, collect)
        matrix = torch.cat(pieces, dim=1) if pieces else torch.zeros(len(rows), 0, dtype=torch.float64)
        in_double(self.source, matrix.device)
        with torch.no_grad():
            found = self.call(self.weighting or self.source, matrix, list(rows), step)
        if self.weighting is not None:
            update = first.new_zero()
            for row, weight, of_user in zip(rows.values(), found.tolist(), task_weights):
                update.add_(row, weight * of_user)
            return update, dict(zip(rows, found.tolist()))
        parts = iter(found.split([piece.shape[1] for piece in pieces]))
        return first.map(others, lambda *_: next(parts)), {}


def stat_of(source: nn.Module) -> tuple[nn.Module | None, str]:
    """
    The weighting in an object, where there is one, and what has to be given to it: the `"gramian"`, a `"factor"` (any
    matrix with the same Gramian will do) or the `"matrix"` of gradients.
    """
    if isinstance(source, jd.GramianWeightedAggregator):
        return source.gramian_weighting, "gramian"
    if isinstance(source, jd.WeightedAggregator):
        return source.weighting, _stat(source.weighting, "matrix")
    return (None, "matrix") if isinstance(source, jd.Aggregator) else (source, _stat(source, "gramian"))


def _stat(weighting: nn.Module, otherwise: str) -> str:
    if isinstance(weighting, jd.CRMOGMWeighting):
        return _stat(weighting.weighting, otherwise)
    if isinstance(weighting, ROTATION_INVARIANT) or (
        isinstance(weighting, _Composition) and weighting.fn is compute_gramian
    ):
        return "factor"
    if isinstance(weighting, TWO_BATCHES):
        return "gramian"
    return "matrix" if isinstance(weighting, (jd.ExcessMTLWeighting, _Composition)) else otherwise


def in_double(module: nn.Module, device: torch.device) -> nn.Module:
    """Brings every tensor of a module, also in plain attributes, to `device`, those of floating point to float64."""
    module.to(device, torch.float64)
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                vars(part)[name] = value.to(device, torch.float64 if value.is_floating_point() else value.dtype)
    return module


def rebuild(module: nn.Module) -> None:
    """Makes what TorchJD's objects make at their first call, and is not data."""
    for part in module.modules():
        if isinstance(part, _NashMTLWeighting):
            part._init_optim_problem()
        elif isinstance(part, FAMO):
            part._optimizer = torch.optim.Adam([part._w], lr=part.lr, weight_decay=part.weight_decay)
