"""Who shares rows with whom: keys that are no tasks, columns that are, collators, modules of the user's own, and refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import CHECKPOINTING, LENGTH, TASKS, arguments, distance, tiny_dataset, tiny_model, train
from torch import nn

from hf_dbmtl import (
    Classification,
    MaskedLanguageModeling,
    MultipleChoice,
    MultiTaskTrainer,
    Regression,
)
from hf_dbmtl.collators import JointCollator
from hf_dbmtl.conflicts import ConflictCallback
from hf_dbmtl.data import JointDataset
from hf_dbmtl.group_collator import GroupCollator
from hf_dbmtl.streams import JointStream
from hf_dbmtl.units import Unit, units_of


TWO = {"topic": Classification(3), "score": Regression()}


def group(rows: int = 12, **labels: list) -> Dataset:
    """Rows with labels for both tasks of `TWO`, or those given."""
    own = {name: tiny_dataset(task, rows, seed)["labels"][:] for seed, (name, task) in enumerate(TWO.items())}
    inputs = tiny_dataset(TWO["topic"], rows).remove_columns("labels").to_dict()
    return Dataset.from_dict({**inputs, **own, **labels})


def trainer_of(folder: Path, train_dataset: Any, tasks: dict[str, Any] = TWO, **options: Any) -> MultiTaskTrainer:
    own = {
        name: options.pop(name) for name in ("data_collator", "eval_dataset", "validation_dataset") if name in options
    }
    return MultiTaskTrainer(
        model=tiny_model(tasks), args=arguments(folder, **options), train_dataset=train_dataset, **own
    )


def test_keys_are_tasks_or_groups() -> None:
    rows = group()
    tasks = ["topic", "score", "other"]
    units = units_of("data", {"both": rows, "other": rows}, tasks)
    assert units == {"both": Unit("both", ("topic", "score")), "other": Unit.alone("other")}
    assert units["both"].is_group and units["both"].asked == ["topic", "score"]
    assert (
        not units["other"].is_group and units["other"].asked == "other"
    )  # its columns named like tasks are nothing to it
    assert units_of("data", {"one": [{"score": 1.0, "x": 2}]}, tasks) == {"one": Unit("one", ("score",))}
    lazy = rows.with_transform(lambda batch: {**batch, "other": [0] * len(batch["topic"])})
    assert units_of("data", {"all": lazy}, tasks)["all"].tasks == ("topic", "score", "other")


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (lambda: {"both": group(), "score": group()}, ValueError, "Task 'score': `train_dataset` holds it 2 times, in ['both', 'score']. Give it one dataset: remove the column 'score'"),
        (lambda: {"one": group(), "two": group()}, ValueError, "Task 'topic': `train_dataset` holds it 2 times"),
        (lambda: {"topik": tiny_dataset(TWO["topic"], 4), "score": group()}, ValueError, "names a task 'topik', and the tasks are ['topic', 'score']: did you mean 'topic'? A name of your own is that of a group"),
        (lambda: {"both": group().remove_columns("score")}, ValueError, "has nothing for the task ['score']"),
        (lambda: {"both": group(topic=[7] * 12)}, ValueError, "Task 'topic': label 7 is outside [0, 3)"),
        (lambda: {"both": group(score=[None] * 12)}, ValueError, "Group 'both': its train dataset has no label at all in its column 'score'"),
        (lambda: {"both": group().select([])}, ValueError, "Group 'both': its train dataset is empty"),
        (lambda: {"both": group().select_columns(["topic", "score"])}, ValueError, "Group 'both': its train dataset has the columns ['topic', 'score'], of which the model takes none"),
        (lambda: group().remove_columns(["topic", "score"]), TypeError, "or a dataset with a column of labels named like each task, and is Dataset"),
        (lambda: {"both": group().to_iterable_dataset()}, ValueError, "Training on datasets without a length, max_steps: set it"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(data: Any, kind: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=re.escape(said)):
        trainer_of(tmp_path, data())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"per_task_batch_size": {"score": 2}},
            "`per_task_batch_size` names a task 'score', and the tasks are ['both']",
        ),
        ({"task_weights": {"both": 2.0}}, "`task_weights` names a task 'both'"),
        ({"data_collator": {"score": list}}, "give it under that name"),
        ({"data_collator": {"bth": list}}, "did you mean 'both'"),
    ],
)
def test_names_of_groups_and_of_tasks(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    if "data_collator" in options and "score" in options["data_collator"]:
        options = {"data_collator": {"score": lambda rows: rows}}
    with pytest.raises(ValueError, match=re.escape(said)):
        trainer_of(tmp_path, {"both": group()}, **options)


@pytest.mark.parametrize("task", [MultipleChoice(2), MaskedLanguageModeling()])
def test_kinds_with_inputs_of_their_own_are_refused(task: Any) -> None:
    with pytest.raises(
        ValueError, match=r"Task 'odd': .* cannot share the inputs of the group 'g': .*dataset of its own"
    ):
        GroupCollator("g", {"odd": task, "score": Regression()})


def test_a_model_of_several_tasks_answers_each_alike() -> None:
    model = tiny_model()
    batch = tiny_dataset(TASKS["topic"], 3).with_format("torch")[:]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = {"topic": torch.tensor([0, -100, 2]), "tags": torch.full((3, LENGTH), 1)}
    both = model(task=["topic", "tags", "score"], labels=labels, **inputs)
    assert list(both.logits) == ["topic", "tags", "score"] and list(both.loss) == ["topic", "tags"]
    for task, own in labels.items():
        alone = model(task=task, labels=own, **inputs)
        assert torch.equal(both.loss[task], alone.loss) and torch.equal(both.num_items[task], alone.num_items)
        assert torch.equal(both.logits[task], alone.logits)
    assert both.num_items["topic"] == 2
    for wrong, said in (
        ({"task": ["topic"], "labels": labels["topic"]}, "do not go together"),
        ({"task": "topic", "labels": labels}, "do not go together"),
        ({"task": ["topic"], "labels": labels}, "labels hold 'tags'"),
        ({"task": ["topic", "nope"]}, "Unknown task 'nope'"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            model(**wrong, **inputs)


class Module(nn.Module):
    """A module of somebody's own, that names its tasks."""

    def __init__(self, names: Any = ("price", "size")):
        super().__init__()
        torch.manual_seed(0)
        self.tasks = names
        self.trunk = nn.Linear(3, 4).double()
        self.heads = nn.ModuleDict({name: nn.Linear(4, 1).double() for name in ("price", "size")})
        self.calls: list[Any] = []

    def forward(self, task: Any, features: torch.Tensor, labels: Any) -> dict[str, Any]:
        self.calls.append(task)
        seen = self.trunk(features.double()).tanh()
        if isinstance(task, str):
            return self.measure(task, seen, labels)
        found = {name: self.measure(name, seen, labels[name]) for name in task}
        return {key: {name: one[key] for name, one in found.items()} for key in ("loss", "num_items", "logits")}

    def measure(self, name: str, seen: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        logits = self.heads[name](seen).squeeze(-1)
        there = ~labels.isnan()
        loss = (logits - labels.nan_to_num()).square().where(there, 0.0).sum() / there.sum().clamp(min=1)
        return {"loss": loss, "num_items": there.sum(), "logits": logits}


def test_a_module_of_somebodys_own(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(16, 3, generator=generator).tolist()
    labels = {name: torch.randn(16, generator=generator).tolist() for name in ("price", "size")}
    labels["size"][::3] = [None] * 6
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"}
    data = Dataset.from_dict({"features": features, **labels})
    found = {}
    for name, given in {
        "shared": {"things": data},
        "separate": {
            task: Dataset.from_dict(
                {"features": features, "labels": [torch.nan if one is None else one for one in own]}
            )
            for task, own in labels.items()
        },
        "collated": {"things": data},
    }.items():

        def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
            own = {task: torch.tensor([torch.nan if r[task] is None else r[task] for r in rows]) for task in labels}
            return {"features": torch.tensor([row["features"] for row in rows]), "labels": own}

        own = {"data_collator": {"things": collate}} if name == "collated" else {}
        trainer, found[name] = train(Module(), arguments(tmp_path, **options), given, eval_dataset=given, **own)
        assert set(map(str, trainer.model.calls)) == (
            {"price", "size"} if name == "separate" else {"['price', 'size']"}
        )
        assert {"eval_price_loss", "eval_size_loss", "eval_loss"} <= trainer.evaluate().keys()
    assert distance(found["shared"], found["separate"]) < 1e-7 > distance(found["collated"], found["shared"])
    with pytest.raises(ValueError, match="names a task 'things', and the tasks are"):
        train(Module(("price",)), arguments(tmp_path), {"things": data.remove_columns("price")})


@pytest.mark.parametrize("prices", [[[1.0], [1.0, 2.0]], ["cheap", "dear"]], ids=["lists", "texts"])
def test_labels_of_a_module_that_are_no_tensor_name_their_task(prices: list, tmp_path: Path) -> None:
    data = Dataset.from_dict({"features": [[1.0, 2.0, 3.0]] * 8, "price": prices * 4, "size": [1.0] * 8})
    with pytest.raises(ValueError, match="Task 'price': its labels cannot be put into one tensor .*give numbers, or"):
        train(Module(), arguments(tmp_path, max_steps=1), {"things": data})


@pytest.mark.parametrize("options", [{"mixing": "proportional"}, {"per_task_batch_size": {"both": 6, "tags": 2}}])
def test_a_group_is_mixed_as_one_dataset(options: dict[str, Any], tmp_path: Path) -> None:
    tasks = {**TWO, "tags": TASKS["tags"]}
    data = {"tags": tiny_dataset(TASKS["tags"], 6), "both": group(18)}
    trainer = trainer_of(tmp_path, data, tasks, per_device_train_batch_size=4, **options)
    batch = next(iter(trainer.get_train_dataloader()))
    assert list(batch) == ["both", "tags"] and list(batch["both"]["labels"]) == ["topic", "score"]
    assert {name: len(one["input_ids"]) for name, one in batch.items()} == {"both": 6, "tags": 2}


def test_a_wrong_collator_of_a_group_is_told(tmp_path: Path) -> None:
    def flat(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": torch.zeros(len(rows))}

    def half(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {**flat(rows), "labels": {"topic": torch.zeros(len(rows), dtype=torch.long)}}

    for collator, said in (
        (flat, "must make 'labels' a dictionary of tensors by task"),
        (half, "Task 'score': a batch of"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            trainer_of(tmp_path, {"both": group()}, data_collator={"both": collator}).train()


def test_the_conflicts_of_a_group_are_those_of_separate_datasets(tmp_path: Path) -> None:
    rows = group()
    separate = {
        task: rows.select_columns(["input_ids", "attention_mask", task]).rename_column(task, "labels") for task in TWO
    }
    found = []
    for data in ({"both": rows}, separate):
        trainer = trainer_of(tmp_path, data, max_steps=1, train_sampling_strategy="sequential")
        trainer.train()
        found.append(ConflictCallback(trainer, 1, rows=8).cosines())
    assert found[0] == pytest.approx(found[1], abs=1e-10) and list(found[0]) == [("topic", "score")]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tuning_on_validation_data_and_activation_checkpointing(checkpointing: bool, tmp_path: Path) -> None:
    rows, held_out = group(16), group(10)
    apart = [
        {task: one.select_columns(["input_ids", "attention_mask", task]).rename_column(task, "labels") for task in TWO}
        for one in (rows, held_out)
    ]
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "train_sampling_strategy": "sequential"}
    if not checkpointing:  # its rows are drawn by the name of the dataset: of one batch there is no choice
        options |= {"balancer": "auto_lambda", "per_device_train_batch_size": 10}
    runs = []
    for data, validation in (({"both": rows}, {"both": held_out}), apart):
        args = arguments(tmp_path, **{CHECKPOINTING: checkpointing}, **options)
        runs.append(train(tiny_model(TWO), args, data, validation_dataset=None if checkpointing else validation)[1])
    assert distance(*runs) < 1e-10


class Broken(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> Any:
        raise OSError("the disk is gone")

    def __iter__(self) -> Any:
        yield self[0]


@pytest.mark.parametrize(("name", "which"), [("pairs", "Group 'pairs': "), ("c", "Task 'c': ")])
def test_errors_tell_a_group_from_a_task(name: str, which: str) -> None:
    units = {"pairs": Unit("pairs", ("a", "b")), "c": Unit.alone("c")}
    with pytest.raises(OSError, match=f"^{which}some of the rows"):
        JointDataset({name: Broken()}, units=units)[0]
    with pytest.raises(OSError, match=f"^{which}a row of its dataset"):
        next(iter(JointStream({name: Broken()}, {name: 1}, units=units)))
    with pytest.raises(TypeError, match=f"^{which}its collator made a list"):
        JointCollator({name: list}, units)([(name, 1)])


@pytest.mark.parametrize(("alone", "which"), [(False, "Group 'both': "), (True, "Task 'topic': ")])
def test_the_loader_knows_which_is_which(alone: bool, which: str, tmp_path: Path) -> None:
    broken: list[bool] = []

    def read(batch: dict[str, list]) -> dict[str, list]:
        if broken:
            raise OSError("the disk is gone")
        return batch

    data = {"both": group().with_transform(read)}
    if alone:
        score = group().remove_columns("topic").rename_column("score", "labels")
        topic = group().remove_columns("score").rename_column("topic", "labels").with_transform(read)
        data = {"topic": topic, "score": score}
    trainer = trainer_of(tmp_path, data, max_steps=1)
    broken.append(True)
    with pytest.raises(OSError, match=f"^{which}some of the rows"):
        trainer.train()
