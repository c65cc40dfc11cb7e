"""Joint batches: every batch holds rows of every unit, so that every process works on all tasks in every step."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices


if TYPE_CHECKING:
    from .units import Unit

__all__ = ["JointBatchSampler", "JointDataset", "dealt", "named", "rows_per_step"]


def named(unit: str, units: Mapping[str, Unit] | None = None) -> str:
    """How an error begins: "Task 'mrpc'", or "Group 'pairs'" where `units` say that it is one."""
    return str(units[unit]) if units else f"Task '{unit}'"


class JointDataset(Dataset):
    """
    Several datasets behind one another. An item is a pair `(unit, example)`.

    Args:
        datasets (`Mapping[str, Dataset]`):
            A dataset with a length by unit, the name of a task or of a group of tasks that share it.
        sampler (`JointBatchSampler`, *optional*):
            What `set_epoch` is passed on to. accelerate wraps batch samplers several times over, the more so after a
            resume in the middle of an epoch, and then reaches the dataset only.
        units (`Mapping[str, Unit]`, *optional*):
            What the units are, for errors. Default: a task each.
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        sampler: JointBatchSampler | None = None,
        units: Mapping[str, Unit] | None = None,
    ):
        self.datasets = dict(datasets)
        self.names = list(self.datasets)
        self.units = units
        self.ends = list(itertools.accumulate(len(dataset) for dataset in self.datasets.values()))
        self.sampler = sampler

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> tuple[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[str, Any]]:
        """Fetches the rows of a batch at once, dataset by dataset: `datasets` reads many rows much faster than each."""
        examples = []
        for position, group in itertools.groupby(indices, key=lambda index: bisect.bisect_right(self.ends, index)):
            unit = self.names[position]
            start = self.ends[position - 1] if position else 0
            dataset, rows = self.datasets[unit], [index - start for index in group]
            fetch = getattr(dataset, "__getitems__", None)  # the hook that torch's own fetcher looks for
            try:
                examples += [(unit, one) for one in (fetch(rows) if fetch else [dataset[row] for row in rows])]
            except OSError as error:
                raise OSError(
                    f"{named(unit, self.units)}: some of the rows {rows} of its dataset cannot be read: {error}"
                ) from error
        return examples

    def set_epoch(self, epoch: int) -> None:
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)


def rows_per_step(
    sizes: Mapping[str, int],
    batch_size: int,
    parts: int = 1,
    mixing: str = "equal",
    temperature: float = 2.0,
    per_task_batch_size: Mapping[str, int] | None = None,
) -> dict[str, int]:
    r"""
    How many rows of each of T units (a task of its own, or a group of tasks that share their rows) a step takes, over all
    its micro-batches and processes: $b_t = \max(1, \mathrm{round}(B T p_t))$ with $p_t \propto n_t^{1/\tau}$ and $B$ =
    `batch_size` x `parts`.

    Args:
        sizes (`Mapping[str, int]`):
            $n_t$, the number of rows of each dataset.
        batch_size (`int`):
            The rows of each unit in a micro-batch of one process, on average over the units.
        parts (`int`, *optional*, defaults to 1):
            The number of micro-batches in a step, over all processes.
        mixing (`str`, *optional*, defaults to `"equal"`):
            `"equal"` ($\tau = \infty$), `"proportional"` ($\tau = 1$) or `"temperature"` ($\tau$ = `temperature`).
        temperature (`float`, *optional*, defaults to 2.0):
            $\tau$ of `mixing="temperature"`.
        per_task_batch_size (`Mapping[str, int]`, *optional*):
            The rows in a micro-batch of the units named, in place of what the mixing gives.

    Returns:
        `dict[str, int]`: $b_t$ by unit.
    """
    exponent = {"equal": 0.0, "proportional": 1.0, "temperature": 1.0 / temperature}[mixing]
    masses = {unit: size**exponent for unit, size in sizes.items()}
    rows = batch_size * parts * len(sizes) / sum(masses.values())
    mixed = {unit: max(1, round(mass * rows)) for unit, mass in masses.items()}
    return mixed | {unit: size * parts for unit, size in (per_task_batch_size or {}).items()}


def dealt(count: int, parts: int, position: int) -> list[tuple[int, int]]:
    """
    From which to which of the rows of a unit in a step each micro-batch takes. Where they do not divide, the one more goes by
    turns: small units would crowd into one micro-batch.
    """
    shift = position % parts
    cuts = [(j * count + shift) // parts for j in range(parts + 1)]
    return list(zip(cuts, cuts[1:]))


class JointBatchSampler:
    """
    Yields the micro-batches of joint steps, as lists of indices into a [`JointDataset`]. A step's rows are fixed by the
    seed, the epoch and the step alone and then dealt to its micro-batches, so that 1 process with 8 rows, 2 with 4 and
    1 with 2 rows and 4 micro-batches see the same steps. Only whole steps are emitted; a unit that has run out of rows
    begins anew, in a new order, while others go on.

    Args:
        sizes (`Mapping[str, int]`):
            The number of rows of each unit's dataset, in the order of the [`JointDataset`].
        rows (`Mapping[str, int]`):
            The rows of each unit in a step, see [`rows_per_step`].
        parts (`int`, *optional*, defaults to 1):
            The number of micro-batches in a step, over all processes. Micro-batch i of the epoch goes to process i
            modulo the number of processes (accelerate deals them so).
        strategy (`str`, *optional*, defaults to `"random"`):
            The order of rows within a unit: `"random"`, `"sequential"` or `"group_by_length"`.
        lengths (`Mapping[str, Sequence[int]]`, *optional*):
            The length of every row by unit, for `"group_by_length"`.
        stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`):
            An epoch ends when every row of every unit has been seen (`"all_exhausted"`), or before any row would be
            seen twice (`"first_exhausted"`).
        drop_last (`bool`, *optional*, defaults to `False`):
            With `"all_exhausted"`, leave out the last step of the epoch where the largest unit does not fill it.
        seed (`int`, *optional*, defaults to 0):
            The seed of the order.
    """

    batch_size = None  # tells accelerate to take the batches as they are

    def __init__(
        self,
        sizes: Mapping[str, int],
        rows: Mapping[str, int],
        parts: int = 1,
        strategy: str = "random",
        lengths: Mapping[str, Sequence[int]] | None = None,
        stopping_strategy: str = "all_exhausted",
        drop_last: bool = False,
        seed: int = 0,
    ):
        self.sizes = dict(sizes)
        self.rows = {unit: rows[unit] for unit in sizes}
        self.parts = parts
        self.strategy = strategy
        self.lengths = lengths
        self.drop_last = True  # for accelerate: nothing is to be filled up, every step is whole
        self.seed = seed
        self.epoch = 0
        whole = [size // self.rows[unit] for unit, size in self.sizes.items()]
        ceiled = [-(-size // self.rows[task]) for task, size in self.sizes.items()]
        if stopping_strategy == "first_exhausted":
            self.steps = max(1, min(whole))
        else:
            self.steps = max(1, max(whole if drop_last else ceiled))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        starts = [0, *itertools.accumulate(self.sizes.values())]
        orders = [self._order(unit, position) for position, unit in enumerate(self.sizes)]
        for _ in range(self.steps):
            parts: list[list[int]] = [[] for _ in range(self.parts)]
            for position, unit in enumerate(self.sizes):
                count = self.rows[unit]
                indices = [starts[position] + row for row in itertools.islice(orders[position], count)]
                for part, (start, end) in zip(parts, dealt(count, self.parts, position)):
                    part += indices[start:end]
            yield from parts

    def _order(self, unit: str, position: int) -> Iterator[int]:
        """The rows of a unit in the order of the epoch, without end."""
        # another order for every unit; torch's generator looks at 32 bits of its seed only, and these are well mixed
        (seed,) = np.random.SeedSequence([self.seed, self.epoch, position]).generate_state(1).tolist()
        generator = torch.Generator().manual_seed(seed)
        while True:
            if self.strategy == "sequential":
                yield from range(self.sizes[unit])
            elif self.strategy == "group_by_length":
                yield from get_length_grouped_indices((self.lengths or {})[unit], self.rows[unit], generator=generator)
            else:
                yield from torch.randperm(self.sizes[unit], generator=generator).tolist()
