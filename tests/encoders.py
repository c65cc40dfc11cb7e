"""Tiny encoders of every family that people fine-tune, from random weights, with inputs for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BeitConfig,
    BertConfig,
    ConvNextConfig,
    DebertaV2Config,
    DeiTConfig,
    Dinov2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    RobertaConfig,
    SwinConfig,
    T5Config,
    T5EncoderModel,
    ViTConfig,
)


VOCAB, LENGTH, SIDE = 40, 9, 32

_WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = {"vocab_size": VOCAB, **_WIDTHS, "max_position_embeddings": 24, "pad_token_id": 1}
_IMAGE = {"image_size": SIDE, "patch_size": 8, **_WIDTHS}

TEXT: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(**_TEXT),
    "roberta": lambda: RobertaConfig(**_TEXT),
    "deberta-v2": lambda: DebertaV2Config(**_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "modernbert": lambda: ModernBertConfig(**_TEXT, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3),
    "distilbert": lambda: DistilBertConfig(vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "electra": lambda: ElectraConfig(**_TEXT, embedding_size=8),
    "mpnet": lambda: MPNetConfig(**_TEXT),
    "t5": lambda: T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_positions=24, n_embd=16, n_layer=2, n_head=2),
    "llama": lambda: LlamaConfig(**_TEXT, num_key_value_heads=2),
}
IMAGE: dict[str, Callable[[], PreTrainedConfig]] = {
    "vit": lambda: ViTConfig(**_IMAGE),
    "deit": lambda: DeiTConfig(**_IMAGE),
    "beit": lambda: BeitConfig(**_IMAGE),
    "dinov2": lambda: Dinov2Config(**_IMAGE),
    "swin": lambda: SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    ),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
}
CAUSAL = ("gpt2", "llama")
FAST = ("bert", "t5", "gpt2", "modernbert", "vit", "beit", "dinov2", "swin", "resnet")


def in_turn(families: Iterable[str]) -> list[Any]:
    """Parameters of a test that runs with every change for some families, and for all of them in `make test-all`."""
    return [one if one in FAST else pytest.param(one, marks=pytest.mark.slow) for one in families]


def encoder_of(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = (TEXT | IMAGE)[family]()
    return T5EncoderModel(config) if family == "t5" else AutoModel.from_config(config)


def inputs_of(family: str, rows: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if family in IMAGE:
        return {"pixel_values": torch.randn(rows, 3, SIDE, SIDE, generator=generator)}
    ids = torch.randint(4, VOCAB, (rows, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, LENGTH - 3 :], ids[-1, LENGTH - 3 :] = 0, 1
    return {"input_ids": ids, "attention_mask": mask}


def exact(model: Any) -> Any:
    """The model in double precision and without dropout, for runs that are to agree to the last digits."""
    for module in model.modules():
        for name, value in vars(module).items():  # several families drop attention and paths without a module for it
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.encoder.register_forward_pre_hook(_in_double, with_kwargs=True)
    return model.double()


def _in_double(module: nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Batches are made in single precision, and some encoders of images take them as they are."""
    return args, {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
