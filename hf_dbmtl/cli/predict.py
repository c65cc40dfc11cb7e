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
    columns = given.text.split(",")
    rows, asked = itertools.tee(read_rows(given.files, images))
    questions = (_question(row, columns, images) for row in asked)
    count = 0
    try:
        answered = zip(rows, ask(questions, batch_size=given.batch_size, tasks=tasks), strict=True)
        first = list(itertools.islice(answered, 1))  # what is wrong with the files shows before one is written
        with open(given.output, "w", encoding="utf-8") if given.output else nullcontext(sys.stdout) as out:
            for row, answers in itertools.chain(first, answered):
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


def _question(row: dict[str, Any], columns: list[str], images: bool) -> Any:
    if images:
        columns = ["image" if columns == ["text"] else columns[0]]
    for column in columns:
        if not isinstance(row.get(column), str):
            known = ", ".join(map(str, row))
            if column in row:
                raise CommandError(
                    f"the column '{column}' holds {row[column]!r} in one row: --text names one of texts."
                )
            hint = nearest(column, row) or "."
            raise CommandError(f"there is no column '{column}'{hint} Name the texts by --text; there are {known}.")
    if columns == ["question", "context"]:
        return {column: row[column] for column in columns}
    texts = dict(zip(("text", "text_pair"), (row[column] for column in columns)))
    if isinstance(row.get("choices"), list):
        texts["choices"] = row["choices"]
    return texts if len(texts) > 1 or not images else row[columns[0]]


def _plain(value: Any) -> Any:
    """Numbers of numpy and tensors, which JSON does not know."""
    return value.tolist() if callable(getattr(value, "tolist", None)) else str(value)
