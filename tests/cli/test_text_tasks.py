"""Questions, choices and masked tokens from files: trained, judged, inspected and asked."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from datasets import Dataset, load_from_disk
from transformers import AutoTokenizer

from hf_dbmtl.cli.config import read_config
from hf_dbmtl.cli.encoding import encode_task
from hf_dbmtl.cli.labels import LabelReader, declare_task
from hf_dbmtl.cli.preparation import load_data
from hf_dbmtl.cli.settings import DatasetSettings, TaskSettings
from hf_dbmtl_cli import CommandError, main


RUN = """
model_name_or_path: encoder
output_dir: asked
use_cpu: true
num_train_epochs: 12
learning_rate: 0.01
balancer: ew
heads_lr_multiplier: 3
per_device_train_batch_size: 8
disable_tqdm: true
tasks:
  where:
    kind: question_answering
    dataset: {path: questions.jsonl, eval_fraction: 0.2}
  said:
    kind: question_answering
    dataset: {path: said.csv, eval_fraction: 0.2}
    text: [asked, passage]
    label: answer
    max_length: 20
    stride: 4
    max_answer_length: 3
  ending:
    kind: multiple_choice
    dataset: {path: endings.csv, eval_fraction: 0.2}
    text: start
    choices: [ending0, ending1, ending2]
  words:
    kind: masked_language_modeling
    dataset: {path: questions.jsonl, eval_fraction: 0.2}
    text: context
    mlm_probability: 0.3
"""


@pytest.fixture(scope="module")
def config(encoder, folder) -> str:
    draw = random.Random(0)
    with open("questions.jsonl", "w") as file, open("said.csv", "w") as said, open("endings.csv", "w") as endings:
        said, endings = csv.writer(said), csv.writer(endings)
        said.writerow(["asked", "passage", "answer"])
        endings.writerow(["start", "ending0", "ending1", "ending2", "label"])
        for _ in range(40):
            place = draw.choice(["paris", "rome"])
            context = " ".join(draw.choices(["the", "film", "good", "a"], k=draw.randrange(3))) + f" she likes {place}"
            answers = {"text": [place], "answer_start": [context.index(place)]}
            question = "is she"
            file.write(json.dumps({"question": question, "context": context, "answers": answers, "n": 1}) + "\n")
            said.writerow([question, context, place])
            right = draw.randrange(3)
            endings.writerow(["he likes", *("paris" if one == right else "bad" for one in range(3)), right])
    Path("asked.yaml").write_text(RUN)
    return "asked.yaml"


def test_train_evaluate_inspect_predict(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["inspect", config])
    shown = capsys.readouterr().out
    assert "[CLS] is she [SEP]" in shown and "she likes" in shown
    assert "[CLS] he likes [SEP] paris [SEP] | " in shown or "| [CLS] he likes [SEP] paris [SEP]" in shown
    assert "made of the text" in shown
    main(["train", config])
    before = json.loads(Path("asked/eval_results.json").read_text())
    assert before["eval_where_exact_match"] == before["eval_said_f1"] == before["eval_ending_accuracy"] == 1.0
    assert 0 <= before["eval_words_accuracy"] <= 1
    main(["evaluate", config, "--model", "asked", "--output_dir", "asked_again"])
    after = json.loads(Path("asked_again/eval_results.json").read_text())
    assert after["eval_average"] == before["eval_average"]

    Path("ask.jsonl").write_text(
        json.dumps({"question": "is she", "context": "a film she likes rome"})
        + "\n"
        + json.dumps({"text": "he likes", "choices": ["bad", "paris", "bad"]})
        + "\n"
    )
    capsys.readouterr()
    main(["predict", "asked", "ask.jsonl", "--device", "cpu"])
    question, choice = (json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines())
    assert question.keys() == {"where", "said"} and question["where"]["answer"] == "rome"
    assert (choice["ending"]["choice"], choice["ending"]["text"]) == (1, "paris")
    main(["predict", "asked", "endings.csv", "--text", "start", "--choices", "ending0,ending1,ending2"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 40 and all(row["predictions"]["ending"]["choice"] == int(row["label"]) for row in rows)


def test_answers_may_stand_as_texts(config):
    """The same windows from SQuAD's columns, from a list of these and from the text of the answer alone."""
    tokenizer = AutoTokenizer.from_pretrained("encoder")
    context = "the film the film the film the film the film she likes paris she"
    start = context.index("paris")
    forms = [
        {"text": ["paris"], "answer_start": [start]},
        [{"text": "paris", "answer_start": start}],
        "paris",
        ["paris"],
    ]
    made = [windows(tokenizer, context, form) for form in forms]
    assert made[0].num_rows > 1  # a text longer than a window
    for one in made[1:]:
        assert one.to_dict() == made[0].to_dict()
    found = [row for row in made[0] if row["labels"] != [0, 0]]
    assert found and all(
        tokenizer.decode(row["input_ids"][row["labels"][0] : row["labels"][1] + 1]) == "paris" for row in found
    )
    other = windows(tokenizer, context, "film")  # the control
    assert other["labels"][:] != made[0]["labels"][:]
    assert windows(tokenizer, context, None)["labels"][0] is None


def windows(tokenizer, context, answers) -> Dataset:
    rows = Dataset.from_dict({"question": ["is she"], "context": [context], "answers": [answers]})
    return encode_task(rows, tokenizer, "t", TaskSettings("question_answering", DatasetSettings(), stride=3), {}, 14)


def test_windows_of_a_tokenizer_that_pads_on_the_left(config):
    tokenizer = AutoTokenizer.from_pretrained("encoder", padding_side="left")
    with pytest.raises(CommandError, match="^Task 't': Positions of answers are counted from the left: set tokenizer"):
        windows(tokenizer, "she likes paris", "paris")


def test_lists_of_choices(config):
    """The first row tells how many there are, and the others have to have as many."""
    rows = Dataset.from_dict({"choices": [["paris", "bad", "a"], ["the", "film", "is"]], "label": [2, 0]})
    settings = TaskSettings("multiple_choice", DatasetSettings(), text=[])
    task = declare_task("t", settings, rows)
    assert task.num_labels == 3
    tokenizer = AutoTokenizer.from_pretrained("encoder")
    readers = {"labels": LabelReader.of("t", task, ["label"], rows)}
    encoded = encode_task(rows, tokenizer, "t", settings, readers, None)
    assert encoded["input_ids"][0] == tokenizer(["paris", "bad", "a"])["input_ids"] and encoded["labels"][:] == [2, 0]
    for wrong, said in (
        (["the", "film"], "a row has 2 choices and another 3, all need as many: .'the', 'film'."),
        (["the", None, "is"], "the choices in choices must be a list of texts per row, .*'the', None, 'is'"),
        (None, "the choices in choices must be a list of texts per row, .* holds 'None'"),
    ):
        rows = Dataset.from_dict({"choices": [["paris", "bad", "a"], wrong], "label": [2, 0]})
        with pytest.raises(CommandError, match=f"^Task 't': {said}"):
            encode_task(rows, tokenizer, "t", settings, readers, None)


def test_positions_that_are_there_already(config, tmp_path):
    ids = [[2, 5, 6, 3], [2, 7, 8, 3]]
    columns = {
        "input_ids": ids,
        "attention_mask": [[1] * 4] * 2,
        "start_positions": [1, None],
        "end_positions": [2, None],
    }
    Dataset.from_dict(columns).save_to_disk("tokenized")
    words = ["--tasks", "{t: {kind: question_answering, label: [start_positions, end_positions]}}"]
    settings, _ = read_config(config, [*words, "--tasks.t.dataset", "{path: tokenized, eval_fraction: 0}"])
    rows = load_data(settings, AutoTokenizer.from_pretrained("encoder")).train["t"]
    assert rows["input_ids"][:] == load_from_disk("tokenized")["input_ids"][:] and rows["labels"][:] == [[1, 2], None]


REFUSED = [
    (
        "--tasks.where.choices a b",
        "asked.yaml: tasks.where.choices: it is a setting of multiple_choice, and this is quest",
    ),
    ("--tasks.ending.stride 3", "asked.yaml: tasks.ending.stride: it is a setting of question_answering"),
    (
        "--tasks.words.label n",
        "tasks.words.label: masked_language_modeling makes its labels of the texts: leave it out",
    ),
    ("--tasks.where.num_labels 2", "tasks.where.num_labels: question_answering has positions for labels"),
    ("--tasks.where.stride -3", "asked.yaml: tasks.where.stride: it must be 0 or more, and is -3."),
    ("--tasks.where.text context", "Task 'where': `text` must name two columns, and names ['context']"),
    ("--tasks.where.label answer", "no column 'answer': did you mean 'answers'"),
    ("--tasks.where.label n", "Task 'where': the column 'n' holds '1': give the answer as it stands in the text"),
    ("--tasks.said.label asked", "Task 'said': the answer 'is she' does not stand in its text"),
    (
        "--tasks.said.max_length 6",
        "Task 'said': in windows of 6 tokens, of which two share 4, a question of 2 leaves no room",
    ),
    ("--tasks.said.max_answer_length 0", "Task 'said': max_answer_length must be a number of tokens"),
    ("--tasks.said.image passage", "tasks.said.kind: question_answering is for texts"),
    (
        "--tasks.ending.choices start",
        "Task 'ending': the column 'start' must hold a list of choices per row, and holds 'he likes'",
    ),
    ("--tasks.ending.choices ending0 ending1", "Task 'ending': label 2 is outside [0, 2)"),
    ("--tasks.ending.text start label", "Task 'ending': `text` must name one column, or none"),
    ("--tasks.words.mlm_probability 15", "Task 'words': mlm_probability must be a number between 0 and 1, got 15"),
    ("--tasks.words.main_metric f1", "Task 'words': main_metric 'f1' is not computed"),
    ("--tasks.where.kind question_anwering", "did you mean 'question_answering'"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED)
def test_refused(config, words, said, capsys):
    with pytest.raises(SystemExit):
        main(["train", config, *words.split()])
    assert said in capsys.readouterr().err


def test_groups_that_cannot_be(config, tmp_path):
    path = tmp_path / "group.yaml"
    path.write_text(
        "model_name_or_path: encoder\ngroups: {g: {dataset: {path: said.csv}, text: passage}}\n"
        "tasks: {words: {kind: masked_language_modeling, group: g}}\n"
    )
    with pytest.raises(CommandError, match="tasks.words.group: masked_language_modeling cannot share its rows"):
        read_config(str(path), ["--use_cpu"])
