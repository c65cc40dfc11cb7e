"""The bar in a terminal, and what becomes of it elsewhere."""

from __future__ import annotations

import io
import logging
import re
import sys
from typing import Any

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_dbmtl import MultiTaskProgressCallback, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on, which is behind pytest's own hold of the stream."""
    written = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "_terminal", lambda: Console(file=sys.stderr, width=100, force_terminal=True))
    return written


def lines(written: Terminal) -> list[str]:
    """What was drawn, line by line, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", written.getvalue()).split("\n")


def trained(folder: Any, **options: Any) -> MultiTaskProgressCallback:
    """Four steps, a record after the second, an evaluation of two tasks and its record."""
    args, control = TrainingArguments(str(folder), use_cpu=True, **{"disable_tqdm": False, **options}), TrainerControl()
    state = TrainerState(max_steps=4, is_world_process_zero=True)
    bar = MultiTaskProgressCallback()
    bar.on_train_begin(args, state, control)
    for step in range(1, 5):
        state.global_step = step
        bar.on_step_end(args, state, control)
        if step == 2:
            bar.on_log(args, state, control, logs={"loss": 2.0, "loss/mrpc": 0.51234, "loss/a_b": 12.3})
            for loader in (range(3), range(2)):
                for _ in loader:
                    bar.on_prediction_step(args, state, control, eval_dataloader=loader)
            bar.on_log(args, state, control, logs={"eval_loss": 1.5})
            bar.on_evaluate(args, state, control)
    bar.on_train_end(args, state, control)
    return bar


def test_a_terminal(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    handler = logging.StreamHandler()
    logging.getLogger("transformers").addHandler(handler)
    try:
        bar = trained(tmp_path)
        shown = "\n".join(lines(screen))
        assert re.search(r"training.*4/4", shown.replace("\n", " ")) and "mrpc 0.512" in re.sub(r"\n+", "", shown)
        assert "a_b 12.3" in re.sub(r"\n+", "", shown)
        assert "evaluation" in shown and "5/5" in shown  # the batches of both tasks
        assert "{'eval_loss': '1.5'}" in shown and "loss/mrpc" not in shown
        assert bar.training_bar is bar.prediction_bar is None
        assert handler.stream is screen and sys.stderr is screen  # given back
    finally:
        logging.getLogger("transformers").removeHandler(handler)


def test_after_an_error_the_next_run_has_a_bar_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    args, control = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=False), TrainerControl()
    bar = MultiTaskProgressCallback()
    bar.on_train_begin(args, TrainerState(max_steps=4, is_world_process_zero=True), control)
    first = bar.training_bar  # which no `on_train_end` closes
    state = TrainerState(max_steps=7, is_world_process_zero=True)
    bar.on_train_begin(args, state, control)
    assert bar.training_bar is not first and sys.stderr is not screen
    bar.on_train_end(args, state, control)
    assert sys.stderr is screen and bar.training_bar is None  # given back by both
    assert "0/4" in screen.getvalue() and "0/7" in screen.getvalue()


def test_what_is_no_terminal(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumb terminal, or a pipe: one line, that of tqdm."""
    screen = terminal(monkeypatch)
    monkeypatch.setattr(progress, "_terminal", lambda: Console(file=io.StringIO()))
    trained(tmp_path)
    assert "mrpc 0.512, a_b 12.3" in screen.getvalue() and "training" not in screen.getvalue()


def test_disabled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    trained(tmp_path, disable_tqdm=True)
    assert screen.getvalue() == ""
