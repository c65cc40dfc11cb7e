"""What a head's logits for one input say in words, by kind of task: the last part of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .answers import best_span
from .task import Task
from .text_tasks import QuestionAnswering


__all__ = ["ANSWERS", "Question"]


@dataclass(frozen=True)
class Question:
    """
    What an answer needs to know beside the logits.

    Args:
        row (`Mapping[str, Any]`): The inputs of the row, tensors with a first dimension of 1.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The tokenizer.
        top_k (`int`, *optional*): How many labels a classification gives, `None` for all.
        threshold (`float`): From which probability on a label of a multi-label classification holds.
    """

    row: Mapping[str, Any]
    tokenizer: Any = None
    top_k: int | None = 1
    threshold: float = 0.5


def _label(task: Task, index: int) -> str:
    return task.label_names[index] if task.label_names else f"LABEL_{index}"


def _scores(task: Task, probabilities: Tensor) -> list[dict[str, Any]]:
    """All labels with their probabilities, the likeliest first."""
    order, values = probabilities.argsort(descending=True, stable=True).tolist(), probabilities.tolist()
    return [{"label": _label(task, index), "score": values[index]} for index in order]


def _class(task: Task, logits: Tensor, asked: Question) -> dict[str, Any] | list[dict[str, Any]]:
    scores = _scores(task, logits.softmax(-1))
    return scores[0] if asked.top_k == 1 else scores[: asked.top_k]


def _labels(task: Task, logits: Tensor, asked: Question) -> list[dict[str, Any]]:
    return [one for one in _scores(task, logits.sigmoid()) if one["score"] > asked.threshold]


def _numbers(task: Task, logits: Tensor, asked: Question) -> float | list[float] | dict[str, float]:
    values = logits.tolist()
    if len(values) == 1:
        return values[0]
    return dict(zip(task.label_names, values)) if task.label_names else values


def _tokens(task: Task, logits: Tensor, asked: Question) -> list[dict[str, Any]]:
    best, labels = logits.softmax(-1).max(-1)
    row, tokenizer = asked.row, asked.tokenizer
    shown = ~row["special_tokens_mask"][0].bool() if "special_tokens_mask" in row else torch.ones_like(labels).bool()
    offsets = row["offset_mapping"][0].tolist() if "offset_mapping" in row else None
    found = []
    for index in shown.nonzero().flatten().tolist():
        label = _label(task, int(labels[index]))
        if label == "O":
            continue
        one = {"entity": label, "score": float(best[index]), "index": index}
        if tokenizer is not None:
            start, end = offsets[index] if offsets else (None, None)
            one |= {
                "word": tokenizer.convert_ids_to_tokens(int(row["input_ids"][0, index])),
                "start": start,
                "end": end,
            }
        found.append(one)
    return found


def _span(task: QuestionAnswering, logits: Tensor, asked: Question) -> dict[str, Any]:
    offsets = asked.row["context_offsets"][0].numpy()
    score, start, end = best_span(logits.numpy(), offsets, task.max_answer_length, 20)
    first, last = logits.log_softmax(0).max(0).values.tolist()  # of the likeliest position each
    best = logits.max(0).values.sum().item()
    probability = float(torch.tensor(first + last + score - best).exp())
    return {"answer": asked.row["context"][start:end], "score": probability, "start": start, "end": end}


def _choice(task: Task, logits: Tensor, asked: Question) -> dict[str, Any]:
    best, index = logits.softmax(-1).max(-1)
    found: dict[str, Any] = {"choice": int(index), "text": asked.row["choices"][int(index)]}
    if task.label_names:
        found["label"] = task.label_names[int(index)]
    return found | {"score": float(best)}


def _resized(logits: Tensor, asked: Question) -> Tensor:
    """Maps of the size of the image that was asked about."""
    size = asked.row["image_size"][0].tolist()
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _segments(task: Task, logits: Tensor, asked: Question) -> dict[str, Any]:
    classes = _resized(logits, asked).argmax(0)
    return {"segmentation": classes, "labels": {index: _label(task, index) for index in classes.unique().tolist()}}


ANSWERS: dict[str, Callable[[Any, Tensor, Question], Any]] = {
    "classification": _class,
    "multi_label_classification": _labels,
    "regression": _numbers,
    "token_classification": _tokens,
    "question_answering": _span,
    "multiple_choice": _choice,
    "semantic_segmentation": _segments,
    "depth_estimation": lambda task, logits, asked: {"predicted_depth": _resized(logits, asked)[0]},
    "surface_normals": lambda task, logits, asked: {"normals": F.normalize(_resized(logits, asked), dim=0)},
}
