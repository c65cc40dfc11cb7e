"""Tasks with one label per example, of texts, images or whatever the encoder reads."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .task import IGNORE_INDEX, LARGEST_INTEGER, Task, check_shape, plain, short


__all__ = ["Classification", "MultiLabelClassification", "Regression"]


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
        check_shape(labels, logits.shape[:-1])
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
            raise ValueError(f"Task {name!r}: label {short(label)} is outside [0, {self.num_labels}): mend the data.")
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
        entries = [math.nan if entry is None else plain(entry) for entry in entries]
        for entry in entries:
            if not isinstance(entry, (int, float)):
                raise self._wrong_type(name, entry)
            if isinstance(entry, int) and abs(entry) > LARGEST_INTEGER:
                raise ValueError(f"Task {name!r}: label {short(entry)} is too large: mend the data.")
        if len(entries) != self.num_labels:
            raise ValueError(
                f"Task {name!r}: label {short(label)} has {len(entries)} entries but num_labels={self.num_labels}: "
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
        check_shape(labels, logits.shape)
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
        check_shape(labels, logits.shape)
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
