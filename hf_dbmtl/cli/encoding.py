"""From the columns of a dataset to what the encoder reads: tokens and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Image
from transformers import PreTrainedTokenizerBase

from hf_dbmtl_cli import CommandError

from ..encoding import encode_words
from .labels import LabelReader


__all__ = ["encode", "encode_images"]


def encode(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text: Sequence[str],
    readers: Mapping[str, LabelReader],
    max_length: int | None,
) -> Dataset:
    """
    Tokenizes a dataset and reads its labels, both cached by `datasets`: a second run with the same settings finds them.

    Args:
        rows (`Dataset`):
            The rows.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        text (`Sequence[str]`):
            The text column, or the two of a pair; at token level the column of the words.
        readers (`dict[str, LabelReader]`):
            What turns the label columns into labels, by the column that these go to.
        max_length (`int`, *optional*):
            Tokens of an input at most; longer ones are cut.
    """
    words = [reader.name for reader in readers.values() if reader.task.level == "token"]
    if words and not tokenizer.is_fast:
        raise CommandError(
            f"Task '{words[0]}': {type(tokenizer).__name__} does not tell which word a token belongs to: choose an "
            "encoder with a fast tokenizer."
        )
    return rows.map(
        _encode_words if words else _encode_texts,
        batched=True,
        remove_columns=rows.column_names,
        fn_kwargs={"tokenizer": tokenizer, "text": list(text), "readers": dict(readers), "max_length": max_length},
        desc=f"Tokenizing {', '.join(reader.name for reader in readers.values())}",
    )


def encode_images(rows: Dataset, processor: Any, column: str, readers: Mapping[str, LabelReader]) -> Dataset:
    """
    Reads the labels of a dataset of images, whose pixels are made as they are needed: on disk they would take many times
    the room.

    Args:
        rows (`Dataset`):
            The rows.
        processor (`BaseImageProcessor`):
            The image processor.
        column (`str`):
            The column of the images, or of their paths.
        readers (`dict[str, LabelReader]`):
            What turns the label columns into labels, by the column that these go to.
    """
    labels = {}
    for into, reader in readers.items():
        if reader.task.level != "sequence":
            raise CommandError(f"Task '{reader.name}': {reader.task.kind} is for texts: name their column in `text`.")
        labels[into] = reader(rows.select_columns(reader.columns)[:])
    if not isinstance(rows.features[column], Image):
        rows = rows.cast_column(column, Image())
    rows = rows.select_columns([column])
    for into, of_rows in labels.items():
        rows = rows.add_column(into, of_rows)
    return rows.with_transform(_Pixels(processor, column, ", ".join(reader.name for reader in readers.values())))


@dataclass
class _Pixels:
    """What a batch of rows becomes when it is read."""

    processor: Any
    column: str
    task: str

    def __call__(self, batch: dict[str, list]) -> dict[str, Any]:
        if self.column not in batch:  # the labels alone are asked for
            return batch
        images = batch.pop(self.column)
        if None in images:
            raise CommandError(f"Task '{self.task}': the image column '{self.column}' is empty in one row.")
        pixels = self.processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        return {**batch, **pixels}


def _encode_texts(
    rows: Mapping[str, list],
    tokenizer: Any,
    text: list[str],
    readers: Mapping[str, LabelReader],
    max_length: int | None,
) -> dict[str, list]:
    for column in text:
        for value in rows[column]:
            if not isinstance(value, str):
                what = "is empty in one row" if value is None else f"holds {value!r} of type {type(value).__name__}"
                raise CommandError(
                    f"Task '{next(iter(readers.values())).name}': the text column '{column}' {what}: give strings, or name "
                    "another column in `text`."
                )
    batch = tokenizer(*(rows[column] for column in text), truncation=max_length is not None, max_length=max_length)
    return {**batch, **{into: reader(rows) for into, reader in readers.items()}}


def _encode_words(
    rows: Mapping[str, list],
    tokenizer: Any,
    text: list[str],
    readers: Mapping[str, LabelReader],
    max_length: int | None,
) -> dict[str, list]:
    """The first token of a word carries its label, the others none."""
    (column,) = text
    batch: dict[str, list] = {}
    for into, reader in readers.items():
        labels = reader(rows)
        if reader.task.level == "token":
            words = _labelled_words(rows, column, reader, labels)
            found = encode_words(words, tokenizer, "words", "labels", max_length)
            batch |= {key: value for key, value in found.items() if key != "labels"}
            labels = found["labels"]
        batch[into] = labels
    return batch


def _labelled_words(rows: Mapping[str, list], column: str, reader: LabelReader, by_word: list) -> dict[str, list]:
    sentences = [_words(value, column, reader.name) for value in rows[column]]
    for words, labels, given in zip(sentences, by_word, rows[reader.columns[0]]):
        if given is not None and len(words) != len(labels):
            raise CommandError(
                f"Task '{reader.name}': a row has {len(words)} words and {len(labels)} labels, every word needs one:"
                f" {' '.join(words)[:80]!r}."
            )
    return {"words": sentences, "labels": [row or None for row in by_word]}


def _words(value: Any, column: str, task: str) -> list[str]:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CommandError(
            f"Task '{task}': the column '{column}' must hold a list of words per row (or words between white space), "
            f"and holds {value!r}."
        )
    return words
