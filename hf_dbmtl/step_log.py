"""What the steps between two log records came to, per task."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from torch import Tensor


__all__ = ["StepLog"]


class StepLog:
    """Collects numbers per task step by step and gives their means, over the steps in which the task was present."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._skipped = 0

    def add(self, task: str, **values: float) -> None:
        """Adds, for one task and step, numbers by what they are: they will be logged as `what/task`."""
        for what, value in values.items():
            self._values.setdefault(f"{what}/{task}", []).append(value)

    def add_weights(self, weights: Mapping[str, float], cosines: Tensor | None = None) -> None:
        """Adds the weights of the tasks present in a step, and the mean and lowest cosine between their gradients."""
        for task, weight in weights.items():
            self.add(task, weight=weight)
        if cosines is not None:
            self.add("mean", cosine=cosines.mean().item())
            self.add("min", cosine=cosines.min().item())

    def skip(self) -> None:
        """Counts a skipped step."""
        self._skipped += 1

    def drain(self) -> dict[str, float]:
        """The means since the last call, by key, and how many steps were skipped where any was."""
        record = {key: fmean(values) for key, values in self._values.items()}
        if self._skipped:
            record["skipped_steps"] = self._skipped
        self.__init__()
        return record
