"""`pipeline("multi-task")`: one pass of the encoder, the answers of all tasks, as the model alone would give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    CanineTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

import hf_dbmtl
from hf_dbmtl import (
    Classification,
    DepthEstimation,
    MaskedLanguageModeling,
    MultiLabelClassification,
    MultipleChoice,
    MultiTaskModel,
    QuestionAnswering,
    Regression,
    SemanticSegmentation,
    SurfaceNormals,
    TokenClassification,
)
from hf_dbmtl.answers import extract_answers
from hf_dbmtl.encoding import encode_questions


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"good bad day night sun rain a the in is why what ? .".split()]
TEXTS = ["a good day .", "why is the night in the rain ?", "sun"]
TASKS = {
    "topic": Classification(label_names=["sport", "trade", "art"]),
    "traits": MultiLabelClassification(label_names=["long", "loud", "late", "low"]),
    "stars": Regression(),
    "place": Regression(2, label_names=["north", "east"]),
    "tags": TokenClassification(label_names=["O", "B", "I"]),
}


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, model_max_length=32)


def text_model(tasks: dict | None = None) -> MultiTaskModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    model = MultiTaskModel.from_encoder(BertModel(config), tasks or TASKS, pooling="mean").eval()
    return _spread(model)


def image_model(tasks: dict) -> MultiTaskModel:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
        initializer_range=0.5,
    )
    return _spread(MultiTaskModel.from_encoder(ViTModel(config), tasks, pooling="cls").eval())


@torch.no_grad()
def _spread(model: MultiTaskModel) -> MultiTaskModel:
    """Heads that give clear answers."""
    for name, parameter in model.heads.named_parameters():
        if "linear" in name:
            parameter.normal_()
    return model


@torch.no_grad()
def logits_of(model: MultiTaskModel, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: value[0] for name, value in model(**inputs).logits.items()}


# ---- texts


def test_the_answers_are_the_models(tokenizer: BertTokenizer) -> None:
    model = text_model()
    ask = pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu")
    for text in TEXTS:
        given, logits = ask(text), logits_of(model, **tokenizer(text, return_tensors="pt"))
        assert list(given) == list(TASKS)
        best, index = logits["topic"].softmax(-1).max(-1)
        assert given["topic"] == {"label": TASKS["topic"].label_names[index], "score": pytest.approx(best.item())}
        held = {name: p for name, p in zip(TASKS["traits"].label_names, logits["traits"].sigmoid().tolist()) if p > 0.5}
        assert {one["label"]: one["score"] for one in given["traits"]} == pytest.approx(held)
        assert sorted(held.values(), reverse=True) == pytest.approx([one["score"] for one in given["traits"]])
        assert given["stars"] == pytest.approx(logits["stars"].item())
        assert given["place"] == pytest.approx(dict(zip(["north", "east"], logits["place"].tolist())))
        labels = logits["tags"].argmax(-1)[1:-1].tolist()
        tokens = text.split()
        assert [(one["entity"], one["word"], text[one["start"] : one["end"]]) for one in given["tags"]] == [
            (TASKS["tags"].label_names[label], token, token) for token, label in zip(tokens, labels) if label
        ]
    assert ask(TEXTS[0]) != ask(TEXTS[1])


def same(first: object, second: object) -> bool:
    """Equal, numbers to rounding."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == (pytest.approx(second, abs=1e-5) if isinstance(second, float) else second)


def test_one_pass_of_the_encoder_for_a_batch_and_the_same_answers(tokenizer: BertTokenizer) -> None:
    model = text_model()
    ask = pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu")
    alone = [ask(text) for text in TEXTS]
    passes: list[int] = []
    model.encoder.register_forward_hook(lambda module, args, output: passes.append(len(output.last_hidden_state)))
    batched = ask(TEXTS, batch_size=2)
    assert passes == [2, 1]
    assert same(batched, alone) and not same(batched[::-1], alone)
    assert same(list(ask(text for text in TEXTS)), alone)


def test_which_tasks_and_how_many_labels(tokenizer: BertTokenizer) -> None:
    ask = pipeline("multi-task", model=text_model(), tokenizer=tokenizer, device="cpu", top_k=None)
    given = ask(TEXTS[0], tasks=["stars", "topic"], threshold=0.0)
    assert list(given) == ["stars", "topic"]
    assert sorted(one["label"] for one in given["topic"]) == ["art", "sport", "trade"]
    assert sum(one["score"] for one in given["topic"]) == pytest.approx(1)
    assert len(ask(TEXTS[0], tasks="topic", top_k=2)["topic"]) == 2
    assert len(ask(TEXTS[0], threshold=0.0)["traits"]) == 4 and ask(TEXTS[0], threshold=1.0)["traits"] == []


def test_pairs_and_truncation(tokenizer: BertTokenizer) -> None:
    model = text_model()
    ask = pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu")
    pair = ask({"text": TEXTS[0], "text_pair": TEXTS[1]})
    logits = logits_of(model, **tokenizer(TEXTS[0], TEXTS[1], return_tensors="pt"))
    assert pair["stars"] == pytest.approx(logits["stars"].item())
    assert pair["stars"] != pytest.approx(ask(TEXTS[0])["stars"])
    assert same(ask("a day " * 500), ask("a day " * 20)) and not same(ask("a day " * 500), ask("a day " * 10))
    short = ask("a day " * 20, tokenizer_kwargs={"max_length": 4})
    assert same(short, ask("a day", tokenizer_kwargs={"max_length": 4}))


def test_questions(tokenizer: BertTokenizer) -> None:
    model = text_model({"squad": QuestionAnswering(max_answer_length=3), "topic": Classification(3)})
    ask = pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu")
    given = ask({"question": "why ?", "context": TEXTS[1]})
    rows = {"id": ["0"], "question": ["why ?"], "context": [TEXTS[1]]}
    from datasets import Dataset

    windows = Dataset.from_dict(rows).map(
        encode_questions,
        batched=True,
        remove_columns=list(rows),
        fn_kwargs={"tokenizer": tokenizer, "max_length": 32, "stride": 2},
    )
    logits = logits_of(model, **tokenizer("why ?", TEXTS[1], return_tensors="pt"))
    (expected,) = extract_answers(logits["squad"][None].numpy(), windows, 3).values()
    answer = given["squad"]
    assert answer["answer"] == expected == TEXTS[1][answer["start"] : answer["end"]] != ""
    ids = tokenizer("why ?", TEXTS[1], return_offsets_mapping=True)
    spans = [span if part == 1 else None for span, part in zip(ids["offset_mapping"], ids.sequence_ids(0))]
    first = next(i for i, span in enumerate(spans) if span and span[0] == answer["start"])
    last = next(i for i, span in enumerate(spans) if span and span[1] == answer["end"])
    starts, ends = logits["squad"].softmax(0).T
    assert answer["score"] == pytest.approx((starts[first] * ends[last]).item(), rel=1e-4)
    assert list(ask(TEXTS[0])) == ["topic"]
    with pytest.raises(ValueError, match="'squad' .question_answering. has no answer to such an input"):
        ask(TEXTS[0], tasks=["squad"])
    assert ask({"question": "why ?", "context": ""})["squad"] == {"answer": "", "score": 0.0, "start": 0, "end": 0}
    ask = pipeline("multi-task", model=model, tokenizer=CanineTokenizer(), device="cpu")
    with pytest.raises(ValueError, match="need a fast tokenizer, which knows where a token stands"):
        ask({"question": "why ?", "context": TEXTS[1]})


def test_choices(tokenizer: BertTokenizer) -> None:
    model = text_model({"best": MultipleChoice(2), "topic": Classification(3)})
    ask = pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu", tokenizer_kwargs={"max_length": 12})
    asked = [{"text": text, "choices": ["sun", "the rain is bad"]} for text in TEXTS]
    encoded = tokenizer([TEXTS[0]] * 2, asked[0]["choices"], padding=True, return_tensors="pt")
    with torch.no_grad():
        inputs = {key: value[None] for key, value in encoded.items()}
        best, index = model(task="best", **inputs).logits[0].softmax(-1).max(-1)
    assert ask(asked[0]) == {
        "best": {"choice": index, "text": asked[0]["choices"][index], "score": pytest.approx(best.item())}
    }
    assert same(ask(asked, batch_size=3), [ask(one) for one in asked])
    assert list(ask(TEXTS[0])) == ["topic"]
    model.tasks["best"].label_names = ["first", "second"]
    named = ask(asked[0])["best"]
    assert (named["choice"], named["label"]) == (index, ["first", "second"][index])


def test_an_auxiliary_task_has_no_answer(tokenizer: BertTokenizer) -> None:
    model = text_model({"masked": MaskedLanguageModeling(), "topic": Classification(3)})
    ask = pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu")
    given = ask(TEXTS[0])
    assert list(given) == ["topic"] and given["topic"]["label"].startswith("LABEL_")
    with pytest.raises(ValueError, match="Task 'masked': there is no answer for masked_language_modeling"):
        ask(TEXTS[0], tasks=["masked"])


# ---- images


def test_images(tmp_path: Path) -> None:
    tasks = {
        "digit": Classification(3),
        "ink": Regression(),
        "parts": SemanticSegmentation(4),
        "depth": DepthEstimation(),
        "normals": SurfaceNormals(),
    }
    model, processor = image_model(tasks), ViTImageProcessor(size={"height": 16, "width": 16})
    ask = pipeline("multi-task", model=model, image_processor=processor, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    images = [Image.fromarray(one) for one in pixels]
    images[0].save(tmp_path / "image.png")
    given, logits = ask(images[0]), logits_of(model, **processor(images[0], return_tensors="pt"))
    assert given["digit"]["label"] == f"LABEL_{logits['digit'].argmax()}"
    assert given["ink"] == pytest.approx(logits["ink"].item(), abs=1e-6)
    assert given["parts"]["segmentation"].shape == given["depth"]["predicted_depth"].shape == (20, 30)
    assert set(given["parts"]["labels"]) == set(given["parts"]["segmentation"].unique().tolist())
    assert torch.allclose(given["normals"]["normals"].norm(dim=0), torch.ones(20, 30))
    assert ask(str(tmp_path / "image.png"))["ink"] == given["ink"]
    several = ask(images, batch_size=3)
    assert [one["ink"] for one in several] == pytest.approx([ask(one)["ink"] for one in images], abs=1e-5)


# ---- from a folder, and what is refused


def test_from_a_folder_without_trust(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    model = text_model()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ask = pipeline("multi-task", model=str(tmp_path), device="cpu")
    assert type(ask) is hf_dbmtl.MultiTaskPipeline and ask.model.dtype == torch.float32
    assert same(ask(TEXTS), pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu")(TEXTS))
    ask.save_pretrained(tmp_path / "again")
    assert same(pipeline("multi-task", model=str(tmp_path / "again"), device="cpu")(TEXTS), ask(TEXTS))


def test_an_image_model_from_a_folder(tmp_path: Path) -> None:
    image_model({"digit": Classification(3)}).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    ask = pipeline("multi-task", model=str(tmp_path), device="cpu")
    assert ask(Image.new("RGB", (9, 9)))["digit"]["label"].startswith("LABEL_")


def test_what_is_refused(tokenizer: BertTokenizer) -> None:
    model = text_model()
    ask = pipeline("multi-task", model=model, tokenizer=tokenizer, device="cpu")
    with pytest.raises(ValueError, match="Unknown task 'topics': this model has 'topic'"):
        ask(TEXTS[0], tasks=["topics"])
    with pytest.raises(TypeError, match="max_length: this pipeline takes tasks"):
        ask(TEXTS[0], max_length=3)
    with pytest.raises(ValueError, match="An input is a text, .* got the keys 'texts'"):
        ask({"texts": TEXTS[0]})
    with pytest.raises(TypeError, match="An input is a text, .* got int"):
        ask(3)
    with pytest.raises(ValueError, match="no tokenizer beside the model"):
        pipeline("multi-task", model=model, device="cpu")(TEXTS[0])
    with pytest.raises(ValueError, match="no image processor beside the model"):
        pipeline("multi-task", model=image_model({"a": Classification(2)}), device="cpu")(Image.new("RGB", (9, 9)))
    with pytest.raises(TypeError, match="is for a MultiTaskModel, not a BertModel"):
        pipeline("multi-task", model=AutoModel.from_config(model.config.encoder), tokenizer=tokenizer, device="cpu")
