"""`--num_processes` and `--accelerate_config`: the command that they stand for, and that it runs as many processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from test_train import RUN, distance

from hf_dbmtl import MultiTaskModel
from hf_dbmtl.cli.launching import launch_command, wanted
from hf_dbmtl_cli import CommandError, main


ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def command(*args) -> list[str]:
    return launch_command(["hf_dbmtl", "train", "x.yaml"], *args)[0][1:]


def test_commands(tmp_path):
    assert command(3, None, False) == [*TORCHRUN, "3", "-m", "hf_dbmtl", "train", "x.yaml"]
    assert launch_command(["m"], 2, None, True)[1]["ACCELERATE_USE_CPU"] == "true"
    gpus, cpus = tmp_path / "gpus.yaml", tmp_path / "cpus.yaml"
    gpus.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    cpus.write_text("distributed_type: MULTI_CPU\nnum_processes: 4\nuse_cpu: true\n")
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(gpus)]
    assert command(None, str(gpus), False) == [*launch, "-m", "hf_dbmtl", "train", "x.yaml"]
    assert command(2, str(gpus), False) == [*launch, "--num_processes", "2", "-m", "hf_dbmtl", "train", "x.yaml"]
    # by accelerate itself it would be one process
    assert command(None, str(cpus), False)[: len(TORCHRUN) + 1] == [*TORCHRUN, "4"]
    cpus.write_text("distributed_type: MULTI_CPU\nnum_machines: 2\nnum_processes: 4\nuse_cpu: true\n")
    with pytest.raises(CommandError, match="cpus.yaml: several machines on CPUs: start torchrun on each of them"):
        command(None, str(cpus), False)
    with pytest.raises(CommandError, match="--accelerate_config nowhere: there is no such file"):
        command(None, "nowhere", False)
    with pytest.raises(CommandError, match="--num_processes must be 1 or more"):
        command(0, None, False)


def test_not_by_one_of_them(monkeypatch):
    given = Namespace(num_processes=2, accelerate_config=None)
    assert wanted(given)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not wanted(given)


def test_relaunch(encoder, files, monkeypatch):
    """What takes the place of the process, without the options that it stands for."""
    Path("launch.yaml").write_text(RUN)
    taken = []
    monkeypatch.setattr(os, "execvpe", lambda *given: taken.append(given) or sys.exit(0))
    for words in (["--num_processes", "2", "--seed", "3"], ["--seed", "3", "--num_processes=2"]):
        with pytest.raises(SystemExit):
            main(["train", "launch.yaml", *words])
        assert taken.pop()[1][-6:] == ["-m", "hf_dbmtl", "train", "launch.yaml", "--seed", "3"]


@pytest.mark.slow
def test_two_processes(encoder, files, folder):
    Path("launch.yaml").write_text(RUN)
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    still = ["--max_steps", "3", "--optim", "sgd", "--lr_scheduler_type", "constant"]
    two = ["--output_dir", "launched", "--per_device_train_batch_size", "2", "--num_processes", "2"]
    subprocess.run(
        [sys.executable, "-m", "hf_dbmtl", "train", "launch.yaml", *still, *two],
        env=environment,
        check=True,
        timeout=500,
    )
    main(["train", "launch.yaml", *still, "--output_dir", "alone"])
    main(["train", "launch.yaml", *still, "--output_dir", "half", "--per_device_train_batch_size", "2"])
    launched, one, half = (MultiTaskModel.from_pretrained(name).state_dict() for name in ("launched", "alone", "half"))
    assert distance(one, launched) < 1e-5
    assert distance(one, half) > 1e-3

    words = ["compare", "launch.yaml", *still, "--balancers", "ew", "--reference", "ew", "--seeds", "1"]
    subprocess.run([sys.executable, "-m", "hf_dbmtl", *words, *two], env=environment, check=True, timeout=500)
    result = json.loads(Path("launched/compare/runs/ew/seed-42/result.json").read_text())
    assert result["steps"] == 3
