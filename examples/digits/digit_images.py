"""
Scikit-learn's handwritten digits, 1,797 images of 8 x 8 pixels, and three questions about each of them:

    digit   classification   which of the ten it is
    parity  classification   whether it is even or odd
    ink     regression       how much of the image is ink, in percent, unscaled
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from PIL import Image
from sklearn.datasets import load_digits
from transformers import ViTImageProcessor

from hf_dbmtl import Classification, Regression
from hf_dbmtl.tasks import Task


__all__ = ["TASKS", "Digits", "build", "processor"]

TASKS: dict[str, Task] = {
    "digit": Classification(label_names=[str(digit) for digit in range(10)]),
    "parity": Classification(label_names=["even", "odd"]),
    "ink": Regression(),
}
SIZES = {"train": 1000, "validation": 297, "test": 500}
DARKEST = 16.0  # scikit-learn's pixels go from 0 to 16


@dataclass(frozen=True)
class Digits:
    """
    One split.

    Args:
        images (`list[PIL.Image.Image]`): The images.
        labels (`dict[str, np.ndarray]`): By task a label for each.
    """

    images: list[Image.Image]
    labels: dict[str, np.ndarray]

    def datasets(self, rows: int | None = None) -> dict[str, Dataset]:
        """One data set per task, of the first `rows` images: the pixels as the encoder takes them, and the labels."""
        pixels = processor()(self.images[:rows], return_tensors="np")["pixel_values"]
        return {
            task: Dataset.from_dict({"pixel_values": pixels, "labels": labels[:rows]})
            for task, labels in self.labels.items()
        }


def processor() -> ViTImageProcessor:
    """From an image of any size to the pixels that the encoder takes."""
    return ViTImageProcessor(size={"height": 8, "width": 8})


def build() -> dict[str, Digits]:
    """The splits, of images drawn at random and always the same."""
    data = load_digits()
    order, splits, start = np.random.default_rng(0).permutation(len(data.images)), {}, 0
    for name, rows in SIZES.items():
        chosen = order[start : start + rows]
        start += rows
        pixels, digits = data.images[chosen], data.target[chosen]
        splits[name] = Digits(
            images=[Image.fromarray((one * 255 / DARKEST).astype(np.uint8)).convert("RGB") for one in pixels],
            labels={
                "digit": digits,
                "parity": digits % 2,
                "ink": (100 * pixels.mean((1, 2)) / DARKEST).astype(np.float32),
            },
        )
    return splits
