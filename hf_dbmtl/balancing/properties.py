"""What holds for a balancer, from what its parts declare."""

from __future__ import annotations

from .balancer import Balancer
from .part import NEEDS


__all__ = ["holds", "needs"]


def holds(balancer: Balancer) -> frozenset[str]:
    """
    Which of the `PROPERTIES` hold for a balancer.

    A transform puts a positive factor on each gradient, which leaves what a weighting has of rotations, conflicts and
    scales. A memory keeps rotations and scales, but not conflicts: what it hands on is not the gradient of the step.
    """
    transform, memory, weighting = balancer.transform, balancer.memory, balancer.weighting
    parts = [part for part in (transform, memory, weighting) if part is not None]
    found = {name for name in ("random", "coordinate_state") if any(name in part.holds for part in parts)}
    if all("permutation_equivariant" in part.holds for part in parts):
        found.add("permutation_equivariant")
    found |= weighting.holds & {"rotation_invariant", "scale_invariant"}
    if memory is None:
        found |= weighting.holds & {"non_conflicting"}
    if "loss_scale_invariant" in transform.holds | weighting.holds and not weighting.reads_losses:
        found.add("loss_scale_invariant")
    return frozenset(found)


def needs(balancer: Balancer) -> str:
    """What a balancer looks at, the dearest of what its transform and its weighting do; one of `NEEDS`."""
    return max(balancer.transform.needs, balancer.weighting.needs, key=NEEDS.index)
