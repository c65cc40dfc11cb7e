"""Every family of encoders carries heads: it trains, freezes, saves and loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from encoders import CAUSAL, IMAGE, LENGTH, SIDE, TEXT, encoder_of, exact, in_turn, inputs_of
from helpers import arguments, distance, flat, train
from transformers import AutoModel

from hf_dbmtl import (
    MaskedLanguageModeling,
    MultiTaskModel,
    MultiTaskTrainer,
    Regression,
    SemanticSegmentation,
    TokenClassification,
)
from hf_dbmtl.features import features


FAMILIES = (*TEXT, *IMAGE)


def model_of(family: str, seed: int = 0, **tasks) -> MultiTaskModel:
    second = TokenClassification(4) if family in TEXT else SemanticSegmentation(4)
    return MultiTaskModel.from_encoder(encoder_of(family, seed), tasks or {"score": Regression(), "parts": second})


def data_of(family: str) -> dict[str, Dataset]:
    inputs = {name: value.tolist() for name, value in inputs_of(family, 8).items()}
    parts = [[1] * LENGTH] * 8 if family in TEXT else [[[row % 4] * SIDE] * SIDE for row in range(8)]
    return {
        "score": Dataset.from_dict({**inputs, "labels": [float(row) for row in range(8)]}),
        "parts": Dataset.from_dict({**inputs, "labels": parts}),
    }


def trained(family: str, folder: Path, **options) -> tuple[MultiTaskModel, dict[str, torch.Tensor]]:
    """A model after one step of two tasks, and what it was before."""
    model = model_of(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = arguments(folder, max_steps=1, learning_rate=0.1, **options)
    MultiTaskTrainer(model=model, args=args, train_dataset=data_of(family)).train()
    return model, before


def moved(model: MultiTaskModel, before: dict[str, torch.Tensor], prefix: str) -> set[str]:
    after = model.state_dict()
    return {name for name in after if name.startswith(prefix) and not torch.equal(after[name], before[name])}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_two_tasks_and_a_round_trip(family: str, tmp_path: Path) -> None:
    model, before = trained(family, tmp_path)
    assert (
        moved(model, before, "encoder.") and moved(model, before, "heads.score") and moved(model, before, "heads.parts")
    )
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    model.eval().save_pretrained(tmp_path / "saved")
    inputs = inputs_of(family)
    logits = model(**inputs).logits
    for again in (MultiTaskModel.from_pretrained(tmp_path / "saved"), AutoModel.from_pretrained(tmp_path / "saved")):
        assert all(torch.equal(again(**inputs).logits[task], logits[task]) for task in logits)
    other = model_of(family, seed=1).eval()(**inputs).logits
    assert not any(torch.allclose(other[task], logits[task]) for task in logits)


@pytest.mark.parametrize("family", in_turn(FAMILIES))
def test_tasks_that_share_their_input(family: str, tmp_path: Path) -> None:
    """The same step as of a dataset for each, with one pass of the encoder."""
    data, passes = data_of(family), []
    group = data["score"].rename_column("labels", "score").add_column("parts", data["parts"]["labels"][:])
    turned = group.remove_columns("score").add_column("score", group["score"][::-1])

    def step(given: dict[str, Dataset]) -> list[dict[str, torch.Tensor]]:
        model = exact(model_of(family))
        model.encoder.register_forward_hook(lambda *_: passes.append(len(given)))
        args = arguments(tmp_path, max_steps=1, train_sampling_strategy="sequential")
        return train(model, args, given)[1]

    one, many, wrong = step({"all": group}), step(data), step({"all": turned})
    assert passes == [1, 2, 2, 1]
    assert distance(one, many) < 1e-10
    assert distance(wrong, many) > 1e-3


@pytest.mark.parametrize("family", in_turn(FAMILIES))
def test_the_lower_layers_freeze(family: str, tmp_path: Path) -> None:
    model, before = trained(family, tmp_path, freeze_layers=1)
    stack = next(name for name, module in model.encoder.named_modules() if isinstance(module, torch.nn.ModuleList))
    embedding = "embed" if family not in ("t5", "gpt2") else {"t5": "shared", "gpt2": "wte"}[family]
    ours = moved(model, before, "encoder.") - {name for name, _ in model.named_buffers()}
    assert not any(name.startswith(f"encoder.{stack}.0.") or f".{embedding}" in name for name in ours)
    assert any(name.startswith(f"encoder.{stack}.1.") for name in ours)
    free, before = trained(family, tmp_path)
    assert any(name.startswith(f"encoder.{stack}.0.") for name in moved(free, before, "encoder."))


@pytest.mark.parametrize("family", CAUSAL)
def test_decoders_show_their_last_token(family: str) -> None:
    model = model_of(family, score=Regression()).eval()
    assert model.config.pooling == "last"
    inputs = inputs_of(family)
    longer = inputs["input_ids"].clone()
    longer[0, -1] = 4 + (longer[0, -1] - 3) % 30  # another last token of a text without padding
    longer[-1, -1] = 5  # padding
    change = model("score", **inputs).logits - model("score", **{**inputs, "input_ids": longer}).logits
    assert change[0].abs() > 0 and change[-1].abs() == 0


@pytest.mark.parametrize("family", [family for family in TEXT if family not in CAUSAL])
def test_masked_tokens_are_decoded_by_the_embeddings(family: str) -> None:
    model = model_of(family, words=MaskedLanguageModeling()).eval()
    inputs = inputs_of(family)
    logits = model("words", **inputs).logits
    embedding = model.encoder.get_input_embeddings().weight
    assert logits.shape == (4, LENGTH, len(embedding))
    with torch.no_grad():
        embedding[2] += 1.0  # no input holds this token
    change = (model("words", **inputs).logits - logits).abs().amax((0, 1))
    assert change[2] > 0 and flat([change[:2], change[3:]]).max() < 1e-5


@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2"])
def test_the_grid_shows_each_patch_in_its_place(family: str) -> None:
    encoder = encoder_of(family)
    layers = next(module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList))
    del layers[:]  # no attention: a patch shows in its own token alone
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    changed = pixels.clone()
    changed[:, :, 8:16, 24:32] = 1.0  # row 1, column 3 of patches of 8 x 8

    def grid(images: torch.Tensor) -> torch.Tensor:
        return features("grid", encoder.eval()(images), "pooler", {"pixel_values": images}, encoder.config)

    difference = (grid(changed) - grid(pixels)).abs().sum(1)[0]
    assert difference.shape == (4, 4)
    assert difference[1, 3] > 0 and difference.count_nonzero() == 1


def test_the_grid_of_a_hierarchy_counts_padded_sides() -> None:
    model = model_of("swin")
    logits = model.eval()("parts", pixel_values=torch.randn(1, 3, 28, 20)).logits  # grids of 7 x 5 and 4 x 3
    assert logits.shape == (1, 4, 16, 12)


def test_batch_norms_stay_as_they_are(tmp_path: Path) -> None:
    frozen, before = trained("resnet", tmp_path, freeze_batch_norm=True)
    changed = moved(frozen, before, "encoder.")
    assert changed and not any("normalization" in name for name in changed)
    free, before = trained("resnet", tmp_path)
    changed = moved(free, before, "encoder.")
    assert any("running_mean" in name for name in changed) and any("normalization.weight" in name for name in changed)


def test_an_encoder_without_pixels_has_no_grid() -> None:
    model = model_of("bert", parts=SemanticSegmentation(2))
    with pytest.raises(ValueError, match="grid of patches, which bert is not"):
        model("parts", **inputs_of("bert"))
