"""Joint batches: which rows a step takes, how micro-batches and processes share them, and what becomes of them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from helpers import TASKS, VOCAB, arguments, tiny_data, tiny_model
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import BertTokenizer

from hf_dbmtl import Classification, MultiTaskTrainer, Regression, TokenClassification
from hf_dbmtl.collators import JointCollator, TaskCollator
from hf_dbmtl.data import JointBatchSampler, JointDataset, rows_per_step


SIZES = {"a": 20, "b": 7, "c": 20}
ROWS = {"a": 8, "b": 4, "c": 8}
STARTS = {"a": 0, "b": 20, "c": 27}


def split(indices: list[int]) -> dict[str, list[int]]:
    """The rows of each task, in the order of the batch, from indices into the datasets behind one another."""
    return {
        task: [index - start for index in indices if start <= index < start + SIZES[task]]
        for task, start in STARTS.items()
    }


def batches_of(sampler: JointBatchSampler, epoch: int = 0) -> list[dict[str, list[int]]]:
    sampler.set_epoch(epoch)
    batches = [split(batch) for batch in sampler]
    assert len(batches) == len(sampler)
    return batches


def steps_of(sampler: JointBatchSampler, epoch: int = 0) -> list[dict[str, list[int]]]:
    """The rows of every step, in the order of its micro-batches."""
    batches = batches_of(sampler, epoch)
    parts = [batches[start : start + sampler.parts] for start in range(0, len(batches), sampler.parts)]
    return [{task: [row for part in step for row in part[task]] for task in SIZES} for step in parts]


def rows_of(steps: list[dict[str, list[int]]], task: str) -> list[int]:
    return [row for step in steps for row in step[task]]


STRATEGIES = ("random", "sequential", "group_by_length")
LENGTHS = {task: [(7 * row) % 11 for row in range(size)] for task, size in SIZES.items()}


def sampler_of(parts: int = 1, strategy: str = "random", **options: Any) -> JointBatchSampler:
    lengths = LENGTHS if strategy == "group_by_length" else None
    return JointBatchSampler(SIZES, ROWS, parts, strategy, lengths, **options)


# ---- Which rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_layouts_see_the_same_steps(strategy: str) -> None:
    for epoch in range(2):
        whole = steps_of(sampler_of(1, strategy), epoch)
        for parts in (2, 4):
            dealt = batches_of(sampler_of(parts, strategy), epoch)
            assert all(batch[task] for batch in dealt for task in SIZES)  # every batch holds every task
            assert {(len(batch["a"]), len(batch["b"])) for batch in dealt} == {(8 // parts, 4 // parts)}
            cut = steps_of(sampler_of(parts, strategy), epoch)
            assert [{task: sorted(rows) for task, rows in step.items()} for step in cut] == [
                {task: sorted(rows) for task, rows in step.items()} for step in whole
            ]
        other = steps_of(sampler_of(1, strategy, seed=1), epoch)
        assert (other == whole) == (strategy == "sequential")  # the control: another seed


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("parts", [1, 4])
def test_every_row_once_before_any_is_repeated(strategy: str, parts: int) -> None:
    steps = steps_of(sampler_of(parts, strategy))
    assert len(steps) == 3  # 20 rows by 8
    for task, size in SIZES.items():
        rows = rows_of(steps, task)
        assert len(rows) == 3 * ROWS[task]
        # a step's rows are dealt to its micro-batches: their order is that of the steps, not within one
        counts = [Counter(rows_of(steps[:k], task)) for k in (1, 2, 3)]
        for count in counts:
            assert max(count.values()) - (min(count.values()) if len(count) == size else 0) <= 1
        assert set(rows) == set(range(size))


def test_a_task_that_has_run_out_begins_anew_in_another_order() -> None:
    rows = rows_of(steps_of(sampler_of()), "b")
    assert sorted(rows[:7]) == list(range(7))
    assert len(set(rows[7:])) == 5
    assert rows[:5] != rows[7:]


def test_sequential_is_sequential_within_each_task() -> None:
    for epoch in range(2):
        steps = steps_of(sampler_of(2, "sequential"), epoch)
        for task, size in SIZES.items():
            assert rows_of(steps, task) == [row % size for row in range(3 * ROWS[task])]
    assert rows_of(steps_of(sampler_of(2)), "a") != list(range(24))


def test_group_by_length_groups() -> None:
    """Rows of like length come together, in an order that still depends on the epoch."""

    def spread(strategy: str, parts: int) -> float:
        sizes, rows = {"a": 2000, "b": 900}, {"a": 16, "b": 16}
        lengths = {task: [(37 * row) % 101 for row in range(size)] for task, size in sizes.items()}
        sampler = JointBatchSampler(sizes, rows, parts, strategy, lengths)
        ranges = []
        for batch in sampler:
            for task, start in (("a", 0), ("b", 2000)):
                mine = [lengths[task][index - start] for index in batch if start <= index < start + sizes[task]]
                ranges.append(max(mine) - min(mine))
        return sum(ranges) / len(ranges)

    for parts in (1, 2):
        assert spread("group_by_length", parts) < 0.3 * spread("random", parts)
    sampler = sampler_of(1, "group_by_length")
    assert steps_of(sampler, 0) != steps_of(sampler, 1)


def test_tasks_of_one_size_are_ordered_differently() -> None:
    steps = steps_of(sampler_of())
    assert rows_of(steps, "a")[:20] != rows_of(steps, "c")[:20]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_order_is_a_function_of_seed_and_epoch(strategy: str) -> None:
    orders = {}
    for seed in (0, 1, 1234567):
        for epoch in range(3):
            torch.manual_seed(epoch)  # the state of the global generator is immaterial, and left alone
            state = torch.get_rng_state()
            orders[seed, epoch] = str(steps_of(sampler_of(2, strategy, seed=seed), epoch))
            assert torch.equal(torch.get_rng_state(), state)
            assert str(steps_of(sampler_of(2, strategy, seed=seed), epoch)) == orders[seed, epoch]
    of_a_seed = [orders[1234567, epoch] for epoch in range(3)]
    assert len(set(of_a_seed)) == 3 and orders[0, 0] != orders[1, 0] != orders[1234567, 0]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 3),  # ceil(20 / 8)
        ({"drop_last": True}, 2),
        ({"stopping_strategy": "first_exhausted"}, 1),  # floor(7 / 4)
        ({"stopping_strategy": "first_exhausted", "drop_last": True}, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_where_an_epoch_ends(options: dict[str, Any], steps: int, parts: int) -> None:
    found = steps_of(sampler_of(parts, **options))
    assert len(found) == steps
    assert all(len(step[task]) == ROWS[task] for step in found for task in SIZES)  # only whole steps
    repeated = max(max(Counter(rows_of(found, task)).values()) for task in SIZES)
    assert (repeated == 1) == (options.get("stopping_strategy") == "first_exhausted")


def test_a_dataset_smaller_than_a_step() -> None:
    for options in ({}, {"drop_last": True}, {"stopping_strategy": "first_exhausted"}):
        sampler = JointBatchSampler({"a": 3}, {"a": 8}, 2, **options)
        (first, second) = sampler
        assert len(first) == len(second) == 4
        assert sorted(Counter(first + second).values()) == [2, 3, 3]


# ---- How many rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({}, {"a": 8, "b": 8, "c": 8}),
        ({"mixing": "proportional"}, {"a": 18, "b": 6, "c": 0.24}),
        ({"mixing": "temperature", "temperature": 1.0}, {"a": 18, "b": 6, "c": 0.24}),
        ({"mixing": "temperature"}, {"a": 14.2, "b": 8.2, "c": 1.64}),
        ({"mixing": "temperature", "temperature": 1e9}, {"a": 8, "b": 8, "c": 8}),
        ({"per_task_batch_size": {"b": 3}}, {"a": 8, "b": 3, "c": 8}),
        ({"mixing": "proportional", "per_task_batch_size": {"c": 2, "a": 1}}, {"a": 1, "b": 6, "c": 2}),
    ],
    ids=str,
)
def test_rows_per_step(options: dict[str, Any], shares: dict[str, float], parts: int) -> None:
    found = rows_per_step({"a": 900, "b": 300, "c": 12}, 8, parts, **options)
    total = 24 * parts
    sizes = {"a": 900, "b": 300, "c": 12}
    exponent = {"equal": 0, "proportional": 1}.get(options.get("mixing", "equal"), 1 / options.get("temperature", 2.0))
    masses = {task: size**exponent for task, size in sizes.items()}
    given = options.get("per_task_batch_size", {})
    for task in sizes:
        exact = given[task] * parts if task in given else total * masses[task] / sum(masses.values())
        assert found[task] == max(1, round(exact))
        assert found[task] >= 1 and abs(found[task] - shares[task] * parts) <= max(1, 0.05 * exact)


def test_small_tasks_are_dealt_by_turns() -> None:
    """One row in a step of four micro-batches: each such task in another one, and none of the four left empty."""
    sizes = {task: 40 for task in "abcdefgh"}
    sampler = JointBatchSampler(sizes, {task: 1 for task in sizes}, 4)
    batches = list(sampler)
    for start in range(0, 12, 4):
        tasks = [[index // 40 for index in batch] for batch in batches[start : start + 4]]
        assert [len(part) for part in tasks] == [2, 2, 2, 2]
        assert sorted(task for part in tasks for task in part) == list(range(8))


@pytest.mark.parametrize("rows", [1, 3, 4, 6, 7, 9])
def test_rows_that_do_not_divide_are_dealt_evenly(rows: int) -> None:
    sampler = JointBatchSampler({"a": 40, "b": 40}, {"a": rows, "b": 5}, 4)
    for start, batch in zip(range(4), sampler):
        assert len([index for index in batch if index < 40]) in (rows // 4, -(-rows // 4))
    first = [index for batch in list(sampler)[:4] for index in batch]
    assert len(set(first)) == rows + 5


# ---- Behind accelerate's wrappers ------------------------------------------------------------------------------------


class Numbers(Dataset):
    """Rows that say of which task and which they are."""

    def __init__(self, task: str):
        self.task = task

    def __len__(self) -> int:
        return SIZES[self.task]

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "task": self.task}


def stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"rows": torch.tensor([example["row"] for example in examples]), "tasks": {one["task"] for one in examples}}


def loader_of(process: int, processes: int, parts: int, workers: int = 0, **options: Any) -> DataLoader:
    sampler = sampler_of(parts, **options)
    loader = DataLoader(
        JointDataset({task: Numbers(task) for task in SIZES}, sampler),
        batch_sampler=sampler,
        collate_fn=JointCollator(dict.fromkeys(SIZES, stack)),
        num_workers=workers,
    )
    return prepare_data_loader(loader, num_processes=processes, process_index=process, put_on_device=False)


def read(loader: DataLoader, epoch: int) -> list[dict[str, list[int]]]:
    loader.set_epoch(epoch)
    found = []
    for batch in loader:
        assert list(batch) == list(SIZES)  # all tasks in every batch, in their order
        assert all(one["tasks"] == {task} for task, one in batch.items())
        found.append({task: one["rows"].tolist() for task, one in batch.items()})
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_share_the_steps_of_one(accumulation: int, strategy: str) -> None:
    parts = 2 * accumulation
    for epoch in range(2):
        ranks = [read(loader_of(rank, 2, parts, strategy=strategy), epoch) for rank in range(2)]
        whole = steps_of(sampler_of(1, strategy), epoch)
        assert len(ranks[0]) == len(ranks[1]) == accumulation * len(whole)
        for i, step in enumerate(whole):
            mine = slice(i * accumulation, (i + 1) * accumulation)
            for task in SIZES:
                both = [row for rank in ranks for batch in rank[mine] for row in batch[task]]
                assert sorted(both) == sorted(step[task])
        for task, size in SIZES.items():  # and so together every row
            assert {row for rank in ranks for batch in rank for row in batch[task]} == set(range(size))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("skipped", [1, 2, 3])
def test_skipping_goes_on_exactly(skipped: int, processes: int) -> None:
    """As on a resume: the wrappers of a fresh loader, the batches already seen skipped, and only then the epoch set."""
    for process in range(processes):
        for epoch in range(3):
            whole = read(loader_of(process, processes, 2 * processes), epoch)
            resumed = skip_first_batches(loader_of(process, processes, 2 * processes), skipped)
            assert read(resumed, epoch) == whole[skipped:]
        assert read(loader_of(process, processes, 2 * processes), 0) != whole  # the control: another epoch


@pytest.mark.parametrize("wrap", ["not at all", "skipped"])
def test_the_epoch_reaches_the_sampler(wrap: str) -> None:
    loader = loader_of(0, 2, 2)
    sampler = loader.dataset.sampler
    loader = skip_first_batches(loader, 1) if wrap == "skipped" else loader
    orders = []
    for epoch in (0, 5, 1):
        orders.append(str(read(loader, epoch)))
        assert sampler.epoch == epoch
    assert len(set(orders)) == 3


def test_workers_read_the_same() -> None:
    for epoch in (0, 3):
        assert read(loader_of(0, 1, 2, workers=2), epoch) == read(loader_of(0, 1, 2), epoch)


class ListOfRows(Dataset):
    """A dataset that counts how it is read."""

    def __init__(self, rows: int, at_once: bool):
        self.rows, self.reads = rows, []
        if at_once:
            self.__class__ = type(
                "AtOnce", (ListOfRows,), {"__getitems__": lambda self, rows: [self[row] for row in rows]}
            )

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> int:
        self.reads.append(row)
        return row


def test_joint_dataset() -> None:
    joint = JointDataset(
        {
            "a": ListOfRows(3, False),
            "b": ListOfRows(2, True),
            "c": datasets.Dataset.from_dict({"x": [10, 11, 12]}),
            "d": Subset(ListOfRows(9, False), [4, 7]),
        }
    )
    assert len(joint) == 10
    expected = [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
        ("b", 1),
        *(("c", {"x": 10 + i}) for i in range(3)),
        ("d", 4),
        ("d", 7),
    ]
    assert [joint[index] for index in range(10)] == expected
    mixed = [9, 2, 5, 3, 6, 0, 4, 4]
    assert joint.__getitems__(mixed) == [expected[index] for index in mixed]


# ---- Through the Trainer ---------------------------------------------------------------------------------------------


class Seen(MultiTaskTrainer):
    """Keeps the inputs of every micro-batch by task."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen.append({task: batch["input_ids"].tolist() for task, batch in inputs.items()})
        return super().training_step(model, inputs, num_items_in_batch)


def seen(folder: Path, rows: dict[str, int], **options: Any) -> list[dict[str, list[list[int]]]]:
    tasks = {name: TASKS[name] for name in rows}
    data = {name: dataset.select(range(rows[name])) for name, dataset in tiny_data(tasks, max(rows.values())).items()}
    trainer = Seen(tiny_model(tasks), arguments(folder, **options), train_dataset=data)
    trainer.seen = []
    trainer.train()
    return trainer.seen


def test_the_arguments_reach_the_batches(tmp_path: Path) -> None:
    rows = {"topic": 24, "score": 8}

    def sizes(**options: Any) -> list[tuple[int, ...]]:
        return [tuple(len(batch[task]) for task in rows) for batch in seen(tmp_path, rows, **options)]

    base = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert sizes(**base) == [(4, 4)] * 6
    assert sizes(**base, mixing="proportional") == [(6, 2)] * 4
    assert sizes(**base, mixing="temperature", mixing_temperature=1.0) == [(6, 2)] * 4
    assert sizes(**base, per_task_batch_size={"topic": 2}) == [(2, 4)] * 12
    assert sizes(**base, stopping_strategy="first_exhausted") == [(4, 4)] * 2
    assert sizes(**{**base, "per_device_train_batch_size": 5}) == [(5, 5)] * 6
    assert sizes(**{**base, "per_device_train_batch_size": 5}, dataloader_drop_last=True) == [(5, 5)] * 4


def test_seeds_and_epochs_reach_the_batches(tmp_path: Path) -> None:
    rows, options = {"topic": 8, "score": 8}, {"per_device_train_batch_size": 4, "num_train_epochs": 2}
    first = seen(tmp_path, rows, **options)
    assert seen(tmp_path, rows, **options) == first
    assert first[:2] != first[2:]
    for task in rows:
        assert sorted(sum((batch[task] for batch in first[:2]), [])) == sorted(
            sum((batch[task] for batch in first[2:]), [])
        )
    assert seen(tmp_path, rows, seed=43, **options) != first
    assert (
        seen(tmp_path, rows, data_seed=43, **options) == seen(tmp_path, rows, data_seed=43, seed=1, **options) != first
    )


class ListOfDicts(Dataset):
    """The rows of a `datasets.Dataset`, and with each a column of no use to the model."""

    def __init__(self, dataset: datasets.Dataset):
        self.rows = [{"id": i, **row} for i, row in enumerate(dataset)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]


def test_torch_datasets_do_as_well(tmp_path: Path) -> None:
    found = []
    for kind in (lambda dataset: dataset, ListOfDicts):
        data = {task: kind(dataset) for task, dataset in tiny_data(rows=12, missing=0.2).items()}
        trainer = MultiTaskTrainer(tiny_model(), arguments(tmp_path), train_dataset=data, eval_dataset=data)
        trainer.train()
        metrics = {
            key: value for key, value in trainer.evaluate().items() if "runtime" not in key and "second" not in key
        }
        predicted = {task: output.predictions.tolist() for task, output in trainer.predict(data).items()}
        found.append((trainer.state.log_history[0]["loss"], metrics, predicted))
    assert found[0] == found[1] and len(found[0][1]) > 10


# ---- Collators -------------------------------------------------------------------------------------------------------


def tokenizer(padding_side: str) -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(VOCAB - 5))]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, padding_side=padding_side)


ROWS_OF_TOKENS = [
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [1, -100, 2]},
    {"input_ids": [8], "attention_mask": [1], "labels": [3]},
    {"input_ids": [9, 10], "attention_mask": [1, 1], "labels": None},
    {"input_ids": [11, 12], "attention_mask": [1, 1], "labels": [None, 4]},
]


@pytest.mark.parametrize("side", ["right", "left"])
def test_token_labels_stay_beside_their_tokens(side: str) -> None:
    batch = TaskCollator("tags", TokenClassification(5), tokenizer(side))(ROWS_OF_TOKENS)
    assert batch["input_ids"].shape == batch["labels"].shape == (4, 3)
    labelled = batch["labels"] != -100
    assert dict(zip(batch["input_ids"][labelled].tolist(), batch["labels"][labelled].tolist())) == {
        5: 1,
        7: 2,
        8: 3,
        12: 4,
    }
    assert not (labelled & (batch["attention_mask"] == 0)).any()
    assert batch["input_ids"][1].tolist() == ([8, 0, 0] if side == "right" else [0, 0, 8])


def test_token_labels_follow_the_tokens_whatever_column_comes_first() -> None:
    rows = [{"bbox": [[0, 1]] * 2, **{key: row[key] for key in ("labels", "input_ids")}} for row in ROWS_OF_TOKENS[2:]]
    batch = TaskCollator("tags", TokenClassification(5))([{**row, "pixel_values": [[[0.0]]]} for row in rows])
    assert batch["labels"].shape == (2, 2)
    batch = TaskCollator("tags", TokenClassification(5))([{"pixel_values": [[[0.0]]], **row} for row in rows])
    assert batch["labels"].tolist() == [[-100, -100], [-100, 4]]


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        (Classification(3), [2, None, -100, True], [2, -100, -100, 1]),
        (Regression(), [1, None, 2.5, math.nan], [1.0, math.nan, 2.5, math.nan]),
        (Regression(2), [[1, 2], None, [None, 3.0], [0, 0]], [[1, 2], [math.nan] * 2, [math.nan, 3], [0, 0]]),
        (TASKS["traits"], [[1, 0, 0, 1], None, [None, 1, -100, 0], [0] * 4], None),
    ],
    ids=["classes", "a number", "two numbers", "multi-label"],
)
@pytest.mark.parametrize("column", ["labels", "label", "label_ids"])
def test_labels(task: Any, labels: list[Any], expected: list[Any] | None, column: str) -> None:
    rows = [{"input_ids": [5, 6], column: label} for label in labels]
    batch = TaskCollator("a", task)(rows)
    assert set(batch) == {"input_ids", "labels"}
    reference = expected or [[1, 0, 0, 1], [math.nan] * 4, [math.nan, 1, -100, 0], [0] * 4]
    torch.testing.assert_close(
        batch["labels"].double(), torch.tensor(reference, dtype=torch.float64), equal_nan=True, rtol=0, atol=0
    )


def test_rows_that_lack_the_label_column() -> None:
    """A label that is not there is missing, in the first row as in any other; without any there are no labels."""
    rows = [{"input_ids": [5]}, {"input_ids": [6], "labels": 2}]
    collator = TaskCollator("a", Classification(3))
    assert collator(rows)["labels"].tolist() == [-100, 2]
    assert collator(rows[::-1])["labels"].tolist() == [2, -100]
    assert set(collator(rows[:1])) == {"input_ids"}


def test_joint_collator_groups_by_task() -> None:
    collator = JointCollator(
        {"b": lambda rows: {"x": rows}, "a": lambda rows: {"y": rows}, "c": lambda rows: {"z": rows}}
    )
    assert collator([("a", 1), ("b", 2), ("a", 3)]) == {
        "b": {"x": [2]},
        "a": {"y": [1, 3]},
    }  # in the order of the tasks
    assert list(collator([("a", 1), ("b", 2)])) == ["b", "a"]
