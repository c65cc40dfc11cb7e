"""What a user declares: the tasks. Each knows its loss, and how Python labels become the tensor that the loss takes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .example_tasks import Classification, MultiLabelClassification, Regression
from .image_tasks import DepthEstimation, SemanticSegmentation, SurfaceNormals
from .task import Task, nearest, short
from .text_tasks import MaskedLanguageModeling, MultipleChoice, QuestionAnswering, TokenClassification


__all__ = [
    "Classification",
    "DepthEstimation",
    "MaskedLanguageModeling",
    "MultiLabelClassification",
    "MultipleChoice",
    "QuestionAnswering",
    "Regression",
    "SemanticSegmentation",
    "SurfaceNormals",
    "Task",
    "TokenClassification",
    "task_from_dict",
]

KINDS: dict[str, type[Task]] = {
    cls.kind: cls
    for cls in (
        Classification,
        MultiLabelClassification,
        Regression,
        TokenClassification,
        QuestionAnswering,
        MultipleChoice,
        MaskedLanguageModeling,
        SemanticSegmentation,
        DepthEstimation,
        SurfaceNormals,
    )
}


def task_from_dict(values: dict[str, Any]) -> Task:
    """
    The task that [`Task.to_dict`] described.

    Raises:
        `TypeError`, `ValueError`: not a dict, an unknown kind or field (the nearest known ones are named), or a value
        that the task refuses.
    """
    if not isinstance(values, dict):
        raise TypeError(f"a task is a dict like {Classification(2).to_dict()}, got {short(values)}.")
    options = dict(values)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"unknown kind of task {short(kind)}{nearest(kind, list(KINDS))}")
    known = [field.name for field in fields(KINDS[kind])]
    for name in options:
        if name not in known:
            raise ValueError(f"unknown field {short(name)} of a {kind} task{nearest(name, known)}")
    return KINDS[kind](**options)
