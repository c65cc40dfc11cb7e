"""The second look: the losses of the same micro-batches again after the optimizer's step, for a balancer that wants them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, set_seed


__all__ = ["SecondLook", "random_numbers_aside"]


class SecondLook(TrainerCallback):
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
