"""The configuration: JSON and back, and what it refuses."""

import json

import pytest
from transformers import AutoConfig, BertConfig, DistilBertConfig, ViTConfig

from hf_dbmtl import Classification, MultiTaskConfig, Regression, TokenClassification
from hf_dbmtl.configuration import POOLINGS


TASKS = {
    "zeta": Classification(label_names=["no", "yes"]),
    "alpha": Regression(),
    "mid": TokenClassification(3, dropout=0.5),
}


@pytest.mark.parametrize(
    "encoder", [BertConfig(hidden_size=24), DistilBertConfig(dim=24, n_heads=2), ViTConfig(image_size=32)]
)
def test_a_configuration_survives_its_file(encoder, tmp_path):
    config = MultiTaskConfig(encoder=encoder, tasks=TASKS, pooling="mean")
    config.save_pretrained(tmp_path)
    for again in (MultiTaskConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(again) is MultiTaskConfig and type(again.encoder) is type(encoder)
        assert again.to_json_string() == config.to_json_string()
        assert again.task_objects == TASKS and again.pooling == "mean"
    other = MultiTaskConfig.from_pretrained(tmp_path)
    other.encoder.initializer_range = 0.5
    assert other.to_json_string() != config.to_json_string()


def test_the_order_of_the_tasks_survives_the_sorted_keys_of_json(tmp_path):
    config = MultiTaskConfig(tasks=TASKS)
    config.tasks["beta"] = Regression().to_dict()
    config.save_pretrained(tmp_path)
    assert list(json.loads((tmp_path / "config.json").read_text())["tasks"]) == ["alpha", "beta", "mid", "zeta"]
    assert list(MultiTaskConfig.from_pretrained(tmp_path).tasks) == ["zeta", "alpha", "mid", "beta"]


def test_without_arguments_there_is_no_task():
    config = MultiTaskConfig()
    assert config.tasks == {} and config.task_objects == {} and isinstance(config.encoder, BertConfig)
    assert MultiTaskConfig.from_dict(config.to_diff_dict()).to_dict() == config.to_dict()


def test_two_configurations_share_no_tasks():
    first, second = MultiTaskConfig(tasks=TASKS), MultiTaskConfig(tasks=TASKS)
    del first.tasks["alpha"]
    assert "alpha" in second.tasks and "alpha" in TASKS


def test_the_attention_chosen_for_an_encoder_is_kept():
    encoder = BertConfig(attn_implementation="eager")
    assert MultiTaskConfig(encoder=encoder).encoder._attn_implementation == "eager"
    assert MultiTaskConfig(encoder=encoder, attn_implementation="sdpa").encoder._attn_implementation == "sdpa"


def test_sizes_are_looked_up_in_the_encoder():
    config = MultiTaskConfig(encoder=BertConfig(hidden_size=24, initializer_range=0.3))
    assert config.get_text_config().hidden_size == 24 and config.get_text_config().initializer_range == 0.3


REGRESSION = {"kind": "regression"}


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ([REGRESSION], TypeError, "tasks must be a dict that maps names to tasks"),
        ("mrpc", TypeError, "tasks must be a dict"),
        ({1: REGRESSION}, TypeError, "must be a string, got 1"),
        ({"": REGRESSION}, ValueError, "Task name ''"),
        ({"../x": REGRESSION}, ValueError, r"Task name '\.\./x': must not .* dot, a slash"),
        ({"a.b": REGRESSION}, ValueError, "Task name 'a.b'"),
        ({"a\\b": REGRESSION}, ValueError, "Task name"),
        ({"a b": REGRESSION}, ValueError, "Task name 'a b'"),
        ({"a\n": REGRESSION}, ValueError, "Task name"),
        ({"a\x00": REGRESSION}, ValueError, "Task name"),
        ({"a\u202e": REGRESSION}, ValueError, "Task name"),
        ({"items": REGRESSION}, ValueError, "'items' is an attribute of torch.nn.ModuleDict"),
        ({"training": REGRESSION}, ValueError, "'training' is an attribute"),
        ({"__class__": REGRESSION}, ValueError, "'__class__' is an attribute"),
        ({"mrpc": "classification"}, TypeError, "Task 'mrpc': a task is a dict"),
        ({"mrpc": None}, TypeError, "Task 'mrpc': a task is a dict"),
        ({"mrpc": {"kind": "regresion"}}, ValueError, "Task 'mrpc': unknown kind .* did you mean 'regression'"),
        ({"mrpc": {"kind": "regression", "num_labels": -1}}, ValueError, "Task 'mrpc': num_labels=-1"),
        ({"mrpc": {"kind": "regression", "num_labels": 10**15}}, ValueError, "Task 'mrpc': num_labels=10000"),
        ({"mrpc": {"kind": "regression", "num_labels": "9" * 500}}, TypeError, r"Task 'mrpc': .*\.\.\."),
        ({"mrpc": {"kind": "regression", "eval": "x"}}, ValueError, "Task 'mrpc': unknown field 'eval'"),
    ],
)
def test_hostile_tasks_are_refused(tasks, error, message, tmp_path):
    with pytest.raises(error, match=message):
        MultiTaskConfig(tasks=tasks)
    if isinstance(tasks, dict) and all(isinstance(name, str) for name in tasks):
        values = {"model_type": "multi_task", "tasks": tasks}
        (tmp_path / "config.json").write_text(json.dumps(values))
        with pytest.raises(error, match=message):
            AutoConfig.from_pretrained(tmp_path)
        config = MultiTaskConfig(tasks={"fine": REGRESSION})
        config.tasks.update(tasks)  # past the constructor: a model reads the tasks through `task_objects`
        with pytest.raises(error, match=message):
            config.task_objects


def test_names_that_people_give_are_accepted():
    names = ["mrpc", "sst-2", "stsb_v2", "Größe", "感情", "mean:x", "2024"]
    assert list(MultiTaskConfig(tasks=dict.fromkeys(names, REGRESSION)).task_objects) == names


def test_an_unknown_encoder_is_refused():
    assert MultiTaskConfig(encoder={"model_type": "distilbert", "dim": 24}).encoder.dim == 24
    with pytest.raises(TypeError, match="encoder must be a configuration, or a dict .* got 'bert-base-cased'"):
        MultiTaskConfig(encoder="bert-base-cased")
    with pytest.raises(ValueError, match="Unrecognized model identifier: nothing"):
        MultiTaskConfig(encoder={"model_type": "nothing"})


def test_an_unknown_pooling_is_refused():
    for pooling in POOLINGS:
        MultiTaskConfig(pooling=pooling)
    with pytest.raises(ValueError, match="Unknown pooling 'max': choose from pooler, cls, mean, last"):
        MultiTaskConfig(pooling="max")
