"""From the encoder's output to logits: what a head sees, and the heads, one module per level of task."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from .tasks import Task


__all__ = ["SequenceHead", "TokenHead", "features", "make_head"]


def features(level: str, outputs: ModelOutput, pooling: str, attention_mask: Tensor | None) -> Tensor:
    """
    What the heads of a level see.

    Args:
        level (`str`):
            `"token"` or `"sequence"`.
        outputs (`ModelOutput`):
            The encoder's. Feature maps of shape `(batch, hidden_size, height, width)` count as height x width tokens.
        pooling (`str`):
            How a sequence becomes one vector, see [`MultiTaskConfig`].
        attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
            0 at padding; without it every token counts.

    Returns:
        `torch.Tensor` of shape `(batch, length, hidden_size)` for tokens, `(batch, hidden_size)` for sequences.
    """
    if level == "sequence" and pooling == "pooler":
        return outputs.pooler_output.flatten(1)  # (batch, hidden_size, 1, 1) from convolutional networks
    tokens = outputs.last_hidden_state
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    return tokens if level == "token" else _pool(tokens, pooling, attention_mask)


def _pool(tokens: Tensor, pooling: str, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return {"cls": tokens[:, 0], "last": tokens[:, -1]}[pooling] if pooling != "mean" else tokens.mean(1)
    if attention_mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"pooling={pooling!r} needs an attention mask of shape {tuple(tokens.shape[:2])}, that of the encoder's "
            f"output, not {tuple(attention_mask.shape)}: choose another pooling, or leave out the mask."
        )
    if pooling == "mean":
        weights = attention_mask / attention_mask.sum(1, keepdim=True).clamp(min=1)
        return (tokens * weights.unsqueeze(-1).to(tokens.dtype)).sum(1)
    # Padding may stand on either side; argmax returns the first of several maxima.
    ranks = attention_mask if pooling == "cls" else attention_mask.cumsum(1) * attention_mask
    return tokens[torch.arange(len(tokens), device=tokens.device), ranks.argmax(1)]


class _Head(nn.Module):
    """
    A dropout and a linear layer.

    Args:
        hidden_size (`int`):
            Width of the encoder's output.
        num_labels (`int`):
            Width of the logits.
        dropout (`float`):
            Probability with which an input is dropped in training.
    """

    def __init__(self, hidden_size: int, num_labels: int, dropout: float):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, num_labels)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.dropout(features))


class SequenceHead(_Head):
    """Logits of shape `(batch, num_labels)` from pooled sequences, of shape `(batch, hidden_size)`."""


class TokenHead(_Head):
    """Logits of shape `(batch, length, num_labels)` from tokens, of shape `(batch, length, hidden_size)`."""


_HEADS = {"sequence": SequenceHead, "token": TokenHead}


def make_head(task: Task, encoder: PreTrainedConfig) -> nn.Module:
    """The head of a task, for an encoder with this configuration."""
    dropout = _dropout(encoder) if task.dropout is None else task.dropout
    return _HEADS[task.level](_hidden_size(encoder), task.num_labels, dropout)


# The stock heads each know their encoder: `transformers` has no one name for these two numbers.


def _hidden_size(encoder: PreTrainedConfig) -> int:
    if sizes := getattr(encoder, "hidden_sizes", None):  # of the stages of a convolutional network
        return sizes[-1]
    size = getattr(encoder.get_text_config(), "hidden_size", None)
    if size is None:
        raise ValueError(f"{type(encoder).__name__} has no hidden_size: this encoder cannot carry heads.")
    return size


def _dropout(encoder: PreTrainedConfig) -> float:
    for name in ("classifier_dropout", "hidden_dropout_prob"):
        if (dropout := getattr(encoder, name, None)) is not None:
            return dropout
    return 0.1
