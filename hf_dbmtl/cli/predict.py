"""`hf-dbmtl predict`: files or standard input in, JSON lines out; one pass of the encoder for all tasks."""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from torch import Tensor
from transformers import pipeline
from transformers.utils import logging

from hf_dbmtl_cli import CommandError

from .models import choose_tasks, load_model
from .values import nearest


__all__ = ["read_rows", "run"]

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    if given.batch_size < 1:
        raise CommandError(f"--batch_size must be 1 or more, and is {given.batch_size}.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processing_class = load_model(given.model)
    tasks = None if given.tasks is None else choose_tasks(model, given.tasks)
    images = model.main_input_name == "pixel_values"
    registered: Any = "multi-task"  # by this package: the overloads of `pipeline` know transformers' own only
    ask = pipeline(
        registered,
        model=model,
        device=given.device,
        **{"image_processor" if images else "tokenizer": processing_class},
    )
    columns = Columns(given.text, given.choices, images)
    arrays = None if given.arrays is None else Path(given.arrays)
    if arrays is not None:
        arrays.mkdir(parents=True, exist_ok=True)
    pairs = ((row, columns.question(row)) for row in read_rows(given.files, images))
    count = 0
    try:
        answered = _answered(ask, pairs, given.batch_size, tasks)
        first = list(itertools.islice(answered, 1))  # what is wrong with the files shows before one is written
        with open(given.output, "w", encoding="utf-8") if given.output else nullcontext(sys.stdout) as out:
            for row, answers in itertools.chain(first, answered):
                if arrays is not None:
                    answers = _saved(answers, arrays, count)
                out.write(json.dumps({**row, "predictions": answers}, ensure_ascii=False, default=_plain) + "\n")
                count += 1
    except (TypeError, ValueError) as error:  # of the pipeline, which names the task and the remedy
        raise CommandError(str(error)) from error
    if given.output:
        print(f"{count} rows in {given.output}", file=sys.stderr)


def read_rows(files: list[str], images: bool = False) -> Iterator[dict[str, Any]]:
    """
    The rows of files, one after the other: objects of JSON lines, rows of csv and tsv, lines of any other file as
    `{"text": line}`, and the paths of images as `{"image": path}`. Without files, or for `-`, standard input: lines of
    text, or JSON objects where the first line is one.

    Raises:
        [`CommandError`]: a file that cannot be read, or a line that is not what it should be.
    """
    for name in files or ["-"]:
        suffix = Path(name).suffix.lower()
        if images and suffix in IMAGES:
            if not Path(name).is_file():
                raise CommandError(f"there is no file {name}.")
            yield {"image": name}
            continue
        try:
            with nullcontext(sys.stdin) if name == "-" else open(name, encoding="utf-8", newline="") as file:
                if suffix in (".csv", ".tsv"):
                    yield from csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
                else:
                    yield from _lines(file, name, suffix in (".jsonl", ".json", ".ndjson"), images)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise CommandError(f"{name} cannot be read: {error}.") from error


def _lines(file: TextIO, name: str, json_lines: bool, images: bool) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, start=1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        json_lines = json_lines or (name == "-" and number == 1 and line.startswith("{"))
        if not json_lines:
            yield {"image" if images else "text": line}
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CommandError(
                f"{name}, line {number}: this is not JSON: {error}. A file holds one object per line."
            ) from error
        if not isinstance(row, dict):
            raise CommandError(
                f'{name}, line {number}: a line must hold an object such as {{"text": ...}}, and holds {line[:60]}.'
            )
        yield row


def _answered(
    ask: Any, pairs: Iterator[tuple[dict[str, Any], Any]], batch_size: int, tasks: list[str] | None
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows with their answers; only inputs of one kind make a batch, and choices, each a text, none."""
    for keys, group in itertools.groupby(pairs, key=lambda pair: sorted(pair[1]) if isinstance(pair[1], dict) else []):
        rows, asked = itertools.tee(group)
        questions = (question for _, question in asked)  # of a generator, which a pipeline reads as it goes
        answers = ask(questions, batch_size=1 if "choices" in keys else batch_size, tasks=tasks)
        yield from zip((row for row, _ in rows), answers, strict=True)


class Columns:
    """
    Which columns of a row are asked about.

    Args:
        text (`str`, *optional*):
            What `--text` names, with commas between. By default a row's question and context where it has these, else its
            text.
        choices (`str`, *optional*):
            What `--choices` names: a column with a list, or several. By default `choices`, where a row has it.
        images (`bool`):
            Whether the model reads images.
    """

    def __init__(self, text: str | None, choices: str | None, images: bool):
        self.text = None if text is None else text.split(",")
        self.choices = None if choices is None else choices.split(",")
        self.images = images

    def question(self, row: dict[str, Any]) -> Any:
        """What the pipeline takes for a row."""
        if self.images:
            (column,) = self._checked(row, (self.text or ["image"])[:1], "--text")
            return row[column]
        choices = self._choices(row)
        columns = self.text
        if columns is None:
            asks = "text" not in row and {"question", "context"} <= row.keys()
            columns = ["question", "context"] if asks else [] if choices and "text" not in row else ["text"]
        self._checked(row, columns, "--text")
        if columns == ["question", "context"]:
            return {column: row[column] for column in columns}
        texts = dict(zip(("text", "text_pair"), (row[column] for column in columns)))
        return texts | ({"choices": choices} if choices else {})

    def _choices(self, row: dict[str, Any]) -> list[str] | None:
        columns = self.choices or ["choices"]
        if len(columns) > 1:
            return [row[column] for column in self._checked(row, columns, "--choices")]
        (column,) = columns
        found = row.get(column)
        if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
            return found
        if self.choices is None:
            return None
        self._checked({name: "" for name in row}, columns, "--choices")
        raise CommandError(
            f"the column '{column}' holds {found!r} in one row: --choices names one with a list of texts, or several columns."
        )

    def _checked(self, row: dict[str, Any], columns: list[str], option: str) -> list[str]:
        for column in columns:
            if isinstance(row.get(column), str):
                continue
            if column in row:
                raise CommandError(
                    f"the column '{column}' holds {row[column]!r} in one row: {option} names one of texts."
                )
            known, hint = ", ".join(map(str, row)), nearest(column, row) or "."
            raise CommandError(f"there is no column '{column}'{hint} Name the texts by {option}; there are {known}.")
        return columns


def _saved(answers: dict[str, Any], folder: Path, number: int) -> dict[str, Any]:
    """The answers with the paths of files in place of maps of pixels."""
    found = {}
    for task, answer in answers.items():
        found[task] = answer
        if isinstance(answer, dict):
            found[task] = answer = dict(answer)
            for key, value in answer.items():
                if isinstance(value, Tensor) and value.ndim > 1:
                    path = folder / f"{number}-{task}.npy"
                    np.save(path, value.numpy())
                    answer[key] = str(path)
    return found


def _plain(value: Any) -> Any:
    """Numbers of numpy and tensors, which JSON does not know."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else str(value)
