"""What a head sees of the encoder's output: a vector per example or per choice, tokens, a grid of patches, or all of it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, logging


__all__ = [
    "LEVELS",
    "Seen",
    "default_pooling",
    "features",
    "flatten_choices",
    "has_pooler",
    "hidden_size",
    "patch_stride",
]

logger = logging.get_logger(__name__)

LEVELS = ("sequence", "token", "choice", "grid", "output")


class Seen(NamedTuple):
    """What a head at level `"output"` sees."""

    outputs: ModelOutput
    inputs: Mapping[str, Any]


def features(
    level: str, outputs: Any, pooling: str, inputs: Mapping[str, Any], encoder: PreTrainedConfig
) -> Tensor | Seen:
    """
    What the heads of a level see.

    Args:
        level (`str`):
            One of `LEVELS`: `"sequence"`, `"token"`, `"choice"`, `"grid"` or `"output"`.
        outputs (`ModelOutput`):
            The encoder's. Feature maps of shape `(batch, hidden_size, height, width)` count as height x width tokens.
        pooling (`str`):
            How a sequence becomes one vector, see [`MultiTaskConfig`].
        inputs (`Mapping[str, Any]`):
            The model's. With an `attention_mask` of shape `(batch, length)`, 0 at padding; without it every token counts.
        encoder (`PreTrainedConfig`):
            The encoder's configuration.

    Returns:
        `torch.Tensor` of shape `(batch, hidden_size)` for sequences, `(batch, length, hidden_size)` for tokens, `(batch,
        choices, hidden_size)` for choices and `(batch, hidden_size, height, width)` for a grid, or [`Seen`].
    """
    choices = _choices(inputs)
    if choices is not None and level != "choice":
        raise ValueError(
            f"inputs of the shape {tuple(inputs['input_ids'].shape)}, (batch, choices, length), are for a MultipleChoice "
            "task alone: give (batch, length)."
        )
    if level == "output":
        return Seen(outputs, inputs)
    if level == "grid":
        return _grid(outputs.last_hidden_state, inputs, encoder)
    if level == "token":
        return _tokens(outputs)
    pooled = _pool(outputs, pooling, flatten_choices(inputs).get("attention_mask"))
    return pooled.unflatten(0, (-1, choices or 1)) if level == "choice" else pooled


def flatten_choices(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of shape `(batch, choices, length)` as `(batch * choices, length)`, others as they are."""
    if _choices(inputs) is None:
        return dict(inputs)
    return {
        name: value.flatten(0, 1) if isinstance(value, Tensor) and value.ndim == 3 else value
        for name, value in inputs.items()
    }


def _choices(inputs: Mapping[str, Any]) -> int | None:
    tokens = inputs.get("input_ids")
    return tokens.shape[1] if isinstance(tokens, Tensor) and tokens.ndim == 3 else None


def _tokens(outputs: Any) -> Tensor:
    tokens = outputs.last_hidden_state
    return tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens


def _pool(outputs: Any, pooling: str, attention_mask: Tensor | None) -> Tensor:
    if pooling == "pooler":
        if outputs.get("pooler_output") is None:
            raise ValueError("The encoder gives no pooler_output: choose pooling='cls', 'mean' or 'last'.")
        return outputs.pooler_output.flatten(1)  # (batch, hidden_size, 1, 1) from convolutional networks
    tokens = _tokens(outputs)
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


def _grid(tokens: Tensor, inputs: Mapping[str, Any], encoder: PreTrainedConfig) -> Tensor:
    """The tokens of the patches where these lie in the image, without those in front (CLS, distillation, registers)."""
    if tokens.ndim == 4:
        return tokens
    pixels, stride = inputs.get("pixel_values"), patch_stride(encoder)
    if pixels is None or stride is None:
        raise ValueError(
            f"a head for every pixel needs an encoder of images that gives a grid of patches, which {encoder.model_type} is "
            "not."
        )
    halves = len(getattr(encoder, "depths", ())) > 1  # Swin pads where a side does not divide, ViT leaves the rest out
    height, width = (-(-side // step) if halves else side // step for side, step in zip(pixels.shape[-2:], stride))
    before = tokens.shape[1] - height * width
    if before < 0:
        raise ValueError(f"{tokens.shape[1]} tokens are no grid of {height} x {width} patches: {encoder.model_type}.")
    return tokens[:, before:].transpose(1, 2).unflatten(2, (height, width))


def patch_stride(encoder: PreTrainedConfig) -> tuple[int, int] | None:
    """Pixels between neighbours of an encoder's grid, down and across; `None` for what has no patches."""
    size = getattr(encoder, "patch_size", None)
    if size is None:
        return None
    merged = 2 ** max(0, len(getattr(encoder, "depths", ())) - 1)  # every stage of a hierarchy halves the grid
    height, width = (size, size) if isinstance(size, int) else size
    return height * merged, width * merged


def hidden_size(encoder: PreTrainedConfig) -> int:
    """Width of an encoder's output. The stock heads each know their encoder: `transformers` has no one name for it."""
    if sizes := getattr(encoder, "hidden_sizes", None):  # of the stages of a convolutional network
        return sizes[-1]
    size = getattr(encoder.get_text_config(), "hidden_size", None)
    if size is None:
        raise ValueError(f"{type(encoder).__name__} has no hidden_size: this encoder cannot carry heads.")
    return size


def has_pooler(encoder: PreTrainedModel) -> bool:
    """Whether the encoder's output has a `pooler_output`."""
    if hasattr(encoder, "pooler"):
        return encoder.pooler is not None  # add_pooling_layer=False
    # Some pool without a module of that name (ConvNeXt, DINOv2): their signature tells.
    return "Pooling" in str(inspect.signature(encoder.forward).return_annotation)


def default_pooling(encoder: PreTrainedModel, processing_class: Any = None) -> str:
    """
    The encoder's pooler if it has one, `"last"` for a decoder, whose last token alone has seen the others, else `"cls"` where
    the tokenizer has a CLS token, else `"mean"`.
    """
    if has_pooler(encoder):
        return "pooler"
    kind = type(encoder.config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING:
        return "last"
    if processing_class is None and encoder.name_or_path:
        try:
            processing_class = AutoTokenizer.from_pretrained(encoder.name_or_path)
        except Exception as error:  # no tokenizer there, or one that needs a package: each has its own exception
            logger.info(f"No tokenizer beside {encoder.name_or_path}: {error}")
    tokenizer = getattr(processing_class, "tokenizer", processing_class)  # a processor holds one
    return "cls" if getattr(tokenizer, "cls_token", None) is not None else "mean"
