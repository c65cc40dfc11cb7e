"""From the rows of tasks that share their inputs to one batch with the labels of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .collators import LABEL_COLUMNS, check_rows, collate_inputs, input_collator, label_tensor
from .task import IGNORE_INDEX, plain
from .tasks import Task


__all__ = ["GroupCollator"]


class GroupCollator:
    """
    The default collator of tasks that share their inputs: `labels` holds a tensor for each of them, from the column of its
    name.

    Args:
        name (`str`):
            The name of the group, for errors.
        tasks (`Mapping[str, Task | None]`):
            The tasks; `None` for one of a user's module, whose labels are numbers or lists of them.
        processing_class (`PreTrainedTokenizerBase` or any other processing class, *optional*):
            What the inputs were made with.

    Raises:
        `ValueError`: a task whose inputs are not those of the others.
    """

    def __init__(self, name: str, tasks: Mapping[str, Task | None], processing_class: Any = None):
        self.name = name
        self.tasks = dict(tasks)
        self.collate_inputs = input_collator(processing_class)
        self.padding_side = getattr(processing_class, "padding_side", "right")
        for task, declared in self.tasks.items():
            if declared is not None and (declared.self_supervised or declared.level == "choice"):
                masked = "its inputs are masked, and theirs are not"
                reason = masked if declared.self_supervised else "a row of it is as many texts as there are choices"
                raise ValueError(
                    f"Task '{task}': {declared.kind} cannot share the inputs of the group '{name}': {reason}. Give it a "
                    f"dataset of its own, {{'{name}': ..., '{task}': ...}}, and take the column '{task}' out of the group's."
                )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        which = f"Group '{self.name}'"
        check_rows(which, examples)
        gone = {*self.tasks, *LABEL_COLUMNS}
        rows = [{key: value for key, value in row.items() if key not in gone} for row in examples]
        batch = collate_inputs(which, self.collate_inputs, rows)
        # without any there is nothing but inputs, to predict on
        if any(task in row for row in examples for task in self.tasks):
            batch["labels"] = {
                name: _numbers(name, [row.get(name) for row in examples])
                if task is None
                else label_tensor(name, task, name, examples, batch, self.padding_side)
                for name, task in self.tasks.items()
            }
        return batch


def _numbers(name: str, labels: list[Any]) -> Tensor:
    """The labels of a task that nobody has declared: NaN or -100 where one is missing."""
    given = [plain(label) for label in labels if label is not None]
    try:
        numbers = torch.tensor(given)
        if len(given) == len(labels):
            return numbers
        missing = torch.full(numbers.shape[1:], torch.nan if numbers.is_floating_point() else IGNORE_INDEX).tolist()
        return torch.tensor([missing if label is None else plain(label) for label in labels])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Task '{name}': its labels cannot be put into one tensor ({error}): give numbers, or lists of one length, or a "
            "`data_collator`."
        ) from error
