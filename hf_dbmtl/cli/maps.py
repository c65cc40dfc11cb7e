"""From a column of masks, distances or directions to the label of every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL.Image import Image

from hf_dbmtl_cli import CommandError

from ..tasks import Task


__all__ = ["MapReader"]


@dataclass
class MapReader:
    """
    Turns what a column holds into a map of the size of the encoder's pixels, by the nearest pixel: an image (of class
    indices, a palette's included, or of distances), lists of numbers, or the path of an image or a .npy file.

    Args:
        name (`str`):
            The name of the task, for errors.
        task (`Task`):
            The task.
        column (`str`):
            The column.
    """

    name: str
    task: Task
    column: str

    @property
    def columns(self) -> list[str]:
        return [self.column]

    def __call__(self, value: Any, size: tuple[int, int]) -> np.ndarray | None:
        if value is None:
            return None
        array = self._array(value)
        if self.task.kind == "surface_normals" and array.ndim == 3 and array.shape[0] != 3 == array.shape[-1]:
            array = np.moveaxis(array, -1, 0)
        if array.ndim < 2:
            return array  # which the task refuses
        down, across = (
            ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, array.shape[-2:])
        )
        return array[..., down[:, None], across]

    def check(self, label: Any) -> None:
        """
        Raises:
            [`CommandError`]: for a label that the task refuses.
        """
        try:
            self.task.label_tensor(self.name, [label])
        except (TypeError, ValueError) as error:
            raise CommandError(str(error)) from error

    def _array(self, value: Any) -> np.ndarray:
        if isinstance(value, str):
            value = self._read(value)
        if isinstance(value, Image) and (self.task.kind == "surface_normals" or len(value.getbands()) > 1):
            what = "directions" if self.task.kind == "surface_normals" else "one number per pixel"
            raise CommandError(
                f"Task '{self.name}': the column '{self.column}' holds images of colours ({value.mode}), and "
                f"{self.task.kind} takes {what}: give arrays (lists, or .npy files), or images of one channel."
            )
        try:
            return np.asarray(value)
        except ValueError as error:  # rows of different lengths
            raise CommandError(
                f"Task '{self.name}': a value in the column '{self.column}' is no map: {error}."
            ) from error

    def _read(self, path: str) -> Any:
        try:
            if Path(path).suffix.lower() == ".npy":
                return np.load(path, allow_pickle=False)
            with PIL.Image.open(path) as image:
                image.load()
                return image
        except (OSError, ValueError) as error:
            raise CommandError(
                f"Task '{self.name}': {path}, in the column '{self.column}', cannot be read as a map: {error}."
            ) from error
