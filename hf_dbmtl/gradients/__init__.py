"""Per-task gradients of the shared parameters: where they live. Knows nothing of the methods that balance them."""

from .local import LocalGradients, TaskGradient
from .parameters import split_parameters
from .vector import GradientVector


__all__ = ["GradientVector", "LocalGradients", "TaskGradient", "split_parameters"]
