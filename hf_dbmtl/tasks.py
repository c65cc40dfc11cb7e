"""What a user declares: the tasks. Each knows its loss, and how Python labels become the tensor that the loss takes."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .limits import MAX_LABELS, check_label_names


__all__ = ["Classification", "MultiLabelClassification", "Regression", "Task", "TokenClassification", "task_from_dict"]

IGNORE_INDEX = -100
LARGEST_INTEGER = 2**63 - 1


@dataclass
class Task:
    """
    One thing to predict. Declare a task by one of the subclasses.

    Args:
        num_labels (`int`, *optional*):
            Width of the head. Inferred from `label_names` where these are given.
        label_names (`list[str]`, *optional*):
            Names of the labels, in the order of their indices.
        dropout (`float`, *optional*):
            Dropout in front of the head's linear layer; `None` takes the encoder's.
        main_metric (`str`, *optional*):
            Which of the task's metrics enters `eval_average`; `None` takes the default of the kind.
    """

    num_labels: int | None = None
    label_names: list[str] | None = None
    dropout: float | None = None
    main_metric: str | None = None

    kind: ClassVar[str]
    level: ClassVar[str] = "sequence"
    min_labels: ClassVar[int] = 1
    label_help: ClassVar[str]  # what a label must look like, for error messages

    def __post_init__(self) -> None:
        cls, names = type(self).__name__, self.label_names
        if names is not None:
            if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"label_names must be a list of strings, got {_short(names)}.")
            check_label_names(names)
            self.label_names = list(names)
            self.num_labels = len(names) if self.num_labels is None else self.num_labels
        if self.num_labels is None:
            raise ValueError(f"{cls} needs num_labels=... or label_names=[...].")
        self.num_labels = _plain(self.num_labels)  # `labels.max() + 1` is a NumPy integer, which JSON refuses
        if type(self.num_labels) is not int:
            raise TypeError(f"num_labels must be an int, got {_short(self.num_labels)}.")
        if not self.min_labels <= self.num_labels <= MAX_LABELS:
            hint = ": declare Regression() for one real number" if self.num_labels == 1 else ""
            limits = f"[{self.min_labels}, {MAX_LABELS}]"
            raise ValueError(f"num_labels={self.num_labels} of {cls} is outside {limits}{hint}.")
        if names is not None and len(names) != self.num_labels:
            raise ValueError(f"num_labels={self.num_labels} but label_names has {len(names)}: make them agree.")
        if self.dropout is not None and (type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1):
            raise ValueError(f"dropout must be a number in [0, 1), got {_short(self.dropout)}.")
        if self.main_metric is not None and not isinstance(self.main_metric, str):
            raise TypeError(f"main_metric must be the name of a metric, got {_short(self.main_metric)}.")

    def to_dict(self) -> dict[str, Any]:
        """The kind and the fields that are set, as JSON-ready values; [`task_from_dict`] is the inverse."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": self.kind, **{name: value for name, value in values.items() if value is not None}}

    def loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """
        Mean loss over the labelled items, computed in float32 at least.

        Args:
            logits (`torch.Tensor`):
                The head's output, of shape `(..., num_labels)`.
            labels (`torch.Tensor`):
                As [`~Task.label_tensor`] makes them.

        Returns:
            The mean, and the number of labelled items it is over (an integer of shape `()`). Without any, both are
            zero, and the loss still hangs on the logits: the head receives a zero gradient, not none.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses, labelled = self._losses(logits, labels)
        num_items = labelled.sum()
        return losses.where(labelled, 0.0).sum() / num_items.clamp(min=1), num_items

    def label_tensor(self, name: str, labels: list, length: int | None = None, padding_side: str = "right") -> Tensor:
        """
        The tensor that [`~Task.loss`] takes, from the Python labels of a batch.

        Args:
            name (`str`):
                Name of the task, for error messages.
            labels (`list`):
                One label per example, `None` where it is missing. Numbers and arrays of NumPy and torch are welcome.
            length (`int`, *optional*):
                Padded length of the inputs, of use at token level only; `None` takes the longest label.
            padding_side (`str`, *optional*, defaults to `"right"`):
                Side on which the inputs are padded.

        Raises:
            `TypeError`, `ValueError`: a label of the wrong type, length or range.
        """
        tensor = self._tensor(name, [_plain(label) for label in labels], length, padding_side)
        self.check_labels(name, tensor)
        return tensor

    def labelled(self, labels: Tensor) -> Tensor:
        """The mask of the items of a label tensor that carry a label."""
        raise NotImplementedError

    def check_labels(self, name: str, labels: Tensor) -> None:
        """Raises a `ValueError` that names the task and the first label out of range. For tensors on the CPU."""
        raise NotImplementedError

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of every item, finite where the label is missing, and the mask of the labelled items."""
        raise NotImplementedError

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        raise NotImplementedError

    def _wrong_type(self, name: str, value: Any) -> TypeError:
        return TypeError(f"Task {name!r}: label {_short(value)} is of type {type(value).__name__}: {self.label_help}.")


class Classification(Task):
    """
    One of `num_labels` classes per example. Cross-entropy; logits of shape `(batch, num_labels)`, labels of shape
    `(batch,)` with -100 (in Python also `None`) where missing. An item is a labelled example.
    """

    kind = "classification"
    min_labels = 2
    label_help = (
        "give the integer index of the class (`ClassLabel` or a label2id of yours turns strings into these), "
        "None or -100 where it is missing"
    )

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _check_shape(labels, logits.shape[:-1])
        labels = labels.flatten().long()
        losses = F.cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORE_INDEX, reduction="none")
        return losses, self.labelled(labels)

    def labelled(self, labels: Tensor) -> Tensor:
        return labels != IGNORE_INDEX

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        return torch.tensor([self._index(name, label) for label in labels], dtype=torch.long)

    def _index(self, name: str, label: Any) -> int:
        if label is None:
            return IGNORE_INDEX
        if not isinstance(label, int):
            raise self._wrong_type(name, label)
        if abs(label) > LARGEST_INTEGER:  # which no tensor could hold
            raise ValueError(f"Task {name!r}: label {_short(label)} is outside [0, {self.num_labels}): mend the data.")
        return label

    def check_labels(self, name: str, labels: Tensor) -> None:
        outside = ((labels < 0) | (labels >= self.num_labels)) & (labels != IGNORE_INDEX)
        if outside.any():
            label, largest = labels[outside][0].item(), labels.max().item()
            remedy = f"set num_labels={largest + 1} or mend" if largest >= self.num_labels else "mend"
            raise ValueError(
                f"Task {name!r}: label {label} is outside [0, {self.num_labels}): {remedy} the data "
                "(a missing label is None or -100)."
            )


class TokenClassification(Classification):
    """
    One of `num_labels` classes per token. Cross-entropy; logits of shape `(batch, length, num_labels)`, labels of shape
    `(batch, length)` with -100 at padding and where missing. An item is a labelled token.
    """

    kind = "token_classification"
    level = "token"
    label_help = (
        "give one integer class index per token of the input (`ClassLabel` or a label2id of yours turns strings into "
        "these), None or -100 where it is missing"
    )

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        rows = [self._row(name, label) for label in labels]
        longest = max(map(len, rows), default=0)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(
                f"Task {name!r}: an example has {longest} token labels but the inputs are {length} long: truncate and "
                "align the labels with the tokens (`word_ids()` of the tokenizer's output)."
            )
        tensor = torch.full((len(rows), length), IGNORE_INDEX)
        for target, row in zip(tensor, rows):
            start = length - len(row) if padding_side == "left" else 0
            target[start : start + len(row)] = torch.tensor(row)
        return tensor

    def _row(self, name: str, label: Any) -> list[int]:
        if label is None:
            return []
        if not isinstance(label, (list, tuple)):
            raise self._wrong_type(name, label)
        return [self._index(name, _plain(entry)) for entry in label]


class _VectorTask(Task):
    """A task whose label is a vector of `num_labels` numbers."""

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        return torch.tensor([self._vector(name, label) for label in labels]).reshape(-1, self.num_labels)

    def _vector(self, name: str, label: Any) -> list[float]:
        if label is None:
            return [math.nan] * self.num_labels
        entries = [label] if self.num_labels == 1 and not isinstance(label, (list, tuple)) else label
        if not isinstance(entries, (list, tuple)):
            raise self._wrong_type(name, label)
        entries = [math.nan if entry is None else _plain(entry) for entry in entries]
        for entry in entries:
            if not isinstance(entry, (int, float)):
                raise self._wrong_type(name, entry)
            if isinstance(entry, int) and abs(entry) > LARGEST_INTEGER:
                raise ValueError(f"Task {name!r}: label {_short(entry)} is too large: mend the data.")
        if len(entries) != self.num_labels:
            raise ValueError(
                f"Task {name!r}: label {_short(label)} has {len(entries)} entries but num_labels={self.num_labels}: "
                f"{self.label_help}."
            )
        return [float(entry) for entry in entries]


class MultiLabelClassification(_VectorTask):
    """
    Any number of `num_labels` labels per example. Binary cross-entropy with logits; logits and labels of shape
    `(batch, num_labels)`, labels in [0, 1], NaN or -100 (in Python also `None`) where missing. An item is a labelled
    entry.
    """

    kind = "multi_label_classification"
    label_help = (
        "give a multi-hot vector of num_labels numbers from 0 to 1 (not the indices or names of the labels that hold), "
        "None, NaN or -100 where an entry is missing"
    )

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        _check_shape(labels, logits.shape)
        labelled = self.labelled(labels)
        targets = labels.to(logits.dtype).where(labelled, 0.0)
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), labelled

    def labelled(self, labels: Tensor) -> Tensor:
        return ~labels.isnan() & (labels != IGNORE_INDEX)

    def check_labels(self, name: str, labels: Tensor) -> None:
        outside = ((labels < 0) | (labels > 1)) & (labels != IGNORE_INDEX)  # false for NaN
        if outside.any():
            entry = labels[outside][0].item()
            raise ValueError(f"Task {name!r}: entry {entry:g} is outside [0, 1]: {self.label_help}.")


class Regression(_VectorTask):
    """
    `num_labels` real numbers per example, one by default. Squared error in the label's own scale; logits of shape
    `(batch, num_labels)`, labels of the same shape, or `(batch,)` for one number, NaN (in Python also `None`) where
    missing. An item is a labelled entry.
    """

    kind = "regression"
    label_help = "give num_labels numbers (cast the column to float), None or NaN where one is missing"

    def __post_init__(self) -> None:
        if self.num_labels is None and self.label_names is None:
            self.num_labels = 1
        super().__post_init__()

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if labels.shape == logits.shape[:-1] and self.num_labels == 1:
            labels = labels.unsqueeze(-1)
        _check_shape(labels, logits.shape)
        labelled = self.labelled(labels)
        targets = labels.to(logits.dtype).where(labelled, 0.0)
        return F.mse_loss(logits, targets, reduction="none"), labelled

    def labelled(self, labels: Tensor) -> Tensor:
        return ~labels.isnan()

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        tensor = super()._tensor(name, labels, length, padding_side)
        return tensor.squeeze(-1) if self.num_labels == 1 else tensor

    def check_labels(self, name: str, labels: Tensor) -> None:
        if labels.isinf().any():
            raise ValueError(f"Task {name!r}: label {labels[labels.isinf()][0].item()} is not finite: mend the data.")


_KINDS = {cls.kind: cls for cls in (Classification, MultiLabelClassification, Regression, TokenClassification)}


def task_from_dict(values: dict[str, Any]) -> Task:
    """
    The task that [`Task.to_dict`] described.

    Raises:
        `TypeError`, `ValueError`: not a dict, an unknown kind or field (the nearest known ones are named), or a value
        that the task refuses.
    """
    if not isinstance(values, dict):
        raise TypeError(f"a task is a dict like {Classification(2).to_dict()}, got {_short(values)}.")
    options = dict(values)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"unknown kind of task {_short(kind)}{_nearest(kind, list(_KINDS))}")
    known = [field.name for field in fields(Task)]
    for name in options:
        if name not in known:
            raise ValueError(f"unknown field {_short(name)} of a {kind} task{_nearest(name, known)}")
    return _KINDS[kind](**options)


def _nearest(name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else f": choose from {', '.join(known)}."


def _plain(value: Any) -> Any:
    """Python's own number or list for those of NumPy and torch, anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_shape(labels: Tensor, expected: torch.Size) -> None:
    if labels.shape != expected:
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit logits that ask for {tuple(expected)}.")
