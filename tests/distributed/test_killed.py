"""A process that dies takes the others with it, by an error, within the timeout: nobody waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import free_port


WORLD = 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "fsdp"])
def test_a_process_dies(layout: str, tmp_path: Path) -> None:
    """Started one by one: torchrun would end the others itself."""
    common = {"WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed.py")), str(tmp_path), layout],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(WORLD)
    ]
    survivor, dead = ((process.communicate(timeout=300), process.returncode) for process in processes)
    assert dead[1] == -signal.SIGKILL
    (out, err), code = survivor
    assert code not in (0, None)
    assert "step 1" in out and "step 5" not in out
    assert "RuntimeError" in err and ("Connection closed by peer" in err or "reset by peer" in err), err[-2000:]
