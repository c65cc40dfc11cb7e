"""Before a machine is taken away: save, then stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


__all__ = ["PreemptionCallback"]

logger = logging.get_logger(__name__)


class PreemptionCallback(TrainerCallback):
    """
    Ends a run that is told to stop: the step under way is finished (and evaluated on, where that is due), a checkpoint is
    saved, whatever `save_strategy` says, and the process ends by `SystemExit` with the status 128 + the signal's number, as
    a shell reports it. What stands behind `trainer.train()` does not run. `train(resume_from_checkpoint=True)` goes on.

    With several processes it is enough that one is told: they agree on the step after which they save.

    Args:
        signals (`Sequence[int]`, *optional*, defaults to `(signal.SIGTERM,)`):
            The signals that mean so. SLURM sends those that `--signal` names, others SIGTERM.
    """

    def __init__(self, signals: Sequence[int] = (signal.SIGTERM,)) -> None:
        self.signals = tuple(signals)
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.received, self._process = None, os.getpid()
        for one in self.signals:
            handler = signal.signal(one, self._note)
            self._before.setdefault(one, handler)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._save_if_told(args, state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._save_if_told(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        received = self._told(args)
        if received is not None:
            self._restore()
            logger.warning(f"Stopped by signal {received}. The checkpoint of step {state.global_step} is saved.")
            raise SystemExit(128 + received)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore()

    def _save_if_told(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if self._told(args) is not None:
            control.should_save = True

    def _told(self, args: TrainingArguments) -> int | None:
        """The signal that some process has received. All of them ask at the same places."""
        if args.world_size > 1:
            received = torch.tensor(self.received or 0, device=args.device)
            dist.all_reduce(received, dist.ReduceOp.MAX)
            self.received = int(received) or None
        return self.received

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a process started by this one, which has nothing to save
            raise SystemExit(128 + number)
        self.received = number

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before.clear()
