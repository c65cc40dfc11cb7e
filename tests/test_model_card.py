"""The card as its readers see it: through a Markdown parser, a YAML parser, and `ModelCard.load`."""

import ast
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import BertConfig, BertModel

from hf_dbmtl import limits, model_card
from hf_dbmtl.card_from_trainer import content_from_trainer
from hf_dbmtl.configuration import MultiTaskConfig
from hf_dbmtl.model_card import ModelCardContent, create_model_card
from hf_dbmtl.modeling import MultiTaskModel
from hf_dbmtl.tasks import Classification, MultiLabelClassification, Regression, TokenClassification
from hf_dbmtl.training_args import MultiTaskTrainingArguments
from hf_dbmtl.units import Unit


TASKS = {
    "mrpc": Classification(label_names=["not_equivalent", "equivalent"]),
    "stsb": Regression(),
    "tags": TokenClassification(label_names=["O", "B-PER", "I-PER"]),
    "traits": MultiLabelClassification(12),
}
HOSTILE = [
    "a|b",
    "two\nlines",
    "<script>alert(1)</script>",
    "---",
    "*bold* _em_ `code` ~~gone~~ [link](http://x.y) ![i](j)",
    "back\\slash\\|",
    "bell\x07 and\u2028separator and\x85 and \ud800",
    "right\u202eto left",
    "{{ content }} {% raw %}",
    "key: [value, &anchor *alias] # no comment",
    "'quotes\" $x$ &amp; ```",
    "\n---\ninjected: true\n---\n",
    "語 🤗 é",
]


def content(**fields):
    tasks = fields.pop("tasks", {name: task.to_dict() for name, task in TASKS.items()})
    return ModelCardContent(fields.pop("model_name", "my-model"), tasks, **fields)


def tables(card):
    """Every table of the card's body, as rows of the texts that a reader sees. HTML must not get through."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card.text)
    found = []
    for token, inside in zip(tokens, [None, *tokens]):
        assert token.type != "html_block"
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and inside.type in ("td_open", "th_open"):
            kinds = {child.type for child in token.children}
            assert kinds <= {"text", "text_special"}, kinds
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


# ---- what it says


def test_the_table_of_tasks():
    names = {"traits": [f"trait{i}" for i in range(12)]}
    tasks = {
        name: task.to_dict() | ({"label_names": names[name]} if name in names else {}) for name, task in TASKS.items()
    }
    card = create_model_card(content(tasks=tasks, train_rows={"mrpc": 3668, "tags": None}, eval_rows={"mrpc": 408}))
    assert tables(card)[0] == [
        ["Task", "Kind", "Labels", "Main metric", "Training rows", "Evaluation rows"],
        ["mrpc", "classification", "not_equivalent, equivalent", "accuracy", "3,668", "408"],
        ["stsb", "regression", "1", "r2", "", ""],
        ["tags", "token classification", "O, B-PER, I-PER", "f1", "", ""],
        ["traits", "multi-label classification", f"{', '.join(names['traits'][:8])}, … (12)", "f1_micro", "", ""],
    ]


def test_results_are_in_the_table_and_in_the_model_index():
    results = {"mrpc": {"loss": 0.4, "accuracy": 0.8554, "f1": 0.89}, "stsb": {"r2": 0.71, "mse": 12345.678}}
    card = create_model_card(
        content(
            results=results,
            baselines={"mrpc": {"accuracy": 0.684}},
            averages={"average": 0.7827, "loss": math.nan},
        )
    )
    assert tables(card)[1] == [
        ["Task", "Main metric", "Value", "Baseline", "Other metrics"],
        ["mrpc", "accuracy", "0.8554", "0.6840", "loss 0.4000, f1 0.8900"],
        ["stsb", "r2", "0.7100", "", "mse 12,345.7"],
    ]
    assert "average 0.7827, loss nan" in card.text
    index = card.data.to_dict()["model-index"]
    assert [entry["task"] for entry in index[0]["results"]] == [
        {"type": "text-classification", "name": "mrpc"},
        {"type": "text-regression", "name": "stsb"},
    ]
    metrics = {entry["dataset"]["name"]: entry["metrics"] for entry in index[0]["results"]}
    assert [(metric["type"], metric["value"]) for metric in metrics["mrpc"]] == [
        ("accuracy", 0.8554),
        ("f1", 0.89),
        ("loss", 0.4),
    ]
    assert card.data.metrics == ["accuracy", "f1", "f1_micro", "r2"]
    images = create_model_card(content(results=results, modality="image")).data.eval_results
    assert images[0].task_type == "image-classification"


def test_a_main_metric_that_was_chosen():
    results = {"mrpc": {"accuracy": 0.9, "f1": 0.8}, "stsb": {"r2": 0.7}}
    card = create_model_card(content(results=results, main_metrics={"mrpc": "f1"}))
    assert [row[1:3] for row in tables(card)[1][1:]] == [["f1", "0.8000"], ["r2", "0.7000"]]
    assert [metric.metric_type for metric in card.data.eval_results] == ["f1", "accuracy", "r2"]


def test_packages_that_are_not_there_have_no_version(monkeypatch):
    monkeypatch.setattr(model_card, "FRAMEWORKS", ("torch", "hf-dbmtl-nothing"))
    text = create_model_card(content(versions=model_card._versions())).text
    assert f"torch {torch.__version__.split('+')[0]}" in text.lower() and "hf-dbmtl-nothing" not in text


def test_two_tasks_of_one_kind_stay_apart_in_the_model_index():
    tasks = {name: Classification(2).to_dict() for name in ("a", "b")}
    card = create_model_card(content(tasks=tasks, results={"a": {"accuracy": 0.1}, "b": {"accuracy": 0.9}}))
    index = card.data.to_dict()["model-index"][0]["results"]
    assert [(entry["task"]["name"], entry["metrics"][0]["value"]) for entry in index] == [("a", 0.1), ("b", 0.9)]


def test_what_is_not_finite_stays_out_of_the_metadata():
    card = create_model_card(content(results={"mrpc": {"accuracy": 0.5, "f1": math.nan, "loss": math.inf}}))
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("accuracy", 0.5)]
    assert tables(card)[1][1][-1] == "f1 nan, loss inf"


def test_the_training_is_told():
    card = create_model_card(
        content(
            balancer="db_mtl",
            balancer_kwargs={"beta": 0.9, "decay": 0.5, "alpha": "max"},
            hyperparameters={"learning_rate": 2e-5, "task_weights": {"mrpc": 2.0}, "bf16": True},
            steps=12000,
            epochs=3.0,
            pooling="cls",
            encoder="BertModel",
            base_model="bert-base-uncased",
            versions={"hf_dbmtl": "9.9.9"},
        )
    )
    for line in (
        "- Balancer: db_mtl, DB-MTL: ",
        "  - beta: 0.9\n",
        "  - alpha: max\n",
        "Pooling: cls",
        "12,000 (3 epochs)",
    ):
        assert line in card.text
    assert tables(card)[1][1:] == [["learning_rate", "2e-05"], ["task_weights", '{"mrpc": 2.0}'], ["bf16", "true"]]
    assert "- hf_dbmtl 9.9.9\n" in card.text and "transformers 5" not in card.text
    assert "arXiv:2308.12029" in card.text and "Tsang, Ivor W." in card.text
    assert card.data.base_model == "bert-base-uncased" and "db_mtl" in card.data.tags
    assert "https://huggingface.co/bert-base-uncased" in card.text


def test_what_is_not_known_is_left_out():
    card = create_model_card(content())
    for word in ("Results", "Balancer", "Pooling", "steps", "Hyper", "huggingface.co", "png", "None"):
        assert word not in card.text
    assert set(card.data.to_dict()) == {"library_name", "metrics", "model_name", "tags"}
    assert "torch 2" in card.text  # the versions are those installed
    assert "![Loss" in create_model_card(content(picture="training.png")).text


def code_blocks(card):
    return [token.content for token in MarkdownIt("commonmark").parse(card.text) if token.info == "python"]


def test_the_snippets_are_python_and_name_what_to_load():
    with_package, without, export = code_blocks(create_model_card(content(repo_id="me/it's")))
    for snippet in (with_package, without, export):
        ast.parse(snippet)
        assert """.from_pretrained("me/it's\"""" in snippet
    assert "model(task='mrpc', **inputs)" in with_package and "AutoTokenizer" in with_package
    assert "trust_remote_code=True" in without and "hf_dbmtl" not in without
    assert "AutoImageProcessor" in code_blocks(create_model_card(content(modality="image")))[0]


def test_a_module_of_the_users_own_has_no_snippet():
    card = create_model_card(content(tasks={"own": {}}, results={"own": {"loss": 1.0, "share": 0.5}}))
    assert code_blocks(card) == [] and "model(task='own', **inputs)" in card.text
    assert tables(card)[0][1] == ["own", "its own", "", "share", "", ""]
    assert tables(card)[1][1] == ["own", "share", "0.5000", "loss 1.0000"]


# ---- hostile text


def hostile_card(text):
    return create_model_card(
        content(
            model_name=text,
            tasks={
                text: {"kind": "classification", "num_labels": 2, "label_names": [text, f"{text}2"]},
                "tame": Regression().to_dict(),
            },
            results={text: {"accuracy": 0.5, text: 0.25}, "tame": {"r2": 0.1}},
            balancer=text,
            balancer_kwargs={text: text},
            hyperparameters={text: text, "weights": {text: 1.0}},
        )
    )


def shown(text):
    """What a table shows of a text: one line, no space around it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text).strip()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_breaks_neither_tables_nor_metadata(text, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "_UNPRINTABLE", ())  # a task would refuse such names; the card relies on nobody
    card = hostile_card(text)
    tasks, results, options = tables(card)
    assert [len(row) for row in tasks] == [6, 6, 6] and [len(row) for row in results] == [4, 4, 4]
    assert tasks[1][0] == results[1][0] == options[1][0] == options[1][1] == shown(text)
    assert tasks[1][2].startswith(shown(text)[:40])
    assert tasks[2][0] == results[2][0] == "tame"
    block = card.content.split("\n---\n")[0].removeprefix("---\n")
    metadata = yaml.safe_load(block)
    assert set(metadata) == {"library_name", "metrics", "model-index", "tags"}
    assert [entry["task"]["name"] for entry in metadata["model-index"][0]["results"]] == [shown(text), "tame"]
    assert metadata["model-index"][0]["name"] == shown(text)
    path = tmp_path / "README.md"
    card.save(path)
    assert path.read_text(encoding="utf-8") == ModelCard.load(path).content == card.content
    assert ModelCard.load(path).data.eval_results == card.data.eval_results


@pytest.mark.parametrize("text", HOSTILE[:3])
def test_without_the_escaping_it_would_break(text, monkeypatch):
    monkeypatch.setattr(limits, "_UNPRINTABLE", ())
    monkeypatch.setattr(model_card, "_markdown", str)
    card = hostile_card(text)
    with pytest.raises((AssertionError, ValueError)):
        tasks, _, _ = tables(card)
        assert [len(row) for row in tasks] == [6, 6, 6] and tasks[1][0] == shown(text)


def test_labels_that_never_end_are_cut():
    tasks = {"a": {"kind": "classification", "num_labels": 2, "label_names": ["x" * 5000, "y"]}}
    row = tables(create_model_card(content(tasks=tasks)))[0][1]
    assert len(row[2]) < 70 and row[2].endswith("…, y")


def test_round_trip_keeps_everything(tmp_path):
    card = create_model_card(
        content(
            results={"mrpc": {"accuracy": 1 / 3, "loss": 1e-5}, "tags": {"f1": 1.0}},
            language="en",
            license="apache-2.0",
            datasets=["glue"],
            tags=["mine"],
        )
    )
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.content == card.content and loaded.data.to_dict() == card.data.to_dict()
    assert loaded.data.eval_results[0].metric_value == 1 / 3
    assert loaded.data.license == "apache-2.0" and "mine" in loaded.data.tags
    other = create_model_card(content(results={"mrpc": {"accuracy": 0.3333}}))
    assert other.data.eval_results[0] != loaded.data.eval_results[0]


GOLDEN = Path(__file__).with_name("golden_model_card.md")


def golden_card(steps=1200):
    """One card with everything on it. To take a change as meant: `python tests/test_model_card.py`."""
    return create_model_card(
        content(
            model_name="sentences",
            repo_id="me/sentences",
            base_model="google-bert/bert-base-uncased",
            encoder="BertModel",
            pooling="pooler",
            balancer="db_mtl",
            balancer_kwargs={"beta": 0.9, "decay": 0.5, "alpha": "max"},
            papers=["Dual-Balancing for Multi-Task Learning, arXiv 2308.12029"],
            hyperparameters={"learning_rate": 2e-5, "task_weights": {"stsb": 2.0}, "seed": 0},
            steps=steps,
            epochs=3.0,
            train_rows={"mrpc": 3668, "stsb": 5749, "tags": 14041, "traits": None},
            eval_rows={"mrpc": 408, "stsb": 1500, "tags": 3250},
            results={"mrpc": {"loss": 0.41, "accuracy": 0.8554, "f1": 0.89}, "stsb": {"r2": 0.71, "mse": 0.63}},
            baselines={"mrpc": {"accuracy": 0.684}, "stsb": {"r2": 0.0}},
            averages={"average": 0.7827, "loss": 0.52},
            picture="training.png",
            language="en",
            license="apache-2.0",
            datasets=["nyu-mll/glue"],
            versions={"hf_dbmtl": "1.2.3", "transformers": "5.0.0", "torch": "2.0.0"},
        )
    )


def test_the_whole_card_is_the_golden_one(tmp_path):
    card = golden_card()
    assert card.content == GOLDEN.read_text(encoding="utf-8")
    loaded = ModelCard.load(GOLDEN)
    assert loaded.data.to_dict() == card.data.to_dict() and loaded.text == card.text
    assert len(tables(loaded)) == 3 and len(code_blocks(loaded)) == 3
    for block in code_blocks(loaded):
        compile(block, "card", "exec")
    assert golden_card(steps=1201).content != card.content


def test_the_papers_of_a_balancer():
    ours = "Dual-Balancing for Multi-Task Learning, arXiv 2308.12029"
    other = "Gradient Surgery for [Multi-Task] Learning, arXiv 2001.06782"
    card = create_model_card(content(balancer="log+pcgrad", papers=[ours, other]))
    assert (
        "- Papers: [Dual-Balancing for Multi-Task Learning](https://arxiv.org/abs/2308.12029); "
        r"[Gradient Surgery for \[Multi-Task\] Learning](https://arxiv.org/abs/2001.06782)"
    ) in card.text
    assert "@article{lin2026dual" in card.text
    assert "@article" not in create_model_card(content(balancer="pcgrad", papers=[other])).text
    assert "- Paper: ICLR 2021\n" in create_model_card(content(balancer="x", papers=["ICLR 2021"])).text


# ---- from a trainer


def evaluation(step, **metrics):
    return {f"eval_{name}": value for name, value in metrics.items()} | {
        "eval_runtime": 1.0,
        "epoch": 1.0,
        "step": step,
    }


@pytest.fixture
def trainer(tmp_path):
    encoder = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    rows = [Dataset.from_dict({"input_ids": [[1]] * n, "labels": [0] * n}) for n in (5, 7, 3)]
    args = MultiTaskTrainingArguments(
        output_dir=str(tmp_path / "my-run"),
        balancer_kwargs={"beta": 0.5},
        learning_rate=3e-4,
        task_weights={"a": 2.0},
        max_steps=4,
        use_cpu=True,
    )
    state = SimpleNamespace(
        global_step=4,
        epoch=0.5,
        best_global_step=None,
        log_history=[
            {"loss": 1.0, "loss/a": 0.5, "step": 2},
            evaluation(2, a_accuracy=0.9, a_b_f1=0.8, average=0.85, loss=1.5),
            evaluation(4, a_accuracy=0.6, a_b_f1=0.7, a_loss=2.0, average=0.65, loss=2.0, samples_per_second=3.0),
            {"train_runtime": 1.0, "step": 4},
        ],
    )
    model = MultiTaskModel.from_encoder(
        BertModel(encoder), {"a": Classification(2), "a_b": Regression(main_metric="f1")}, pooling="cls"
    )
    data = {"train_dataset": {"a": rows[0], "a_b": rows[1]}, "eval_dataset": {"a": rows[2]}}
    units = {"units": {name: Unit.alone(name) for name in ("a", "a_b")}, "eval_units": {"a": Unit.alone("a")}}
    return SimpleNamespace(model=model, args=args, state=state, **data, **units)


def test_content_comes_from_the_trainer(trainer):
    read = content_from_trainer(trainer)
    assert read.model_name == "my-run" and read.repo_id is None
    assert read.tasks == {"a": Classification(2).to_dict(), "a_b": Regression(main_metric="f1").to_dict()}
    assert (read.encoder, read.pooling, read.modality, read.base_model) == ("BertModel", "cls", "text", None)
    assert (read.balancer, read.steps, read.epochs, read.picture) == ("db_mtl", 4, 0.5, None)
    assert read.balancer_kwargs == {"beta": 0.5, "decay": 0.5, "alpha": "max"}  # the defaults are told too
    assert read.train_rows == {"a": 5, "a_b": 7} and read.eval_rows == {"a": 3}
    told = read.hyperparameters
    assert told["learning_rate"] == 3e-4 and told["task_weights"] == {"a": 2.0} and told["max_steps"] == 4
    assert "num_train_epochs" not in told and "fp16" not in told and told["lr_scheduler_type"] == "linear"


def test_results_are_those_of_the_last_evaluation_by_task(trainer):
    read = content_from_trainer(trainer)
    assert read.results == {"a": {"accuracy": 0.6, "loss": 2.0}, "a_b": {"f1": 0.7}}  # "a_b_f1" is not a's "b_f1"
    assert read.averages == {"average": 0.65, "loss": 2.0}
    card = create_model_card(read)
    assert {(r.task_name, r.metric_type, r.metric_value) for r in card.data.eval_results} == {
        ("a", "accuracy", 0.6),
        ("a", "loss", 2.0),
        ("a_b", "f1", 0.7),
    }


def test_results_are_those_of_the_best_checkpoint_where_it_was_loaded(trainer):
    trainer.args.load_best_model_at_end, trainer.state.best_global_step = True, 2
    assert content_from_trainer(trainer).results["a"] == {"accuracy": 0.9}
    trainer.args.load_best_model_at_end = False
    assert content_from_trainer(trainer).results["a"] == {"accuracy": 0.6, "loss": 2.0}


def test_overrides_the_picture_and_no_evaluation(trainer, tmp_path):
    (tmp_path / "my-run").mkdir(exist_ok=True)
    (tmp_path / "my-run" / "training.png").write_bytes(b"")
    trainer.state.log_history = [{"loss": 1.0, "step": 1}]
    read = content_from_trainer(trainer, license="mit", model_name="Better")
    assert (read.license, read.model_name, read.picture, read.results) == ("mit", "Better", "training.png", {})
    trainer.args.hub_model_id = "me/on-the-hub"
    hub = content_from_trainer(trainer)
    assert (hub.model_name, hub.repo_id) == ("on-the-hub", "me/on-the-hub")


@pytest.mark.parametrize(
    ("name", "told"),
    [("bert-base-uncased", "bert-base-uncased"), ("me/encoder", "me/encoder"), ("/home/me/encoder", None), ("", None)],
)
def test_a_folder_of_this_machine_is_no_base_model(trainer, name, told):
    trainer.model.config.encoder._name_or_path = name
    read = content_from_trainer(trainer)
    assert read.base_model == told
    assert "/home/me" not in create_model_card(read).content


def test_an_existing_folder_is_no_base_model_whatever_its_name(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer.model.config.encoder._name_or_path = "encoder"
    assert content_from_trainer(trainer).base_model == "encoder"
    (tmp_path / "encoder").mkdir()
    assert content_from_trainer(trainer).base_model is None


def test_a_module_of_the_users_own(trainer):
    trainer.model = torch.nn.Linear(1, 1)
    read = content_from_trainer(trainer)
    assert read.tasks == {"a": {}, "a_b": {}} and read.encoder is None and read.pooling is None
    assert read.results["a_b"] == {"f1": 0.7}
    assert tables(create_model_card(read))[0][1][:4] == ["a", "its own", "", "accuracy"]


def test_no_path_of_this_machine_is_in_the_card(trainer, tmp_path):
    assert str(tmp_path) not in create_model_card(content_from_trainer(trainer)).content
    assert isinstance(trainer.model.config, MultiTaskConfig)


# ---- those of the examples

CARDS = sorted((Path(__file__).parents[1] / "model_cards").glob("*/README.md"))


def test_the_examples_have_cards():
    assert {path.parent.name for path in CARDS} >= {"digits"}


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_the_cards_of_the_examples(path, tmp_path):
    """Of a whole run: every task has a result above its baseline, the picture is there, nothing is of one machine."""
    card = ModelCard.load(path)
    card.save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == card.data.to_dict()
    tasks, results, options = tables(card)
    assert [row[0] for row in tasks] == [row[0] for row in results]
    assert results[0][2:4] == ["Value", "Baseline"]
    assert all(float(row[2]) > float(row[3]) + 0.05 for row in results[1:])
    assert {result.task_name for result in card.data.eval_results} == {row[0] for row in tasks[1:]}
    assert dict(row[:2] for row in options[1:])["learning_rate"]
    assert (path.parent / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert not [word for word in ("/tmp", "/home", "/root", "/work") if word in card.content]
    for block in code_blocks(card):
        compile(block, "card", "exec")


if __name__ == "__main__":
    GOLDEN.write_text(golden_card().content, encoding="utf-8")
