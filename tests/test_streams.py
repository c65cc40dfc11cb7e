"""Datasets without a length: the same steps as of those with one, gone on with bit for bit, or refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import arguments, tiny_data, tiny_model
from torch.utils.data import IterableDataset

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.streams import JointStream


SIZES = {"topic": 10, "score": 14, "traits": 9, "tags": 24}


def sized() -> dict[str, Dataset]:
    return {task: rows.select(range(SIZES[task])) for task, rows in tiny_data(rows=24).items()}


def shuffled_shards() -> dict[str, Any]:
    """Two shards of each, in another order in every epoch."""
    return {task: rows.to_iterable_dataset(2).shuffle(seed=3, buffer_size=1) for task, rows in sized().items()}


def buffered() -> dict[str, Any]:
    return {task: rows.to_iterable_dataset().shuffle(seed=3, buffer_size=6) for task, rows in sized().items()}


def mapped() -> dict[str, Any]:
    """In batches that are larger than a step's."""
    return {
        task: rows.to_iterable_dataset().map(lambda batch: batch, batched=True, batch_size=5)
        for task, rows in sized().items()
    }


class Rows(IterableDataset):
    """A dataset that knows where it is, as those of torchdata do."""

    def __init__(self, rows: Dataset):
        self.rows = list(rows)
        self.next = 0

    def __iter__(self) -> Iterator[dict]:
        while self.next < len(self.rows):
            self.next += 1
            yield self.rows[self.next - 1]

    def state_dict(self) -> dict:
        return {"next": self.next}

    def load_state_dict(self, state: dict) -> None:
        self.next = state["next"]


class Forgetful(IterableDataset):
    """One that does not."""

    def __init__(self, rows: Dataset):
        self.rows = list(rows)

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows)


STREAMS = {
    "plain": lambda: {task: rows.to_iterable_dataset() for task, rows in sized().items()},
    "shards": shuffled_shards,
    "buffer": buffered,
    "map": mapped,
    "stateful": lambda: {task: Rows(rows) for task, rows in sized().items()},
}


def run(folder: Path, data: dict[str, Any], resume: Path | None = None, seed: int = 0, **options: Any) -> Any:
    options = {"max_steps": 9, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 4} | options
    trainer = MultiTaskTrainer(
        model=tiny_model(dropout=0.1, seed=seed), args=arguments(folder, **options), train_dataset=data
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def same(one: MultiTaskTrainer, other: MultiTaskTrainer) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_steps_are_those_of_rows_in_order(tmp_path: Path) -> None:
    """Also where the smaller ones begin anew."""
    options = {"max_steps": 5, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    whole = run(tmp_path / "sized", sized(), train_sampling_strategy="sequential", **options)
    stream = run(tmp_path / "stream", STREAMS["plain"](), **options)
    assert same(whole, stream)
    assert [record.get("loss") for record in whole.state.log_history] == [
        record.get("loss") for record in stream.state.log_history
    ]
    assert not same(whole, run(tmp_path / "drawn", sized(), **options))  # the control: another order


@pytest.mark.parametrize(("kind", "workers"), [*((kind, 0) for kind in STREAMS), ("shards", 1), ("buffer", 1)])
def test_resumed_bit_for_bit(kind: str, workers: int, tmp_path: Path) -> None:
    """After step 4 and after step 8; by then each has begun anew, and one of them stands at its very end."""
    options: dict = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    options["dataloader_num_workers"] = workers
    whole = run(tmp_path / "whole", STREAMS[kind](), **options)
    for step in (4, 8):
        folder = tmp_path / f"resumed{step}"
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        again = run(folder, STREAMS[kind](), checkpoint, seed=1, **options)
        assert same(again, whole)
        assert again.state.log_history[-1]["epoch"] == whole.state.log_history[-1]["epoch"]
        kept = [record for record in again.state.log_history if "loss" in record]
        assert [one["loss"] for one in kept] == [
            record["loss"] for record in whole.state.log_history if "loss" in record
        ]
    anew = run(
        tmp_path / "anew", STREAMS[kind](), tmp_path / "whole" / "checkpoint-4", ignore_data_skip=True, **options
    )
    assert not same(anew, whole)  # the control: the rows from the beginning
    moved = json.loads((tmp_path / "whole" / "checkpoint-4" / "streams.json").read_text())
    assert moved["streams"]["tags"]["row"] == 16 and moved["streams"]["topic"]["epoch"] == 1
    with pytest.raises(ValueError, match=f"read with dataloader_num_workers={workers}.*resume with {workers}"):
        other = {**options, "dataloader_num_workers": 1 - workers}
        run(tmp_path / "other", STREAMS[kind](), tmp_path / "whole" / "checkpoint-4", **other)


def test_a_row_that_was_looked_at_is_not_lost(tmp_path: Path) -> None:
    data = STREAMS["plain"]()
    for stream in data.values():
        next(iter(stream))
    assert same(run(tmp_path / "a", data, max_steps=3), run(tmp_path / "b", STREAMS["plain"](), max_steps=3))


def test_tasks_that_share_a_stream(tmp_path: Path) -> None:
    """Also one of which only its rows tell the columns."""
    columns = {task: rows["labels"][:9] for task, rows in sized().items()}
    rows = sized()["topic"].select(range(9)).remove_columns("labels")
    group = Dataset.from_dict({**rows.to_dict(), **columns})
    whole = run(tmp_path / "a", {"all": group}, max_steps=2, train_sampling_strategy="sequential")
    stream = group.to_iterable_dataset().map(lambda row: row)
    assert stream.column_names is None
    assert same(whole, run(tmp_path / "b", {"all": stream}, max_steps=2))


def test_another_run_begins_at_the_first_row(tmp_path: Path) -> None:
    data = STREAMS["stateful"]()
    first = run(tmp_path / "a", data, max_steps=2)
    again = run(tmp_path / "b", data, max_steps=2)
    assert same(first, again)


def test_without_a_state_it_trains_and_does_not_resume(tmp_path: Path) -> None:
    data = {task: Forgetful(rows) for task, rows in sized().items()}
    run(tmp_path / "whole", data)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    with pytest.raises(ValueError, match=r"Task 'topic': its dataset, a Forgetful, could not tell where it has been"):
        run(tmp_path / "resumed", data, checkpoint)
    run(tmp_path / "anew", data, checkpoint, ignore_data_skip=True)


def test_a_state_that_json_does_not_know_is_none(tmp_path: Path) -> None:
    class Counting(Rows):
        def state_dict(self) -> dict:
            return {"next": np.int64(self.next)}

    data = {task: Counting(rows) for task, rows in sized().items()}
    run(tmp_path / "whole", data)
    with pytest.raises(
        ValueError, match="Task 'topic': its dataset, a Counting, .*by a `state_dict` of what JSON knows"
    ):
        run(tmp_path / "resumed", data, tmp_path / "whole" / "checkpoint-4")


def test_a_checkpoint_of_a_run_on_others_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "sized", sized())
    with pytest.raises(ValueError, match="holds no streams.json"):
        run(tmp_path / "stream", STREAMS["plain"](), tmp_path / "sized" / "checkpoint-4")
    run(tmp_path / "apart", STREAMS["plain"]())
    columns = {task: rows["labels"][:9] for task, rows in sized().items()}
    rows = sized()["topic"].select(range(9)).remove_columns("labels")
    together = {"all": Dataset.from_dict({**rows.to_dict(), **columns}).to_iterable_dataset()}
    with pytest.raises(
        ValueError, match="Group 'all': the checkpoint does not tell where .*Resume with the datasets of"
    ):
        run(tmp_path / "together", together, tmp_path / "apart" / "checkpoint-4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "max_steps: set it to the number of steps"),
        ({"mixing": "proportional"}, "mixing='proportional': the sizes to mix by are not known"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length': the rows come in their own order"),
        ({"stopping_strategy": "first_exhausted"}, "begins anew, and the run ends by max_steps"),
        ({"dataloader_num_workers": 2}, "one reads all"),
    ],
)
def test_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, STREAMS["plain"](), **options)


def test_all_or_none(tmp_path: Path) -> None:
    data = sized()
    data["score"] = data["score"].to_iterable_dataset()
    with pytest.raises(ValueError, match="Task 'topic': its train dataset has a length, and that of 'score' has none"):
        run(tmp_path, data)


def test_a_stream_without_rows(tmp_path: Path) -> None:
    data = STREAMS["plain"]() | {"score": Forgetful(Dataset.from_dict({"input_ids": []}))}
    with pytest.raises(ValueError, match="Task 'score': its dataset gave no rows"):
        run(tmp_path, data)
    once = (row for row in sized()["score"])  # which does not begin anew

    class Once(IterableDataset):
        def __iter__(self) -> Iterator[dict]:
            return once

    with pytest.raises(ValueError, match="Task 'score': its dataset gave no rows when it was read again"):
        run(tmp_path, data | {"score": Once()})


def test_a_stream_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    class Vanished(IterableDataset):
        def __iter__(self) -> Iterator[dict]:
            raise FileNotFoundError("shard-3 is gone")

    with pytest.raises(OSError, match="Task 'score': a row of its dataset cannot be read: shard-3 is gone"):
        run(tmp_path, STREAMS["plain"]() | {"score": Vanished()})


def test_resuming_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "whole", buffered())
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    behind = json.loads((checkpoint / "streams.json").read_text())["streams"]["tags"]["row"]
    shorter = sized()["tags"].select(range(behind - 1)).to_iterable_dataset().shuffle(seed=3, buffer_size=6)
    with pytest.raises(ValueError, match=f"Task 'tags': .* saved behind row {behind} .* now ends after {behind - 1}"):
        run(tmp_path / "resumed", buffered() | {"tags": shorter}, checkpoint)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_steps(processes: int) -> None:
    """One process with all rows, or several that each keep theirs: no row twice, and the same in a step."""
    rows = {"a": 6, "b": 5}

    def steps(parts: int, processes: int) -> list[list]:
        streams = [
            JointStream({name: Numbers(7) for name in rows}, rows, parts, process, processes)
            for process in range(processes)
        ]
        micro = parts // processes
        taken = [list(itertools.islice(iter(stream), 3 * micro)) for stream in streams]
        return [
            sorted(pair for one in taken for examples, _ in one[step * micro : (step + 1) * micro] for pair in examples)
            for step in range(3)
        ]

    assert steps(4, processes) == steps(1, 1)
    assert [len(step) for step in steps(4, processes)] == [11] * 3


class Numbers(IterableDataset):
    def __init__(self, count: int):
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))
