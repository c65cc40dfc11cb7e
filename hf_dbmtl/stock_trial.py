"""Trying out how a head fits a stock model: with random weights on random inputs, and saying why where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import POOLINGS
from .features import features, has_pooler
from .modeling import MultiTaskModel
from .stock_heads import WAYS, NoStockClass, OwnHead, StockLayers, Way, agree, load_encoder, random_head, stock_layers


__all__ = ["find_way", "random_inputs"]


def find_way(
    stock: PreTrainedModel,
    logits: Callable[[ModelOutput], Tensor],
    model: MultiTaskModel,
    head: Any,
    encoder: PreTrainedModel,
    outputs: ModelOutput,
    inputs: dict[str, Tensor],
) -> Way:
    """
    The way to write a head into a stock model, found with random weights.

    Args:
        stock (`PreTrainedModel`):
            The stock model, which is written into.
        logits (`Callable`):
            Reads its logits from its output.
        model ([`MultiTaskModel`]):
            The model, which says how it pools.
        head (`torch.nn.Module`), encoder (`PreTrainedModel`):
            The head and the encoder, in float32 at least.
        outputs (`ModelOutput`), inputs (`dict[str, torch.Tensor]`):
            What the encoder made of these inputs.

    Raises:
        `NoStockClass`: where there is none.
    """
    what = type(stock).__name__
    probe = random_head(head)
    own = OwnHead.of(probe)
    lacking, left = load_encoder(stock, encoder)
    if lacking:
        raise NoStockClass(f"{what} also runs {_some(lacking)}, which this encoder does not have.")
    if left:
        raise NoStockClass(f"{what} has no place for {_some(left)}: merge adapters before.")
    layers = stock_layers(stock)

    def fitting(pooling: str) -> Way | None:
        expected = probe(features(head.level, outputs, pooling, inputs, encoder.config))
        for way in WAYS:
            load_encoder(stock, encoder)
            if way(own, layers, encoder) and agree(logits(stock(**inputs)), expected):
                return way
        return None

    if (way := fitting(model.config.pooling)) is not None:
        return way
    others = []
    if head.level in ("sequence", "choice"):
        known = [one for one in POOLINGS if one != "pooler" or has_pooler(encoder)]
        others = [repr(one) for one in known if one != model.config.pooling and fitting(one)]
    raise NoStockClass(_reason(layers, model.config.pooling, head, others))


def _reason(layers: StockLayers, pooling: str, head: Any, poolings: list[str]) -> str:
    """Why no way fits, and what would."""
    reasons = [f"no weights of {type(layers.model).__name__} give what its head gives"]
    if head.level in ("sequence", "choice"):
        reasons[0] += f" on pooling={pooling!r}"
    if poolings:
        reasons.append(f"that of a model trained with pooling={' or '.join(poolings)} can be exported")
    elif layers.out.bias is None:
        reasons.append("its last layer has no bias, and neither has the norm before it")
    labels = OwnHead.of(head).linear.out_features
    if layers.dense is not None and 2 * labels > layers.dense.out_features:
        reasons.append(f"its {layers.dense.out_features} hidden units are too few for {labels} labels")
    return "; ".join(reasons) + "."


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def random_inputs(
    model: MultiTaskModel, name: str, config: PreTrainedConfig, padding_side: str = "right"
) -> dict[str, Tensor]:
    """Three random texts of several lengths, padded, or as many pairs of choices for a task that chooses, or images."""
    device = model.encoder.device
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 64)
        height, width = (size, size) if isinstance(size, int) else size
        images = torch.randn(3, getattr(config, "num_channels", 3), height, width, generator=generator)
        return {"pixel_values": images.to(device)}
    text = config.get_text_config()
    pad, special = text.pad_token_id, {text.pad_token_id, getattr(text, "eos_token_id", None)}
    words = torch.tensor([index for index in range(min(text.vocab_size, 10_000)) if index not in special])
    lengths = torch.tensor([[12], [9], [4]])
    if model.heads[name].level == "choice":
        lengths = torch.stack([lengths, lengths.flip(0)], 1)
    mask = (torch.arange(12) < lengths).long()
    mask = mask.flip(-1) if padding_side == "left" else mask
    ids = words[torch.randint(len(words), mask.shape, generator=generator)].where(mask.bool(), pad or 0)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
