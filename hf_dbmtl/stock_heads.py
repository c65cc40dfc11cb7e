"""
How a head of ours is written into the layers of a stock head, so that the logits stay what they are: one small function
per way, and the choice among them by trial with random weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


__all__ = [
    "WAYS",
    "NoStockClass",
    "OwnHead",
    "StockLayers",
    "Way",
    "agree",
    "load_encoder",
    "random_head",
    "stock_layers",
]

SCALE = 2.0**-15  # tanh(SCALE * z) / SCALE is z to the last digits of float32, and 1 / SCALE still is a float16
TOLERANCE = 1e-6


class NoStockClass(ValueError):
    """Why a task cannot be exported."""


@dataclass
class OwnHead:
    """
    The layers of a head of ours.

    Args:
        hidden (`torch.nn.Linear`, *optional*): Its hidden layer, where it has one.
        linear (`torch.nn.Linear`): The layer that gives the logits.
    """

    hidden: nn.Linear | None
    linear: nn.Linear

    @classmethod
    def of(cls, head: nn.Module) -> OwnHead:
        """The layers of `head`. Raises [`NoStockClass`] where it holds others than one or two linear ones."""
        layers = [module for module in head.modules() if next(module.parameters(recurse=False), None) is not None]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if not 1 <= len(linear) <= 2 or len(linear) < len(layers):
            raise NoStockClass(f"its head, a {type(head).__name__}, is not made of one or two linear layers.")
        return cls(linear[0] if len(linear) == 2 else None, linear[-1])


@dataclass
class StockLayers:
    """
    The layers that a stock model puts behind its encoder.

    Args:
        model (`PreTrainedModel`): The stock model.
        dense (`torch.nn.Linear`, *optional*): A hidden layer in front of the last one, be it called pooler or not.
        out (`torch.nn.Linear`): The layer that gives the logits.
    """

    model: PreTrainedModel
    dense: nn.Linear | None
    out: nn.Linear


def stock_layers(model: PreTrainedModel) -> StockLayers:
    """The layers behind the encoder of a stock model. Raises [`NoStockClass`] where there is more than linear layers."""
    inside = set(model.base_model.modules())
    own = {
        name: module
        for name, module in model.named_modules()
        if module not in inside and next(module.parameters(recurse=False), None) is not None
    }
    linear = [module for module in own.values() if isinstance(module, nn.Linear)]
    others = [f"{name} ({type(module).__name__})" for name, module in own.items() if module not in linear[-2:]]
    dense = linear[-2] if len(linear) > 1 else _pooler(model.base_model)
    if others or not linear:
        what = type(model).__name__
        raise NoStockClass(f"{what} has layers of its own that no weights turn off: {', '.join(others) or 'all'}.")
    return StockLayers(model, dense, linear[-1])


def _pooler(encoder: nn.Module) -> nn.Linear | None:
    """The linear layer of a pooler that is one, and an activation."""
    pooler = getattr(encoder, "pooler", None)
    dense = getattr(pooler, "dense", pooler)
    return dense if isinstance(dense, nn.Linear) else None


def load_encoder(model: PreTrainedModel, encoder: PreTrainedModel) -> tuple[list[str], list[str]]:
    """
    Copies an encoder into a stock model.

    Returns:
        `tuple[list[str], list[str]]`: the weights that only the stock model has, and those that only the encoder has. A
        pooler counts as neither: it is left behind, or for one of the ways to fill.
    """
    missing, unexpected = model.base_model.load_state_dict(encoder.state_dict(), strict=False)
    first, second = ([key for key in keys if not key.startswith("pooler.")] for keys in (missing, unexpected))
    return first, second


# ---- The ways. Each writes a head into the layers of a stock model, or tells that it cannot.


def direct(own: OwnHead, stock: StockLayers, encoder: PreTrainedModel) -> bool:
    """The stock head is a linear layer on what the head sees: BERT, ViT, ResNet, every token classifier."""
    return own.hidden is None and _set(stock.out, own.linear.weight, own.linear.bias)


def hidden_layer(own: OwnHead, stock: StockLayers, encoder: PreTrainedModel) -> bool:
    """Both have a hidden layer."""
    if own.hidden is None or stock.dense is None or not _set(stock.dense, own.hidden.weight, own.hidden.bias):
        return False
    return _set(stock.out, own.linear.weight, own.linear.bias)


def pooler_as_hidden_layer(own: OwnHead, stock: StockLayers, encoder: PreTrainedModel) -> bool:
    """What the encoder calls its pooler, the stock head has as its first layer: RoBERTa, MPNet."""
    pooler = _pooler(encoder)
    if own.hidden is not None or stock.dense is None or pooler is None:
        return False
    return _set(stock.dense, pooler.weight, pooler.bias) and _set(stock.out, own.linear.weight, own.linear.bias)


def pairs(own: OwnHead, stock: StockLayers, encoder: PreTrainedModel) -> bool:
    """
    A linear layer through a rectifier: a(z) - a(-z) = z for ReLU, GELU and SiLU, so a hidden layer of z and -z and a last
    one that subtracts them is linear. DistilBERT, ELECTRA, DeBERTa; for up to half as many labels as hidden units.
    """
    weight, bias = _linear(own)
    labels = len(weight)
    if own.hidden is not None or stock.dense is None or 2 * labels > stock.dense.out_features:
        return False
    last = torch.zeros_like(stock.out.weight)
    if last.shape != (labels, stock.dense.out_features):
        return False
    last[:, :labels].fill_diagonal_(1)
    last[:, labels : 2 * labels].fill_diagonal_(-1)
    signed = torch.cat([weight, -weight]), torch.cat([bias, -bias])
    return _set(stock.dense, *signed, pad=True) and _set(stock.out, last, last.new_zeros(labels))


def small(own: OwnHead, stock: StockLayers, encoder: PreTrainedModel) -> bool:
    """
    A linear layer through a tanh, which is the identity next to 0: scaled down by a power of two in front of it and up
    behind it. BERT, RoBERTa and MPNet without their pooler; for up to as many labels as hidden units.
    """
    weight, bias = _linear(own)
    labels = len(weight)
    if own.hidden is not None or stock.dense is None or labels > stock.dense.out_features:
        return False
    last = torch.zeros_like(stock.out.weight)
    if last.shape != (labels, stock.dense.out_features):
        return False
    last[:, :labels].fill_diagonal_(1 / SCALE)
    return _set(stock.dense, SCALE * weight, SCALE * bias, pad=True) and _set(stock.out, last, last.new_zeros(labels))


def beside_others(own: OwnHead, stock: StockLayers, encoder: PreTrainedModel) -> bool:
    """The stock head sees the first token and the mean of the others side by side: DINOv2."""
    weight, bias = _linear(own)
    if own.hidden is not None or stock.out.in_features != 2 * weight.shape[1]:
        return False
    return _set(stock.out, torch.cat([weight, torch.zeros_like(weight)], 1), bias)


def bias_into_norm(own: OwnHead, stock: StockLayers, encoder: PreTrainedModel) -> bool:
    """
    The stock head has no bias: the layer norm that ends the encoder takes it up, W (n + d) = W n + b. GPT-2; not where the
    last norm has no bias itself (Llama), nor for more labels than hidden units.
    """
    weight, bias = _linear(own)
    if own.hidden is not None or stock.out.bias is not None or stock.out.weight.shape != weight.shape:
        return False
    norms = [module for module in stock.model.base_model.children() if isinstance(module, nn.LayerNorm)]
    if len(weight) > weight.shape[1] or not norms or norms[-1].bias is None:
        return False
    norms[-1].bias.add_((torch.linalg.pinv(weight.double()) @ bias.double()).to(norms[-1].bias))
    return _set(stock.out, weight, None)


Way = Callable[[OwnHead, StockLayers, PreTrainedModel], bool]
WAYS: tuple[Way, ...] = (direct, hidden_layer, pooler_as_hidden_layer, pairs, small, beside_others, bias_into_norm)


def _linear(own: OwnHead) -> tuple[Tensor, Tensor]:
    weight, bias = own.linear.weight, own.linear.bias
    return weight, weight.new_zeros(len(weight)) if bias is None else bias


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor | None, pad: bool = False) -> bool:
    """Writes a linear layer where it fits, with `pad` into the first rows of a larger one."""
    rows = len(weight)
    fits = layer.in_features == weight.shape[1] and (rows <= layer.out_features if pad else rows == layer.out_features)
    if not fits or (layer.bias is None and bias is not None and bias.any()):
        return False
    layer.weight.zero_()[:rows] = weight
    if layer.bias is not None:
        layer.bias.zero_()
        if bias is not None:
            layer.bias[:rows] = bias
    return True


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors of logits are equal to 1e-6, relative to the largest where that is above 1."""
    if first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= TOLERANCE * max(1.0, second.abs().max().item()))


def random_head(head: nn.Module, seed: int = 0) -> nn.Module:
    """A head of the same form with random weights. A bias that is 0 stays so: some ways depend on it."""
    probe, generator = copy.deepcopy(head), torch.Generator().manual_seed(seed)
    for parameter in probe.parameters():
        drawn: Any = torch.randn(parameter.shape, generator=generator).to(parameter) / parameter.shape[-1] ** 0.5
        parameter.copy_(drawn * (parameter != 0) if parameter.ndim == 1 else drawn)
    return probe
