"""When skipping steps does not help: the run is stopped, with the last good state saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging


__all__ = ["SkipLimit"]

logger = logging.get_logger(__name__)


class SkipLimit(TrainerCallback):
    """
    Counts the steps skipped in a row. After `max_skipped_steps` of them it saves a checkpoint, whose weights are those of
    the last step that was not skipped, and raises a `FloatingPointError`; at once, without a checkpoint, where the
    parameters themselves have become NaN or infinite, from which no further step recovers.

    Attributes:
        in_a_row (`int`):
            How many steps were skipped since the last one that was not.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self._task: str | None = None  # of the step under way, where it is skipped

    def skip(self, task: str) -> None:
        """Told that the step under way is skipped for the sake of `task`."""
        self._task = task

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.in_a_row, self._task = 0, None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._task is None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.in_a_row == 1:
            self._look_at(kwargs["model"], state)
        if self._reached(args):
            control.should_save = True
        else:
            self._task = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._task is not None and self._reached(args):
            raise FloatingPointError(
                f"Task '{self._task}': its loss or gradient is not finite, and {self.in_a_row} steps in a row were skipped "
                f"(`max_skipped_steps`), up to step {state.global_step}. The checkpoint of that step is saved, with the "
                "weights of the last step that was not skipped. Mend the data or lower the learning rate."
            )

    def _reached(self, args: Any) -> bool:
        return args.max_skipped_steps is not None and self.in_a_row >= args.max_skipped_steps

    def _look_at(self, model: nn.Module, state: TrainerState) -> None:
        """Whether it was a bad batch, or the model has broken."""
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise FloatingPointError(
                    f"Task '{self._task}': the parameter '{name}' has become NaN or infinite by step {state.global_step}, "
                    "from which no further step recovers. Resume from the last checkpoint (`resume_from_checkpoint=True`) "
                    "with a lower learning rate."
                )
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and torch.isnan(buffer).any():
                logger.warning_once(
                    f"The buffer '{name}' holds NaN since step {state.global_step} was skipped: statistics of a forward pass, "
                    "such as those of BatchNorm, remember a bad input. Mend the data, or resume from the last checkpoint."
                )
