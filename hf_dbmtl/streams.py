"""Joint batches of datasets without a length: read in their own order, from anywhere on, and dealt as those with one are."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import datasets
import torch
from datasets.iterable_dataset import BufferShuffledExamplesIterable
from torch.distributed.checkpoint.stateful import Stateful

from .data import dealt, named


if TYPE_CHECKING:
    from .units import Unit

__all__ = ["JointStream", "is_stream"]


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is read from its beginning on, and not by number."""
    return isinstance(dataset, (torch.utils.data.IterableDataset, datasets.IterableDataset))


class JointStream(torch.utils.data.IterableDataset):
    """
    The micro-batches of joint steps, without end: a dataset that has come to its end begins anew, in the order of its next
    epoch where it has a `set_epoch`. Every process reads all rows and keeps those of its own micro-batches: the steps are the
    same whatever the number of processes and of micro-batches, and a run can go on with another.

    An item is `(examples, position)`: `(unit, example)` pairs, and with the last micro-batch of a step the position behind it,
    as JSON.

    Args:
        streams (`Mapping[str, IterableDataset]`):
            A dataset by unit.
        rows (`Mapping[str, int]`):
            The rows of each unit in a step, see [`rows_per_step`].
        parts (`int`, *optional*, defaults to 1):
            The number of micro-batches in a step, over all processes.
        process, processes (`int`, *optional*, default to 0 and 1):
            Which process this is, and how many there are.
        workers (`int`, *optional*, defaults to 0):
            The workers of the loader that reads it, 0 or 1: `datasets` shuffles otherwise within one.
        units (`Mapping[str, Unit]`, *optional*):
            What the units are, for errors. Default: a task each.
    """

    def __init__(
        self,
        streams: Mapping[str, Any],
        rows: Mapping[str, int],
        parts: int = 1,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
        units: Mapping[str, Unit] | None = None,
    ):
        self.readers = {unit: _Reader(named(unit, units), stream) for unit, stream in streams.items()}
        self.rows = {unit: rows[unit] for unit in streams}
        self.parts = parts
        self.process = process
        self.processes = processes
        self.workers = workers
        self.skipped = 0

    def go_on(self, position: str, micro_batches: int) -> None:
        """
        Begins where another stream has been.

        Args:
            position (`str`):
                The position, of an item.
            micro_batches (`int`):
                The items that lie behind it: as many empty ones come first, for what counts them off.

        Raises:
            `ValueError`: a dataset of which nobody can tell where it has been.
        """
        found = json.loads(position)
        if found["workers"] != self.workers:
            raise ValueError(
                f"The datasets were read with dataloader_num_workers={found['workers']}, and their order may be another with "
                f"{self.workers}: resume with {found['workers']}."
            )
        for unit, reader in self.readers.items():
            reader.go_on(found["streams"].get(unit))
        self.skipped = micro_batches

    def __iter__(self) -> Iterator[tuple[list[tuple[str, Any]], str | None]]:
        for _ in range(self.skipped):
            yield [], None
        try:
            yield from self._steps()
        finally:  # another run begins at the first row again
            for reader in self.readers.values():
                reader.rewind()

    def _steps(self) -> Iterator[tuple[list[tuple[str, Any]], str | None]]:
        rows = {unit: iter(reader) for unit, reader in self.readers.items()}
        while True:
            parts: list[list[tuple[str, Any]]] = [[] for _ in range(self.parts)]
            for place, (unit, examples) in enumerate(rows.items()):
                step = [(unit, next(examples)) for _ in range(self.rows[unit])]
                for part, (start, end) in zip(parts, dealt(len(step), self.parts, place)):
                    part += step[start:end]
            *others, last = parts[self.process :: self.processes]
            yield from ((part, None) for part in others)
            streams = {unit: reader.position() for unit, reader in self.readers.items()}
            yield last, json.dumps({"workers": self.workers, "streams": streams})


class _Reader:
    """The rows of a unit, over and over again, and where it has come to: how often it was through, and how far it is."""

    def __init__(self, which: str, dataset: Any):
        self.which = which
        self.dataset = dataset
        # A dataset may begin where it stopped the last time. One of `datasets` begins anew without a state, and has one as
        # soon as somebody has looked at a row.
        kept = isinstance(dataset, Stateful) and not isinstance(dataset, datasets.IterableDataset)
        self.begin = dataset.state_dict() if kept else None
        self.epoch = self.row = 0
        self.state: Any = None  # of a dataset that goes on from the row

    def position(self) -> dict[str, Any]:
        state = self.dataset.state_dict() if isinstance(self.dataset, Stateful) else None
        try:
            json.dumps(state)
        except (TypeError, ValueError):
            state = None
        return {"epoch": self.epoch, "row": self.row, "state": state}

    def go_on(self, position: Mapping[str, Any] | None) -> None:
        if position is None:
            raise ValueError(
                f"{self.which}: the checkpoint does not tell where its dataset has been. Resume with the datasets of the "
                "run that was saved."
            )
        if position["state"] is None and not _has_buffer(self.dataset):
            raise ValueError(
                f"{self.which}: its dataset, a {type(self.dataset).__name__}, could not tell where it has been, by a "
                "`state_dict` of what JSON knows, and the rows that a resumed run gets would be other ones. Give it "
                "`state_dict` and `load_state_dict` (those of `datasets` have them), or begin it anew by `ignore_data_skip=True`."
            )
        self.epoch, self.row, self.state = position["epoch"], position["row"], position["state"]

    def __iter__(self) -> Iterator[Any]:
        rows = self._resumed() if self.row else self._opened()
        while True:
            try:
                for example in rows:
                    self.row += 1
                    yield example
            except OSError as error:
                raise OSError(f"{self.which}: a row of its dataset cannot be read: {error}") from error
            if self.row == 0:
                raise ValueError(
                    f"{self.which}: its dataset gave no rows"
                    + (" when it was read again: each `iter()` must begin anew." if self.epoch else ".")
                )
            self.epoch, self.row = self.epoch + 1, 0
            rows = self._opened()

    def _opened(self) -> Iterator[Any]:
        """The rows from the first on, in the order of the epoch."""
        self.rewind()
        self._set_epoch()
        yield from self.dataset

    def rewind(self) -> None:
        """Lets the next `iter()` of the dataset begin where the first did."""
        if isinstance(self.dataset, Stateful):
            self.dataset.load_state_dict(self.begin)  # type: ignore[arg-type]

    def _resumed(self) -> Iterator[Any]:
        """The rows from where a checkpoint was."""
        if _has_buffer(self.dataset):  # whose content no state tells: the rows before are read again
            rows = self._opened()
            read = sum(1 for _ in itertools.islice(rows, self.row))
            if read < self.row:
                raise ValueError(
                    f"{self.which}: the checkpoint was saved behind row {self.row} of its dataset, which now ends after "
                    f"{read}. Resume with the dataset of the run that was saved."
                )
        else:
            self._set_epoch()
            self.dataset.load_state_dict(self.state)
            rows = iter(self.dataset)
        yield from rows

    def _set_epoch(self) -> None:
        set_epoch = getattr(self.dataset, "set_epoch", None)  # the hook that the Trainer looks for
        if set_epoch is not None:
            set_epoch(self.epoch)


def _has_buffer(dataset: Any) -> bool:
    """Whether a dataset of `datasets` shuffles within a buffer, which its state leaves out."""
    stages: list[Any] = [dataset._ex_iterable] if isinstance(dataset, datasets.IterableDataset) else []
    while stages:
        stage = stages.pop()
        if isinstance(stage, BufferShuffledExamplesIterable):
            return True
        stages += [stage.ex_iterable] if hasattr(stage, "ex_iterable") else getattr(stage, "ex_iterables", [])
    return False
