"""From the logits of a question-answering head to the texts of the answers, and their scores, as SQuAD defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np


__all__ = ["WINDOW_COLUMNS", "answer_scores", "best_span", "extract_answers"]

WINDOW_COLUMNS = ("example", "context", "offsets")  # of `encode_questions`, beside the inputs


def extract_answers(
    predictions: np.ndarray, windows: Any, max_answer_length: int = 30, n_best: int = 20
) -> dict[Hashable, str]:
    """
    The answer to every question: over all windows of its text the span with the largest sum of two logits.

    Args:
        predictions (`np.ndarray` of shape `(windows, length, 2)`):
            Logits of the answers' first and last tokens, as `MultiTaskTrainer.predict` gives them.
        windows (`datasets.Dataset`):
            The rows that they were made of, of [`~encoding.encode_questions`].
        max_answer_length (`int`, *optional*, defaults to 30):
            Tokens of an answer at most.
        n_best (`int`, *optional*, defaults to 20):
            How many of the likeliest first and last tokens of a window are tried with one another.

    Returns:
        `dict[Hashable, str]`: the answer by example. It is empty where no answer is likelier than any span, if some question
        in `windows` has none (SQuAD 2).
    """
    best: dict[Hashable, tuple[float, str]] = {}
    nowhere: dict[Hashable, float] = {}
    some_have_none = "answers" in windows.column_names and any(one == [] for one in windows["answers"])
    rows = windows.select_columns(list(WINDOW_COLUMNS)).with_format(None)
    if len(rows) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions are not those of {len(rows)} windows.")
    for logits, row in zip(predictions, rows):
        example, offsets = row["example"], np.array(row["offsets"])
        score, start, end = best_span(logits[: len(offsets)], offsets, max_answer_length, n_best)
        if example not in best or score > best[example][0]:
            best[example] = score, row["context"][start:end]
        outside = logits[0].sum()  # of the first token, where a window without the answer points to
        nowhere[example] = min(nowhere.get(example, np.inf), outside)
    return {
        example: "" if some_have_none and nowhere[example] > score else text for example, (score, text) in best.items()
    }


def best_span(logits: np.ndarray, offsets: np.ndarray, longest: int, n_best: int) -> tuple[float, int, int]:
    """The score of the best span of a window, and where in the context it stands."""
    inside = offsets[:, 1] > 0
    first, last = (np.where(inside, column, -np.inf) for column in logits.T)
    starts, ends = (np.argsort(column)[::-1][:n_best] for column in (first, last))
    lengths = ends[None] - starts[:, None] + 1
    scores = np.where((lengths >= 1) & (lengths <= longest), first[starts][:, None] + last[ends][None], -np.inf)
    start, end = np.unravel_index(scores.argmax(), scores.shape)
    if not np.isfinite(scores[start, end]):
        return -np.inf, 0, 0
    return float(scores[start, end]), int(offsets[starts[start], 0]), int(offsets[ends[end], 1])


def answer_scores(answers: Mapping[Hashable, str], right: Mapping[Hashable, Sequence[str]]) -> dict[str, float]:
    """
    The share of answers that are one of the right ones (`exact_match`), and the mean overlap of their words with the most
    similar right one (`f1`), both from 0 to 1, after SQuAD's normalisation.

    Args:
        answers (`Mapping[Hashable, str]`):
            The answer by example.
        right (`Mapping[Hashable, Sequence[str]]`):
            The right answers by example, none where there is no answer. Only these examples count.
    """
    exact, overlap = [], []
    for example, texts in right.items():
        given = _words(answers.get(example, ""))
        wanted = [_words(text) for text in texts or [""]]
        exact.append(max(given == words for words in wanted))
        overlap.append(max(_f1(given, words) for words in wanted))
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))} if exact else {}


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def _f1(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))
