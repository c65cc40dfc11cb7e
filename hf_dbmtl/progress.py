"""The progress of a run in a terminal, with the newest loss of every task; elsewhere the bar of transformers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length


__all__ = ["MultiTaskProgressCallback"]

SECONDS = 0.1  # between two pictures of the bar


class _Display(Progress):
    """Bars, and below them the losses. It draws when it is told to: no thread that a worker could be forked beside."""

    def __init__(self, console: Console):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        rest = (TextColumn("<"), TimeRemainingColumn(), TextColumn("{task.fields[pace]}"))
        self.losses: Mapping[str, float] = {}
        self.drawn = 0.0
        self._streams: list[tuple[logging.StreamHandler, Any]] = []
        super().__init__(*columns, *rest, console=console, auto_refresh=False)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.losses:
            line = Text("   ").join(
                Text.assemble((task, "cyan"), " ", f"{loss:.3g}") for task, loss in self.losses.items()
            )
            yield Text("loss  ", style="bold") + line

    def start(self) -> None:
        written = sys.stderr
        super().start()
        self.console.show_cursor(True)  # a run that is killed would leave the terminal without
        # what loggers write goes above the bars as well: they have taken hold of the stream
        for name in (None, "transformers", "datasets", "accelerate"):
            for handler in logging.getLogger(name).handlers:
                if type(handler) is logging.StreamHandler and handler.stream is written:
                    self._streams.append((handler, handler.setStream(sys.stderr)))

    def stop(self) -> None:
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams = []
        super().stop()

    def draw(self, now: bool = False) -> None:
        if now or time.monotonic() - self.drawn > SECONDS:
            self.drawn = time.monotonic()
            self.refresh()


class _Bar:
    """A line of a display, in the words of tqdm, which the callback of transformers speaks. The first to come starts it."""

    def __init__(self, total: int, description: str, display: _Display | None = None):
        self.alone = display is None
        self.display = _Display(_terminal()) if display is None else display
        self.line: TaskID = self.display.add_task(description, total=total, pace="")
        self.begun = time.monotonic()
        if self.alone:
            self.display.start()
        self.display.draw(now=True)

    @property
    def total(self) -> int:
        return int(self.display.tasks[self.display.task_ids.index(self.line)].total or 0)

    @total.setter
    def total(self, total: int) -> None:
        self.display.update(self.line, total=total)

    def update(self, steps: int) -> None:
        done = self.display.tasks[self.display.task_ids.index(self.line)].completed + steps
        pace = done / max(time.monotonic() - self.begun, 1e-9)
        self.display.update(self.line, advance=steps, pace=f"{pace:.2f} it/s" if pace >= 1 else f"{1 / pace:.2f} s/it")
        self.display.draw()

    def show(self, losses: Mapping[str, float]) -> None:
        self.display.losses = losses
        self.display.draw(now=True)

    def write(self, text: str) -> None:
        self.display.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        self.display.draw(now=True)  # the last steps may have come too fast for a picture
        if self.alone:
            self.display.stop()
        else:
            self.display.remove_task(self.line)
            self.display.draw(now=True)


def _terminal() -> Console:
    return Console(stderr=True)


def _in_terminal() -> bool:
    """Whether there is something that lines can be drawn anew on: not a file, a pipe, a notebook, or a dumb terminal."""
    console = _terminal()
    return sys.stderr.isatty() and console.is_interactive and not console.is_jupyter


class MultiTaskProgressCallback(ProgressCallback):
    """
    A progress bar with the newest loss of every task below it, in place of a line per record: rich's in a terminal, and that
    of transformers, with the losses behind it, where the output goes elsewhere. Other records (evaluations, the summary) are
    printed as ever. The bar of an evaluation counts the batches of all tasks. Under `disable_tqdm=True` nothing is shown.

    A Trainer makes a bar of its own, so that one more in `callbacks=` would be the second: let
    [`~MultiTaskProgressCallback.replace`] exchange them.

    ```python
    trainer = MultiTaskTrainer(...)
    MultiTaskProgressCallback.replace(trainer)
    ```
    """

    training_bar: Any
    prediction_bar: Any
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
        if args.disable_tqdm:
            return
        if isinstance(self.training_bar, _Bar):  # of a run that an error has ended
            self.training_bar.close()
        if not _in_terminal():
            super().on_train_begin(args, state, control, **kwargs)
            return
        self.training_bar, self.current_step = None, 0
        if state.is_world_process_zero:
            self.training_bar = _Bar(state.max_steps, "training")

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
        display = self.training_bar.display if isinstance(self.training_bar, _Bar) else None
        drawn = display is not None or (self.training_bar is None and _in_terminal())
        if self.prediction_bar is None and state.is_world_process_zero and has_length(eval_dataloader) and drawn:
            self.prediction_bar = _Bar(len(eval_dataloader), "evaluation", display)
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
        if losses and isinstance(self.training_bar, _Bar):
            self.training_bar.show(losses)
        elif losses and self.training_bar is not None:
            self.training_bar.set_postfix_str(", ".join(f"{task} {loss:.3g}" for task, loss in losses.items()))
        else:
            super().on_log(args, state, control, logs=logs, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)
