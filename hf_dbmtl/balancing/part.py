"""What the three parts of a method have in common: what they declare of themselves, and their state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .vectors import Vector


__all__ = ["NEEDS", "PROPERTIES", "Part"]

# What a part looks at, from the cheapest to the dearest.
NEEDS = ("losses", "norms", "gramian", "coordinates", "validation")

# What a part may declare of itself in `holds`. The tests check that each of them holds where it is declared and show a
# case in which it fails where it is not.
PROPERTIES = {
    "rotation_invariant": "rotating all gradients rotates the update",
    "permutation_equivariant": "the order of the tasks is immaterial",
    "non_conflicting": "the update has no negative product with any task's gradient",
    "scale_invariant": "multiplying one task's gradient by a positive number leaves the direction of the update",
    "loss_scale_invariant": "multiplying one task's loss by a positive number leaves the update",
    "random": "draws random numbers, a function of the seed and the step",
    "coordinate_state": "keeps state for every coordinate of the shared parameters",
}


class Part:
    """
    A loss transform, a memory or a weighting. It may keep state: tensors with one entry per task, and vectors.

    Class attributes:
        needs (`str`): what it looks at, one of `NEEDS`.
        holds (`frozenset[str]`): which of the `PROPERTIES` hold for it.
        paper (`str`): where it comes from.
        memory (`str`): what it keeps for the length of the run, in words.
        refuses (`Mapping[str, str]`): parts that it cannot be composed with, and why.
    """

    needs: ClassVar[str]
    holds: frozenset[str] = frozenset()  # an instance may have its own, where an option decides
    paper: ClassVar[str]
    memory: str = "none"
    refuses: ClassVar[Mapping[str, str]] = {}

    tasks: Sequence[str] = ()
    seed: int = 0

    def setup(self, tasks: Sequence[str], seed: int) -> None:
        """Told once, before the first step: the names of all tasks, in their order, and the seed of the run."""
        self.tasks, self.seed = list(tasks), seed

    def generator(self, step: int, stream: int = 0) -> torch.Generator:
        """Random numbers for a balanced step, a function of seed, step and stream: a skipped step draws none."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + step) * 31 + stream)

    def state_dict(self) -> dict[str, Tensor]:
        """The state but for vectors, as tensors on the CPU. [`~Part.load_state_dict`] takes it up."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what [`~Part.state_dict`] gave."""

    def vectors(self) -> dict[str, dict[str, Vector]]:
        """The state that is made of gradient vectors: by what it is, by task."""
        return {}

    def load_vectors(self, vectors: Mapping[str, dict[str, Vector]]) -> None:
        """Takes up what [`~Part.vectors`] gave."""
