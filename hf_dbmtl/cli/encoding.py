"""From the columns of a dataset to what the encoder reads: tokens and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_dbmtl_cli import CommandError

from .labels import LabelReader


__all__ = ["encode"]

MISSING = -100


def encode(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, text: Sequence[str], reader: LabelReader, max_length: int | None
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
        reader ([`LabelReader`]):
            What turns the label columns into labels.
        max_length (`int`, *optional*):
            Tokens of an input at most; longer ones are cut.
    """
    if reader.task.level == "token" and not tokenizer.is_fast:
        raise CommandError(
            f"Task '{reader.name}': {type(tokenizer).__name__} does not tell which word a token belongs to: choose an "
            "encoder with a fast tokenizer."
        )
    return rows.map(
        _encode_words if reader.task.level == "token" else _encode_texts,
        batched=True,
        remove_columns=rows.column_names,
        fn_kwargs={"tokenizer": tokenizer, "text": list(text), "reader": reader, "max_length": max_length},
        desc=f"Tokenizing {reader.name}",
    )


def _encode_texts(
    rows: Mapping[str, list], tokenizer: Any, text: list[str], reader: LabelReader, max_length: int | None
) -> dict[str, list]:
    for column in text:
        for value in rows[column]:
            if not isinstance(value, str):
                what = "is empty in one row" if value is None else f"holds {value!r} of type {type(value).__name__}"
                raise CommandError(
                    f"Task '{reader.name}': the text column '{column}' {what}: give strings, or name another column in "
                    "`text`."
                )
    batch = tokenizer(*(rows[column] for column in text), truncation=max_length is not None, max_length=max_length)
    return {**batch, "labels": reader(rows)}


def _encode_words(
    rows: Mapping[str, list], tokenizer: Any, text: list[str], reader: LabelReader, max_length: int | None
) -> dict[str, list]:
    """
    Tokenizes the words as the text they make, so that a token is what it will be in raw text, whatever the tokenizer.
    The first token of a word carries its label, the others none.
    """
    (column,) = text
    sentences = [_words(value, column, reader.name) for value in rows[column]]
    by_word = reader(rows)
    for words, labels, given in zip(sentences, by_word, rows[reader.columns[0]]):
        if given is not None and len(words) != len(labels):
            raise CommandError(
                f"Task '{reader.name}': a row has {len(words)} words and {len(labels)} labels, every word needs one:"
                f" {' '.join(words)[:80]!r}."
            )
    batch = tokenizer(
        [" ".join(words) for words in sentences],
        truncation=max_length is not None,
        max_length=max_length,
        return_offsets_mapping=True,
    )
    spans = batch.pop("offset_mapping")
    return {**batch, "labels": [_align(*row) for row in zip(sentences, by_word, spans)]}


def _words(value: Any, column: str, task: str) -> list[str]:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise CommandError(
            f"Task '{task}': the column '{column}' must hold a list of words per row (or words between white space), "
            f"and holds {value!r}."
        )
    return words


def _align(words: Sequence[str], labels: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """The label of every token: that of the word its last character is in, where it is the word's first token."""
    word_at: list[int | None] = []
    for index, word in enumerate(words):
        word_at += [index] * len(word) + [None]  # the space behind it
    aligned, last = [], None
    for start, end in spans:
        word = word_at[end - 1] if end > start else None
        first = word is not None and word != last
        aligned.append(labels[word] if first and labels else MISSING)
        last = last if word is None else word
    return aligned
