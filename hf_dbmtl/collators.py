"""From the rows of a task, or of a group, to its batch, and from the rows of all of them to a joint batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    SequenceFeatureExtractor,
    default_data_collator,
)

from .data import named
from .masking import Masking
from .tasks import MaskedLanguageModeling, Task


if TYPE_CHECKING:
    from .units import Unit

__all__ = [
    "LABEL_COLUMNS",
    "CheckedCollator",
    "JointCollator",
    "TaskCollator",
    "check_alignment",
    "check_rows",
    "collate_inputs",
    "input_collator",
    "label_tensor",
]

LABEL_COLUMNS = ("labels", "label", "label_ids")


class JointCollator:
    """
    Turns `(unit, example)` pairs into `{unit: batch}`, each batch made by the unit's own collator.

    Args:
        collators (`Mapping[str, Callable]`):
            A collator by unit, the name of a task or of a group.
        units (`Mapping[str, Unit]`, *optional*):
            What the units are, for errors. Default: a task each.
    """

    def __init__(self, collators: Mapping[str, Callable[[list[Any]], Any]], units: Mapping[str, Unit] | None = None):
        self.collators = dict(collators)
        self.units = units

    def __call__(self, examples: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        by_unit: dict[str, list[Any]] = {}
        for unit, example in examples:
            by_unit.setdefault(unit, []).append(example)
        joint = {unit: self.collators[unit](by_unit[unit]) for unit in self.collators if unit in by_unit}
        for unit, batch in joint.items():
            if not isinstance(batch, Mapping):
                raise TypeError(
                    f"{named(unit, self.units)}: its collator made a {type(batch).__name__} of its rows and must make a "
                    "dictionary, such as {'input_ids': ..., 'labels': ...}: the keywords of the model's forward."
                )
        return joint


class TaskCollator:
    """
    The default collator of a declared task: the inputs padded by the tokenizer (or stacked where there is none), the
    labels checked and made a tensor by the task. A missing label may be `None`, -100 or, where labels are numbers, NaN.

    Args:
        name (`str`):
            The name of the task, for errors.
        task (`Task`):
            The task.
        processing_class (`PreTrainedTokenizerBase` or any other processing class, *optional*):
            What the inputs were made with; only a tokenizer or a sequence feature extractor can pad.
        seed (`int`, *optional*, defaults to 0):
            The seed of what is masked, where the task masks.
    """

    def __init__(self, name: str, task: Task, processing_class: Any = None, seed: int = 0):
        self.name = name
        self.task = task
        self.masking = None
        if isinstance(task, MaskedLanguageModeling):
            self.masking = Masking(name, processing_class, task.mlm_probability, seed)
        self.collate_inputs = input_collator(processing_class)
        self.padding_side = getattr(processing_class, "padding_side", "right")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        which = f"Task '{self.name}'"
        check_rows(which, examples)
        column = next((column for column in LABEL_COLUMNS if any(column in row for row in examples)), None)
        rows = [{key: value for key, value in row.items() if key not in LABEL_COLUMNS} for row in examples]
        if self.task.level == "choice":
            batch = self._choices(rows)
        else:
            batch = collate_inputs(which, self.collate_inputs, rows)
        if self.masking is not None:
            batch = self.masking(batch)
        elif column is not None:
            batch["labels"] = label_tensor(self.name, self.task, column, examples, batch, self.padding_side)
        return batch

    def _choices(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Every column of a row holds one entry per choice: padded together, to `(batch, choices, length)`."""
        count = self.task.num_labels
        for row in rows:
            for key, value in row.items():
                if not _is_sized(value) or len(value) != count or not _is_sized(value[0]):
                    raise ValueError(
                        f"Task '{self.name}': the column '{key}' of a row must hold a list for each of its {count} choices "
                        "(num_labels): make the rows with `encode_choices`."
                    )
        flat = [{key: value[choice] for key, value in row.items()} for row in rows for choice in range(count)]
        batch = collate_inputs(f"Task '{self.name}'", self.collate_inputs, flat)
        return {key: value.unflatten(0, (len(rows), count)) for key, value in batch.items()}


def _is_sized(value: Any) -> bool:
    return isinstance(value, Sized)


def check_rows(which: str, examples: Sequence[Any]) -> None:
    """Refuses rows that are no dictionaries."""
    for row in examples:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"{which}: a row of its dataset is a {type(row).__name__} and must be a dictionary of columns, such as "
                "{'input_ids': ..., 'labels': ...}: let the dataset return these, or pass a `data_collator`."
            )


def collate_inputs(which: str, collator: Callable, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The inputs of rows in one batch."""
    batch: dict[str, Any] = {}
    if all(rows):
        try:
            batch = dict(collator(rows))
        except (TypeError, ValueError) as error:
            pads = isinstance(collator, DataCollatorWithPadding)
            raise ValueError(
                f"{which}: its rows cannot be put into one batch: {error}"
                + (
                    ""
                    if pads
                    else " Rows of different lengths need a `processing_class` that pads, such as the tokenizer."
                )
            ) from error
    if not batch:  # a text counts for nothing: what stacks numbers passes over it
        raise ValueError(
            f"{which}: its rows hold no column that the model takes as an input: tokenize the texts first, or rename the "
            "columns."
        )
    return batch


def label_tensor(
    name: str,
    task: Task,
    column: str,
    examples: Sequence[Mapping[str, Any]],
    batch: Mapping[str, Any],
    padding_side: str,
) -> Tensor:
    """The labels of a task, in a column of the rows, beside the inputs of the batch."""
    labels, length = [row.get(column) for row in examples], None
    if task.level == "token":
        length = batch["input_ids" if "input_ids" in batch else next(iter(batch))].shape[1]
    if task.per_token:
        check_alignment(name, labels, [row.get("input_ids") for row in examples])
    return task.label_tensor(name, labels, length, padding_side)


def check_alignment(name: str, labels: Sequence[Any], tokens: Sequence[Any]) -> None:
    """Refuses labels of a token-level task that do not stand one to one beside the tokens: one per word, say."""
    for given, ids in zip(labels, tokens):
        if given is not None and ids is not None and isinstance(given, Sized) and len(given) != len(ids):
            raise ValueError(
                f"Task '{name}': a row has {len(given)} labels and {len(ids)} tokens. Give a label to every token "
                "(-100 or None where there is none), by the `word_ids()` of the tokenizer's output."
            )


class CheckedCollator:
    """
    A user's collator for declared tasks, whose labels are checked before they reach the model: on a GPU a class out of
    range would end the process.

    Args:
        unit ([`Unit`]):
            The tasks that share the batch.
        tasks (`Mapping[str, Task]`):
            What they are.
        collator (`Callable`):
            The collator.
    """

    def __init__(self, unit: Unit, tasks: Mapping[str, Task], collator: Callable[[list[Any]], Any]):
        self.unit = unit
        self.tasks = dict(tasks)
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        batch = self.collator(examples)
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if self.unit.is_group and labels is not None and not isinstance(labels, Mapping):
            raise TypeError(
                f"{self.unit}: its collator must make 'labels' a dictionary of tensors by task, such as "
                f"{{'{self.unit.tasks[0]}': ...}}, and made a {type(labels).__name__}."
            )
        for name, task in self.tasks.items():
            own = labels.get(name) if self.unit.is_group and labels is not None else labels
            if isinstance(own, Tensor):
                task.check_labels(name, own)
        return batch


def input_collator(processing_class: Any) -> Callable[[list[Any]], dict[str, Any]]:
    """transformers' own choice: padding where the processing class can pad, else stacking."""
    if isinstance(processing_class, (PreTrainedTokenizerBase, SequenceFeatureExtractor)):
        return DataCollatorWithPadding(cast(PreTrainedTokenizerBase, processing_class))  # both have `pad`
    return default_data_collator
