"""What is done with a trained model: `evaluate`, `predict` and `export`; and what is said before training, `inspect`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import RUN
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hf_dbmtl import make_balancer
from hf_dbmtl.cli import env
from hf_dbmtl.cli.env import facts
from hf_dbmtl.cli.inspect import balancer_memory
from hf_dbmtl.cli.predict import read_rows
from hf_dbmtl_cli import CommandError, main


TRAINED = "served"


@pytest.fixture(scope="module")
def model(encoder, files, folder) -> str:
    Path("served.yaml").write_text(RUN)
    main(["train", "served.yaml", "--output_dir", TRAINED])
    return TRAINED


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_evaluate(model, capsys):
    """The same numbers as after training, in a process that knows of the training only by the folder."""
    main(["evaluate", "served.yaml", "--model", model, "--output_dir", "judged"])
    shown = capsys.readouterr().out
    before, after = (json.loads(Path(one, "eval_results.json").read_text()) for one in (model, "judged"))
    keys = [key for key in before if key.endswith(("_loss", "_accuracy", "_r2", "_f1", "average"))]
    assert len(keys) > 8
    assert {key: after[key] for key in keys} == pytest.approx({key: before[key] for key in keys}, rel=1e-6)
    assert f"{after['eval_average']:.4f}" in shown and "baseline" in shown
    main(["evaluate", "served.yaml", "--model", model, "--output_dir", "fewer", "--max_eval_samples", "4"])
    fewer = json.loads(Path("fewer/eval_results.json").read_text())
    assert fewer["eval_score_loss"] != pytest.approx(before["eval_score_loss"])  # the control


def test_labels_are_those_of_the_model(model, capsys):
    """In a file of one class alone that class keeps its number, which it would not if the file were asked."""
    text = Path("sst.csv").read_text().splitlines()
    Path("good.csv").write_text("\n".join([text[0], *(line for line in text if "positive" in line)]) + "\n")
    main(
        [
            "evaluate",
            "served.yaml",
            "--model",
            model,
            "--output_dir",
            "t",
            "--tasks.feeling.dataset",
            "{path: good.csv, eval_fraction: 0.9}",
        ]
    )
    capsys.readouterr()
    main(["predict", model, "good.csv", "--text", "sentence", "--tasks", "feeling"])
    shares = [one["predictions"]["feeling"]["label"] == "positive" for one in lines(capsys)]
    assert len(set(shares)) == 1  # the model is hardly trained, and sees the same in all
    assert json.loads(Path("t/eval_results.json").read_text())["eval_feeling_accuracy"] == float(shares[0])


def test_predict(model, capsys, monkeypatch):
    texts = ["the film was good", "the plot was bad", "he likes paris"]
    Path("texts.txt").write_text("\n".join(texts) + "\n")
    main(["predict", model, "texts.txt", "--batch_size", "2", "--device", "cpu"])
    found = lines(capsys)
    assert [one["text"] for one in found] == texts
    assert list(found[0]["predictions"]) == ["feeling", "same", "score", "place"]
    loaded, tokenizer = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    for row in found:  # one by one, without padding
        logits = loaded(**tokenizer(row["text"], return_tensors="pt")).logits
        assert row["predictions"]["score"] == pytest.approx(logits["score"].item(), abs=1e-5)
        names = loaded.tasks["feeling"].label_names
        assert row["predictions"]["feeling"]["label"] == names[logits["feeling"].argmax()]

    monkeypatch.setattr(sys, "stdin", io.StringIO('{"id": 1, "first": "a good film", "second": "films"}\n'))
    main(["predict", model, "--text", "first,second", "--tasks", "same"])
    (row,) = lines(capsys)
    pair = tokenizer("a good film", "films", return_tensors="pt")
    expected = loaded(task="same", **pair).logits.softmax(-1).max().item()
    assert (row["id"], list(row["predictions"])) == (1, ["same"])
    assert row["predictions"]["same"]["score"] == pytest.approx(expected, abs=1e-5)

    main(["predict", model, "sst.csv", "--text", "sentence", "--tasks", "feeling,score", "--output", "out.jsonl"])
    written = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(written) == 40 and written[0].keys() == {"sentence", "feeling", "predictions"}


def test_one_pass_of_the_encoder(model, capsys, monkeypatch):
    passes = []
    forward = torch.nn.Module.__call__

    def counted(self, *args, **kwargs):
        passes.append(type(self).__name__)
        return forward(self, *args, **kwargs)

    Path("one.txt").write_text("the film was good\n")
    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    main(["predict", model, "one.txt", "--device", "cpu"])
    assert passes.count("BertEncoder") == 1
    assert len(lines(capsys)[0]["predictions"]) == 4


def test_export(model, capsys):
    main(["export", model, "feeling", "stock"])
    stock = AutoModelForSequenceClassification.from_pretrained("stock")
    loaded, tokenizer = AutoModel.from_pretrained(model), AutoTokenizer.from_pretrained("stock")
    batch = tokenizer("the film was good", return_tensors="pt")
    torch.testing.assert_close(stock(**batch).logits, loaded(task="feeling", **batch).logits)
    assert stock.config.id2label == {0: "negative", 1: "positive"}


def test_inspect(encoder, files, capsys, monkeypatch):
    Path("look.yaml").write_text(RUN)
    monkeypatch.setenv("COLUMNS", "200")
    main(
        [
            "inspect",
            "look.yaml",
            "--mixing",
            "proportional",
            "--tasks.score.dataset",
            "{path: scores.jsonl, eval_fraction: 0.5}",
        ]
    )
    shown = capsys.readouterr().out
    # 30, 30, 20 and 30 rows: 16 rows in a step are shared out as 4.4, 4.4, 2.9 and 4.4
    score = next(line for line in shown.splitlines() if "regression" in line)
    assert [cell.strip() for cell in score.split("│")][3:] == ["1", "r2", "20", "20", cell_of(score, 7), "3", "9", ""]
    assert "8 an epoch, 6 in all (0.75 epochs)" in shown
    assert "[CLS] the" in shown and "1,528 shared" in shown and "db_mtl" in shown


def cell_of(line: str, place: int) -> str:
    return line.split("│")[place].strip()


@pytest.mark.parametrize(
    ("name", "options", "gradients"),
    [
        ("ew", {}, 1),  # a running sum
        ("max_norm", {}, 1),
        ("db_mtl", {}, 5 + 1),  # an average per task, and the sum
        ("db_mtl", {"beta": 0.0}, 1),
        ("db_mtl", {"ema_dtype": "bfloat16"}, 2.5 + 1),
        ("pcgrad", {}, 5 + 1),  # the gradients of all tasks
        ("excess_mtl", {}, 5 + 5 + 1),
        ("ema+pcgrad", {}, 5 + 5 + 1),
    ],
)
def test_memory_of_a_balancer(name, options, gradients):
    assert balancer_memory(make_balancer(name, options), 5, 1000) == gradients * 1000


def test_env(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    main(["env"])
    shown = capsys.readouterr().out
    assert torch.__version__ in shown and "torchjd" in shown and "secret-of-mine" not in shown
    assert facts()["hf_dbmtl"]


def test_env_without_a_package(monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("hf-dbmtl-nothing", "numpy"))
    found = facts()
    assert found["hf-dbmtl-nothing"] == "not installed" and found["numpy"] == np.__version__


def test_rows_of_files(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\nx\t1\n")
    (tmp_path / "b.txt").write_text("one\n\ntwo\r\n")
    (tmp_path / "c.jsonl").write_text('{"text": "y", "n": 2}\n')
    names = [str(tmp_path / name) for name in ("a.tsv", "b.txt", "c.jsonl")]
    rows = [{"text": "x", "label": "1"}, {"text": "one"}, {"text": "two"}, {"text": "y", "n": 2}]
    assert list(read_rows(names)) == rows
    (tmp_path / "d.jsonl").write_text("[1]\n")
    with pytest.raises(CommandError, match="line 1: a line must hold an object"):
        list(read_rows([str(tmp_path / "d.jsonl")]))
    (tmp_path / "e.jsonl").write_text('{"text": "y"}\n{"text": "y"\n')
    with pytest.raises(CommandError, match=r"e.jsonl, line 2: this is not JSON: .* one object per line"):
        list(read_rows([str(tmp_path / "e.jsonl")]))


def test_nothing_to_evaluate_on(model, capsys):
    words = [f"--tasks.{task}.dataset.eval_fraction=0" for task in ("feeling", "same", "score", "place")]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "served.yaml", "--model", model, *words, "--tasks.score.dataset.split", "null"])
    assert ended.value.code == 2
    assert "none of the tasks has anything to evaluate on: see eval_fraction" in capsys.readouterr().err


def test_task_that_the_model_has_not(model, capsys):
    Path("renamed.yaml").write_text(RUN.replace("  feeling:", "  feling:"))
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "renamed.yaml", "--model", model])
    assert ended.value.code == 2
    assert "Task 'feling': the model has no such task: did you mean 'feeling'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate served.yaml --model nowhere", "the model 'nowhere' could not be loaded"),
        ("evaluate served.yaml --model encoder", "'encoder' is a bert model without tasks"),
        (
            "evaluate served.yaml --model served --tasks.score.kind classification",
            "Task 'score': its kind is classification",
        ),
        (
            "evaluate served.yaml --model served --label_smoothing_factor 0.1",
            "MultiTaskTrainer does not take `label_smoothing_factor`",
        ),
        ("evaluate", "name the YAML file"),
        ("inspect", "name the YAML file"),
        ("predict served sst.csv", "there is no column 'text'"),
        ("predict served sst.csv --text sentense", "there is no column 'sentense': did you mean 'sentence'?"),
        ("predict served sst.csv --tasks feling", "the model has no task 'feling': did you mean 'feeling'?"),
        ("predict served nothing.txt", "nothing.txt cannot be read"),
        ("predict served sst.csv --batch_size 0", "--batch_size must be 1 or more"),
        (
            "predict served scores.jsonl --text score",
            "the column 'score' holds -1.0 in one row: --text names one of texts",
        ),
        (
            "predict served scores.jsonl --choices score",
            "the column 'score' holds -1.0 in one row: --choices names one",
        ),
        ("predict served scores.jsonl --choices scor", "there is no column 'scor': did you mean 'score'?"),
        (
            "predict served sst.csv --choices sentence,feeling --tasks same",
            "Task 'same' (classification) has no answer to such an input",
        ),
        ("export served nothing out", "the model has no task 'nothing'"),
        (
            "export served feeling served",
            "'served' holds a multi-task model, which would be lost: choose another folder",
        ),
    ],
)
def test_refused(model, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
