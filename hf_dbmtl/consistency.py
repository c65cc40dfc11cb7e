"""Whether all processes of a run hold the same model, and train on the same data."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from .limits import the_first
from .streams import is_stream


__all__ = ["ConsistencyCheck", "check_same", "fingerprint"]

if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensor: Tensor) -> int:
    """A number that any change of any bit changes, nearly always: the sum of the bits as integers, modulo 2^64."""
    return int(tensor.detach().contiguous().view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64).item())


def check_same(what: Mapping[str, int], device: torch.device, remedy: str) -> None:
    """
    Checks that numbers are the same on every process, by one collective that costs 16 bytes for each of them.

    Args:
        what (`Mapping[str, int]`):
            The numbers (64 bits) by a name for each, the same names everywhere.
        device (`torch.device`):
            The device that the processes exchange tensors on.
        remedy (`str`):
            What to do about a difference, for the error.

    Raises:
        `RuntimeError`: on every process, where a number differs.
    """
    own = torch.tensor(list(what.values()), dtype=torch.int64)
    largest = torch.cat([own, ~own]).to(device)  # ~x falls as x grows: its largest tells the smallest
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    high, low = largest.cpu().chunk(2)
    different = [name for name, same in zip(what, (high == ~low).tolist()) if not same]
    if different:
        raise RuntimeError(f"The processes of this run differ in {the_first(different)}. {remedy}")


class ConsistencyCheck(TrainerCallback):
    """
    Ends a run whose processes have come apart, on every one of them.

    At the beginning the number of steps, the tasks, and the sizes of their datasets are compared, which must be the same
    for the processes not to wait for one another for ever. With `consistency_check_steps` also the first and the last row
    of every dataset, and every so many steps the parameters that each process holds whole and the balancer's state, bit by
    bit.

    Args:
        trainer ([`MultiTaskTrainer`]):
            The Trainer.
    """

    def __init__(self, trainer: MultiTaskTrainer):
        self._trainer = weakref.proxy(trainer)  # which holds this: dropped, it is to go at once, with its memory

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.world_size == 1:
            return
        trainer = self._trainer
        found = {"the number of steps": state.max_steps, "their first step": state.global_step}
        found["the names and the order of the tasks"] = zlib.crc32(repr(list(trainer.tasks)).encode())
        found["the names of the parameters"] = zlib.crc32(repr(list(trainer.gradients.shared)).encode())
        datasets = {unit.described: trainer.train_dataset[name] for name, unit in trainer.units.items()}
        sized = {which: dataset for which, dataset in datasets.items() if not is_stream(dataset)}
        for which, dataset in sized.items():
            found[f"the number of rows of {which}"] = len(dataset)
        # apart: what is exchanged below must be as long on every process
        counts = {"the number of tasks": len(trainer.tasks), "the number of datasets": len(datasets)}
        counts["the number of datasets with a length"] = len(sized)
        check_same(counts, args.device, SAME_DATA)
        check_same(found, args.device, SAME_DATA)
        if args.consistency_check_steps:
            if sized:
                check_same(_rows(sized), args.device, SAME_DATA)
            self._check_state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = args.consistency_check_steps
        if every and args.world_size > 1 and state.global_step % every == 0:
            self._check_state()

    def _check_state(self) -> None:
        trainer = self._trainer
        found = {
            f"the parameter '{name}'": fingerprint(parameter)
            for name, parameter in trainer.model.named_parameters()
            if not isinstance(parameter, DTensor)
        }
        state = trainer.balancer.state_dict()
        found["the balancer's number of steps"] = state["steps"]
        kept = [state["tensors"][name] for name in sorted(state["tensors"])]
        found["what the balancer has learned"] = sum(map(fingerprint, kept)) % (1 << 62)
        step = trainer.state.global_step
        remedy = f"They did not at the last check: something on one of them wrote into it. Found at step {step}; resume from an "
        check_same(found, trainer.args.device, remedy + "earlier checkpoint.")


SAME_DATA = (
    "Every process has to build the same model and to load the same datasets: each is dealt rows of its own from them."
)


def _rows(datasets: Mapping[str, Sequence[Any]]) -> dict[str, int]:
    """The first and the last row of every dataset as one number each."""
    return {
        f"the rows of {which}": zlib.crc32(repr([_plain(dataset[row]) for row in (0, len(dataset) - 1)]).encode())
        for which, dataset in datasets.items()
    }


def _plain(value: Any) -> Any:
    """A value whose `repr` tells all of it."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    return value.tolist() if type(value).__module__ == "numpy" else value
