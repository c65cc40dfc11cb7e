"""Help is quick: nothing heavy is imported for it. And how the command line ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hf_dbmtl_cli import main


SCRIPT = """
import sys
from hf_dbmtl_cli import main
code = None
try:
    main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print(sorted({"torch", "transformers", "datasets", "hf_dbmtl"} & set(sys.modules)), code)
"""


COMMANDS = ("train", "compare", "inspect", "evaluate", "predict", "export", "balancers", "env")


@pytest.mark.parametrize(
    "words",
    ["", "--help", "train x.yaml --seed 3 --help", "--version", *(f"{command} --help" for command in COMMANDS)],
)
def test_light(words):
    root = str(Path(__file__).parents[2])
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *words.split()], cwd=root, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[] 0", ran.stderr
    if "train" in words.split():
        assert "usage: hf-dbmtl train config.yaml" in ran.stdout


def test_heavy_is_seen(capsys):
    """The control: what is imported when a command runs."""
    with pytest.raises(SystemExit):
        main(["train", "nowhere.yaml"])
    assert {"torch", "transformers", "datasets", "hf_dbmtl"} <= set(sys.modules)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trian", "invalid choice: 'trian'"),
        ("train --learning_rate 1 x.yaml", "name the command and its file first"),
        ("train", "name the YAML file"),
        ("balancers --jsn", "`hf-dbmtl balancers` has no such option"),
        ("train nowhere.yaml", "hf-dbmtl train: error: nowhere.yaml: the file cannot be read"),
    ],
)
def test_errors(words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_help_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    main(["train", "--help_all"])
    shown = capsys.readouterr().out
    for name in ("model_name_or_path", "tasks.NAME.dataset", "eval_fraction", "balancer_kwargs", "adam_epsilon"):
        assert name in shown


def test_every_command_is_above(capsys):
    with pytest.raises(SystemExit):
        main(["nothing"])
    listed = capsys.readouterr().err.rpartition("(choose from ")[2].strip(")\n").replace("'", "").split(", ")
    assert set(listed) == set(COMMANDS)
