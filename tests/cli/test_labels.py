"""Labels as they stand in files become those a task takes, or an error that says what to do."""

from __future__ import annotations

import math

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_dbmtl.cli.labels import LabelReader, declare_task
from hf_dbmtl.cli.settings import DatasetSettings, TaskSettings
from hf_dbmtl_cli import CommandError


def read(kind: str, column, feature=None, **options):
    """The task declared over a column (or several) and its labels."""
    columns = column if isinstance(column, dict) else {"label": column}
    rows = Dataset.from_dict(columns, features=Features({"label": feature}) if feature is not None else None)
    settings = TaskSettings(kind=kind, dataset=DatasetSettings(), label=list(columns), **options)
    task = declare_task("t", settings, rows)
    return task, LabelReader.of("t", task, settings.labels, rows)(rows[:])


NLI = ClassLabel(names=["entailment", "neutral", "contradiction"])
CLASSES = [
    # the column, its feature, options; names and number of labels, and the labels read
    (["pos", "neg", None], None, {}, (["neg", "pos"], 2, [1, 0, -100])),
    (["pos", "neg"], None, {"label_names": ["pos", "neg", "mixed"]}, (["pos", "neg", "mixed"], 3, [0, 1])),
    ([0, 2, None], None, {}, (None, 3, [0, 2, -100])),
    ([0, 0], None, {}, (None, 2, [0, 0])),
    ([0, 1], None, {"num_labels": 5}, (None, 5, [0, 1])),
    ([0.0, 1.0, None], None, {}, (None, 2, [0, 1, -100])),  # integers with a gap, as a csv file gives them
    ([True, False], None, {}, (None, 2, [1, 0])),
    ([5, 1], None, {"label_names": ["1", "2", "3", "4", "5"]}, (["1", "2", "3", "4", "5"], 5, [4, 0])),
    (["10", "9"], None, {}, (["9", "10"], 2, [1, 0])),
    ([0, 2, -1], NLI, {}, (NLI.names, 3, [0, 2, -100])),
    ([0, 2, -1], NLI, {"label_names": NLI.names[::-1]}, (NLI.names[::-1], 3, [2, 0, -100])),  # reordered
    ([0, 2, -1], NLI, {"label_names": ["a", "b", "c"]}, (["a", "b", "c"], 3, [0, 2, -100])),  # renamed
]


@pytest.mark.parametrize(("column", "feature", "options", "expected"), CLASSES)
def test_classification(column, feature, options, expected):
    task, labels = read("classification", column, feature, **options)
    assert (task.label_names, task.num_labels, labels) == expected


def test_token_classification():
    task, labels = read("token_classification", [["O", "B-X"], ["I-X", None], None])
    assert (task.label_names, labels) == (["B-X", "I-X", "O"], [[2, 0], [1, -100], []])
    assert read("token_classification", ["O B-X", "O"])[1] == [[1, 0], [1]]
    assert read("token_classification", [[0, 3], [1]])[0].num_labels == 4
    task, labels = read("token_classification", [[0, 1]], List(NLI))
    assert (task.label_names, labels) == (NLI.names, [[0, 1]])


def test_multi_label():
    kind = "multi_label_classification"
    expected = [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    task, labels = read(kind, [["a", "c"], ["b"], []])
    assert (task.label_names, labels) == (["a", "b", "c"], expected)
    assert read(kind, [[0, 2], [1], []], List(NLI))[1] == expected  # indices, as of go_emotions
    task, labels = read(kind, [[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    assert (task.num_labels, labels) == (3, expected)
    task, labels = read(kind, {"a": [1, 0, 0], "b": [False, True, False], "c": [1.0, 0.0, 0.0]})
    assert (task.label_names, labels) == (["a", "b", "c"], expected)
    _, ((one, two),) = read(kind, {"a": [1], "b": [None]})
    assert one == 1.0 and math.isnan(two)
    _, (_, missing) = read(kind, [["a", "b"], None])
    assert len(missing) == 2 and all(map(math.isnan, missing))


def test_regression():
    task, labels = read("regression", [1, 2.5])
    assert (task.num_labels, labels) == (1, [1.0, 2.5])
    assert math.isnan(read("regression", [1.0, None])[1][1])
    task, labels = read("regression", {"x": [1, 2], "y": [0.5, 3]})
    assert (task.label_names, labels) == (["x", "y"], [[1.0, 0.5], [2.0, 3.0]])
    assert read("regression", [[1.0, 2.0, 3.0]])[0].num_labels == 3


WRONG = [
    (
        "classification",
        ["a", "b"],
        None,
        {"label_names": ["a", "c"]},
        ["label 'b' has no index", "'a', 'c'", "label_names"],
    ),
    ("classification", ["positve"], None, {"label_names": ["positive", "x"]}, ["did you mean 'positive'?"]),
    ("classification", ["a", "b", "c"], None, {"num_labels": 2}, ["num_labels=2", "'a', 'b', 'c'"]),
    ("classification", ["a", "a"], None, {}, ["num_labels=1", "'a'"]),
    ("classification", [0.5], None, {}, ["label 0.5 is no class"]),
    ("classification", [[0]], None, {}, ["label [0] is no class"]),
    ("classification", [f"text {i}" for i in range(150)], None, {}, ["150 different strings", "the one meant"]),
    ("classification", {"a": [0], "b": [1]}, None, {}, ["takes one label column"]),
    ("classification", [0], NLI, {"label_names": ["a", "b"]}, ["'a', 'b'", "'entailment', 'neutral', 'contradiction'"]),
    ("classification", [0], NLI, {"label_names": ["x", "entailment", "y"]}, ["in this order"]),
    ("multi_label_classification", ["a,b"], None, {}, ["are strings, such as 'a,b'", "[a, b, c]"]),
    ("regression", ["high"], None, {}, ["label 'high' is a string", "`label`"]),
    ("regression", {"x": [1], "y": ["high"]}, None, {}, ["label 'high' is a string"]),
    ("token_classification", [["O", "X"]], None, {"label_names": ["O", "B"]}, ["label 'X' has no index"]),
]


@pytest.mark.parametrize(("kind", "column", "feature", "options", "said"), WRONG, ids=lambda x: str(x)[:40])
def test_refused(kind, column, feature, options, said):
    with pytest.raises(CommandError, match="^Task 't': ") as error:
        read(kind, column, feature, **options)
    for part in said:
        assert part in str(error.value)


def test_names_that_only_evaluation_has():
    task = declare_task(
        "t", TaskSettings("classification", DatasetSettings()), Dataset.from_dict({"label": ["a", "b"]})
    )
    rows = Dataset.from_dict({"label": ["c"]}, features=Features({"label": Value("string")}))
    with pytest.raises(CommandError, match="label 'c' has no index.*'a', 'b'.*label_names"):
        LabelReader.of("t", task, ["label"], rows)(rows[:])
