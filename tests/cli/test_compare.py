"""`hf-dbmtl compare`: runs once, goes on after whatever ended it, and says what failed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from hf_dbmtl.cli import compare
from hf_dbmtl.cli.compare_plan import PlannedRun, parse_methods, parse_seeds, write_atomically
from hf_dbmtl_cli import main


ROOT = Path(__file__).parents[2]
RUN = """
model_name_or_path: encoder
output_dir: compared
use_cpu: true
max_steps: 3
logging_steps: 1
learning_rate: 0.01
per_device_train_batch_size: 4
non_finite_strategy: raise
disable_tqdm: true
tasks:
  feeling:
    kind: classification
    dataset: {path: sst.csv, eval_fraction: 0.25}
    text: sentence
    label: feeling
  score:
    kind: regression
    dataset: {path: scores.jsonl, eval_fraction: 0.25}
    label: score
    main_metric: mse
"""


@pytest.fixture
def config(encoder, files, folder, monkeypatch) -> str:
    # for the runs, which are other processes
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    Path("compare.yaml").write_text(RUN)
    return "compare.yaml"


def results() -> dict[str, float]:
    """When each result was written."""
    return {str(path.parent): path.stat().st_mtime_ns for path in Path("compared/compare").rglob("result.json")}


def test_compare(config, capsys):
    """A method that fails does not end the rest; the next call runs what is missing, and nothing else."""
    failing = "[ew, {max_norm: {alpha: 1.e+38}}, db_mtl]"  # an update that overflows
    words = ["compare", config, "--seeds", "1", "--balancers"]
    with pytest.raises(SystemExit) as ended:
        main([*words, failing, "--max_steps", "4"])
    assert ended.value.code == 1
    shown = capsys.readouterr().out
    assert "max_norm(alpha=1e+38), seed 42: failed after" in shown and "FloatingPointError" in shown
    before = results()
    assert len(before) == 4  # two single-task models, ew and db_mtl
    assert "single-task" in shown and "db_mtl" in shown

    main([*words, "ew,db_mtl,pcgrad", "--max_steps", "4"])
    after = results()
    assert {name: after[name] for name in before} == before
    assert len(after) == 5
    shown = capsys.readouterr().out
    assert shown.count("finished before") == 4

    out = Path("compared/compare")
    for name in ("comparison.md", "comparison.csv", "runs.csv", "delta_p.png", "training.png", "conflicts.png"):
        assert (out / name).stat().st_size > 100, name
    table = {row["method"]: row for row in csv.DictReader((out / "comparison.csv").open())}
    assert list(table) == ["single-task", "ew", "db_mtl", "pcgrad"]
    runs = {row: json.loads(Path(row, "result.json").read_text()) for row in after}
    alone, joint = (runs[f"{out}/runs/{name}/seed-42"] for name in ("single-task/score", "ew"))
    one, other = (found["metrics"]["score"]["mse"] for found in (alone, joint))
    assert float(table["ew"]["delta_p_score_mean"]) == pytest.approx(100 * (one - other) / one)
    assert alone["steps"] == joint["steps"] == 4
    assert any("cosine/feeling/score" in record for record in joint["log_history"])
    assert float(table["ew"]["seconds_per_step"]) > 0 and float(table["ew"]["memory_bytes"]) >= 0

    with pytest.raises(SystemExit):
        main([*words, "ew", "--max_steps", "5"])
    assert "was run with max_steps: 4, and now it is 5" in capsys.readouterr().err


def test_alone_sees_what_the_joint_model_sees(config):
    """As many steps, and as many of its rows in each, whatever the size of its data."""
    words = "--seeds 1 --balancers ew --output_dir mixed --mixing proportional --num_train_epochs 2 --max_steps -1"
    few = "--tasks.score.max_train_samples 10 --eval_strategy epoch --save_strategy epoch --load_best_model_at_end"
    main(["compare", config, *words.split(), *few.split()])
    runs = Path("mixed/compare/runs")
    found = {
        path: json.loads((runs / path / "seed-42/result.json").read_text()) for path in ("ew", "single-task/score")
    }
    # 30 and 10 rows, 8 in a step: 6 and 2. Five steps an epoch.
    assert {one["steps"] for one in found.values()} == {10}
    for one in found.values():
        assert [record["step"] for record in one["log_history"] if "eval_loss" in record][:2] == [5, 10]
    assert not list(runs.rglob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(config, how, folder, capsys):
    name = f"interrupted_{how.name}"
    words = ["compare", config, "--seeds", "2", "--balancers", "ew,db_mtl", "--max_steps", "60", "--output_dir", name]
    started = subprocess.Popen(
        [sys.executable, "-m", "hf_dbmtl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # what a shell starts in the background ignores it, and so do the tests then, and what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    runs = Path(name, "compare/runs")
    deadline = time.monotonic() + 300
    while len(list(runs.rglob("result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    started.send_signal(how)  # six of the eight runs are still to come
    shown, _ = started.communicate(timeout=60)
    finished = {path: path.read_text() for path in runs.rglob("result.json")}
    assert 2 <= len(finished) < 8
    if how == signal.SIGINT:
        assert started.returncode == 130 and b"goes on with what is not finished" in shown and b"Comparison" in shown
    else:
        assert started.returncode == -signal.SIGKILL
    main(words)
    assert len(list(runs.rglob("result.json"))) == 8
    assert all(path.read_text() == text for path, text in finished.items())
    assert capsys.readouterr().out.count("finished before") == len(finished)


def test_interrupted_before_the_first_result(config, monkeypatch, capsys):
    def interrupted(one: PlannedRun, keep_models: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "in_a_process", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["compare", config, "--balancers", "ew", "--seeds", "1", "--output_dir", "interrupted_at_once"])
    assert ended.value.code == 130
    shown = capsys.readouterr().out
    assert "The same command goes on with what is not finished." in shown and "No run is finished." in shown
    assert not Path("interrupted_at_once/compare/comparison.md").exists()


def test_several_processes_that_are_killed(config, monkeypatch, capsys):
    """Every run goes to the launcher, and one that leaves neither a result nor an error does not end the others."""
    launched = []

    def killed(one: PlannedRun, keep_models: bool, command) -> None:
        launched.append((str(one), command(["module"])[0][-5:]))

    monkeypatch.setattr(compare, "in_several", killed)
    words = ["--balancers", "ew,log", "--seeds", "1", "--reference", "ew", "--num_processes", "2"]
    with pytest.raises(SystemExit) as ended:
        main(["compare", config, *words, "--output_dir", "killed"])
    assert ended.value.code == 1
    ending = ["--standalone", "--nproc_per_node", "2", "-m", "module"]
    assert launched == [("ew, seed 42", ending), ("log, seed 42", ending)]
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("its process was killed (out of memory?)") == 2 and "No run is finished." in shown


def test_reference_that_failed(tmp_path, capsys):
    """The methods are shown without the comparison, and it is said why."""
    folder = tmp_path / "runs" / "ew"
    folder.mkdir(parents=True)
    found = {"metrics": {"score": {"mse": 0.5}}, "seconds_per_step": 0.1, "memory_bytes": 0, "log_history": []}
    (folder / "result.json").write_text(json.dumps(found))
    planned = [PlannedRun("ew", 0, folder, {}), PlannedRun("log", 0, tmp_path / "runs" / "log", {})]
    compare.report(planned, tmp_path, {"score": ["mse"]}, "log", Console(width=200))
    assert "ew: no Δp, since the reference 'log' has no result for score" in capsys.readouterr().out


def test_methods():
    config = {"balancer": "db_mtl", "balancer_kwargs": {"beta": 0.1}}
    found = parse_methods("[ew, db_mtl, {db_mtl: {beta: 0.5}}, log+pcgrad]", config)
    assert [one.name for one in found] == ["ew", "db_mtl", "db_mtl(beta=0.5)", "log+pcgrad"]
    assert [one.options for one in found] == [{}, {"beta": 0.1}, {"beta": 0.5}, {}]
    assert [one.name for one in parse_methods("ew, log", {})] == ["ew", "log"]
    assert (parse_seeds("3", 5), parse_seeds("0,7", 5)) == ([5, 6, 7], [0, 7])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--balancers ew,db_mlt", ["--balancers", "'db_mlt'", "'db_mtl'"]),
        ("--balancers [{db_mtl:{bet:1}}]", ["--balancers"]),
        ("--balancers ew,ew", ["'ew' is there twice"]),
        ("--balancers ,", ["name one at least"]),
        ('--balancers [{"ew":1}]', ["--balancers: {'ew': 1} must be a name, or a name with its options: {db_mtl:"]),
        ("--balancers ew,auto_lambda", ["'auto_lambda' tunes its weights on rows held out", "validation_fraction"]),
        ("--num_processes 0", ["--num_processes must be 1 or more, and is 0"]),
        ("--seeds three", ["--seeds must be a number of seeds", "'three'"]),
        ("--seeds 1,1", ["each once"]),
        ("--reference log", ["--reference must be single-task or one of the methods"]),
        ("--metrics {feeling:[acc]}", ["--metrics"]),
        ("--metrics accuracy", ["--metrics must be a mapping such as '{mrpc: [accuracy, f1]}', and is 'accuracy'"]),
        ("--metrics {felling:[accuracy]}", ["--metrics: there is no task felling, only feeling, score."]),
        ("--tasks.score.dataset.eval_fraction 0", ["Task 'score' has nothing to evaluate on"]),
    ],
)
def test_refused(config, words, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", config, "--output_dir", "refused_comparison", *words.split()])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    for part in said:
        assert part in shown
    assert not Path("refused_comparison").exists()


def test_no_file_named(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["compare", "--balancers", "ew"])
    assert ended.value.code == 2
    assert "name the YAML file: hf-dbmtl compare config.yaml --balancers ew,db_mtl" in capsys.readouterr().err


def test_atomic(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "one")
    with pytest.raises(RuntimeError), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(RuntimeError))  # killed before the end
        write_atomically(path, "two")
    assert path.read_text() == "one"
