"""Tokens masked as a batch is made, for masked language modelling."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase


__all__ = ["Masking"]


class Masking:
    """
    Masks tokens of a batch, by transformers' own rule. What is masked follows from the seed and the batch's tokens alone: a
    run that goes on from a checkpoint sees the same masks, however many workers make the batches, and a text that comes
    again in the company of others is masked anew. An evaluation masks the same tokens every time. As with dropout, the
    masks depend on how a step is dealt to micro-batches.

    Args:
        name (`str`):
            The name of the task, for errors.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer that made the inputs.
        probability (`float`):
            Share of the tokens to predict.
        seed (`int`, *optional*, defaults to 0):
            The seed.

    Raises:
        `ValueError`: no tokenizer, or one without a mask token.
    """

    def __init__(self, name: str, tokenizer: Any, probability: float, seed: int = 0):
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.mask_token is None:
            raise ValueError(
                f"Task '{name}': masking needs a tokenizer with a mask token as `processing_class`, and that is "
                f"{type(tokenizer).__name__}: pass one, set its `mask_token`, or give a `data_collator`."
            )
        self.rule = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability)
        self.special = torch.tensor(tokenizer.all_special_ids)
        self.seed = seed

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with masked `input_ids`, and `labels` that are -100 where nothing was masked."""
        ids = batch["input_ids"]
        digest = hashlib.blake2b(ids.numpy().tobytes(), digest_size=8, key=str(self.seed).encode()).digest()
        self.rule.generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
        masked, labels = self.rule.torch_mask_tokens(ids.clone(), torch.isin(ids, self.special))
        return {**batch, "input_ids": masked, "labels": labels}
