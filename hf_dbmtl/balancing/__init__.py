"""The methods: from the losses and gradients of the tasks to one update. Knows nothing of where gradients live."""

from .balancer import Balanced, Balancer
from .db_mtl import EMA, Log, MaxNorm
from .table import balancer_names, make_balancer
from .transforms import Identity, LossTransform
from .weightings import Equal, NormWeighting


__all__ = [
    "EMA",
    "Balanced",
    "Balancer",
    "Equal",
    "Identity",
    "Log",
    "LossTransform",
    "MaxNorm",
    "NormWeighting",
    "balancer_names",
    "make_balancer",
]
