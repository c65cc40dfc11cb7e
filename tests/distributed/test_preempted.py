"""With several processes one SIGTERM is enough: all save after the same step and stop, and the run goes on bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_dbmtl.manifest import last_whole_checkpoint


@pytest.mark.slow
def test_one_is_told_and_all_stop(tmp_path: Path) -> None:
    for part in ("alone", "told", "resumed"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        done = subprocess.run(
            [*command, str(Path(__file__).with_name("preempted.py")), str(tmp_path), part],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        if part == "told":
            assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["143 2", "143 2"]
            newest, broken = last_whole_checkpoint(tmp_path / "told")
            assert newest.endswith("checkpoint-2") and not broken
    alone, resumed = (load_file(tmp_path / f"{part}.safetensors") for part in ("alone", "resumed"))
    assert alone.keys() == resumed.keys() and all(torch.equal(alone[name], resumed[name]) for name in alone)
