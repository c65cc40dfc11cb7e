"""From the encoder's output to logits: what a head sees, and the heads, one module per level of task."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput, logging

from .tasks import Task


__all__ = ["SequenceHead", "TokenHead", "default_pooling", "features", "has_pooler", "make_head"]

logger = logging.get_logger(__name__)


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
        if outputs.get("pooler_output") is None:
            raise ValueError("The encoder gives no pooler_output: choose pooling='cls', 'mean' or 'last'.")
        return outputs.pooler_output.flatten(1)  # (batch, hidden_size, 1, 1) from convolutional networks
    tokens = outputs.last_hidden_state
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).transpose(1, 2)
    return tokens if level == "token" else _pool(tokens, pooling, attention_mask)


def _pool(tokens: Tensor, pooling: str, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        attention_mask = tokens.new_ones(tokens.shape[:2])
    if attention_mask.shape != tokens.shape[:2]:
        raise ValueError(
            f"pooling={pooling!r} needs an attention mask of the encoder output's shape {tuple(tokens.shape[:2])}, not "
            f"{tuple(attention_mask.shape)}: choose another pooling, or leave the mask out."
        )
    if pooling == "mean":
        mask = attention_mask.unsqueeze(-1).to(torch.promote_types(tokens.dtype, torch.float32))
        return ((tokens * mask).sum(1) / mask.sum(1).clamp(min=1)).to(tokens.dtype)
    # Padding may stand on either side; of several maxima, argmax returns the first.
    mask = attention_mask.long()
    position = (mask if pooling == "cls" else mask.cumsum(1)).argmax(1)
    return tokens[torch.arange(len(tokens), device=tokens.device), position]


def has_pooler(encoder: PreTrainedModel) -> bool:
    """Whether the encoder's output has a `pooler_output`."""
    if hasattr(encoder, "pooler"):
        return encoder.pooler is not None  # add_pooling_layer=False
    # Some pool without a module of that name (ConvNeXt, DINOv2): their signature tells.
    return "Pooling" in str(inspect.signature(encoder.forward).return_annotation)


def default_pooling(encoder: PreTrainedModel, processing_class: Any = None) -> str:
    """The encoder's pooler if it has one, else `"cls"` where the tokenizer has a CLS token, else `"mean"`."""
    if has_pooler(encoder):
        return "pooler"
    if processing_class is None and encoder.name_or_path:
        try:
            processing_class = AutoTokenizer.from_pretrained(encoder.name_or_path)
        except Exception as error:  # no tokenizer there, or one that needs a package: each has its own exception
            logger.info(f"No tokenizer beside {encoder.name_or_path}: {error}")
    tokenizer = getattr(processing_class, "tokenizer", processing_class)  # a processor holds one
    return "cls" if getattr(tokenizer, "cls_token", None) is not None else "mean"


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

    def forward(self, seen: Tensor) -> Tensor:
        return self.linear(self.dropout(seen))


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
