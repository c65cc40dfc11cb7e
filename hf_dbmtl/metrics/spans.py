"""Scores of token classification: of tokens, and of the spans that BIO tags mark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .scores import class_scores


if TYPE_CHECKING:
    from ..tasks import Task

__all__ = ["is_bio", "token_classification"]


def token_classification(task: Task, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    predicted = logits.argmax(-1)
    scores = class_scores(labels[mask], predicted[mask])
    names = task.label_names
    if names is None or not is_bio(names):
        return scores
    return _span_scores(names, labels, predicted, mask) | scores


def is_bio(names: Sequence[str] | None) -> bool:
    """Whether every name is "O", "B-type" or "I-type", and at least one begins a span."""
    if not names:
        return False
    return all(re.fullmatch(r"O|[BI]-.+", n) for n in names) and any(n[0] == "B" for n in names)


def _spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """
    (type, first, last + 1) of every span, by the rule of CoNLL's `conlleval`: a span starts at B-type, and at an I-type
    that does not continue a span of its own type.
    """
    spans, start, kind = set(), 0, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        if kind is not None and (prefix != "I" or this != kind):
            spans.add((kind, start, i))
            kind = None
        if kind is None and prefix != "O":
            start, kind = i, this
    return spans


def _span_scores(names: Sequence[str], labels: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    right = true = found = 0
    for *rows, labelled in zip(labels, predicted, mask):  # labelled: the first piece of every word, as a rule
        actual, guessed = (_spans([names[i] for i in row[labelled]]) for row in rows)
        right, true, found = right + len(actual & guessed), true + len(actual), found + len(guessed)
    return {
        "f1": 2 * right / (true + found) if true + found else 0.0,
        "precision": right / found if found else 0.0,
        "recall": right / true if true else 0.0,
    }
