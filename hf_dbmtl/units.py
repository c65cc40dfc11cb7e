"""Units of data: the tasks that one dataset feeds, a task of its own or a group whose tasks share every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from .dataset_checks import Lone, check_names, columns_of, not_a_dictionary


__all__ = ["Unit", "of_task", "units_of"]

GROUPS = (
    " A name of your own is that of a group of tasks that share their inputs: its dataset needs a column of labels for each "
    "of them, named like the task."
)


@dataclass(frozen=True)
class Unit(Sequence[str]):
    """
    The tasks that one dataset feeds: in a step its batch runs through the encoder once.

    Attributes:
        name (`str`):
            The key of the dataset: the name of its task, or that of a group.
        tasks (`tuple[str, ...]`):
            The tasks.
    """

    name: str
    tasks: tuple[str, ...]

    @classmethod
    def alone(cls, task: str) -> Unit:
        """The unit of a task that has a dataset of its own."""
        return cls(task, (task,))

    @property
    def is_group(self) -> bool:
        """Whether the tasks share their batches, each with labels in a column of its name."""
        return self.name not in self.tasks

    @property
    def asked(self) -> str | list[str]:
        """What the model's forward is told as its `task`: a name, or for a group a list of them."""
        return list(self.tasks) if self.is_group else self.name

    @property
    def described(self) -> str:
        """What it is, within a sentence."""
        return f"{'group' if self.is_group else 'task'} '{self.name}'"

    def __str__(self) -> str:
        return self.described[0].upper() + self.described[1:]

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self.tasks[index]


def of_task(value: Any, task: str) -> Any:
    """What belongs to a task of what a unit's forward gave: an entry where the tasks share it, else all there is."""
    return value.get(task) if isinstance(value, Mapping) else value


def units_of(
    what: str, given: Mapping[str, Any], tasks: Sequence[str], known: Mapping[str, Unit] | None = None
) -> dict[str, Unit]:
    """
    Which tasks each of the datasets feeds. A key that is the name of a task stands for that task, any other for a group: all
    tasks that are columns of its dataset.

    Args:
        what (`str`):
            What the dictionary is, for errors.
        given (`Mapping[str, Dataset]`):
            The datasets.
        tasks (`Sequence[str]`):
            The names of the tasks.
        known (`Mapping[str, Unit]`, *optional*):
            Groups by name, for datasets without any labels.

    Raises:
        `TypeError`: for a dataset given without a name that has no column named like a task.
        `ValueError`: for a key that is neither a task nor a group, and for a task with two datasets.
    """
    units: dict[str, Unit] = {}
    known = known or {}
    for name, dataset in given.items():
        if name in tasks:
            units[name] = Unit.alone(name)
            continue
        columns = columns_of(dataset)
        if fed := tuple(task for task in tasks if task in columns):
            units[name] = Unit(name, fed)
        elif name in known:
            units[name] = known[name]
        elif isinstance(given, Lone):
            raise not_a_dictionary(what, dataset)
        else:
            check_names(what, [name], tasks, note=GROUPS)
    for task in tasks:
        feeding = [unit.name for unit in units.values() if task in unit.tasks]
        if len(feeding) > 1:
            raise ValueError(
                f"Task '{task}': {what} holds it {len(feeding)} times, in {feeding}. Give it one dataset: remove the column "
                f"'{task}' from the others (`dataset.remove_columns('{task}')`), or leave them out."
            )
    return units
