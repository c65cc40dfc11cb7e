"""The second look: the losses of the same micro-batches after the optimizer's step, for a balancer that wants them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, set_seed

from .trainer_part import TrainerPart


__all__ = ["AfterOptimizerStep", "SecondLookMixin", "random_numbers_aside"]


class AfterOptimizerStep(TrainerCallback):
    """
    Does what was left to be done until the optimizer has stepped.

    Attributes:
        pending (`Callable`, *optional*):
            What to do after the coming step of the optimizer, once.
    """

    def __init__(self) -> None:
        self.pending: Callable[[], None] | None = None

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            pending()


class SecondLookMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that looks again."""

    @torch.no_grad()
    def _look_again(self, model: nn.Module, micro_batches: list[dict[str, Any]]) -> None:
        """
        Gives the balancer the losses of the same micro-batches again: in training mode, as in the code of FAMO's
        authors, and with random numbers of their own, so that those of the run are the same with a second look as
        without.
        """
        if self.accelerator.optimizer_step_was_skipped:
            return
        module = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        batches = self._batches_of(micro_batches, self.units)
        row = {task: position for position, task in enumerate(self.tasks)}
        sums = torch.zeros(len(self.tasks), 2, dtype=torch.float64)
        with random_numbers_aside(self.args.device, self._seed_of_step()):
            for name, unit in self.units.items():
                for measured in [self._losses_and_items(module, unit, batch) for batch in batches(name)]:
                    for task, (loss, items) in measured.items():
                        if items > 0:
                            sums[row[task]] += torch.stack([items * loss, items]).cpu()
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums.to(self.args.device), "sum")
        found = zip(self.tasks, sums.tolist())
        self.balancer.look_again({task: loss / items for task, (loss, items) in found if items > 0})

    def _seed_of_step(self) -> int:
        """For what draws random numbers beside the run: a function of the seed, the step and the process."""
        return (self.args.seed * 1_000_003 + self.state.global_step) * 31 + self.args.process_index


@contextlib.contextmanager
def random_numbers_aside(device: torch.device, seed: int) -> Iterator[None]:
    """
    Lets what runs inside draw random numbers from `seed`, and the run go on afterwards as if none had been drawn.

    Args:
        device (`torch.device`):
            The device of the model, whose generator is kept beside those of the CPU.
        seed (`int`):
            The seed. It is taken modulo 2^32.
    """
    python, numpy = random.getstate(), np.random.get_state()
    alone = device.type in ("cpu", "mps")  # torch cannot set the generator of mps aside
    try:
        with torch.random.fork_rng([] if alone else [device], device_type="cuda" if alone else device.type):
            set_seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
