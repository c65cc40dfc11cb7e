"""Callbacks for a [`MultiTaskTrainer`]: a picture of the run, and the progress bar of `progress.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .plots import logged_tasks, plot_training
from .progress import MultiTaskProgressCallback


__all__ = ["MultiTaskProgressCallback", "PlotCallback"]


class PlotCallback(TrainerCallback):
    """
    Draws the loss, weight and gradient norm of every task when training ends, see [`~hf_dbmtl.plots.plot_training`].
    Where nothing was logged (training was shorter than `logging_steps`) nothing is written. One process writes.

    Args:
        path (`str` or `os.PathLike`, *optional*):
            Where to write; by default `training.png` in the output folder.
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        self.path = path

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and logged_tasks(state.log_history):
            plot_training(
                state.log_history, Path(args.output_dir or "", "training.png") if self.path is None else self.path
            )
