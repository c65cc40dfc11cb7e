"""From the columns of a dataset of images to what the encoder reads: pixels, made as they are read, and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Image, IterableDataset

from hf_dbmtl_cli import CommandError

from .labels import LabelReader
from .maps import MapReader


__all__ = ["encode_images", "show_whole_images"]

STREAMED = 8  # images that are read at once, where they are streamed


def encode_images(
    rows: Dataset, processor: Any, column: str, readers: Mapping[str, LabelReader | MapReader]
) -> Dataset:
    """
    Reads the labels of a dataset of images, whose pixels are made as they are needed, as are labels that are maps of these:
    on disk they would take many times the room.

    Args:
        rows (`Dataset`):
            The rows.
        processor (`BaseImageProcessor`):
            The image processor.
        column (`str`):
            The column of the images, or of their paths.
        readers (`dict[str, LabelReader | MapReader]`):
            What turns the label columns into labels, by the column that these go to.
    """
    maps = {into: reader for into, reader in readers.items() if isinstance(reader, MapReader)}
    others = {into: reader for into, reader in readers.items() if not isinstance(reader, MapReader)}
    named = ", ".join(reader.name for reader in readers.values())
    if isinstance(rows, IterableDataset):
        pixels = Pixels(processor, column, named, maps, others)
        return rows.cast_column(column, Image()).map(
            pixels, batched=True, batch_size=STREAMED, remove_columns=rows.column_names
        )
    labels = {into: reader(rows.select_columns(reader.columns)[:]) for into, reader in others.items()}
    if not isinstance(rows.features[column], Image):
        try:
            rows = rows.cast_column(column, Image())
        except (NotImplementedError, TypeError, ValueError) as error:
            feature = rows.features[column]
            raise CommandError(
                f"Task '{named}': the column '{column}' holds {getattr(feature, 'dtype', feature)}, and must hold images or the "
                "paths of images: name another in `image`."
            ) from error
    rows = rows.select_columns([column, *dict.fromkeys(reader.column for reader in maps.values())])
    for into, of_rows in labels.items():
        rows = rows.add_column(into, of_rows)
    made = rows.with_transform(Pixels(processor, column, named, maps))
    for into, reader in maps.items():  # a map that is none shows before the model is made
        reader.check(made[0][into])
    return made


@dataclass
class Pixels:
    """What a batch of rows becomes when it is read."""

    processor: Any
    column: str
    task: str
    maps: Mapping[str, MapReader]
    labels: Mapping[str, LabelReader] = field(default_factory=dict)  # that are not there yet

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        if self.column not in batch:  # the labels alone are asked for
            return batch
        labels = {into: reader(batch) for into, reader in self.labels.items()}
        batch = {**batch, **labels}
        images = batch.pop(self.column)
        if None in images:
            raise CommandError(f"Task '{self.task}': the image column '{self.column}' is empty in one row.")
        pixels = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        size = tuple(pixels["pixel_values"].shape[-2:])
        maps = {into: [reader(value, size) for value in batch[reader.column]] for into, reader in self.maps.items()}
        gone = {reader.column for reader in self.maps.values()} - set(maps)
        return {**{key: value for key, value in batch.items() if key not in gone}, **maps, **pixels}


def show_whole_images(processor: Any) -> None:
    """
    Sets an image processor to resize images without cutting borders off: labels of pixels are resized as the images are.

    Raises:
        [`CommandError`]: it cuts in a way of its own.
    """
    if getattr(processor, "crop_pct", None):
        raise CommandError(
            f"model_name_or_path: its {type(processor).__name__} cuts the borders of images off, where tasks of pixels have "
            "labels: choose an encoder whose processor does not (ViT, BEiT, DINOv2, Swin)."
        )
    size: Any = processor.size
    if getattr(processor, "do_center_crop", False):
        processor.do_center_crop, size = False, processor.crop_size
    side = size.get("shortest_edge") if "height" not in size else None
    processor.size = {"height": side or size["height"], "width": side or size["width"]}
