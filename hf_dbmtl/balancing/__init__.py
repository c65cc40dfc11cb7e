"""The methods: from the losses and gradients of the tasks to one update. Knows nothing of where gradients live."""

from .balancer import Balanced, Balancer
from .db_mtl import EMA, Log, MaxNorm
from .part import Part
from .table import balancer_names, describe_balancer, make_balancer
from .transforms import Identity, LossTransform
from .weightings import CoordinateWeighting, Equal, GramianWeighting, NormWeighting, Weighting


__all__ = [
    "EMA",
    "Balanced",
    "Balancer",
    "CoordinateWeighting",
    "Equal",
    "GramianWeighting",
    "Identity",
    "Log",
    "LossTransform",
    "MaxNorm",
    "NormWeighting",
    "Part",
    "Weighting",
    "balancer_names",
    "describe_balancer",
    "make_balancer",
]
