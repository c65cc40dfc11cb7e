"""Tasks with a label for every pixel of an image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .task import IGNORE_INDEX, Task, check_shape, short


__all__ = ["DepthEstimation", "SemanticSegmentation", "SurfaceNormals"]


class _DenseTask(Task):
    """
    A task whose label is a map of an image's pixels. Logits of another resolution are resized to that of the labels
    (bilinear, as transformers does).
    """

    level = "grid"
    dense = True
    missing: float = math.nan  # what fills the map of an example without a label
    dtype = torch.float32

    def loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return super().loss(_resized(logits, labels), labels)

    def label_tensor(self, name: str, labels: list, length: int | None = None, padding_side: str = "right") -> Tensor:
        maps = [None if label is None else self._map(name, label) for label in labels]
        shapes = {one.shape for one in maps if one is not None}
        if len(shapes) > 1:
            raise ValueError(
                f"Task {name!r}: labels of the shapes {sorted(map(tuple, shapes))} cannot be put into one batch: resize "
                "them to one size, as the images are."
            )
        shape = shapes.pop() if shapes else self._shape(1, 1)
        empty = torch.full(shape, self.missing, dtype=self.dtype)
        tensor = torch.stack([empty if one is None else one for one in maps])
        self.check_labels(name, tensor)
        return tensor

    def _map(self, name: str, label: Any) -> Tensor:
        array = np.asarray(label)  # of lists, of NumPy and torch, or an image
        if array.dtype.kind not in "biuf":
            raise self._wrong_type(name, label)
        if array.ndim < 2 or array.shape != self._shape(*array.shape[-2:]):
            raise ValueError(f"Task {name!r}: a label has the shape {array.shape}: {self.label_help}.")
        if array.dtype.kind == "f" and not self.dtype.is_floating_point:
            if not np.equal(array, np.rint(array)).all():
                raise ValueError(f"Task {name!r}: a label holds numbers that are not whole: {self.label_help}.")
        return torch.tensor(array).to(self.dtype)

    def _shape(self, height: int, width: int) -> tuple[int, ...]:
        return height, width


@dataclass
class SemanticSegmentation(_DenseTask):
    """
    One of `num_labels` classes per pixel. Cross-entropy; logits of shape `(batch, num_labels, height, width)`, labels of
    shape `(batch, height, width)`, with -100 or `ignore_index` where missing. An item is a labelled pixel.

    Args:
        ignore_index (`int`, *optional*, defaults to -100):
            A further value that says that a pixel has no label, often 255.
    """

    ignore_index: int = IGNORE_INDEX

    kind = "semantic_segmentation"
    min_labels = 2
    missing = IGNORE_INDEX
    dtype = torch.long
    label_help = "give a map of class indices, of shape (height, width), None where a whole map is missing"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.ignore_index) is not int or 0 <= self.ignore_index < self.num_labels:
            raise ValueError(f"ignore_index must be a number that no class has, got {short(self.ignore_index)}.")

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_shape(labels, logits.shape[:1] + logits.shape[2:])
        labelled = self.labelled(labels)
        targets = labels.long().where(labelled, IGNORE_INDEX)
        return F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="none"), labelled

    def for_metrics(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        return _resized(logits, labels).argmax(1)

    def labelled(self, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX) & (labels != self.ignore_index)

    def check_labels(self, name: str, labels: Tensor) -> None:
        outside = ((labels < 0) | (labels >= self.num_labels)) & self.labelled(labels)
        if outside.any():
            raise ValueError(
                f"Task {name!r}: label {labels[outside][0].item()} is outside [0, {self.num_labels}): set num_labels, set "
                "ignore_index to the value of pixels without a label, or mend the data."
            )


class DepthEstimation(_DenseTask):
    """
    A distance per pixel. Absolute error in the label's own scale; logits of shape `(batch, 1, height, width)`, labels of
    shape `(batch, height, width)`, NaN, infinite, or 0 and below where missing. An item is a pixel with a label.
    """

    kind = "depth_estimation"
    fixed_labels = 1
    label_help = "give a map of distances, of shape (height, width), None where a whole map is missing"

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_shape(labels, logits.shape[:1] + logits.shape[2:])
        labelled = self.labelled(labels)
        targets = labels.to(logits.dtype).where(labelled, 0.0)
        return F.l1_loss(logits.squeeze(1), targets, reduction="none"), labelled

    def for_metrics(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        return _resized(logits, labels).squeeze(1)

    def labelled(self, labels: Tensor) -> Tensor:
        return labels.isfinite() & (labels > 0)

    def check_labels(self, name: str, labels: Tensor) -> None:
        """Any number is a distance, or says that there is none."""


class SurfaceNormals(_DenseTask):
    """
    The direction in which the surface at a pixel faces. One minus the cosine between prediction and label, as in LibMTL's
    scene understanding; logits and labels of shape `(batch, 3, height, width)`, of any length; a label that is zero or
    holds a NaN is missing. An item is a pixel with a label.
    """

    kind = "surface_normals"
    fixed_labels = 3
    label_help = "give a map of vectors, of shape (3, height, width), None where a whole map is missing"

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_shape(labels, logits.shape)
        labelled = self.labelled(labels)
        targets = labels.to(logits.dtype).where(labelled.unsqueeze(1), 0.0)
        return 1 - F.cosine_similarity(logits, targets, dim=1), labelled

    def for_metrics(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        return _resized(logits, labels)

    def labelled(self, labels: Tensor) -> Tensor:
        return labels.isfinite().all(1) & (labels != 0).any(1)

    def check_labels(self, name: str, labels: Tensor) -> None:
        """Any vector is a direction, or says that there is none."""

    def _shape(self, height: int, width: int) -> tuple[int, ...]:
        return 3, height, width


def _resized(logits: Tensor, labels: Tensor | None) -> Tensor:
    size = None if labels is None else labels.shape[-2:]
    if size is None or logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
