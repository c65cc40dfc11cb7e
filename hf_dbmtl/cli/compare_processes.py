"""The runs of `hf-dbmtl compare` as processes of their own: what kills one does not end the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .compare_plan import ERROR, RESULT, PlannedRun, write_atomically
from .compare_run import run_one


__all__ = ["LOG", "in_a_process", "in_several"]

LOG = "log.txt"
PARENT = "HF_DBMTL_COMPARE_PID"
GRACE = 30  # seconds that a launcher has to end its processes


def in_a_process(one: PlannedRun, keep_models: bool) -> None:
    """Carries a run out in one process, forked where the system can from one that has imported everything."""
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([__name__])
    child = context.Process(target=_in_child, args=(str(one.folder), one.task, keep_models))
    child.start()
    try:
        child.join()
    finally:
        if child.is_alive():
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # not while the child is being ended
            child.kill()
            child.join()
            signal.signal(signal.SIGINT, before)


def in_several(
    one: PlannedRun, keep_models: bool, command: Callable[[list[str]], tuple[list[str], dict[str, str]]]
) -> None:
    """Carries a run out on several processes, by the launcher that `command` makes of a module and its arguments."""
    words, environment = command([__name__, str(one.folder), one.task or "", "keep" if keep_models else ""])
    environment[PARENT] = str(os.getpid())
    with open(one.folder / LOG, "wb") as log:
        # in a session of its own: the terminal's signals are for this process, which ends the launcher then
        launcher = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            launcher.wait()
        finally:
            if launcher.poll() is None:
                launcher.terminate()
                try:
                    launcher.wait(GRACE)
                except subprocess.TimeoutExpired:
                    launcher.kill()
    if launcher.returncode and not (one.folder / ERROR).exists() and not (one.folder / RESULT).exists():
        write_atomically(one.folder / ERROR, f"the launcher ended with exit code {launcher.returncode}\n")


def _in_child(folder: str, task: str | None, keep_model: bool) -> None:
    """Its output goes into the folder, and it ends when the process that started it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    log = os.open(Path(folder, LOG), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    _run(folder, task, keep_model)


def _run(folder: str, task: str | None, keep_model: bool) -> None:
    try:
        run_one(folder, task, keep_model)
    except BaseException as error:
        traceback.print_exc()
        write_atomically(Path(folder, ERROR), f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)


def _die_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)


def _die_with_process(pid: int) -> None:
    """The processes of a launcher do not know who started it: they look whether it is still there."""
    while True:
        try:
            os.kill(pid, 0)
        except OSError:
            os._exit(1)
        time.sleep(1.0)


if __name__ == "__main__":  # one of several, as a launcher starts it
    threading.Thread(target=_die_with_process, args=(int(os.environ[PARENT]),), daemon=True).start()
    _run(sys.argv[1], sys.argv[2] or None, sys.argv[3] == "keep")
