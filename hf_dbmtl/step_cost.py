"""What a step costs: its time, and the memory of training above the loaded model."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


__all__ = ["StepCostCallback"]

WARM_UP = 2  # steps that are not timed, where there are others: allocation, compilation


class StepCostCallback(TrainerCallback):
    """
    Measures the time of every optimizer step, from the first forward pass to the optimizer's update, and the peak of memory
    during training: of the GPU where the model is on one, else of the process.

    Attributes:
        seconds (`float`, *optional*):
            The median time of a step, of those that the first two leave.
        memory (`int`, *optional*):
            The bytes at the peak, above what was in use when training began: gradients, averages, the optimizer's state and
            activations. Evaluations in between count.
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.memory: int | None = None

    @property
    def seconds(self) -> float | None:
        timed = self.times[WARM_UP:] or self.times
        return statistics.median(timed) if timed else None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.times.clear()
        self._before = _reset(args.device)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize(args.device)
        self.times.append(time.perf_counter() - self._start)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.memory = max(0, _peak(args.device) - self._before)


def _reset(device: torch.device) -> int:
    """Lets the peak start from now, where the system can; returns what is in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:  # not Linux, or not allowed: the peak so far
        return _peak(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return _status("VmHWM")
    except OSError:
        import resource  # not on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
