"""Starts process groups on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


HERE = Path(__file__).parent


@dataclass(frozen=True)
class Group:
    """
    A process group that has ended.

    Attributes:
        folder (`Path`): where its processes have left their files.
        found (`list[dict]`): of every process, what each case and scenario came to, by name.
    """

    folder: Path
    found: list[dict[str, Any]]

    def of(self, name: str) -> list[Any]:
        """What one case or scenario came to on every process; it must not have raised."""
        for outcome in self.found:
            assert "error" not in outcome[name], outcome[name]["error"]
        return [outcome[name] for outcome in self.found]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


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


def started(processes: int, folder: Path, names: Iterable[Any], timeout: float = 1200, again: bool = False) -> Group:
    """The group that has run cases and scenarios into a folder; it is started where the folder is not there yet, or again."""
    last = folder / f"outcomes-{processes - 1}.json"
    if again or not folder.exists():
        folder.mkdir(exist_ok=True)
        done = launch(processes, "worker.py", folder, *names, timeout=timeout)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert last.exists(), "the group has failed already, for another worker of these tests: its error is told there"
    return Group(folder, [json.loads((folder / f"outcomes-{rank}.json").read_text()) for rank in range(processes)])
