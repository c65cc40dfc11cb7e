"""From questions and choices in columns to what the encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_dbmtl_cli import CommandError

from ..encoding import LONGEST, STRIDE, encode_choices, encode_questions
from .labels import LabelReader


__all__ = ["check_texts", "choices_of_rows", "positions_of_rows", "windows_of_rows"]


def windows_of_rows(
    rows: Mapping[str, list],
    indices: list[int],
    tokenizer: Any,
    name: str,
    text: Sequence[str],
    answers: str,
    max_length: int | None,
    stride: int | None,
) -> dict[str, list]:
    """The windows of a batch of questions; the answers may stand there as SQuAD has them, or as texts."""
    question, context = text
    for column in text:
        check_texts(rows, column, name)
    given = [_answers(name, answers, *row) for row in zip(rows[answers], rows[context])]
    length = min(LONGEST, max_length or LONGEST)
    stride = min(STRIDE, length // 3) if stride is None else stride
    _check_room(name, rows[question], tokenizer, length, stride)
    try:
        return encode_questions(
            {"question": rows[question], "context": rows[context], "answers": given, "id": indices},
            tokenizer,
            max_length=length,
            stride=stride,
        )
    except ValueError as error:
        raise CommandError(f"Task '{name}': {error}") from error


def _check_room(name: str, questions: Sequence[str], tokenizer: Any, length: int, stride: int) -> None:
    """What the library below would end the process for."""
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for question, ids in zip(questions, tokenizer(list(questions), add_special_tokens=False)["input_ids"]):
        if len(ids) + special + stride >= length:
            raise CommandError(
                f"Task '{name}': in windows of {length} tokens, of which two share {stride}, a question of {len(ids)} leaves no "
                f"room for its text: raise max_length, lower stride, or shorten {question[:60]!r}."
            )


def _answers(name: str, column: str, given: Any, context: str) -> dict[str, list] | None:
    """As SQuAD has them; `None` where an answer is missing."""
    if given is None:
        return None
    if isinstance(given, list) and all(isinstance(one, Mapping) for one in given):
        given = {key: [one.get(key) for one in given] for key in ("text", "answer_start")}
    if isinstance(given, (str, list)):
        texts = [given] if isinstance(given, str) else given
        if all(isinstance(one, str) for one in texts):
            given = {"text": texts, "answer_start": [context.find(one) for one in texts]}
    if not isinstance(given, Mapping) or not {"text", "answer_start"} <= given.keys():
        raise CommandError(
            f"Task '{name}': the column '{column}' holds {str(given)[:80]!r}: give the answer as it stands in the text, or "
            "{text: [...], answer_start: [...]} as SQuAD has it."
        )
    for text, start in zip(given["text"], given["answer_start"]):
        if start is None or start < 0 or context[start : start + len(text)] != text:
            raise CommandError(
                f"Task '{name}': the answer {text[:80]!r} does not stand in its text"
                + (f" at character {start}" if start is not None and start >= 0 else "")
                + f", {context[:60]!r}: mend the data."
            )
    return {"text": list(given["text"]), "answer_start": list(given["answer_start"])}


def positions_of_rows(
    rows: Mapping[str, list], name: str, text: Sequence[str], columns: Sequence[str]
) -> dict[str, list]:
    """Tokenized questions, with the positions of the first and the last token of the answers in two columns."""
    labels = [None if None in pair else list(pair) for pair in zip(*(rows[column] for column in columns))]
    return {**{column: rows[column] for column in text}, "labels": labels}


def choices_of_rows(
    rows: Mapping[str, list],
    tokenizer: Any,
    text: Sequence[str],
    choices: Sequence[str],
    reader: LabelReader,
    max_length: int | None,
) -> dict[str, list]:
    """The choices of a batch of rows, each behind the text that they share."""
    name, count = reader.name, reader.task.num_labels
    for column in text:
        check_texts(rows, column, name)
    several = rows[choices[0]] if len(choices) == 1 else list(zip(*(rows[column] for column in choices)))
    for row in several:
        if not isinstance(row, (list, tuple)) or not all(isinstance(one, str) for one in row):
            raise CommandError(
                f"Task '{name}': the choices in {', '.join(choices)} must be a list of texts per row, or a column for each, and "
                f"one row holds {str(row)[:80]!r}."
            )
        if len(row) != count:
            raise CommandError(
                f"Task '{name}': a row has {len(row)} choices and another {count}, all need as many: {str(row)[:80]}."
            )
    given = {"choices": several, **{column: rows[column] for column in text}}
    question = text[0] if text else None
    encoded = encode_choices(given, tokenizer, "choices", question, labels="", max_length=max_length)
    return {**encoded, "labels": reader(rows)}


def check_texts(rows: Mapping[str, list], column: str, name: str) -> None:
    """
    Raises:
        [`CommandError`]: for a column with something else than texts.
    """
    for value in rows[column]:
        if not isinstance(value, str):
            what = "is empty in one row" if value is None else f"holds {value!r} of type {type(value).__name__}"
            raise CommandError(
                f"Task '{name}': the text column '{column}' {what}: give strings, or name another column in `text`."
            )
