"""From YAML and the command line to settings: what is understood, what is refused and with which words."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Literal

import pytest
import yaml

from hf_dbmtl import MultiTaskTrainingArguments
from hf_dbmtl.cli.config import read_config, run_settings, training_settings
from hf_dbmtl.cli.values import fit
from hf_dbmtl.cli.yaml_file import parse_yaml
from hf_dbmtl_cli import CommandError


EXAMPLE = Path(__file__).parents[2] / "examples" / "train.yaml"
GOOD = """
model_name_or_path: tiny
use_cpu: true
learning_rate: 2e-5
eval_strategy: no
balancer_kwargs: {beta: 0.5}
tasks:
  mrpc:
    kind: classification
    label_names: [no, yes]
    dataset: {path: mrpc.csv}
    text: [a, b]
"""


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text: str, *overrides: str):
        Path("run.yaml").write_text(text)
        return read_config("run.yaml", overrides)

    return run


def test_file(read):
    settings, args = read(GOOD)
    assert settings.model_name_or_path == "tiny"
    task = settings.tasks["mrpc"]
    assert (task.kind, task.label_names, task.texts, task.labels) == (
        "classification",
        ["no", "yes"],
        ["a", "b"],
        ["label"],
    )
    assert task.dataset.path == "mrpc.csv"
    assert (args.learning_rate, args.eval_strategy.value, args.balancer_kwargs) == (2e-5, "no", {"beta": 0.5})


def test_command_line_wins(read):
    words = "--learning-rate 1e-4 --balancer_kwargs.decay 0 --max_steps 1e3 --run_name 5 --push_to_hub=off"
    settings, args = read(GOOD, *words.split())
    assert (args.learning_rate, args.max_steps, args.run_name, args.push_to_hub) == (1e-4, 1000, "5", False)
    assert args.balancer_kwargs == {"beta": 0.5, "decay": 0}
    words = (
        "--tasks.mrpc.text only --tasks.mrpc.label_names 0 1 --tasks.mrpc.dataset.split.eval train[:5] --pooling mean"
    )
    settings, args = read(GOOD, *words.split(), "--balancer_kwargs", '{"alpha": "mean"}', "--logging_first_step")
    task = settings.tasks["mrpc"]
    assert (task.text, task.label_names, task.dataset.split.eval, settings.pooling) == (
        "only",
        ["0", "1"],
        "train[:5]",
        "mean",
    )
    assert (args.balancer_kwargs, args.logging_first_step) == ({"alpha": "mean"}, True)
    assert read(GOOD, "--balancer_kwargs", "null")[1].balancer_kwargs is None


def test_command_line_reaches_into_mappings(read):
    """One entry of a mapping within a mapping, the others as the file has them; or a task as a whole."""
    text = GOOD + "lr_scheduler_kwargs: {a: {b: 1, c: 2}}\n"
    _, args = read(text, *"--lr_scheduler_kwargs.a.b 3 --lr_scheduler_kwargs.d.e 4".split())
    assert args.lr_scheduler_kwargs == {"a": {"b": 3, "c": 2}, "d": {"e": 4}}
    settings, _ = read(GOOD, "--tasks.mrpc", "{kind: regression, dataset: {path: other.csv}}")
    task = settings.tasks["mrpc"]
    assert (task.kind, task.dataset.path, task.label_names, task.texts) == ("regression", "other.csv", None, ["text"])


def test_one_value_of_a_kind():
    """A hint that admits one value beside a kind: `false` is understood, and other booleans and numbers are not."""
    hint = str | Literal[False] | None
    assert fit(False, hint) is False and fit("a", hint) == "a" and fit(None, hint) is None
    for value, shown in ((True, "true"), (0, "0")):
        with pytest.raises(ValueError, match=f"must be a string or false.*, and is {shown}"):
            fit(value, hint)


def test_logging_steps(read):
    """A share of the run, unless evaluation would follow it."""
    default = MultiTaskTrainingArguments(use_cpu=True).logging_steps
    assert read(GOOD)[1].logging_steps == 0.02 != default
    assert read(GOOD, "--logging_steps", "7")[1].logging_steps == 7
    assert read(GOOD, "--eval_strategy", "steps")[1].logging_steps == default
    assert read(GOOD, "--eval_strategy", "steps", "--eval_steps", "5")[1].logging_steps == 0.02


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1e3", 1000.0), (".5", 0.5), ("08", 8), ("no", "no"), ("on", "on"), ("2024-01-01", "2024-01-01")]
    + [
        ("1:30", "1:30"),
        ("", None),
        ("~", None),
        ("true", True),
        ('"2"', "2"),
        ("-.inf", float("-inf")),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_yaml_1_2(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_yaml_1_1_differs():
    """The control: what PyYAML alone makes of these."""
    assert yaml.safe_load("[2e-5, no, 1:30]") == ["2e-5", False, 90]


def test_every_training_argument_is_a_setting():
    assert training_settings().keys() == {one.name for one in fields(MultiTaskTrainingArguments) if one.init}
    assert not training_settings().keys() & run_settings().keys()


def test_example():
    settings, args = read_config(str(EXAMPLE), ["--use_cpu"])
    assert list(settings.tasks) == ["cola", "sst2", "mrpc", "stsb", "rte"]
    assert settings.tasks["mrpc"].text == ["sentence1", "sentence2"]
    assert (args.learning_rate, args.warmup_steps, args.metric_for_best_model) == (5e-5, 0.06, "average")


ONE = "model_name_or_path: tiny\ntasks: {a: {kind: regression, dataset: {path: a.csv}%s}}\n"
FILE = [
    ("learning_rat: 1\n", ["run.yaml: learning_rat", "'learning_rate'"]),
    ("evaluation_strategy: 'no'\n", ["evaluation_strategy", "'eval_strategy'"]),
    ("frobnicate: 1\n", ["run.yaml: frobnicate", "--help_all"]),
    ("training: {learning_rate: 1}\n", ["run.yaml: training", "put learning_rate at the top"]),
    ("kind: regression\n", ["run.yaml: kind", "setting of a task"]),
    ("learning_rate: '2e-5'\n", ["learning_rate: it must be a number, and is '2e-5'", "take the quotes off"]),
    ("learning_rate: fast\n", ["learning_rate: it must be a number, and is 'fast'."]),
    ("learning_rate: true\n", ["learning_rate: it must be a number, and is true"]),
    ("learning_rate:\n", ["learning_rate: it must be a number, and is null"]),
    ("max_steps: 1.5\n", ["max_steps: it must be a whole number, and is 1.5"]),
    ("max_steps: 1.5\n", ["run.yaml"]),
    ("bf16: maybe\n", ["bf16: it must be true or false, and is 'maybe'"]),
    ("run_name: 5\n", ["run_name: it must be a string, and is 5: put it in quotes"]),
    ("lr_scheduler_type: linaer\n", ["lr_scheduler_type: it cannot be 'linaer'", "'linear'"]),
    ("mixing: equl\n", ["mixing: it cannot be 'equl'", "'equal'", "temperature"]),
    ("pooling: max\n", ["pooling: it cannot be 'max'", "pooler, cls, mean, last"]),
    ("optim: adamw\n", ["optim: it cannot be 'adamw'", "adamw"]),
    ("balancer: db_mlt\n", ["run.yaml: ", "'db_mlt'", "'db_mtl'"]),
    ("balancer_kwargs: {bet: 1}\n", ["'bet'", "'beta'"]),
    ("balancer_kwargs: {beta: 1.5}\n", ["beta", "1.5"]),
    ("balancer_kwargs: '{beta: '\n", ["balancer_kwargs: it must be a mapping (JSON)"]),
    ("task_weights: {a: -1}\n", ["task_weights['a']"]),
    ("liger_kernel_config: {rope: 3}\n", ["liger_kernel_config"]),
    ("include_for_metrics: [1]\n", ["include_for_metrics: it must be a list of strings"]),
    ("parallelism_config: {tp_size: 2}\n", ["parallelism_config: it must be null"]),
    ("do_predict: true\n", ["do_predict", "trains, and then evaluates"]),
    ("max_length: 0\n", ["run.yaml: max_length: it must be 1 or more"]),
    (
        "eval_strategy: steps\nsave_strategy: epoch\nload_best_model_at_end: true\n",
        ["run.yaml: ", "load_best_model_at_end"],
    ),
    ("seed: 1\nseed: 2\n", ["run.yaml: this is not YAML", "'seed' is there twice"]),
    ("seed: [1\n", ["run.yaml: this is not YAML", "line"]),
]
TASK = [
    (", txt: x", ["tasks.a.txt", "'text'"]),
    (", learning_rate: 1", ["tasks.a.learning_rate", "whole run"]),
    (", frobnicate: 1", ["tasks.a.frobnicate", "those here are kind, dataset, group, text"]),
    (", label_names: [0, 1]", ["tasks.a.label_names: it must be a list of strings", "put its entries in quotes"]),
    (", num_labels: two", ["tasks.a.num_labels: it must be a whole number"]),
    (", text: 3", ["tasks.a.text: it must be a string or a list of strings, and is 3"]),
    (", dataset: b.csv", ["'dataset' is there twice"]),
]
WHOLE = [
    ("", ["run.yaml: the file must hold settings"]),
    ("- a\n", ["run.yaml: the file must hold settings"]),
    ("tasks: {a: {kind: regression, dataset: {path: a}}}\n", ["run.yaml: model_name_or_path is missing: the encoder"]),
    ("model_name_or_path: tiny\n", ["run.yaml: tasks is missing"]),
    ("model_name_or_path: tiny\ntasks: {}\n", ["`tasks` must name one task at least"]),
    ("model_name_or_path: tiny\ntasks: [a]\n", ["run.yaml: tasks: it must be a mapping"]),
    ("model_name_or_path: tiny\ntasks: {a: x}\n", ["tasks.a: it must be a mapping of kind, dataset"]),
    ("model_name_or_path: tiny\ntasks: {a.b: {}}\n", ["run.yaml: tasks: ", "'a.b'", "dot"]),
    ("model_name_or_path: tiny\ntasks: {1: {}}\n", ["run.yaml: tasks: ", "string"]),
    ("model_name_or_path: tiny\ntasks: {a: {dataset: {path: x}}}\n", ["tasks.a.kind is missing"]),
    ("model_name_or_path: tiny\ntasks: {a: {kind: regression}}\n", ["tasks.a.dataset is missing"]),
    ("model_name_or_path: tiny\ntasks: {a: {kind: regresion}}\n", ["tasks.a.kind", "'regression'"]),
    (
        "model_name_or_path: tiny\ntasks: {a: {kind: regression, dataset: x.csv}}\n",
        ["tasks.a.dataset", "mapping of path"],
    ),
    ("model_name_or_path: tiny\ntasks: {a: {dataset: {split: train}}}\n", ["dataset.split", "mapping of train, eval"]),
    ("model_name_or_path: tiny\ntasks: {a: {dataset: {data_files: {trian: x}}}}\n", ["data_files.trian", "'train'"]),
    ("model_name_or_path: tiny\ntasks: {a: {dataset: {spilt: {}}}}\n", ["tasks.a.dataset.spilt", "'split'"]),
]


@pytest.mark.parametrize(
    ("text", "said"),
    [(ONE % "" + t, s) for t, s in FILE] + [(ONE % t, s) for t, s in TASK] + WHOLE,
    ids=lambda x: str(x)[-60:],
)
def test_refused_in_the_file(read, text, said):
    with pytest.raises(CommandError) as error:
        read(text)
    for part in said:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--learning_rat 1", ["command line: --learning_rat", "'learning_rate'"]),
        ("--learning_rate fast", ["command line: --learning_rate: it must be a number"]),
        ("--learning_rate.x 1", ["`learning_rate` has no settings within"]),
        ("--mixing 3", ["command line: --mixing: it cannot be '3'", "equal"]),
        ("--tasks.mrcp.text x", ["command line: --tasks.mrcp", "'mrpc'"]),
        ("--tasks.mrpc.txt x", ["command line: --tasks.mrpc.txt", "'text'"]),
        ("--tasks.mrpc.dataset.pth x", ["--tasks.mrpc.dataset.pth", "'path'"]),
        ("--tasks.mrpc x", ["command line: --tasks.mrpc: it must be a mapping of kind, dataset", "and is 'x'"]),
        ("--balancer ew", ["run.yaml and the command line", "'beta'"]),
        ("2e-5", ["'2e-5' stands before any setting"]),
        ("--max_steps 1 2", ["--max_steps: it must be a whole number, and is [1, 2]"]),
    ],
)
def test_refused_on_the_command_line(read, words, said):
    with pytest.raises(CommandError) as error:
        read(GOOD, *words.split())
    for part in said:
        assert part in str(error.value)


def test_file_that_is_not_there(read):
    with pytest.raises(CommandError, match="nowhere.yaml: the file cannot be read: No such file"):
        read_config("nowhere.yaml")
