"""What the steps between two log records came to, per task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor


__all__ = ["StepLog"]


class StepLog:
    """Collects numbers per task step by step and gives their means, over the steps in which the task was present."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._skipped: Counter[str] = Counter()

    def add(self, task: str, **values: float) -> None:
        """Adds, for one task and step, numbers by what they are: they will be logged as `what/task`."""
        for what, value in values.items():
            total, count = self._sums.get(f"{what}/{task}", (0.0, 0))
            self._sums[f"{what}/{task}"] = (total + value, count + 1)

    def add_weights(self, weights: Mapping[str, float], cosines: Tensor | None = None) -> None:
        """Adds the weights of the tasks present in a step, and the mean and lowest cosine between their gradients."""
        for task, weight in weights.items():
            self.add(task, weight=weight)
        if cosines is not None:
            self.add("mean", cosine=cosines.mean().item())
            self.add("min", cosine=cosines.min().item())

    def skip(self, task: str) -> None:
        """Counts a step that was skipped for the sake of a task."""
        self._skipped[task] += 1

    def means(self) -> dict[str, float]:
        """The means so far, by key."""
        return {key: total / count for key, (total, count) in self._sums.items()}

    def drain(self) -> dict[str, float]:
        """[`~StepLog.means`] since the last call, and how many steps were skipped, in all and by task, where any was."""
        record = self.means()
        if self._skipped:
            record["skipped_steps"] = self._skipped.total()
            record |= {f"skipped/{task}": count for task, count in self._skipped.items()}
        self._sums.clear()
        self._skipped.clear()
        return record
