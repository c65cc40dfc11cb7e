"""Callbacks for a [`MultiTaskTrainer`]: a picture of the run, and a progress bar that shows the loss of every task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from .plots import logged_tasks, plot_training


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


class MultiTaskProgressCallback(ProgressCallback):
    """
    The progress bar of transformers with the newest loss of every task behind it, in place of a line per record. Other
    records (evaluations, the summary) are printed as ever. The bar of an evaluation counts the batches of all tasks.
    Under `disable_tqdm=True` nothing is shown.

    A Trainer makes a bar of its own, so that one more in `callbacks=` would be the second: let
    [`~MultiTaskProgressCallback.replace`] exchange them.

    ```python
    trainer = MultiTaskTrainer(...)
    MultiTaskProgressCallback.replace(trainer)
    ```
    """

    _loader: Any = None  # the one that predictions last came from

    @classmethod
    def replace(cls, trainer: Trainer) -> None:
        """Puts this bar in the place of the trainer's [`~transformers.ProgressCallback`], where it has one."""
        bars = 0
        while trainer.pop_callback(ProgressCallback) is not None:
            bars += 1
        if bars:
            trainer.add_callback(cls)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if args.disable_tqdm:
            return
        # One evaluation walks through the loaders of all tasks, and the stock bar only counts the first one's batches.
        if self.prediction_bar is not None and eval_dataloader is not self._loader and has_length(eval_dataloader):
            self.prediction_bar.total += len(eval_dataloader)
        self._loader = eval_dataloader
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        losses = {key.removeprefix("loss/"): value for key, value in (logs or {}).items() if key.startswith("loss/")}
        if losses and self.training_bar is not None:
            self.training_bar.set_postfix_str(", ".join(f"{task} {loss:.3g}" for task, loss in losses.items()))
        else:
            super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)
