"""Checkpoints whose weights lie under other names than the model's: transformers writes those that the Hub has always had."""

from __future__ import annotations

import json
import os
from functools import reduce

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


__all__ = ["has_other_names", "load_by_other_names"]


def has_other_names(folder: str, model: nn.Module) -> bool:
    """
    Whether the checkpoint in `folder` holds weights that the model does not know by their names, such as those of a
    vision transformer: the stock Trainer would leave the model's own as they are.
    """
    return isinstance(model, PreTrainedModel) and not _names(folder) <= model.state_dict().keys()


def _names(folder: str) -> set[str]:
    index, weights = (os.path.join(folder, name) for name in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME))
    if os.path.isfile(index):
        with open(index, encoding="utf-8") as file:
            return set(json.load(file)["weight_map"])
    if os.path.isfile(weights):
        with safe_open(weights, "pt") as file:
            return set(file.keys())
    return set()


def load_by_other_names(folder: str, model: PreTrainedModel) -> None:
    """
    Loads the weights of a checkpoint into the model the way `from_pretrained` does, which knows both names.

    Raises:
        `RuntimeError`: the checkpoint is that of another model.
    """
    widest = reduce(torch.promote_types, {parameter.dtype for parameter in model.parameters()})
    model.load_state_dict(type(model).from_pretrained(folder, dtype=widest).state_dict())
