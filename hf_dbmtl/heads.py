"""The heads: from what a head sees of the encoder's output to logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .features import LEVELS, hidden_size, patch_stride
from .task import Task


__all__ = [
    "ChoiceHead",
    "MaskedLanguageModelingHead",
    "PixelHead",
    "SequenceHead",
    "TokenHead",
    "make_head",
    "register_head",
]


class _Head(nn.Module):
    """
    A dropout and a linear layer, behind hidden layers where the task asks for these.

    Args:
        task (`Task`):
            The task.
        encoder (`PreTrainedModel`):
            The encoder.
    """

    level: str  # what it sees, see `features`

    def __init__(self, task: Task, encoder: PreTrainedModel):
        super().__init__()
        width, dropout = hidden_size(encoder.config), _dropout(task, encoder.config)
        layers: list[nn.Module] = []
        for size in task.hidden_sizes or ():
            layers += [nn.Dropout(dropout), nn.Linear(width, size), nn.GELU()]
            width = size
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, task.width)

    def forward(self, seen: Tensor) -> Tensor:
        return self.linear(self.dropout(self.hidden(seen)))


class SequenceHead(_Head):
    """Logits of shape `(batch, num_labels)` from pooled sequences, of shape `(batch, hidden_size)`."""

    level = "sequence"


class TokenHead(_Head):
    """Logits of shape `(batch, length, num_labels)` from tokens, of shape `(batch, length, hidden_size)`."""

    level = "token"


class ChoiceHead(_Head):
    """Logits of shape `(batch, choices)` from pooled choices, of shape `(batch, choices, hidden_size)`."""

    level = "choice"

    def forward(self, seen: Tensor) -> Tensor:
        return super().forward(seen).squeeze(-1)


class MaskedLanguageModelingHead(nn.Module):
    """
    Logits of shape `(batch, length, vocab_size)` from tokens: a transform to the width of the embeddings, as BERT's, and
    the encoder's input embedding as decoder. That is a parameter of the encoder, and so shared, of which the head keeps no
    second name: nothing needs tying anew when a model is saved, loaded, or given a larger vocabulary.
    """

    level = "token"

    def __init__(self, task: Task, encoder: PreTrainedModel):
        super().__init__()
        embedding = encoder.get_input_embeddings() if encoder.main_input_name == "input_ids" else None
        if not isinstance(embedding, nn.Embedding):
            raise ValueError(
                f"MaskedLanguageModeling decodes with the embeddings of tokens, and {type(encoder).__name__} has none."
            )
        vocab_size, width = embedding.weight.shape
        layers: list[nn.Module] = []
        size = hidden_size(encoder.config)
        for wide in (*(task.hidden_sizes or ()), width):
            layers += [nn.Linear(size, wide), nn.GELU()]
            size = wide
        self.transform = nn.Sequential(*layers, nn.LayerNorm(width))
        self.dropout = nn.Dropout(0.0 if task.dropout is None else task.dropout)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self._encoder = (encoder,)  # in a tuple: not a submodule, whose parameters would count as the head's

    def forward(self, seen: Tensor) -> Tensor:
        weight: Any = self._encoder[0].get_input_embeddings().weight
        grown = weight.shape[0] - self.bias.shape[0]  # `resize_token_embeddings` does not know the bias
        return F.linear(self.dropout(self.transform(seen)), weight, F.pad(self.bias, (0, grown)))


class PixelHead(nn.Module):
    """
    Logits of shape `(batch, num_labels, height, width)` from a grid of shape `(batch, hidden_size, rows, columns)`, at the
    resolution of the pixels, or four times that of the grid where this is coarser: a convolution, and up to two that follow
    an upsampling to twice the size. `hidden_sizes`, if given, holds the width of these, 256 at most by default.
    """

    level = "grid"

    def __init__(self, task: Task, encoder: PreTrainedModel):
        super().__init__()
        channels, (stride, _) = hidden_size(encoder.config), patch_stride(encoder.config) or (4, 4)
        sizes = task.hidden_sizes or [min(channels, 256)]
        if len(sizes) != 1:
            raise ValueError(f"hidden_sizes={sizes}: the head of a task with pixels takes one width.")
        (width,) = sizes
        layers = _convolution(channels, width)
        while stride > 1 and len(layers) < 11:
            layers += [nn.Upsample(scale_factor=2, mode="bilinear"), *_convolution(width, width)]
            stride //= 2
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout2d(_dropout(task, encoder.config))
        self.linear = nn.Conv2d(width, task.width, 1)

    def forward(self, seen: Tensor) -> Tensor:
        return self.linear(self.dropout(self.hidden(seen)))


def _convolution(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(1, width), nn.GELU()]


_HEADS = {"sequence": SequenceHead, "token": TokenHead, "choice": ChoiceHead, "grid": PixelHead}
_OF_KINDS: dict[str, type[nn.Module]] = {"masked_language_modeling": MaskedLanguageModelingHead}
_REGISTERED: dict[str, type[nn.Module]] = {}


def register_head(name: str, head: type[nn.Module]) -> type[nn.Module]:
    """
    Makes a head class known by a name, for `Classification(3, head=name)`. A saved model holds the name alone: register the
    class before loading it.

    Args:
        name (`str`):
            The name.
        head (`type[torch.nn.Module]`):
            The class. It is made as `head(task, encoder)` and called on what its attribute `level` names: `"sequence"`
            (pooled, of shape `(batch, hidden_size)`), `"token"` (`(batch, length, hidden_size)`), `"choice"` (`(batch,
            choices, hidden_size)`), `"grid"` (`(batch, hidden_size, height, width)`) or `"output"` (a pair of the encoder's
            output and the model's inputs). It returns logits of the shape that the task takes. Parameters that
            transformers' `_init_weights` does not know keep the values that the constructor gives.

    Returns:
        `type[torch.nn.Module]`: the class.
    """
    if not isinstance(head, type) or not issubclass(head, nn.Module):
        raise TypeError(f"register_head takes a class of torch modules, got {head!r}.")
    level = getattr(head, "level", None)
    if level not in LEVELS:
        raise ValueError(
            f"{head.__name__}.level must be one of {', '.join(LEVELS)}, what the head sees; got {level!r}."
        )
    _REGISTERED[name] = head
    return head


def make_head(task: Task, encoder: PreTrainedModel) -> nn.Module:
    """The head of a task, for an encoder."""
    if task.head is None:
        return (_OF_KINDS.get(task.kind) or _HEADS[task.level])(task, encoder)
    if task.head not in _REGISTERED:
        raise ValueError(
            f"unknown head {task.head!r}: import the module that calls register_head({task.head!r}, ...) first (known: "
            f"{', '.join(_REGISTERED) or 'none'})."
        )
    return _REGISTERED[task.head](task, encoder)


def _dropout(task: Task, encoder: PreTrainedConfig) -> float:
    """The task's, else the encoder's: the stock heads each know where theirs has it."""
    if task.dropout is not None:
        return task.dropout
    for name in ("classifier_dropout", "hidden_dropout_prob"):
        if (dropout := getattr(encoder, name, None)) is not None:
            return dropout
    return 0.1
