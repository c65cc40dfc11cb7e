"""What each kind of task reads: the columns it takes where the settings are silent, and the settings that it has a use for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_dbmtl_cli import CommandError

from ..tasks import KINDS


if TYPE_CHECKING:
    from .settings import TaskSettings

__all__ = ["DENSE", "as_list", "check_kind", "columns_of_labels", "columns_of_texts"]

DENSE = tuple(kind for kind, cls in KINDS.items() if cls.dense)
# The settings of single kinds.
OWN = {
    "choices": "multiple_choice",
    "stride": "question_answering",
    "max_answer_length": "question_answering",
    "mlm_probability": "masked_language_modeling",
    "ignore_index": "semantic_segmentation",
}
# Kinds whose rows are theirs alone, and why.
ALONE = {
    "question_answering": "a text is cut into several rows of it",
    "multiple_choice": "a row of it is as many texts as there are choices",
    "masked_language_modeling": "its inputs are masked, and theirs are not",
}


def as_list(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def columns_of_texts(kind: str, given: str | Sequence[str] | None, labels: Sequence[str]) -> list[str]:
    """The columns of the texts, by default in the words of the Hub's datasets of the kind."""
    if given is not None:
        return as_list(given)
    if kind == "question_answering":  # two labels are positions of tokens, which are there already
        return ["question", "context"] if len(labels) == 1 else ["input_ids", "attention_mask"]
    return ["text"]


def columns_of_labels(kind: str, given: str | Sequence[str] | None) -> list[str]:
    """The columns of the labels; none where a task makes them of its inputs."""
    if KINDS[kind].self_supervised:
        return []
    if given is not None:
        return as_list(given)
    return ["answers" if kind == "question_answering" else "label"]


def check_kind(where: str, task: TaskSettings, image: str | None) -> None:
    """
    Refuses settings that the kind of a task has no use for, or needs and lacks.

    Args:
        where (`str`):
            What leads to the task in the file, for errors: `"run.yaml: tasks.mrpc."`.
        task ([`TaskSettings`]):
            The task.
        image (`str`, *optional*):
            The column of its images, or of its group's.

    Raises:
        [`CommandError`]: it names the file, the setting and the remedy.
    """
    kind, cls = task.kind, KINDS[task.kind]
    for name, owner in OWN.items():
        if getattr(task, name) is not None and kind != owner:
            raise CommandError(f"{where}{name}: it is a setting of {owner}, and this is {kind}: leave it out.")
    without: tuple[str, ...] = ()
    if cls.self_supervised:
        without = ("label", "num_labels", "label_names")
    elif kind == "question_answering":
        without = ("num_labels", "label_names")
    for name in without:
        if getattr(task, name) is not None:
            why = "makes its labels of the texts" if cls.self_supervised else "has positions for labels, and no classes"
            raise CommandError(f"{where}{name}: {kind} {why}: leave it out.")
    if task.group is not None and kind in ALONE:
        raise CommandError(
            f"{where}group: {kind} cannot share its rows with other tasks ({ALONE[kind]}): give it a `dataset` of its own."
        )
    if cls.dense and image is None:
        raise CommandError(f"{where}image is missing: {kind} is for images: name their column.")
    if image is not None and not cls.dense and cls.level != "sequence":
        raise CommandError(f"{where}kind: {kind} is for texts: name their column in `text`, and leave `image` out.")
    if kind == "semantic_segmentation" and task.num_labels is None and task.label_names is None:
        raise CommandError(
            f"{where}num_labels is missing: the number of classes (or label_names, what they are called)."
        )
    if task.stride is not None and task.stride < 0:
        raise CommandError(f"{where}stride: it must be 0 or more, and is {task.stride}.")
