"""The images that the published model is asked about, and its answers as JSON: for the publisher and the reader alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


SIDE = 8  # pixels


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))


def plain(answer: dict[str, Any]) -> dict[str, Any]:
    ground = answer["ground"]
    labels = {str(index): label for index, label in ground["labels"].items()}
    return {"animal": answer["animal"], "ground": ground["segmentation"].tolist(), "labels": labels}
