"""One task as a stock checkpoint: the same logits for every family of encoders, or a refusal that says why."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BeitConfig,
    BertConfig,
    BertTokenizer,
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
    ViTImageProcessor,
    XLMRobertaConfig,
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
    TokenClassification,
    export_task,
    register_head,
)
from hf_dbmtl import export as export_module
from hf_dbmtl.stock_heads import direct
from hf_dbmtl.task import Task


TASKS = {
    "topic": Classification(label_names=["sport", "trade", "art"]),
    "score": Regression(),
    "traits": MultiLabelClassification(4),
    "tags": TokenClassification(5),
}
TEXT = dict(
    vocab_size=50,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=40,
)
SPECIAL = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
IMAGE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
DISTILBERT = dict(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=40)
MAPS = dict(hidden_sizes=[8, 16], depths=[1, 1])

CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**TEXT),
    "roberta": RobertaConfig(**TEXT),
    "xlm-roberta": XLMRobertaConfig(**TEXT),
    "distilbert": DistilBertConfig(**DISTILBERT),
    "deberta-v2": DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "electra": ElectraConfig(**TEXT, embedding_size=8),
    "mpnet": MPNetConfig(**TEXT),
    "albert": AlbertConfig(**TEXT, embedding_size=8),
    "modernbert": ModernBertConfig(**TEXT, **SPECIAL),
    "t5": T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, **ENDS),
    "llama": LlamaConfig(**TEXT, **ENDS),
    "vit": ViTConfig(**IMAGE, intermediate_size=24),
    "deit": DeiTConfig(**IMAGE, intermediate_size=24),
    "beit": BeitConfig(**IMAGE, intermediate_size=24),
    "beit, first token": BeitConfig(**IMAGE, intermediate_size=24, use_mean_pooling=False),
    "dinov2": Dinov2Config(**IMAGE, mlp_ratio=2),
    "swin": SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2),
    "convnext": ConvNextConfig(**MAPS, num_stages=2, image_size=16),
    "resnet": ResNetConfig(**MAPS, embedding_size=8, layer_type="basic"),
}
# By encoder and pooling the stock class, or where there is none, a piece of the reason.
SEQUENCE = {
    ("bert", "pooler"): "BertForSequenceClassification",
    ("bert", "cls"): "BertForSequenceClassification",
    ("bert", "mean"): "trained with pooling='pooler' or 'cls' can be",
    ("bert", "last"): "BertForSequenceClassification give what its head gives on pooling='last'",
    ("roberta", "pooler"): "RobertaForSequenceClassification",
    ("roberta", "cls"): "RobertaForSequenceClassification",
    ("roberta", "mean"): "trained with pooling='pooler' or 'cls' can be",
    ("xlm-roberta", "pooler"): "XLMRobertaForSequenceClassification",
    ("distilbert", "cls"): "DistilBertForSequenceClassification",
    ("distilbert", "mean"): "trained with pooling='cls' can be",
    ("deberta-v2", "cls"): "DebertaV2ForSequenceClassification",
    ("deberta-v2", "mean"): "trained with pooling='cls' can be",
    ("electra", "cls"): "ElectraForSequenceClassification",
    ("electra", "mean"): "trained with pooling='cls' can be",
    ("mpnet", "pooler"): "MPNetForSequenceClassification",
    ("mpnet", "cls"): "MPNetForSequenceClassification",
    ("mpnet", "mean"): "trained with pooling='pooler' or 'cls' can be",
    ("albert", "pooler"): "AlbertForSequenceClassification",
    ("albert", "cls"): "AlbertForSequenceClassification",
    ("modernbert", "cls"): "no weights turn off: head.norm (LayerNorm)",
    ("modernbert", "mean"): "no weights turn off: head.norm (LayerNorm)",
    ("t5", "mean"): "T5ForSequenceClassification also runs decoder.",
    ("gpt2", "last"): "GPT2ForSequenceClassification",
    ("gpt2", "mean"): "trained with pooling='last' can be",
    ("llama", "last"): "its last layer has no bias",
    ("vit", "cls"): "ViTForImageClassification",
    ("vit", "pooler"): "trained with pooling='cls' can be",
    ("deit", "cls"): "DeiTForImageClassification",
    ("deit", "pooler"): "trained with pooling='cls' can be",
    ("beit", "pooler"): "BeitForImageClassification",
    ("beit", "cls"): "trained with pooling='pooler' can be",
    ("beit, first token", "cls"): "BeitForImageClassification",
    ("dinov2", "pooler"): "Dinov2ForImageClassification",
    ("dinov2", "cls"): "Dinov2ForImageClassification",
    ("dinov2", "mean"): "trained with pooling='pooler' or 'cls' can be",
    ("swin", "pooler"): "SwinForImageClassification",
    ("swin", "mean"): "SwinForImageClassification",
    ("swin", "cls"): "trained with pooling='pooler' or 'mean' can be",
    ("convnext", "pooler"): "ConvNextForImageClassification",
    ("convnext", "mean"): "trained with pooling='pooler' can be",
    ("resnet", "pooler"): "ResNetForImageClassification",
    ("resnet", "mean"): "ResNetForImageClassification",
    ("resnet", "cls"): "trained with pooling='pooler' or 'mean' can be",
}
TOKENS = {
    **{"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "deberta-v2": "DebertaV2", "t5": "T5"},
    **{
        "electra": "Electra",
        "mpnet": "MPNet",
        "albert": "Albert",
        "xlm-roberta": "XLMRoberta",
        "gpt2": "GPT2",
        "llama": "Llama",
    },
}


def make_model(name: str = "bert", pooling: str | None = None, tasks: dict | None = None) -> MultiTaskModel:
    """A tiny model with weights far from those of any initialisation, in training mode."""
    torch.manual_seed(0)
    config = type(CONFIGS[name]).from_dict(CONFIGS[name].to_dict())
    encoder = T5EncoderModel(config) if name == "t5" else AutoModel.from_config(config)
    model = MultiTaskModel.from_encoder(encoder, tasks or TASKS, pooling=pooling)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for key, buffer in encoder.named_buffers():
            if "running_" in key:  # statistics of BatchNorm
                buffer.add_(0.1 * torch.rand_like(buffer))
        for parameter in model.heads.parameters():
            parameter.normal_()
    return model.train()


def inputs_for(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Others than those that the export tries itself."""
    generator = torch.Generator().manual_seed(7)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.rand(4, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, 50, (4, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([[9], [5], [7], [1]])).long()
    return {"input_ids": ids * mask + CONFIGS_PAD.get(model.config.model_type, 0) * (1 - mask), "attention_mask": mask}


CONFIGS_PAD = {"roberta": 1, "xlm-roberta": 1, "mpnet": 1}


@torch.no_grad()
def difference(stock: PreTrainedModel, model: MultiTaskModel, task: str) -> float:
    """The largest difference of the logits, relative to the largest logit where that is above 1."""
    inputs = inputs_for(model.encoder)
    expected = model.eval()(task=task, **inputs).logits
    given = stock(**inputs).logits
    assert given.shape == expected.shape
    return ((given - expected).abs().max() / max(1.0, expected.abs().max().item())).item()


def load(folder: Path, model: MultiTaskModel, level: str = "sequence") -> PreTrainedModel:
    image = model.main_input_name == "pixel_values"
    auto = AutoModelForImageClassification if image else AutoModelForSequenceClassification
    auto = AutoModelForTokenClassification if level == "token" else auto
    stock, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return stock


# ---- families


@pytest.mark.parametrize(("name", "pooling"), SEQUENCE)
def test_every_family_exports_exactly_or_says_why_not(name: str, pooling: str, tmp_path: Path) -> None:
    model, expected = make_model(name, pooling), SEQUENCE[name, pooling]
    if " " in expected:
        with pytest.raises(ValueError, match="Task 'topic' has no exact stock checkpoint") as raised:
            export_task(model, "topic", tmp_path)
        assert expected in str(raised.value)
        assert not list(tmp_path.iterdir())
        return
    assert export_task(model, "topic", tmp_path) == tmp_path
    stock = load(tmp_path, model)
    assert type(stock) is getattr(transformers, expected)
    assert difference(stock, model, "topic") < 1e-6
    with torch.no_grad():  # the control
        model.heads["topic"].linear.weight[0, 0] += 0.01
    assert difference(stock, model, "topic") > 1e-4


@pytest.mark.parametrize("name", TOKENS)
def test_token_heads(name: str, tmp_path: Path) -> None:
    model = make_model(name, "mean")
    export_task(model, "tags", tmp_path)
    stock = load(tmp_path, model, "token")
    assert type(stock).__name__ == f"{TOKENS[name]}ForTokenClassification"
    assert difference(stock, model, "tags") < 1e-6


@pytest.mark.parametrize(
    ("name", "reason"),
    [("modernbert", "head.norm"), ("vit", "no stock class for token classification on an encoder of pixel_values")],
)
def test_token_heads_that_do_not_fit(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        export_task(make_model(name, "cls"), "tags", tmp_path)


@pytest.mark.parametrize("name", ["distilbert", "electra", "deberta-v2"])
def test_more_labels_than_a_rectifier_carries(name: str, tmp_path: Path) -> None:
    fits, too_many = ({"topic": Classification(count)} for count in (8, 9))
    model = make_model(name, "cls", fits)
    export_task(model, "topic", tmp_path / "fits")
    assert difference(load(tmp_path / "fits", model), model, "topic") < 1e-6
    with pytest.raises(ValueError, match="16 hidden units are too few for 9 labels"):
        export_task(make_model(name, "cls", too_many), "topic", tmp_path / "too many")


def test_a_decoder_without_any_bias_takes_a_head_without_bias(tmp_path: Path) -> None:
    model = make_model("llama", "last")
    with torch.no_grad():
        model.heads["topic"].linear.bias.zero_()
    export_task(model, "topic", tmp_path)
    assert difference(load(tmp_path, model), model, "topic") < 1e-6


# ---- what is written


@pytest.mark.parametrize(
    ("task", "problem_type", "labels"),
    [
        ("topic", "single_label_classification", ["sport", "trade", "art"]),
        ("score", "regression", ["score"]),
        ("traits", "multi_label_classification", ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]),
    ],
)
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_problem_types_and_names(name: str, task: str, problem_type: str, labels: list[str], tmp_path: Path) -> None:
    model = make_model(name, "cls")
    export_task(model, task, tmp_path)
    stock = load(tmp_path, model)
    assert stock.config.problem_type == problem_type and stock.config.id2label == dict(enumerate(labels))
    assert stock.config.label2id == {label: index for index, label in enumerate(labels)}
    assert difference(stock, model, task) < 1e-6
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["architectures"] == [type(stock).__name__] and "auto_map" not in written
    assert not list(tmp_path.glob("*.py"))


@pytest.fixture
def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "night", ".", "a"]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)})


def logits_of(model: MultiTaskModel, task: str, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(task=task, **inputs).logits[0]


@pytest.mark.parametrize(
    ("task", "function"),
    [("topic", lambda z: z.softmax(-1)), ("traits", torch.sigmoid), ("score", lambda z: z)],
)
def test_a_plain_pipeline_on_text(task: str, function, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    model = make_model()
    export_task(model, task, tmp_path, processing_class=tokenizer)
    (told,) = pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")(["a good day ."])
    expected = function(logits_of(model, task, **tokenizer("a good day .", return_tensors="pt")))
    names = load(tmp_path, model).config.id2label
    given = {one["label"]: one["score"] for one in told}
    assert given == pytest.approx({names[i]: value for i, value in enumerate(expected.tolist())}, abs=1e-6)


def test_a_plain_pipeline_on_tokens(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    model = make_model()
    export_task(model, "tags", tmp_path, processing_class=tokenizer)
    told = pipeline("token-classification", str(tmp_path), device="cpu")("a bad night")
    expected = logits_of(model, "tags", **tokenizer("a bad night", return_tensors="pt")).argmax(-1)[1:-1]
    assert [one["entity"] for one in told] == [f"LABEL_{index}" for index in expected.tolist()]


def test_a_plain_pipeline_on_images(tmp_path: Path) -> None:
    from PIL import Image

    model, processor = make_model("vit", "cls"), ViTImageProcessor(size={"height": 16, "width": 16})
    export_task(model, "topic", tmp_path, processing_class=processor)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    told = pipeline("image-classification", str(tmp_path), device="cpu")(image)
    expected = logits_of(model, "topic", **processor(image, return_tensors="pt")).softmax(-1)
    names = TASKS["topic"].label_names
    assert {one["label"]: one["score"] for one in told} == pytest.approx(dict(zip(names, expected.tolist())), abs=1e-6)


def test_shards_and_dtypes(tmp_path: Path) -> None:
    model = make_model().to(torch.bfloat16)
    export_task(model, "topic", tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert stock.dtype == torch.bfloat16
    assert difference(stock.float(), model.float(), "topic") < 1e-6
    double = make_model("roberta", "cls").double()
    export_task(double, "topic", tmp_path / "double")
    assert difference(load(tmp_path / "double", double).double(), double, "topic") < 1e-6


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = make_model("gpt2", "last")
    model.heads["score"].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    config = model.config.to_json_string()
    export_task(model, "topic", tmp_path)
    assert model.encoder.training and model.heads["topic"].training and not model.heads["score"].training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.config.to_json_string() == config and not list(tmp_path.glob("tmp*"))


# ---- never silently wrong


def test_equal_logits_by_chance_are_not_enough(tmp_path: Path) -> None:
    """A head of zeros gives the same logits whatever it sees: what it would see is tried with random weights."""
    model = make_model("vit", "pooler")
    torch.nn.init.zeros_(model.heads["topic"].linear.weight)
    with pytest.raises(ValueError, match="pooling='cls' can be exported"):
        export_task(model, "topic", tmp_path)


def test_what_is_wrong_on_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(export_module, "find_way", lambda *args: direct)
        with pytest.raises(ValueError, match="loaded again, gives other logits"):
            export_task(make_model("bert", "cls"), "topic", tmp_path)
    assert not list(tmp_path.iterdir())
    export_task(make_model("bert", "cls"), "topic", tmp_path)


class NormedHead(nn.Module):
    level = "sequence"

    def __init__(self, task: Task, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, task.width)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(seen))


class TanhHead(nn.Sequential):
    """That of RoBERTa."""

    level = "sequence"

    def __init__(self, task: Task, encoder: PreTrainedModel) -> None:
        super().__init__(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, task.width))


@pytest.mark.parametrize(
    ("name", "options", "fits"),
    [
        ("electra", {"hidden_sizes": [16]}, True),
        ("deberta-v2", {"hidden_sizes": [16]}, True),
        ("electra", {"hidden_sizes": [12]}, False),
        ("electra", {"hidden_sizes": [16, 16]}, False),
        ("roberta", {"hidden_sizes": [16]}, False),
        ("bert", {"hidden_sizes": [16]}, False),
        ("roberta", {"head": "tanh"}, True),
        ("bert", {"head": "tanh"}, True),
        ("electra", {"head": "tanh"}, False),
        ("bert", {"head": "normed"}, False),
    ],
)
def test_heads_with_a_hidden_layer_and_of_ones_own(name: str, options: dict, fits: bool, tmp_path: Path) -> None:
    register_head("tanh", TanhHead)
    register_head("normed", NormedHead)
    model = make_model(name, "cls", {"topic": Classification(3, **options)})
    if fits:
        export_task(model, "topic", tmp_path)
        assert difference(load(tmp_path, model), model, "topic") < 1e-6
    else:
        with pytest.raises(ValueError, match="is not made of one or two linear layers|no weights of"):
            export_task(model, "topic", tmp_path)


# ---- further kinds


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("bert", "pooler"), ("bert", "cls"), ("roberta", "pooler"), ("distilbert", "cls"), ("electra", "cls")],
)
def test_multiple_choice(name: str, pooling: str, tmp_path: Path) -> None:
    model = make_model(name, pooling, {"best": MultipleChoice(2)})
    export_task(model, "best", tmp_path)
    stock = AutoModelForMultipleChoice.from_pretrained(tmp_path).eval()
    inputs = {key: value.unflatten(0, (2, 2)) for key, value in inputs_for(model.encoder).items()}
    with torch.no_grad():
        assert torch.allclose(stock(**inputs).logits, model.eval()(task="best", **inputs).logits, atol=1e-6)


def test_multiple_choice_sees_what_the_pooling_says(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained with pooling='pooler' or 'cls' can be exported"):
        export_task(make_model("bert", "mean", {"best": MultipleChoice(2)}), "best", tmp_path)


@pytest.mark.parametrize("name", [name for name in TOKENS if name != "t5"])
def test_question_answering(name: str, tmp_path: Path) -> None:
    model = make_model(name, "mean", {"squad": QuestionAnswering()})
    model.config.encoder.id2label = {0: "a", 1: "b", 2: "c"}  # left over from a task that the encoder was tuned for
    export_task(model, "squad", tmp_path)
    stock = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    inputs = inputs_for(model.encoder)
    with torch.no_grad():
        output, logits = stock(**inputs), model.eval()(task="squad", **inputs).logits
    # the stock models of decoders return them as they are, some encoders behind a clone
    assert torch.allclose(torch.stack([output.start_logits, output.end_logits], -1), logits, atol=1e-6)
    assert not torch.allclose(output.end_logits, logits[..., 0], atol=1e-2)


@pytest.mark.parametrize(
    ("name", "task", "reason"),
    [
        ("t5", MultipleChoice(2), "AutoModelForMultipleChoice knows no model for T5Config"),
        ("t5", QuestionAnswering(), "T5ForQuestionAnswering also runs decoder."),
        ("modernbert", QuestionAnswering(), "no weights turn off: head.norm"),
        ("bert", MaskedLanguageModeling(), "as an auxiliary task"),
        ("vit", SemanticSegmentation(3), "read several layers of their encoders"),
        ("vit", DepthEstimation(), "read several layers of their encoders"),
    ],
)
def test_kinds_without_a_stock_class(name: str, task: Task, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        export_task(make_model(name, tasks={"it": task}), "it", tmp_path)


def test_adapters_are_merged_into_what_is_written(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = make_model()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False))
    without = model.encoder.encoder.layer[0].attention.self.query.base_layer.weight.clone()
    export_task(model, "topic", tmp_path)
    stock = load(tmp_path, model)
    assert difference(stock, model, "topic") < 1e-6 and model.config.adapter is not None
    assert not torch.equal(stock.bert.encoder.layer[0].attention.self.query.weight, without)


def test_layers_put_into_the_encoder(tmp_path: Path) -> None:
    model = make_model()
    query = model.encoder.encoder.layer[0].attention.self.query
    query.adapter = nn.Linear(16, 16)
    with pytest.raises(ValueError, match="no place for encoder.layer.0.attention.self.query.adapter.weight"):
        export_task(model, "topic", tmp_path)


def test_where_every_token_has_an_answer_the_padding_is_not_asked_for(tmp_path: Path) -> None:
    model = make_model("gpt2", "last", {"tags": TokenClassification(3)})
    model.config.encoder.pad_token_id = None
    export_task(model, "tags", tmp_path)
    stock = load(tmp_path, model, "token")
    assert stock.config.pad_token_id is None and difference(stock, model, "tags") < 1e-6


def test_a_decoder_needs_to_know_the_padding(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    model = make_model("gpt2", "last")
    model.config.encoder.pad_token_id = None
    with pytest.raises(ValueError, match="pass `processing_class=` with a pad_token"):
        export_task(model, "topic", tmp_path)
    export_task(model, "topic", tmp_path, processing_class=tokenizer)
    assert load(tmp_path, model).config.pad_token_id == tokenizer.pad_token_id == 0


def test_padding_on_the_left(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """The stock head would see padding where ours sees the first token."""
    tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="on pooling='cls'"):
        export_task(make_model("bert", "cls"), "topic", tmp_path, processing_class=tokenizer)
    export_task(make_model("gpt2", "last"), "topic", tmp_path, processing_class=tokenizer)


def test_arguments(tmp_path: Path) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="Unknown task 'topics': this model has 'topic', 'score'"):
        export_task(model, "topics", tmp_path)
    with pytest.raises(TypeError, match="must be a MultiTaskModel, got BertModel"):
        export_task(model.encoder, "topic", tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a multi-task model, which would be lost"):
        export_task(model, "topic", tmp_path)
    assert hf_dbmtl.export_task is export_task
