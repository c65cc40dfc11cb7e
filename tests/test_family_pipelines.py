"""Every family of encoders in pipelines: all tasks from our own, and one task, exported, from transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import CAUSAL, IMAGE, SIDE, TEXT, VOCAB, encoder_of, in_turn
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViTImageProcessor, pipeline

from hf_dbmtl import Classification, MultiTaskModel, Regression, TokenClassification, export_task


TEXTS = ["a good day", "why is the night so long", "sun"]
LABELS = ["sport", "trade", "art"]
TASKS = {"topic": Classification(label_names=LABELS), "score": Regression()}
# What the heads see, for a family that has a stock class for them, and why the others have none.
POOLING = {
    **dict.fromkeys(("bert", "roberta", "mpnet", "beit", "dinov2", "swin", "convnext", "resnet"), "pooler"),
    **dict.fromkeys(("deberta-v2", "modernbert", "distilbert", "electra", "vit", "deit"), "cls"),
    **dict.fromkeys(CAUSAL, "last"),
    "t5": "mean",
}
NO_STOCK_CLASS = {
    "modernbert": r"no weights turn off: head\.norm",
    "t5": "also runs decoder",
    "llama": "its last layer has no bias",
}
FAMILIES = (*TEXT, *IMAGE)


def processing_class(family: str) -> Any:
    """An image processor, or a tokenizer of words whose padding is the encoder's."""
    if family in IMAGE:
        return ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    padding = encoder_of(family).config.pad_token_id or 0
    special = ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    special.insert(padding, "[PAD]")
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    assert len(vocabulary) < VOCAB
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if family not in CAUSAL:
        ends = [(end, vocabulary[end]) for end in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def model_of(family: str, **tasks: Any) -> MultiTaskModel:
    model = MultiTaskModel.from_encoder(encoder_of(family), tasks or TASKS, pooling=POOLING[family]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("heads."):
                parameter.normal_()
            elif parameter.ndim == 2:  # inputs that differ are seen to differ
                parameter.mul_(5)
    return model


def inputs_of(family: str) -> list[Any]:
    """Texts of several lengths, or images of several sizes."""
    if family in TEXT:
        return TEXTS
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (side, 40, 3), dtype=np.uint8)) for side in (20, 32, 50)]


@torch.no_grad()
def logits_of(model: MultiTaskModel, processor: Any, one: Any) -> dict[str, torch.Tensor]:
    return {name: value[0] for name, value in model(**processor(one, return_tensors="pt")).logits.items()}


@pytest.mark.parametrize("family", in_turn(FAMILIES))
def test_all_tasks_and_one_of_them_exported(family: str, tmp_path: Path) -> None:
    model, processor, given = model_of(family), processing_class(family), inputs_of(family)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "all")
    expected = [logits_of(model, processor, one) for one in given]
    chances = [dict(zip(LABELS, logits["topic"].softmax(-1).tolist())) for logits in expected]
    ask = pipeline("multi-task", str(tmp_path / "all"), device="cpu")
    for answers in (ask(given), ask(given, batch_size=3)):
        for answer, chance, logits in zip(answers, chances, expected, strict=True):
            best = max(chance, key=lambda label: chance[label])
            assert answer["topic"] == {"label": best, "score": pytest.approx(chance[best], abs=1e-5)}
            assert answer["score"] == pytest.approx(logits["score"].item(), rel=1e-5, abs=1e-5)
    assert all(one != pytest.approx(chances[0], abs=1e-4) for one in chances[1:])

    if family in NO_STOCK_CLASS:
        with pytest.raises(ValueError, match=f"Task 'topic' has no exact stock checkpoint: .*{NO_STOCK_CLASS[family]}"):
            export_task(model, "topic", tmp_path / "one", processing_class=processor)
        return
    export_task(model, "topic", tmp_path / "one", processing_class=processor)
    name = "text-classification" if family in TEXT else "image-classification"
    told = pipeline(name, str(tmp_path / "one"), device="cpu")(given, top_k=3)
    for one, chance in zip(told, chances, strict=True):
        assert {entry["label"]: entry["score"] for entry in one} == pytest.approx(chance, abs=1e-6)


@pytest.mark.parametrize("family", in_turn(TEXT))
def test_tokens(family: str, tmp_path: Path) -> None:
    names = [f"t{label}" for label in range(5)]
    model, processor = model_of(family, tags=TokenClassification(label_names=names)), processing_class(family)
    if family == "modernbert":
        with pytest.raises(ValueError, match=NO_STOCK_CLASS[family]):
            export_task(model, "tags", tmp_path, processing_class=processor)
        return
    export_task(model, "tags", tmp_path, processing_class=processor)
    ask = pipeline("token-classification", str(tmp_path), device="cpu", ignore_labels=[])
    found = []
    for text in TEXTS:
        logits = logits_of(model, processor, text)["tags"][slice(None) if family in CAUSAL else slice(1, -1)]
        scores, labels = logits.softmax(-1).max(-1)
        told = ask(text)
        assert [entry["entity"] for entry in told] == [names[label] for label in labels.tolist()]
        assert [entry["score"] for entry in told] == pytest.approx(scores.tolist(), abs=1e-6)
        found += [entry["entity"] for entry in told]
    assert len(set(found)) > 1
