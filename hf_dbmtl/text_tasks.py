"""Tasks of texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .example_tasks import Classification
from .task import IGNORE_INDEX, Task, check_shape, plain, short


__all__ = ["MaskedLanguageModeling", "MultipleChoice", "QuestionAnswering", "TokenClassification"]


class TokenClassification(Classification):
    """
    One of `num_labels` classes per token. Cross-entropy; logits of shape `(batch, length, num_labels)`, labels of shape
    `(batch, length)` with -100 at padding and where missing. An item is a labelled token.
    """

    kind = "token_classification"
    level = "token"
    per_token = True
    label_help = (
        "give one integer class index per token of the input (`ClassLabel` or a label2id of yours turns strings into "
        "these), None or -100 where it is missing"
    )

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        rows = [self._row(name, label) for label in labels]
        longest = max(map(len, rows), default=0)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(
                f"Task {name!r}: an example has {longest} token labels but the inputs are {length} long: truncate and "
                "align the labels with the tokens (`word_ids()` of the tokenizer's output)."
            )
        tensor = torch.full((len(rows), length), IGNORE_INDEX)
        for target, row in zip(tensor, rows):
            start = length - len(row) if padding_side == "left" else 0
            target[start : start + len(row)] = torch.tensor(row)
        return tensor

    def _row(self, name: str, label: Any) -> list[int]:
        if label is None:
            return []
        if not isinstance(label, (list, tuple)):
            raise self._wrong_type(name, label)
        return [self._index(name, plain(entry)) for entry in label]


@dataclass
class QuestionAnswering(Task):
    """
    Where in a text the answer to a question stands. The mean of the cross-entropies over the positions of its first and
    its last token; logits of shape `(batch, length, 2)`, labels of shape `(batch, 2)` with -100 where missing. An item is
    a labelled window: a long text is cut into several, by [`~encoding.encode_questions`], and where a window holds no
    answer both labels are 0, its CLS token.

    Args:
        max_answer_length (`int`, *optional*, defaults to 30):
            Tokens of an answer at most, when answers are made of logits.
    """

    max_answer_length: int = 30

    kind = "question_answering"
    level = "token"
    fixed_labels = 2
    label_help = (
        "give the positions of the answer's first and last token in the input, [0, 0] where the input holds none "
        "(`encode_questions` makes such labels), None where it is missing"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.max_answer_length) is not int or self.max_answer_length < 1:
            raise ValueError(f"max_answer_length must be a number of tokens, got {short(self.max_answer_length)}.")

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_shape(labels, torch.Size([len(logits), 2]))
        losses = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="none")
        return losses.mean(1), self.labelled(labels)

    def labelled(self, labels: Tensor) -> Tensor:
        return (labels != IGNORE_INDEX).all(1)

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        tensor = torch.tensor([self._span(name, label) for label in labels]).reshape(-1, 2)
        if length is not None and (tensor >= length).any():
            raise ValueError(
                f"Task {name!r}: label {tensor[(tensor >= length).any(1)][0].tolist()} lies outside its input, of {length} "
                f"tokens: {self.label_help}."
            )
        return tensor

    def _span(self, name: str, label: Any) -> list[int]:
        if label is None:
            return [IGNORE_INDEX, IGNORE_INDEX]
        if not isinstance(label, (list, tuple)) or not all(isinstance(plain(end), int) for end in label):
            raise self._wrong_type(name, label)
        if len(label) != 2:
            raise ValueError(f"Task {name!r}: label {short(label)} has {len(label)} entries: {self.label_help}.")
        return [plain(end) for end in label]

    def check_labels(self, name: str, labels: Tensor) -> None:
        wrong = ((labels < 0) | (labels[:, :1] > labels)) & (labels != IGNORE_INDEX).any(1, keepdim=True)
        if wrong.any():
            raise ValueError(
                f"Task {name!r}: label {labels[wrong.any(1)][0].tolist()} is not a first and a last position: "
                f"{self.label_help}."
            )


class MultipleChoice(Classification):
    """
    The right one of `num_labels` choices per example, each a text of its own. Cross-entropy over the choices; inputs of
    shape `(batch, num_labels, length)`, logits of shape `(batch, num_labels)`, labels of shape `(batch,)` with -100 (in
    Python also `None`) where missing. An item is a labelled example. [`~encoding.encode_choices`] makes such inputs.
    """

    kind = "multiple_choice"
    level = "choice"
    label_help = "give the integer index of the right choice, None or -100 where it is missing"

    @property
    def width(self) -> int:
        return 1


@dataclass
class MaskedLanguageModeling(Task):
    """
    The tokens that were masked, as an auxiliary task. Cross-entropy over the vocabulary; logits of shape `(batch, length,
    vocab_size)`, labels of shape `(batch, length)` with -100 where nothing was masked. An item is a masked token. The
    rows of its dataset need no labels: tokens are masked as a batch is made (see [`~masking.Masking`]). The decoder is the
    encoder's input embedding.

    Args:
        mlm_probability (`float`, *optional*, defaults to 0.15):
            Share of the tokens to predict. Of these 80 % are replaced by the mask token, 10 % by a random one.
    """

    mlm_probability: float = 0.15

    kind = "masked_language_modeling"
    level = "token"
    per_token = True
    self_supervised = True
    label_help = "leave the labels out, they are made as tokens are masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.mlm_probability) is not float or not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability must be a number between 0 and 1, got {short(self.mlm_probability)}.")

    def _check_num_labels(self) -> None:
        if self.num_labels is not None or self.label_names is not None:
            raise ValueError("MaskedLanguageModeling takes its vocabulary from the encoder: leave num_labels out.")

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        check_shape(labels, logits.shape[:-1])
        labels = labels.flatten().long()
        losses = F.cross_entropy(logits.flatten(0, -2), labels, ignore_index=IGNORE_INDEX, reduction="none")
        return losses, self.labelled(labels)

    def for_metrics(self, logits: Tensor, labels: Tensor | None) -> Tensor:
        return logits.argmax(-1)  # a vocabulary's worth of logits per token would fill the memory

    def labelled(self, labels: Tensor) -> Tensor:
        return labels != IGNORE_INDEX

    def _tensor(self, name: str, labels: list, length: int | None, padding_side: str) -> Tensor:
        raise TypeError(f"Task {name!r} makes its labels of the inputs, and takes none: {self.label_help}.")

    def check_labels(self, name: str, labels: Tensor) -> None:
        """Masked tokens are tokens: there is nothing to check."""
