"""Starts process groups on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent


def launch(processes: int, script: str, *arguments: Any, timeout: float = 600) -> subprocess.CompletedProcess:
    """Runs a script of this folder on some processes and returns what they wrote and how they ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )


def outcomes(processes: int, script: str, folder: Path, *arguments: Any, timeout: float = 600) -> list[dict]:
    """As `launch`, and returns what every process has written into `outcomes-{rank}.json`."""
    done = launch(processes, script, folder, *arguments, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(processes)]
