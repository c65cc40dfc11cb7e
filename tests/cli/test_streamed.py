"""Data that are streamed, from a YAML file: trained on, inspected, interrupted and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hf_dbmtl.cli.config import read_config
from hf_dbmtl_cli import CommandError, main


RUN = """
model_name_or_path: encoder
output_dir: streamed
use_cpu: true
max_steps: 9
save_steps: 4
learning_rate: 0.01
per_device_train_batch_size: 4
disable_tqdm: true
tasks:
  feeling:
    kind: classification
    dataset: {data_files: {train: sst.csv, eval: sst.csv}, streaming: true}
    text: sentence
    label: feeling
    label_names: [negative, positive]
  score:
    kind: regression
    dataset: {path: scores.jsonl, streaming: true, eval_fraction: 0, buffer_size: 16}
    label: score
    max_train_samples: 30
  place:
    kind: token_classification
    dataset: {path: words.jsonl, streaming: true, eval_fraction: 0, buffer_size: 0}
    text: tokens
    label: tags
    label_names: [O, B-PLACE]
  words:
    kind: masked_language_modeling
    dataset: {path: scores.jsonl, streaming: true, eval_fraction: 0}
"""


@pytest.fixture(scope="module")
def config(encoder, files, folder) -> str:
    Path("streamed.yaml").write_text(RUN)
    return "streamed.yaml"


def test_train_evaluate_inspect_resume(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["inspect", config])
    shown = capsys.readouterr().out
    assert "9 (streamed)" in shown and shown.count("streamed") >= 5 and "16 (1 micro-batches" in shown
    main(["train", config])
    metrics = json.loads(Path("streamed/eval_results.json").read_text())
    assert "eval_feeling_accuracy" in metrics and "eval_score_r2" not in metrics
    main(["evaluate", config, "--model", "streamed", "--output_dir", "judged", "--max_eval_samples", "7"])
    main(
        ["train", config, "--output_dir", "again", "--resume_from_checkpoint", "streamed/checkpoint-4", "--seed", "42"]
    )
    shutil.copytree("streamed/checkpoint-4", "anew/checkpoint-4")
    main(["train", config, "--output_dir", "anew", "--resume_from_checkpoint", "true", "--ignore_data_skip"])
    whole, again, anew = (load_file(f"{one}/model.safetensors") for one in ("streamed", "again", "anew"))
    assert all((whole[name] == again[name]).all() for name in whole)
    assert any((whole[name] != anew[name]).any() for name in whole)  # the control: the rows from the beginning


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--max_steps -1",
            "streamed.yaml and the command line: max_steps: tasks.feeling.dataset is streamed, and set it",
        ),
        ("--mixing proportional", "mixing: tasks.feeling.dataset is streamed, and the sizes to mix by are not known"),
        (
            "--conflict_steps 2",
            "conflict_steps: tasks.feeling.dataset is streamed, and it looks at rows drawn by number",
        ),
        (
            "--tasks.score.dataset.streaming off",
            "tasks.score.dataset.streaming: it must be true, as it is in tasks.feeling",
        ),
        (
            "--tasks.score.dataset.eval_fraction 0.2",
            "tasks.score.dataset.eval_fraction: no share of rows can be held out",
        ),
        ("--tasks.score.dataset.buffer_size -1", "tasks.score.dataset.buffer_size: it must be 0 or more"),
        (
            "--tasks.feeling.label_names null",
            "Task 'feeling': its data are streamed, and its labels not known before all",
        ),
        ("--tasks.place.label_names null", "Task 'place': its data are streamed, and its labels not known"),
        ("--tasks.score.label scor", "Task 'score': its data have no column 'scor': did you mean 'score'"),
        ("--train_sampling_strategy group_by_length", "the rows come in their own order"),
        ("--dataloader_num_workers 2", "one reads all"),
    ],
)
def test_refused(config, words, said, capsys):
    with pytest.raises(SystemExit):
        main(["train", config, *words.split()])
    assert said.replace(" and the command line", "") in capsys.readouterr().err


def test_a_buffer_of_what_is_not_streamed(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: e\ntasks: {t: {kind: regression, dataset: {path: a.csv, buffer_size: 5}}}\n")
    with pytest.raises(CommandError, match="tasks.t.dataset.buffer_size: it is a setting of streaming: true"):
        read_config(str(path), ["--use_cpu"])


@pytest.mark.slow
def test_compare(encoder, files, folder, capsys):
    """As many steps of each task alone as of all; conflicts are not measured, whose rows are drawn by number."""
    Path("streams_compared.yaml").write_text(
        """
        model_name_or_path: encoder
        output_dir: streams_compared
        use_cpu: true
        max_steps: 3
        learning_rate: 0.01
        per_device_train_batch_size: 4
        tasks:
          feeling:
            kind: classification
            dataset: {data_files: {train: sst.csv, eval: sst.csv}, streaming: true}
            text: sentence
            label: feeling
            label_names: [negative, positive]
          score:
            kind: regression
            dataset: {data_files: {train: scores.jsonl, eval: scores.jsonl}, streaming: true}
            label: score
        """
    )
    main(["compare", "streams_compared.yaml", "--balancers", "ew", "--seeds", "1"])
    assert "conflicts.png" not in capsys.readouterr().out
    runs = Path("streams_compared/compare/runs")
    for path in ("ew", "single-task/feeling", "single-task/score"):
        result = json.loads((runs / path / "seed-42/result.json").read_text())
        assert result["steps"] == 3 and result["metrics"]
