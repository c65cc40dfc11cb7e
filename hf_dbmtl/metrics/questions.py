"""Scores of extractive question answering: of texts where the windows tell these, else of positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction

from ..answers import WINDOW_COLUMNS, answer_scores, extract_answers
from .arrays import MISSING, logits_of


if TYPE_CHECKING:
    from ..tasks import QuestionAnswering

__all__ = ["AnswerMetric"]


class AnswerMetric:
    """
    exact_match and f1 of the answers, from 0 to 1, see [`~answers.answer_scores`]. Of windows made by
    [`~encoding.encode_questions`] the answers' texts are compared, question by question; of other rows the positions, row by
    row.

    Args:
        task (`QuestionAnswering`):
            The task.
        windows (`datasets.Dataset`, *optional*):
            The rows that the predictions will be of.
    """

    def __init__(self, task: QuestionAnswering, windows: Any = None):
        self.task = task
        columns = getattr(windows, "column_names", ())
        self.windows = windows if {*WINDOW_COLUMNS, "answers"} <= set(columns) else None

    def of_rows(self, rows: Any) -> AnswerMetric:
        """The same metric for the predictions of a dataset."""
        return AnswerMetric(self.task, rows)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = logits_of(prediction), np.asarray(prediction.label_ids)
        if np.isnan(logits).any():
            return {"exact_match": math.nan, "f1": math.nan}
        if self.windows is None:
            return _position_scores(logits, labels)
        answers = extract_answers(logits, self.windows, self.task.max_answer_length)
        right = dict(zip(self.windows["example"], self.windows["answers"]))
        return answer_scores(answers, {example: texts for example, texts in right.items() if texts is not None})


def _position_scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    mask = (labels != MISSING).all(1)
    (start, end), (first, last) = logits[mask].argmax(1).T, labels[mask].T
    if not mask.any():
        return {}
    common = (np.minimum(end, last) - np.maximum(start, first) + 1).clip(0)
    lengths = (end - start + 1).clip(0) + last - first + 1
    return {"exact_match": np.mean((start == first) & (end == last)).item(), "f1": np.mean(2 * common / lengths).item()}
