"""From the columns of a dataset to what an encoder reads, for the kinds of task where that takes more than a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


__all__ = ["encode_choices", "encode_questions", "encode_words"]

MISSING = -100
# Tokens of a window of a long text, and those that two have in common.
LONGEST, STRIDE = 384, 128


def encode_words(
    rows: Mapping[str, list],
    tokenizer: PreTrainedTokenizerBase,
    words: str = "tokens",
    labels: str = "labels",
    max_length: int | None = None,
) -> dict[str, list]:
    """
    Tokenizes sentences that are cut into words and gives each word's label to its first token, for [`TokenClassification`].
    The words are tokenized as the text they make, so that a token is what it will be in raw text, whatever the tokenizer.

        dataset.map(encode_words, batched=True, remove_columns=dataset.column_names,
                    fn_kwargs={"tokenizer": tokenizer, "words": "tokens", "labels": "ner_tags"})

    Args:
        rows (`Mapping[str, list]`):
            A batch of rows, by column.
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer.
        words (`str`, *optional*, defaults to `"tokens"`):
            The column of the words, a list per row.
        labels (`str`, *optional*, defaults to `"labels"`):
            The column of the labels, one per word, or `None` for a row without; it may be missing.
        max_length (`int`, *optional*):
            Tokens of an input at most; longer ones are cut.

    Returns:
        `dict[str, list]`: what the tokenizer gives and, where there are labels, `labels`: one per token, -100 where none.

    Raises:
        `ValueError`: a slow tokenizer, or a row whose words and labels differ in number.
    """
    _check_fast(tokenizer)
    sentences, given = rows[words], rows.get(labels)
    batch = dict(
        tokenizer(
            [" ".join(sentence) for sentence in sentences],
            truncation=max_length is not None,
            max_length=max_length,
            return_offsets_mapping=True,
        )
    )
    spans = batch.pop("offset_mapping")
    if given is None:
        return batch
    for sentence, row in zip(sentences, given):
        if row is not None and len(row) != len(sentence):
            raise ValueError(
                f"A row has {len(sentence)} words and {len(row)} labels, every word needs one: {' '.join(sentence)[:80]!r}."
            )
    return {**batch, "labels": [_align(*row) for row in zip(sentences, given, spans)]}


def _align(words: Sequence[str], labels: Sequence[int] | None, spans: Sequence[tuple[int, int]]) -> list[int]:
    """The label of every token: that of the word its last character is in, where it is the word's first token."""
    word_at: list[int | None] = []
    for index, word in enumerate(words):
        word_at += [index] * len(word) + [None]  # the space behind it
    aligned: list[int] = []
    last: int | None = None
    for start, end in spans:
        at = word_at[end - 1] if end > start else None
        first = at is not None and at != last
        aligned.append(labels[at] if at is not None and first and labels is not None else MISSING)
        last = last if at is None else at
    return aligned


def encode_choices(
    rows: Mapping[str, list],
    tokenizer: PreTrainedTokenizerBase,
    choices: str | Sequence[str],
    text: str | None = None,
    labels: str = "label",
    max_length: int | None = None,
) -> dict[str, list]:
    """
    Tokenizes every choice of a row, behind the text that all share, for [`MultipleChoice`]. For `dataset.map(...,
    batched=True)`.

    Args:
        rows (`Mapping[str, list]`):
            A batch of rows, by column.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.
        choices (`str` or `Sequence[str]`):
            The column that holds a list of choices per row, or the columns that hold one each.
        text (`str`, *optional*):
            The column of the text in front of every choice.
        labels (`str`, *optional*, defaults to `"label"`):
            The column of the index of the right choice; it may be missing.
        max_length (`int`, *optional*):
            Tokens of an input at most; longer ones are cut.

    Returns:
        `dict[str, list]`: what the tokenizer gives, a list of one entry per choice in every row, and `labels`.
    """
    several = rows[choices] if isinstance(choices, str) else list(zip(*(rows[column] for column in choices)))
    counts = [len(row) for row in several]
    texts = [[choice for row in several for choice in row]]
    if text is not None:
        texts.insert(0, [value for value, count in zip(rows[text], counts) for _ in range(count)])
    flat = tokenizer(*texts, truncation=max_length is not None, max_length=max_length)
    batch: dict[str, list] = {}
    for key, values in flat.items():
        entries = iter(values)
        batch[key] = [[next(entries) for _ in range(count)] for count in counts]
    return {**batch, "labels": rows[labels]} if labels in rows else batch


def encode_questions(
    rows: Mapping[str, list],
    tokenizer: PreTrainedTokenizerBase,
    question: str = "question",
    context: str = "context",
    answers: str = "answers",
    example: str = "id",
    max_length: int = LONGEST,
    stride: int = STRIDE,
) -> dict[str, list]:
    """
    Tokenizes questions with the texts that hold their answers, for [`QuestionAnswering`]; a long text becomes several rows,
    windows that overlap. For `dataset.map(..., batched=True, remove_columns=dataset.column_names)`. The columns beside the
    inputs let the Trainer score the answers' texts, and [`~answers.extract_answers`] find them.

    Args:
        rows (`Mapping[str, list]`):
            A batch of rows, by column.
        tokenizer (`PreTrainedTokenizerBase`):
            A fast tokenizer that pads on the right.
        question, context (`str`, *optional*, default to `"question"` and `"context"`):
            The columns of the question and of the text.
        answers (`str`, *optional*, defaults to `"answers"`):
            The column of the answers as SQuAD has them: `{"text": [...], "answer_start": [...]}`, empty lists where the text
            holds none. The first is trained on, all count in the evaluation. It may be missing.
        example (`str`, *optional*, defaults to `"id"`):
            The column that tells the examples apart.
        max_length (`int`, *optional*, defaults to 384):
            Tokens of a window at most, with the question.
        stride (`int`, *optional*, defaults to 128):
            Tokens that a window shares with the one before.

    Returns:
        `dict[str, list]`: what the tokenizer gives for every window; `labels`, the first and last token of the answer, or
        twice the position of the CLS token where the window does not hold it whole; `example`, `context` and `answers` of
        the window's example, and `offsets`: where in the context each token stands, [-1, -1] for tokens of the question.

    Raises:
        `ValueError`: a slow tokenizer, one that pads on the left, or no column that tells the examples apart.
    """
    _check_fast(tokenizer)
    if tokenizer.padding_side != "right":
        raise ValueError("Positions of answers are counted from the left: set tokenizer.padding_side = 'right'.")
    if example not in rows:
        raise ValueError(
            f"The rows have no column '{example}' that tells the examples apart, only {list(rows)}: name one in `example`, or "
            "add one: dataset.add_column('id', list(range(len(dataset))))."
        )
    batch = tokenizer(
        [text.strip() for text in rows[question]],  # some of SQuAD begin with spaces, which the truncation cannot cut
        rows[context],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    of_row, offsets = batch.pop("overflow_to_sample_mapping"), batch.pop("offset_mapping")
    offsets = [
        [list(span) if side == 1 else [-1, -1] for span, side in zip(spans, batch.sequence_ids(window))]
        for window, spans in enumerate(offsets)
    ]
    windows = {**batch, "offsets": offsets}
    windows |= {"example": [rows[example][row] for row in of_row], "context": [rows[context][row] for row in of_row]}
    if answers in rows:
        given = [rows[answers][row] for row in of_row]
        windows["answers"] = [None if one is None else list(one["text"]) for one in given]
        windows["labels"] = [
            None if one is None else _answer_tokens(one, spans, _cls_position(tokenizer, ids))
            for one, spans, ids in zip(given, offsets, batch["input_ids"])
        ]
    return windows


def _answer_tokens(answers: Mapping[str, list], spans: list[list[int]], nowhere: int) -> list[int]:
    """The first and the last token of the first answer, where both lie in the window."""
    if not answers["answer_start"]:
        return [nowhere, nowhere]
    start = answers["answer_start"][0]
    end = start + len(answers["text"][0])
    first = [token for token, (begin, stop) in enumerate(spans) if begin <= start < stop]
    last = [token for token, (begin, stop) in enumerate(spans) if begin < end <= stop]
    return [first[0], last[-1]] if first and last else [nowhere, nowhere]


def _cls_position(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    return ids.index(tokenizer.cls_token_id) if tokenizer.cls_token_id in ids else 0


def _check_fast(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for: take a fast tokenizer."
        )
