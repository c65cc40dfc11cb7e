"""Tasks that share their rows, from a YAML file: `groups`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import load_dataset

from hf_dbmtl.cli.compare_run import alone
from hf_dbmtl.cli.config import read_config
from hf_dbmtl.cli.preparation import load_data, load_evaluation
from hf_dbmtl.units import Unit
from hf_dbmtl_cli import CommandError, main


RUN = """
model_name_or_path: encoder
output_dir: grouped
use_cpu: true
max_steps: 3
learning_rate: 0.01
per_device_train_batch_size: 4
disable_tqdm: true
groups:
  sentences:
    dataset: {path: sentences.jsonl, eval_fraction: 0.25}
    text: tokens
    max_eval_samples: 8
tasks:
  place: {group: sentences, kind: token_classification, label: tags}
  feeling:
    kind: classification
    dataset: {path: sst.csv, eval_fraction: 0.25}
    text: sentence
    label: feeling
  length: {group: sentences, kind: regression, label: letters}
"""


@pytest.fixture
def config(encoder, files) -> str:
    """The rows of `words.jsonl` with a second label, which every third lacks."""
    rows = [json.loads(line) for line in Path("words.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["letters"] = float(len("".join(row["tokens"]))) if number % 3 else None
    Path("sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("grouped.yaml").write_text(RUN)
    return "grouped.yaml"


def test_train_and_evaluate(config, capsys):
    main(["train", config])
    shown = capsys.readouterr().out
    metrics = json.loads(Path("grouped/eval_results.json").read_text())
    assert {"eval_place_accuracy", "eval_length_r2", "eval_feeling_accuracy", "eval_average"} <= metrics.keys()
    row = next(line for line in shown.splitlines() if "length" in line and "r2" in line and "│" in line)
    assert " 30 " in row and " 8 " in row
    card = Path("grouped/README.md").read_text()
    assert "| place | token classification | B-PLACE, O | f1 | 30 | 8 |" in card
    assert "| length | regression | 1 | r2 | 30 | 8 |" in card
    main(["evaluate", config, "--output_dir", "evaluated", "--model", "grouped"])
    again = json.loads(Path("evaluated/eval_results.json").read_text())
    assert {key: again[key] for key in again if "place" in key} == {
        key: metrics[key] for key in metrics if "place" in key
    }


def test_inspect(config, capsys):
    main(["inspect", config])
    shown = capsys.readouterr().out
    assert "group 'sentences'" in shown and "place, length: one pass of the encoder" in shown
    assert "8 (1 micro-batches" in shown
    assert "length: " in shown and "place: " in shown


def test_the_data_are_those_of_tasks_of_their_own(config):
    """The group's rows and labels are what each task alone reads of the file; `compare` takes a task out of it so."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("encoder")
    settings, args = read_config(config)
    data = load_data(settings, tokenizer, 24)
    assert data.units == {"sentences": Unit("sentences", ("place", "length")), "feeling": Unit.alone("feeling")}
    assert data.train["sentences"].column_names[-2:] == ["place", "length"]
    settings.groups.clear()
    for name, label in (("place", "tags"), ("length", "letters")):
        task = settings.tasks[name]
        task.group, task.dataset, task.text = None, read_config(config)[0].groups["sentences"].dataset, "tokens"
    settings.tasks.pop("length")  # of words: a sequence level task of its own reads strings
    own = load_data(settings, tokenizer, 24)
    reduced = alone("place", args, data)[1]
    assert reduced.train["place"][:] == own.train["place"][:]
    assert reduced.units == {"place": Unit.alone("place")} and args.per_task_batch_size == {"place": 4}
    lengths = load_dataset("json", data_files="sentences.jsonl", split="train")["letters"][:]
    assert sorted(x for x in data.train["sentences"]["length"][:] if x == x) != []
    assert {x for x in data.train["sentences"]["length"][:] if x == x} <= set(lengths)
    settings, _ = read_config(config)
    settings.tasks.pop("feeling")
    evaluated = load_evaluation(settings, data.tasks, tokenizer, 24)
    assert list(evaluated.by_task(evaluated.eval)) == ["place", "length"]


WRONG = [
    ("group: sentences, kind: regression", "group: sentenses, kind: regression", "tasks.length.group: there is no group 'sentenses': did you mean 'sentences'"),
    ("label: letters", "label: letters, text: tokens", "tasks.length.text: the rows of the task are those of its group"),
    ("label: letters", "label: letters, dataset: {path: a}", "tasks.length.dataset: the rows of the task are those of its"),
    ("group: sentences, ", "", "dataset is missing: where the data come from (or `group`"),
    ("  sentences:\n", "  other: {dataset: {path: a}}\n  sentences:\n", "groups.other: no task has `group: other`"),
    ("  sentences:\n", "  feeling: {dataset: {path: a}}\n  sentences:\n", "groups.feeling: it is the name of a task"),
    ("    text: tokens\n", "    txt: tokens\n", "groups.sentences.txt: there is no such setting"),
    ("    dataset: {path: sentences.jsonl, eval_fraction: 0.25}\n", "", "groups.sentences.dataset is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=[said[:40] for *_, said in WRONG])
def test_refused(config, old, new, said):
    assert old in RUN
    Path("wrong.yaml").write_text(RUN.replace(old, new))
    with pytest.raises(CommandError) as error:
        read_config("wrong.yaml")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--groups.sentenses.text a", "--groups.sentenses: there is no such group: did you mean 'sentences'"),
        ("--groups.sentences.text nothing", "Group 'sentences': its data have no column 'nothing'"),
        ("--groups.sentences.text a b", "Group 'sentences': `text` must name one column"),
        ("--tasks.length.label nothing", "Group 'sentences': its data have no column 'nothing'"),
    ],
)
def test_refused_on_the_command_line(config, words, said, capsys):
    with pytest.raises(SystemExit):
        main(["train", config, *words.split()])
    assert said in " ".join(capsys.readouterr().err.split())
