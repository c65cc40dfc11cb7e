"""The declaration of a task, and what all kinds of task have in common."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from .limits import MAX_LABELS, check_label_names


__all__ = ["IGNORE_INDEX", "LARGEST_INTEGER", "Task", "check_shape", "nearest", "plain", "short"]

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
        hidden_sizes (`list[int]`, *optional*):
            Widths of hidden layers in the head, each followed by a GELU. By default there is none.
        head (`str`, *optional*):
            Name of a head class of your own, see [`~heads.register_head`]; `None` takes the one of the kind.
    """

    num_labels: int = None  # type: ignore[assignment]  # None until made, then a number or refused
    label_names: list[str] | None = None
    dropout: float | None = None
    main_metric: str | None = None
    hidden_sizes: list[int] | None = None
    head: str | None = None

    kind: ClassVar[str]
    level: ClassVar[str] = "sequence"  # what the head of the kind sees, see `features`
    min_labels: ClassVar[int] = 1
    fixed_labels: ClassVar[int | None] = None  # num_labels of a kind that leaves no choice
    label_help: ClassVar[str]  # what a label must look like, for error messages
    per_token: ClassVar[bool] = False  # labels stand one to one beside the tokens
    self_supervised: ClassVar[bool] = False  # labels are made of the inputs, as a batch is
    dense: ClassVar[bool] = False  # a label is a map of pixels: costly to read, and of a size of its own

    def __post_init__(self) -> None:
        if self.fixed_labels is not None:
            if self.num_labels not in (None, self.fixed_labels):
                raise ValueError(f"{type(self).__name__} takes no num_labels={short(self.num_labels)}: leave it out.")
            self.num_labels = self.fixed_labels
        self._check_num_labels()
        self._check_head()
        if self.main_metric is not None and not isinstance(self.main_metric, str):
            raise TypeError(f"main_metric must be the name of a metric, got {short(self.main_metric)}.")

    def _check_num_labels(self) -> None:
        cls, names = type(self).__name__, self.label_names
        if names is not None:
            if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
                raise TypeError(f"label_names must be a list of strings, got {short(names)}.")
            check_label_names(names)
            self.label_names = list(names)
            self.num_labels = len(names) if self.num_labels is None else self.num_labels
        if self.num_labels is None:
            raise ValueError(f"{cls} needs num_labels=... or label_names=[...].")
        self.num_labels = plain(self.num_labels)  # `labels.max() + 1` is a NumPy integer, which JSON refuses
        if type(self.num_labels) is not int:
            raise TypeError(f"num_labels must be an int, got {short(self.num_labels)}.")
        if not self.min_labels <= self.num_labels <= MAX_LABELS:
            hint = ": declare Regression() for one real number" if self.num_labels == 1 else ""
            limits = f"[{self.min_labels}, {MAX_LABELS}]"
            raise ValueError(f"num_labels={self.num_labels} of {cls} is outside {limits}{hint}.")
        if names is not None and len(names) != self.num_labels:
            raise ValueError(f"num_labels={self.num_labels} but label_names has {len(names)}: make them agree.")

    def _check_head(self) -> None:
        if self.dropout is not None and (type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1):
            raise ValueError(f"dropout must be a number in [0, 1), got {short(self.dropout)}.")
        sizes = self.hidden_sizes
        if sizes is not None:
            if not isinstance(sizes, (list, tuple)) or not all(type(size) is int and size > 0 for size in sizes):
                raise TypeError(f"hidden_sizes must be a list of widths such as [256], got {short(sizes)}.")
            self.hidden_sizes = list(sizes)
        if self.head is not None and not isinstance(self.head, str):
            raise TypeError(
                f"head must be the name that register_head gave to a class of yours, got {short(self.head)}."
            )

    @property
    def width(self) -> int:
        """Width of the head's last layer."""
        return self.num_labels

    def to_dict(self) -> dict[str, Any]:
        """The kind and the fields that are set, as JSON-ready values; [`task_from_dict`] is the inverse."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        defaults = {field.name: field.default for field in fields(self)}
        return {"kind": self.kind, **{name: value for name, value in values.items() if value != defaults[name]}}

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
                Padded length of the inputs, of use at token level only; where labels stand beside the tokens, `None` takes
                the longest label.
            padding_side (`str`, *optional*, defaults to `"right"`):
                Side on which the inputs are padded.

        Raises:
            `TypeError`, `ValueError`: a label of the wrong type, length or range.
        """
        tensor = self._tensor(name, [plain(label) for label in labels], length, padding_side)
        self.check_labels(name, tensor)
        return tensor

    def for_metrics(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        """What the default metrics of the kind need of a batch's logits: all of them, or the little that is kept."""
        return logits

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
        return TypeError(f"Task {name!r}: label {short(value)} is of type {type(value).__name__}: {self.label_help}.")


def nearest(name: Any, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known)
    return f": did you mean {' or '.join(map(repr, near))}?" if near else f": choose from {', '.join(known)}."


def plain(value: Any) -> Any:
    """Python's own number or list for those of NumPy and torch, anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_shape(labels: Tensor, expected: torch.Size) -> None:
    if labels.shape != expected:
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit logits that ask for {tuple(expected)}.")
