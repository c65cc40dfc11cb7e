"""From the columns of a dataset to what the encoder reads: tokens and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_dbmtl_cli import CommandError

from ..encoding import encode_words
from .labels import LabelReader
from .settings import TaskSettings
from .streamed import BATCH
from .text_kinds import check_texts, choices_of_rows, positions_of_rows, windows_of_rows


__all__ = ["encode", "encode_task"]


def encode_task(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    settings: TaskSettings,
    readers: Mapping[str, LabelReader],
    max_length: int | None,
) -> Dataset:
    """
    Tokenizes a dataset of one task as its kind asks for.

    Args:
        rows (`Dataset`):
            The rows.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        name (`str`):
            The name of the task.
        settings ([`TaskSettings`]):
            The task.
        readers (`dict[str, LabelReader]`):
            What turns the label columns into labels, by the column that these go to.
        max_length (`int`, *optional*):
            Tokens of an input at most.
    """
    own: dict[str, Any] = {"text": settings.texts}
    if settings.kind == "question_answering":
        if len(settings.labels) == 2:
            return _map(rows, positions_of_rows, name, own | {"name": name, "columns": settings.labels})
        own |= {"tokenizer": tokenizer, "name": name, "answers": settings.labels[0], "stride": settings.stride}
        return _map(rows, windows_of_rows, name, own | {"max_length": max_length}, with_indices=True)
    if settings.kind == "multiple_choice":
        own |= {"choices": settings.choice_columns, "reader": readers["labels"]}
        return _map(rows, choices_of_rows, name, own | {"tokenizer": tokenizer, "max_length": max_length})
    return encode(rows, tokenizer, settings.texts, readers, max_length, name)


def _map(rows: Dataset, function: Callable, name: str, options: dict[str, Any], **how: Any) -> Dataset:
    how |= {"batched": True, "remove_columns": rows.column_names, "fn_kwargs": options}
    if isinstance(rows, IterableDataset):
        return rows.map(function, batch_size=BATCH, **how)
    return rows.map(function, desc=f"Tokenizing {name}", **how)


def encode(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text: Sequence[str],
    readers: Mapping[str, LabelReader],
    max_length: int | None,
    name: str | None = None,
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
        name (`str`, *optional*):
            The name of the task or the group, for errors; by default those of the tasks with labels.
    """
    words = [reader.name for reader in readers.values() if reader.task.level == "token"]
    if words and not tokenizer.is_fast:
        raise CommandError(
            f"Task '{words[0]}': {type(tokenizer).__name__} does not tell which word a token belongs to: choose an "
            "encoder with a fast tokenizer."
        )
    options = {"tokenizer": tokenizer, "text": list(text), "readers": dict(readers), "max_length": max_length}
    named = name or ", ".join(reader.name for reader in readers.values())
    return _map(rows, _encode_words if words else _encode_texts, named, options | {"name": named})


def _encode_texts(
    rows: Mapping[str, list],
    tokenizer: Any,
    text: list[str],
    readers: Mapping[str, LabelReader],
    max_length: int | None,
    name: str,
) -> dict[str, list]:
    for column in text:
        check_texts(rows, column, name)
    batch = tokenizer(*(rows[column] for column in text), truncation=max_length is not None, max_length=max_length)
    return {**batch, **{into: reader(rows) for into, reader in readers.items()}}


def _encode_words(
    rows: Mapping[str, list],
    tokenizer: Any,
    text: list[str],
    readers: Mapping[str, LabelReader],
    max_length: int | None,
    name: str,
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
