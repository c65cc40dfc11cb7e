"""How the Trainer trains on datasets without a length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import Tensor
from torch.utils.data import DataLoader

from .data import rows_per_step
from .streams import JointStream, is_stream
from .trainer_part import TrainerPart


__all__ = ["STREAMS_NAME", "StreamingMixin"]

STREAMS_NAME = "streams.json"
POSITION = ""  # the key of a batch beside those of the units, whose names are not empty


class StreamingMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that reads datasets without a length, and goes on where it was."""

    _stream: JointStream | None = None  # that is being read
    _position: str | None = None  # behind the last step of it

    @property
    def _streams(self) -> bool:
        return self.train_dataset is not None and any(is_stream(self.train_dataset[unit]) for unit in self.units)

    def _check_streams(self) -> None:
        """Refuses what needs rows by number, or their count."""
        if not self._streams:
            return
        args = self.args
        for unit in self.units.values():
            if not is_stream(self.train_dataset[unit.name]):
                one = next(name for name in self.units if is_stream(self.train_dataset[name]))
                raise ValueError(
                    f"{unit}: its train dataset has a length, and that of '{one}' has none: give all or none without. "
                    "`dataset.to_iterable_dataset()` makes such a one."
                )
        refusals = {
            "max_steps": (args.max_steps <= 0, "set it to the number of steps: how many there are is not known"),
            f"mixing='{args.mixing}'": (args.mixing != "equal", "the sizes to mix by are not known: use 'equal'"),
            "train_sampling_strategy='group_by_length'": (
                args.train_sampling_strategy == "group_by_length",
                "the rows come in their own order",
            ),
            "stopping_strategy='first_exhausted'": (
                args.stopping_strategy == "first_exhausted",
                "a dataset that has come to its end begins anew, and the run ends by max_steps",
            ),
            f"dataloader_num_workers={args.dataloader_num_workers}": (
                args.dataloader_num_workers > 1,
                "one reads all, so that its position is that of the run: use 0 or 1",
            ),
        }
        for name, (wrong, remedy) in refusals.items():
            if wrong:
                raise ValueError(f"Training on datasets without a length, {name}: {remedy}.")

    def _stream_loader(self, streams: dict[str, Any], collator: Callable, options: dict[str, Any]) -> DataLoader:
        args, processes = self.args, self.accelerator.num_processes
        parts = args.gradient_accumulation_steps * processes
        per_task: Any = args.per_task_batch_size
        rows = rows_per_step(dict.fromkeys(streams, 1), self._train_batch_size, parts, per_task_batch_size=per_task)
        workers = args.dataloader_num_workers
        self._stream = JointStream(streams, rows, parts, args.process_index, processes, workers, self.units)
        # not prepared by accelerate, which would deal whole batches to the processes: these are dealt already
        options |= {"collate_fn": _WithPosition(collator), "batch_size": None}
        return DataLoaderShard(self._stream, device=self.accelerator.device, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Fetches the micro-batches of the next step, and notes where the streams are behind it."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            position = batch.pop(POSITION, None)
            self._position = self._position if position is None else position
        return batches, num_items

    def _save_position(self, folder: str) -> None:
        if self._streams and self._position is not None and self.args.should_save:
            os.makedirs(folder, exist_ok=True)
            path = os.path.join(folder, STREAMS_NAME)
            with open(f"{path}.tmp", "w", encoding="utf-8") as file:
                file.write(self._position)
            os.replace(f"{path}.tmp", path)

    def _load_position(self, folder: str) -> None:
        if self._stream is None or self.args.ignore_data_skip:
            return
        path = os.path.join(folder, STREAMS_NAME)
        if not os.path.isfile(path):
            raise ValueError(
                f"The checkpoint '{folder}' holds no {STREAMS_NAME}, and does not tell where datasets without a length have "
                "been: it is of a run on others. Resume with these, or begin the data anew by `ignore_data_skip=True`."
            )
        with open(path, encoding="utf-8") as file:
            self._position = file.read()
        done = self.state.global_step * self.args.gradient_accumulation_steps
        self._stream.go_on(self._position, done)


class _WithPosition:
    """A collator of joint batches that passes the position on beside them."""

    def __init__(self, collator: Callable):
        self.collator = collator

    def __call__(self, item: tuple[list[Any], str | None]) -> dict[str, Any]:
        examples, position = item
        batch = self.collator(examples) if examples else {}
        return batch if position is None else {**batch, POSITION: position}
