"""The model: any encoder with heads, saved and loaded exactly."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizer,
    ConvNextConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    ResNetConfig,
    RobertaConfig,
    T5Config,
    T5EncoderModel,
    T5Model,
    ViTConfig,
)

from hf_dbmtl import (
    Classification,
    MultiLabelClassification,
    MultiTaskConfig,
    MultiTaskModel,
    Regression,
    TokenClassification,
)


TASKS = {
    "topic": Classification(3),
    "score": Regression(2),
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
T5 = dict(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)

# Configuration of the encoder, and the pooling that is right for it.
ENCODERS = {
    "bert": (BertConfig(**TEXT), "pooler"),
    "roberta": (RobertaConfig(**TEXT), "pooler"),
    "distilbert": (DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24), "mean"),
    "electra": (ElectraConfig(**TEXT, embedding_size=8), "mean"),
    "mpnet": (MPNetConfig(**TEXT), "pooler"),
    "deberta": (DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"]), "mean"),
    "modernbert": (ModernBertConfig(**TEXT, **SPECIAL), "mean"),
    "t5": (T5Config(**T5), "mean"),
    "gpt2": (GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2), "last"),
    "llama": (LlamaConfig(**TEXT), "last"),
    "vit": (
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            image_size=16,
            patch_size=8,
        ),
        "pooler",
    ),
    "resnet": (ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"), "pooler"),
    "convnext": (ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), "pooler"),
}


def make_encoder(name: str = "bert") -> PreTrainedModel:
    torch.manual_seed(0)
    config = type(ENCODERS[name][0]).from_dict(ENCODERS[name][0].to_dict())
    encoder = (T5EncoderModel(config) if name == "t5" else AutoModel.from_config(config)).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # away from what an initialisation would give again
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def make_model(name: str = "bert", tasks: dict | None = None, **options) -> MultiTaskModel:
    return MultiTaskModel.from_encoder(make_encoder(name), tasks or TASKS, **options)


def inputs_for(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, 50, (2, 7), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}


def logits_of(model: MultiTaskModel, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.eval()(**(inputs or inputs_for(model))).logits


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def different(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    alike = {key for key in first.keys() & second.keys() if torch.equal(first[key], second[key])}
    return (first.keys() | second.keys()) - alike


@pytest.mark.parametrize("name", ENCODERS)
def test_any_encoder_survives_a_round_trip(name, tmp_path):
    encoder = make_encoder(name)
    given = copied(encoder)
    model = MultiTaskModel.from_encoder(encoder, TASKS)
    assert model.config.pooling == ENCODERS[name][1]
    assert not different(copied(model.encoder), given)
    logits = logits_of(model)
    assert {task: tuple(value.shape) for task, value in logits.items() if task != "tags"} == {
        "topic": (2, 3),
        "score": (2, 2),
        "traits": (2, 4),
    }
    assert logits["tags"].ndim == 3 and logits["tags"].shape[::2] == (2, 5)
    with torch.no_grad():
        assert torch.equal(logits["topic"], model(task="topic", **inputs_for(model)).logits)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    for loader in (MultiTaskModel, AutoModel):
        again, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(again) is MultiTaskModel and type(again.encoder) is type(encoder)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert not different(copied(again), copied(model))
        assert [key for key, _ in again.named_parameters()] == [key for key, _ in model.named_parameters()]
        assert not different(logits_of(again), logits)
    with torch.no_grad():
        next(again.encoder.parameters()).mul_(1.01)
    assert different(logits_of(again), logits) == set(TASKS)


def test_a_saved_folder_loads_where_the_package_is_absent(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    script = """
import json, sys, torch
sys.modules["hf_dbmtl"] = None  # an import of it raises ImportError
from transformers import AutoModel
from torch import tensor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
with torch.no_grad():
    logits = model(input_ids=tensor(json.loads(sys.argv[2])), attention_mask=tensor(json.loads(sys.argv[3]))).logits
model.save_pretrained(sys.argv[4])
print(json.dumps({name: value.tolist() for name, value in logits.items()}))
"""
    inputs = inputs_for(model)
    given = [json.dumps(inputs[name].tolist()) for name in ("input_ids", "attention_mask")]
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model"), *given, str(tmp_path / "again")],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    logits = {name: torch.tensor(value) for name, value in json.loads(run.stdout.splitlines()[-1]).items()}
    assert not different(logits, logits_of(model))
    assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()
    # What was saved there carries the code on, and comes home.
    assert {path.name for path in (tmp_path / "again").glob("*.py")} >= {
        "modeling.py",
        "configuration.py",
        "heads.py",
        "tasks.py",
    }
    assert not different(copied(MultiTaskModel.from_pretrained(tmp_path / "again")), copied(model))


def test_weights_load_in_float32_unless_asked_otherwise(tmp_path):
    make_encoder().to(torch.bfloat16).save_pretrained(tmp_path / "encoder")
    assert AutoModel.from_pretrained(tmp_path / "encoder").dtype == torch.bfloat16  # the library's own default
    model = MultiTaskModel.from_encoder(tmp_path / "encoder", TASKS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.name_or_path == str(tmp_path / "encoder")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    for loader in (MultiTaskModel, AutoModel):
        loaded = loader.from_pretrained(tmp_path / "model")
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.config.dtype == loaded.config.encoder.dtype == torch.float32
    for dtype in (torch.bfloat16, "bfloat16", "auto"):
        for loaded in (
            MultiTaskModel.from_encoder(tmp_path / "encoder", TASKS, dtype=dtype),
            MultiTaskModel.from_pretrained(tmp_path / "model", dtype=dtype),
        ):
            assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert MultiTaskModel.from_pretrained(tmp_path / "model", torch_dtype="float64").dtype == torch.float64


def test_weights_that_do_not_fit_into_memory_are_not_called_damaged(tmp_path, monkeypatch):
    make_model().save_pretrained(tmp_path)

    def full(*args, **options):
        raise error("no room")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", full)
    error = torch.OutOfMemoryError
    with pytest.raises(torch.OutOfMemoryError, match="^no room$"):
        MultiTaskModel.from_pretrained(tmp_path)
    error = RuntimeError  # whose subclass it is
    with pytest.raises(ValueError, match="weights are damaged"):
        MultiTaskModel.from_pretrained(tmp_path)


def test_an_encoder_given_as_a_module_is_kept_as_it_is():
    encoder = make_encoder().double().train()
    encoder.resize_token_embeddings(60, mean_resizing=False)
    encoder.pooler.dense = nn.Linear(16, 16, dtype=torch.float64)  # like an adapter: unknown to the initialisation
    given = copied(encoder)
    model = MultiTaskModel.from_encoder(encoder, TASKS)
    assert model.encoder is encoder and model.config.encoder is encoder.config
    assert not different(copied(encoder), given)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64} and model.training
    # The control: without the mark that the model sets, the library draws such a layer anew.
    encoder.pooler.dense = nn.Linear(16, 16, dtype=torch.float64)
    given = copied(encoder)
    encoder.init_weights()
    assert different(copied(encoder), given) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_half_precision_and_a_random_pooler_are_pointed_out(tmp_path, caplog):
    model = make_model()
    BertModel(model.config.encoder, add_pooling_layer=False).save_pretrained(tmp_path)
    with caplog.at_level("WARNING", logger="hf_dbmtl"):
        assert MultiTaskModel.from_encoder(tmp_path, TASKS, pooling="cls").config.pooling == "cls"
        MultiTaskModel.from_encoder(make_encoder(), TASKS)
    assert not [record for record in caplog.records if record.name.startswith("hf_dbmtl")]
    with caplog.at_level("WARNING", logger="hf_dbmtl"):
        assert MultiTaskModel.from_encoder(tmp_path, TASKS).config.pooling == "pooler"
        MultiTaskModel.from_encoder(make_encoder().to(torch.bfloat16), TASKS)
    assert "pooler, which starts at random" in caplog.text and "weights are torch.bfloat16" in caplog.text


def test_a_head_starts_as_the_encoder_would_start_it():
    encoder = BertModel(BertConfig(**{**TEXT, "hidden_size": 64}, initializer_range=0.3))
    model = MultiTaskModel.from_encoder(encoder, {"a": Classification(200)})
    model.add_task("b", Classification(200))
    for head in model.heads.values():
        assert head.linear.weight.std().item() == pytest.approx(0.3, rel=0.05)
        assert not head.linear.bias.any()


@pytest.mark.parametrize(
    ("config", "dropout"),
    [
        (BertConfig(**TEXT, hidden_dropout_prob=0.3), 0.3),
        (BertConfig(**TEXT, hidden_dropout_prob=0.3, classifier_dropout=0.0), 0.0),
        (DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=8), 0.1),
    ],
)
def test_dropout_is_the_encoders_unless_the_task_has_its_own(config, dropout):
    tasks = {"a": Regression(), "b": TokenClassification(2, dropout=0.6)}
    model = MultiTaskModel(MultiTaskConfig(encoder=config, tasks=tasks, pooling="cls"))
    assert model.heads["a"].dropout.p == dropout and model.heads["b"].dropout.p == 0.6


# What the heads see


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_padding_is_left_out_of_the_pooling(pooling):
    model = make_model("llama", pooling=pooling, tasks={"a": Classification(3)}).double()
    ids = torch.randint(3, 50, (1, 5))
    alone = logits_of(model, input_ids=ids)["a"]
    for side, mask in (("right", [1] * 5 + [0] * 3), ("left", [0] * 3 + [1] * 5)):
        padding = torch.zeros(1, 3, dtype=torch.long)
        padded = torch.cat([ids, padding] if side == "right" else [padding, ids], dim=1)
        given = {"input_ids": padded, "attention_mask": torch.tensor([mask])}
        if side == "left":
            given["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(logits_of(model, **given)["a"], alone, rtol=1e-10, atol=1e-12)
        if (pooling, side) != ("cls", "right"):  # there the padding cannot reach
            unmasked = logits_of(model, input_ids=padded)["a"]
            assert (unmasked - alone).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("pooling", "pool"), [("cls", lambda x: x[:, 0]), ("mean", lambda x: x.mean(1)), ("last", lambda x: x[:, -1])]
)
def test_poolings_without_a_mask(pooling, pool):
    model = make_model("distilbert", pooling=pooling).double()
    inputs = {"input_ids": torch.randint(3, 50, (3, 6))}
    with torch.no_grad():
        hidden = model.encoder(**inputs).last_hidden_state
        expected = model.heads["topic"].linear(pool(hidden))
    torch.testing.assert_close(logits_of(model, **inputs)["topic"], expected, rtol=1e-12, atol=1e-14)


def test_feature_maps_are_pooled_over_their_places():
    resnet = make_model("resnet", pooling="mean")
    with_pooler = MultiTaskModel(MultiTaskConfig(encoder=resnet.config.encoder, tasks=TASKS), encoder=resnet.encoder)
    with_pooler.heads.load_state_dict(resnet.heads.state_dict())
    torch.testing.assert_close(logits_of(resnet)["topic"], logits_of(with_pooler)["topic"])  # an average pool
    assert logits_of(resnet)["tags"].shape == (2, 4, 5)


def test_the_pooling_follows_encoder_and_tokenizer(tmp_path):
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "word": 5}
    tokenizer = BertTokenizer(vocab=vocabulary)
    assert make_model("distilbert").config.pooling == "mean"
    assert make_model("distilbert", processing_class=tokenizer).config.pooling == "cls"
    assert make_model("bert", processing_class=tokenizer).config.pooling == "pooler"
    assert make_model("bert", processing_class=tokenizer, pooling="last").config.pooling == "last"
    for name, pooling in (("gpt2", "last"), ("llama", "last"), ("modernbert", "mean"), ("distilbert", "cls")):
        make_encoder(name).save_pretrained(tmp_path / name)
        assert MultiTaskModel.from_encoder(str(tmp_path / name), TASKS).config.pooling == pooling
    tokenizer.save_pretrained(tmp_path / "modernbert")  # what lies beside the encoder decides, not its type
    assert MultiTaskModel.from_encoder(tmp_path / "modernbert", TASKS).config.pooling == "cls"
    # but for decoders, whose first token has seen nothing
    assert make_model("gpt2", processing_class=tokenizer).config.pooling == "last"
    bare = BertModel(BertConfig(**TEXT), add_pooling_layer=False)
    assert MultiTaskModel.from_encoder(bare, TASKS).config.pooling == "mean"


# Tasks come and go


def test_adding_a_task_to_a_saved_model_starts_its_head_only(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    config = MultiTaskConfig.from_pretrained(tmp_path)
    config.tasks["new"] = Classification(7).to_dict()
    torch.manual_seed(3)
    grown, info = MultiTaskModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert info["missing_keys"] == {"heads.new.linear.weight", "heads.new.linear.bias"}
    assert different(copied(grown), copied(model)) == info["missing_keys"]
    assert 0 < grown.heads["new"].linear.weight.std() < 0.1 and not grown.heads["new"].linear.bias.any()


def test_tasks_can_be_added_and_removed(tmp_path):
    model = make_model().double()
    before = copied(model)
    model.add_task("new", TokenClassification(7))
    assert different(copied(model), before) == {"heads.new.linear.weight", "heads.new.linear.bias"}
    assert model.heads["new"].linear.weight.dtype == torch.float64 and not model.heads["new"].training
    model.remove_task("score")
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path, dtype=torch.float64)
    assert list(again.tasks) == list(again.heads) == ["topic", "traits", "tags", "new"]
    assert again.tasks == model.tasks and not different(copied(again), copied(model))
    for name, task, error, message in [
        ("new", Regression(), ValueError, "Task 'new' exists already"),
        ("../x", Regression(), ValueError, "Task name"),
        ("other", {"kind": "regression"}, TypeError, "Task 'other': expected a task such as"),
    ]:
        with pytest.raises(error, match=message):
            model.add_task(name, task)
    with pytest.raises(ValueError, match="Unknown task 'score': this model has 'topic', 'traits', 'tags', 'new'"):
        model.remove_task("score")
    for name in ("topic", "traits", "tags"):
        model.remove_task(name)
    with pytest.raises(ValueError, match="'new' is the only one left"):
        model.remove_task("new")


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama", "resnet"])
def test_a_bare_encoder_checkpoint_fills_the_encoder(name, tmp_path):
    model = make_model(name)
    model.encoder.save_pretrained(tmp_path)
    filled, info = MultiTaskModel.from_pretrained(tmp_path, config=model.config, output_loading_info=True)
    assert not different(copied(filled.encoder), copied(model.encoder))
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"heads"} and not info["unexpected_keys"]
    with pytest.raises(ValueError, match="The configuration has no task. .*from_encoder"):
        MultiTaskModel.from_pretrained(tmp_path)


# Training


def test_the_loss_is_the_tasks_own_and_missing_labels_cost_nothing():
    model = make_model().double()
    inputs = inputs_for(model)
    for name, task in TASKS.items():
        labels = {
            "topic": [2, None],
            "score": [[3.0, None], [None, None]],
            "traits": [[1, 0, None, 1], None],
            "tags": [[1, None, 4], [2]],
        }[name]
        labels = task.label_tensor(name, labels, 7)
        output = model(task=name, labels=labels, **inputs)
        loss, num_items = task.loss(output.logits, labels)
        assert torch.equal(output.loss, loss) and output.num_items == num_items == {"topic": 1, "score": 1}.get(name, 3)
        for missing in (False, True):
            model.zero_grad()
            given = torch.full_like(labels, float("nan") if labels.is_floating_point() else -100) if missing else labels
            output = model(task=name, labels=given, **inputs)
            output.loss.backward()
            reached = {key for key, value in model.named_parameters() if value.grad is not None}
            assert {key for key in reached if key.startswith("heads.")} == {
                f"heads.{name}.linear.weight",
                f"heads.{name}.linear.bias",
            }
            total = sum(value.grad.abs().sum().item() for value in model.parameters() if value.grad is not None)
            assert total == 0 if missing else total > 0


# before 5.23 it has another name, and no option for the layers
CHECKPOINTS = pytest.mark.skipif(
    not hasattr(PreTrainedModel, "activation_checkpointing_enable"), reason="needs transformers 5.23"
)


@CHECKPOINTS
@pytest.mark.parametrize(
    "name", ["bert", "roberta", "distilbert", "electra", "deberta", "modernbert", "t5", "gpt2", "llama", "vit"]
)
def test_activation_checkpointing_gives_the_same_gradients(name):
    model = make_model(name).double().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    calls = []
    inputs = {key: value.double() if value.is_floating_point() else value for key, value in inputs_for(model).items()}

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        calls.clear()
        model(task="topic", labels=torch.tensor([1, 2]), **inputs).loss.backward()
        return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}

    for module in model.encoder.modules():
        module.register_forward_pre_hook(lambda *_: calls.append(0))
    plain, once = gradients(), len(calls)
    model.activation_checkpointing_enable()
    again, twice = gradients(), len(calls)
    assert twice > 1.4 * once  # the layers did run a second time
    assert plain.keys() == again.keys() and any(value.abs().sum() > 0 for value in plain.values())
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=1e-12, atol=1e-15)


@CHECKPOINTS
def test_checkpointing_is_refused_where_the_encoder_cannot():
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        make_model("mpnet").activation_checkpointing_enable()


def test_a_decoder_keeps_no_cache():
    for name in ("gpt2", "llama"):
        model = make_model(name, pooling="last")
        assert "past_key_values" not in model.encoder(**inputs_for(model))
        assert "past_key_values" in make_encoder(name)(**inputs_for(model))


# What transformers expects of a model


def test_outputs_follow_the_conventions():
    model = make_model()
    inputs = inputs_for(model)
    output = model(task="topic", output_hidden_states=True, **inputs)
    assert output.loss is None and output.num_items is None and len(output.hidden_states) == 3
    assert list(model(task="topic", **inputs)) == ["logits"]
    loss, logits, num_items = model(task="topic", labels=torch.tensor([1, -100]), return_dict=False, **inputs)
    assert logits.shape == (2, 3) and num_items == 1 and loss.shape == ()
    eager = make_encoder()
    eager.set_attn_implementation("eager")
    attending = MultiTaskModel.from_encoder(eager, TASKS)
    assert len(attending(output_attentions=True, **inputs).attentions) == 2
    # The Trainer divides the loss by the accumulation steps only if told that the model does not.
    assert MultiTaskModel.accepts_loss_kwargs is False


def test_the_attention_implementation_reaches_the_encoder(tmp_path):
    model = make_model()
    assert model.encoder.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.encoder.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    assert MultiTaskModel.from_pretrained(tmp_path).encoder.config._attn_implementation == "sdpa"
    eager = MultiTaskModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.encoder.config._attn_implementation == "eager"
    make_encoder().save_pretrained(tmp_path)
    eager = MultiTaskModel.from_encoder(tmp_path, TASKS, attn_implementation="eager")
    assert eager.encoder.config._attn_implementation == "eager"
    make_model("deberta").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="DebertaV2Model does not support .*scaled_dot_product_attention"):
        MultiTaskModel.from_pretrained(tmp_path, attn_implementation="sdpa")


def test_embeddings_are_the_encoders():
    model = make_model()
    assert model.get_input_embeddings() is model.encoder.embeddings.word_embeddings
    model.resize_token_embeddings(60)
    assert model.encoder.embeddings.word_embeddings.num_embeddings == model.config.encoder.vocab_size == 60


def test_options_of_the_encoder_are_passed_on(tmp_path):
    make_encoder().save_pretrained(tmp_path)
    model = MultiTaskModel.from_encoder(Path(tmp_path), TASKS, hidden_dropout_prob=0.7)
    assert model.heads["topic"].dropout.p == 0.7 and model.encoder.embeddings.dropout.p == 0.7


def test_t5_comes_without_its_decoder(tmp_path):
    torch.manual_seed(0)
    T5Model(T5Config(**T5)).save_pretrained(tmp_path)
    model = MultiTaskModel.from_encoder(tmp_path, TASKS)
    assert type(model.encoder) is T5EncoderModel and logits_of(model)["topic"].shape == (2, 3)


# Errors


def test_calls_that_make_no_sense_are_refused():
    model = make_model()
    inputs = inputs_for(model)
    with pytest.raises(ValueError, match="Unknown task 'mrpc': this model has 'topic', 'score', 'traits', 'tags'"):
        model(task="mrpc", **inputs)
    with pytest.raises(ValueError, match="labels belong to a task: pass task="):
        model(labels=torch.tensor([1, 2]), **inputs)
    with pytest.raises(ValueError, match=r"Task 'topic': labels of shape \(2, 1\) do not fit .* \(2,\)"):
        model(task="topic", labels=torch.tensor([[1], [2]]), **inputs)
    with pytest.raises(ValueError, match=r"'mean' needs an attention mask of the encoder output's shape \(2, 7\), not"):
        make_model(pooling="mean")(input_ids=inputs["input_ids"], attention_mask=torch.ones(2, 7, 7))


class NotKnownToAutoModel(BertModel):
    pass


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: nn.Linear(2, 2), {}, TypeError, "name or folder of a transformers model, .* got Linear"),
        (
            lambda: BertForMaskedLM(BertConfig(**TEXT)),
            {},
            ValueError,
            r"BertForMaskedLM is not what .* \(BertModel\), .*base_model",
        ),
        (lambda: T5Model(T5Config(**T5)), {}, ValueError, r"T5Model is not what .* \(T5EncoderModel\)"),
        (
            lambda: NotKnownToAutoModel(BertConfig(**TEXT)),
            {},
            ValueError,
            "make the class known to AutoConfig and AutoModel",
        ),
        (make_model, {}, ValueError, "is a MultiTaskModel already: .*add_task"),
        (make_encoder, {"dtype": torch.float32}, TypeError, "dtype: only for an encoder that is loaded here"),
        (make_encoder, {"revision": "main"}, TypeError, "revision: only for an encoder that is loaded here"),
        (make_encoder, {"pooling": "max"}, ValueError, "Unknown pooling 'max'"),
        (
            lambda: make_encoder("distilbert"),
            {"pooling": "pooler"},
            ValueError,
            "DistilBertModel has no pooler: choose",
        ),
    ],
)
def test_encoders_that_cannot_carry_heads_are_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        MultiTaskModel.from_encoder(make(), TASKS, **options)


def test_a_configuration_can_claim_a_pooler_that_is_not_there():
    model = MultiTaskModel(MultiTaskConfig(encoder=ENCODERS["distilbert"][0], tasks=TASKS, pooling="pooler"))
    with pytest.raises(ValueError, match="gives no pooler_output: choose pooling='cls'"):
        model(task="topic", **inputs_for(model))


def test_a_model_wants_a_task():
    with pytest.raises(ValueError, match="has no task"):
        MultiTaskModel.from_encoder(make_encoder(), {})
    with pytest.raises(TypeError, match="tasks must be a dict"):
        MultiTaskModel.from_encoder(make_encoder(), [Regression()])
