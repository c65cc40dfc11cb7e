"""Bad input: each a clear error with the task, the value and the remedy, before any step where it can be known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from helpers import LENGTH, TASKS, arguments, flat, tiny_dataset, tiny_encoder, tiny_model
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, TrainerCallback, TrainingArguments

from hf_dbmtl import MultiTaskModel, MultiTaskTrainer


TWO = {"topic": TASKS["topic"], "score": TASKS["score"]}
ROWS = 8


def good(task: str = "topic", rows: int = ROWS) -> Dataset:
    return tiny_dataset(TASKS[task], rows)


def inputs(rows: int = ROWS) -> dict[str, list]:
    return {"input_ids": [[5] * LENGTH] * rows, "attention_mask": [[1] * LENGTH] * rows}


def labelled(labels: list, column: str = "labels") -> Dataset:
    return Dataset.from_dict({**inputs(len(labels)), column: labels})


class Rows(TorchDataset):
    """A torch dataset of given rows."""

    def __init__(self, rows: list):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def torch_rows(labels: list, column: str = "labels") -> Rows:
    return Rows([{"input_ids": [5] * LENGTH, "attention_mask": [1] * LENGTH, column: label} for label in labels])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch_rows([0, 1]).rows)


class SizedStream(Stream):
    def __len__(self) -> int:
        return 2


def model_of(**tasks: Any) -> MultiTaskModel:
    return tiny_model(tasks or TWO)


def construct(
    folder: Path, data: Any, model: nn.Module | None = None, args: Any = None, **options: Any
) -> MultiTaskTrainer:
    given = {key: options.pop(key) for key in GIVEN if key in options}
    args = arguments(folder, **options) if args is None else args
    return MultiTaskTrainer(model=model or model_of(), args=args, train_dataset=data, **given)


GIVEN = ("eval_dataset", "compute_metrics", "data_collator", "shared_parameters", "processing_class", "optimizers")


def case(error: type[Exception], message: str, *, id: str, **given: Any) -> Any:
    return pytest.param(error, message, given, id=id)


# ---- Training arguments, where they are made -------------------------------------------------------------------------

ARGUMENTS = [
    case(ValueError, r"Unknown balancer 'dbmtl'; did you mean 'db_mtl'", balancer="dbmtl", id="balancer"),
    case(
        ValueError,
        r"Unknown balancer 'maxnorm' in 'log\+maxnorm'; did you mean 'max_norm'",
        balancer="log+maxnorm",
        id="part",
    ),
    case(
        ValueError,
        r"'max_norm\+log' is not of the form '\[transform\+\]\[ema\+\]\[weighting\]'",
        balancer="max_norm+log",
        id="order",
    ),
    case(TypeError, r"`balancer` must be a name such as 'db_mtl'.*is None", balancer=None, id="no balancer"),
    case(ValueError, r"no option 'betta'; did you mean 'beta'", balancer_kwargs={"betta": 0.5}, id="option"),
    case(
        ValueError,
        r"'ew' has no option 'beta'; it takes none",
        balancer="ew",
        balancer_kwargs={"beta": 0.5},
        id="of another",
    ),
    case(ValueError, r"`beta` must be in \[0, 1\), and is 1\.0", balancer_kwargs={"beta": 1.0}, id="beta 1"),
    case(ValueError, r"`beta` must be in \[0, 1\), and is -0\.5", balancer_kwargs={"beta": -0.5}, id="beta negative"),
    case(ValueError, r"`beta` must be in \[0, 1\), and is nan", balancer_kwargs={"beta": math.nan}, id="beta nan"),
    case(
        TypeError,
        r"'beta' of the balancer 'db_mtl' must be a number, and is '0\.9'",
        balancer_kwargs={"beta": "0.9"},
        id="beta text",
    ),
    case(
        TypeError,
        r"'beta' .* must be a number, and is 'high'",
        balancer_kwargs='{"beta": "high"}',
        id="beta text in JSON",
    ),
    case(ValueError, r"`decay` must be zero or more, and is -1", balancer_kwargs={"decay": -1}, id="decay"),
    case(
        ValueError,
        r"`alpha` must be one of \['max', .*positive number, and is 'maximum'",
        balancer_kwargs={"alpha": "maximum"},
        id="alpha",
    ),
    case(ValueError, r"`alpha` must be .*positive number, and is 0", balancer_kwargs={"alpha": 0}, id="alpha 0"),
    case(
        ValueError,
        r"`ema_dtype` must name a floating point type .*'bf16'",
        balancer_kwargs={"ema_dtype": "bf16"},
        id="ema_dtype",
    ),
    case(ValueError, r"`balancer_kwargs` must be a dictionary.*'beta=0\.5'", balancer_kwargs="beta=0.5", id="not JSON"),
    case(ValueError, r"`task_weights` must be a dictionary .*\[1, 2\]", task_weights=[1, 2], id="weights in a list"),
    case(
        ValueError,
        r"`task_weights\['score'\]` must be a number of 0 or more, and is -1",
        task_weights={"score": -1},
        id="weight -1",
    ),
    case(ValueError, r"`task_weights\['score'\]` must be .*'2'", task_weights={"score": "2"}, id="weight text"),
    case(
        ValueError,
        r"`per_task_batch_size\['score'\]` must be .*is 0",
        per_task_batch_size={"score": 0},
        id="batch size 0",
    ),
    case(
        ValueError,
        r"`per_task_batch_size\['score'\]` must be .*is 2\.5",
        per_task_batch_size={"score": 2.5},
        id="batch size 2.5",
    ),
    case(ValueError, r"`mixing` must be one of \['equal', .*'uniform'", mixing="uniform", id="mixing"),
    case(
        ValueError, r"`mixing_temperature` must be a positive number, and is 0", mixing_temperature=0, id="temperature"
    ),
    case(ValueError, r"`stopping_strategy` must be one of .*'first'", stopping_strategy="first", id="stopping"),
    case(ValueError, r"`heads_lr_multiplier` must be .*-1", heads_lr_multiplier=-1, id="multiplier"),
    case(ValueError, r"`non_finite_strategy` must be one of .*'ignore'", non_finite_strategy="ignore", id="non-finite"),
]


@pytest.mark.parametrize(("error", "message", "options"), ARGUMENTS)
def test_arguments_are_refused_where_they_are_made(error: type, message: str, options: dict, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        arguments(tmp_path, **options)


# ---- The Trainer, where it is made -----------------------------------------------------------------------------------

BOTH = {"topic": good(), "score": good("score")}


def with_topic(dataset: Any) -> dict[str, Any]:
    return {**BOTH, "topic": dataset}


def with_score(dataset: Any) -> dict[str, Any]:
    return {**BOTH, "score": dataset}


NAMES = [
    case(
        ValueError,
        r"`train_dataset` names a task 'topics', and the tasks are \['topic', 'score'\]: did you mean 'topic'",
        data={"topics": good(), "score": good("score")},
        id="train",
    ),
    case(
        ValueError,
        r"`train_dataset` names a task 'mrpc', .*rename the key, or add the task to the model",
        data={**BOTH, "mrpc": good()},
        id="train, one more",
    ),
    case(
        ValueError,
        r"`train_dataset` has nothing for the task \['score'\]: give a dataset.*model\.remove_task\(name\)",
        data={"topic": good()},
        id="train, one less",
    ),
    case(
        ValueError,
        r"`eval_dataset` names a task 'scores', .*did you mean 'score'",
        data=BOTH,
        eval_dataset={"scores": good("score")},
        id="eval",
    ),
    case(
        ValueError,
        r"`compute_metrics` names a task 'tpic', .*did you mean 'topic'",
        data=BOTH,
        compute_metrics={"tpic": "accuracy"},
        id="metrics",
    ),
    case(
        ValueError,
        r"`data_collator` names a task 'Score', .*did you mean 'score'",
        data=BOTH,
        data_collator={"Score": dict},
        id="collators",
    ),
    case(
        ValueError,
        r"`task_weights` names a task 'scor', .*did you mean 'score'",
        data=BOTH,
        task_weights={"scor": 2.0},
        id="weights",
    ),
    case(
        ValueError,
        r"`per_task_batch_size` names a task 'topik', .*did you mean 'topic'",
        data=BOTH,
        per_task_batch_size={"topik": 2},
        id="batch sizes",
    ),
    case(
        ValueError,
        r"`train_dataset`: the name of a task is a non-empty string without '/', and not 3",
        data={3: good()},
        id="a number",
    ),
    case(
        ValueError,
        r"the name of a task is .*without '/', and not 'glue/mrpc'",
        data={"glue/mrpc": good()},
        id="a slash",
    ),
    case(ValueError, r"the name of a task is a non-empty string .*not ''", data={"": good()}, id="empty"),
    case(
        ValueError, r"`eval_dataset`: the name of a task .*not None", data=BOTH, eval_dataset={None: good()}, id="None"
    ),
]

DATASETS = [
    case(
        TypeError,
        r"`train_dataset` must be a dictionary of one dataset per task, .* and is Dataset",
        data=good(),
        id="a dataset",
    ),
    case(TypeError, r"`train_dataset` must be a dictionary .* and is list", data=[good(), good()], id="a list"),
    case(TypeError, r"`train_dataset` must be a dictionary .* and is empty", data={}, id="an empty dictionary"),
    case(
        TypeError,
        r"`eval_dataset` must be a dictionary .* and is Dataset",
        data=BOTH,
        eval_dataset=good(),
        id="an eval dataset",
    ),
    case(
        ValueError,
        r"`train_dataset` names a task 'train', and the tasks are",
        data=DatasetDict(train=good(), test=good()),
        id="splits",
    ),
    case(
        ValueError,
        r"Task 'topic': its train dataset is empty\. Give it rows, or leave the task out",
        data=with_topic(good().select([])),
        id="no row",
    ),
    case(ValueError, r"Task 'topic': its train dataset is empty", data=with_topic(Rows([])), id="no row, torch"),
    case(
        ValueError,
        r"Task 'score': its eval dataset is empty",
        data=BOTH,
        eval_dataset={"score": Rows([])},
        id="no row to evaluate on",
    ),
    case(
        ValueError,
        "Task 'topic': its train dataset has a length, and that of 'score' has none",
        data=with_score(Stream()),
        id="a stream",
    ),
    case(ValueError, "that of 'score' has none", data=with_score(SizedStream()), id="a stream with a length"),
    case(
        ValueError,
        "Task 'score': its train dataset has a length, and that of 'topic' has none.*to_iterable_dataset",
        data=with_topic(good().to_iterable_dataset()),
        id="a stream of datasets",
    ),
    case(
        TypeError,
        r"Task 'score': its eval dataset is a Stream and has no length.*stream\.take",
        data=BOTH,
        eval_dataset={"score": Stream()},
        id="a stream to evaluate on",
    ),
    case(
        TypeError,
        r"Task 'topic': its train dataset is a generator and has no length",
        data=with_topic(row for row in good()),
        id="a generator",
    ),
    case(
        TypeError, r"Task 'topic': its train dataset is a NoneType and has no length", data=with_topic(None), id="None"
    ),
    case(
        TypeError,
        r"Task 'topic': its train dataset is a DatasetDict with the keys \['train', 'test'\].*one split of a ",
        data=with_topic(DatasetDict(train=good(), test=good())),
        id="all splits of a task",
    ),
    case(
        TypeError,
        r"Task 'topic': its train dataset is a dict with the keys \['input_ids', .*Dataset\.from_dict",
        data=with_topic(inputs()),
        id="columns",
    ),
    case(TypeError, r"Task 'topic': its train dataset is a str and must be", data=with_topic("glue/mrpc"), id="a name"),
    case(
        TypeError,
        r"Task 'topic': its train dataset is a DataFrame .*from_pandas",
        data=with_topic(pd.DataFrame(inputs())),
        id="pandas",
    ),
    case(
        TypeError,
        r"Task 'topic': its train dataset is a set and must be a dataset whose rows are found by number",
        data=with_topic({1, 2}),
        id="a set",
    ),
]

LABELS = [
    case(
        ValueError,
        r"Task 'topic': its train dataset has the columns \['input_ids', 'attention_mask'\] "
        r"and none of \['labels', 'label', 'label_ids'\]: name",
        data=with_topic(Dataset.from_dict(inputs())),
        id="no column",
    ),
    case(
        ValueError,
        r"Task 'topic': its train dataset has the columns .*'target'\] and none of \['labels'",
        data=with_topic(labelled([0] * ROWS, "target")),
        id="another name",
    ),
    case(
        ValueError,
        r"Task 'topic': its train dataset has no label at all in its column 'labels'",
        data=with_topic(labelled([-100, None] * 4)),
        id="all missing",
    ),
    case(
        ValueError,
        r"Task 'score': its train dataset has no label at all in its column 'label'",
        data=with_score(labelled([math.nan] * 4, "label")),
        id="all NaN",
    ),
    case(
        ValueError,
        r"Task 'score': its eval dataset has no label at all",
        data=BOTH,
        eval_dataset={"score": labelled([None] * 4)},
        id="none to evaluate on",
    ),
    case(
        ValueError,
        r"Task 'topic': label 3 is outside \[0, 3\): set num_labels=4 or mend the data",
        data=with_topic(labelled([0, 1, 2, 3])),
        id="too large",
    ),
    case(
        ValueError,
        r"Task 'topic': label -1 is outside \[0, 3\): mend the data \(a missing label is None or -100\)",
        data=with_topic(labelled([0, -1])),
        id="negative",
    ),
    case(
        ValueError,
        r"Task 'topic': label 7 is outside \[0, 3\): set num_labels=8",
        data=with_topic(labelled([0] * 5000 + [7])),
        id="in row 5000",
    ),
    case(
        ValueError,
        r"Task 'topic': label 7 is outside",
        data=with_topic(labelled([7] + [0] * 50).select(range(50, -1, -1))),
        id="in the last row of a selection",
    ),
    case(
        ValueError,
        r"Task 'topic': label 9 is outside",
        data=with_topic(labelled([0, 9]).with_format("torch")),
        id="in another format",
    ),
    case(
        ValueError,
        r"Task 'topic': label 5 is outside",
        data=BOTH,
        eval_dataset={"topic": labelled([0, 5])},
        id="to evaluate on",
    ),
    case(
        TypeError,
        r"Task 'topic': label 'sports' is of type str: give the integer index of the class \(`ClassLabel` ",
        data=with_topic(labelled(["sports", "politics"])),
        id="a text",
    ),
    case(
        TypeError,
        r"Task 'topic': label 1\.0 is of type float: give the integer index",
        data=with_topic(labelled([0.0, 1.0][::-1])),
        id="a float",
    ),
    case(
        TypeError,
        r"Task 'topic': label \[0, 1\] is of type list: give the integer index",
        data=with_topic(labelled([[0, 1]] * 2)),
        id="a list",
    ),
    case(
        TypeError,
        r"Task 'score': label '3\.5' is of type str: give num_labels numbers \(cast the column to float\)",
        data=with_score(labelled(["3.5", "4"])),
        id="a number in quotes",
    ),
    case(
        ValueError,
        r"Task 'score': label \[1\.0, 2\.0\] has 2 entries but num_labels=1",
        data=with_score(labelled([[1.0, 2.0]] * 2)),
        id="two numbers",
    ),
    case(
        ValueError,
        r"Task 'score': label inf is not finite: mend the data",
        data=with_score(labelled([1.0, math.inf])),
        id="infinite",
    ),
]

TRAITS = {"traits": TASKS["traits"], "topic": TASKS["topic"]}
TAGS = {"tags": TASKS["tags"], "topic": TASKS["topic"]}

LABELS_OF_OTHER_KINDS = [
    case(
        ValueError,
        r"Task 'traits': label \[1\.0, 0\.0, 0\.0\] has 3 entries but num_labels=4: give a multi-hot vector",
        tasks=TRAITS,
        labels=[[1.0, 0.0, 0.0]] * 2,
        id="too narrow",
    ),
    case(
        ValueError,
        r"Task 'traits': label \[0, 1, 0, 1, 1\] has 5 entries but num_labels=4",
        tasks=TRAITS,
        labels=[[0, 1, 0, 1], [0, 1, 0, 1, 1]],
        id="too wide",
    ),
    case(
        ValueError,
        r"Task 'traits': label \[2\] has 1 entries but num_labels=4: .*not the indices",
        tasks=TRAITS,
        labels=[[2], [0]],
        id="indices",
    ),
    case(
        ValueError,
        r"Task 'traits': entry 3 is outside \[0, 1\]: give a multi-hot vector",
        tasks=TRAITS,
        labels=[[0, 1, 3, 0]] * 2,
        id="four indices",
    ),
    case(
        TypeError,
        r"Task 'traits': label 'loops' is of type str: give a multi-hot vector",
        tasks=TRAITS,
        labels=[["loops"], ["raises"]],
        id="names",
    ),
    case(
        TypeError,
        r"Task 'traits': label 1 is of type int: give a multi-hot vector",
        tasks=TRAITS,
        labels=[1, 0],
        id="an index",
    ),
    case(
        ValueError,
        r"Task 'tags': label 5 is outside \[0, 5\): set num_labels=6",
        tasks=TAGS,
        labels=[[5] * LENGTH] * 2,
        id="a tag too large",
    ),
    case(
        TypeError,
        r"Task 'tags': label 'B-PER' is of type str: give one integer class index per token",
        tasks=TAGS,
        labels=[["B-PER"] * LENGTH] * 2,
        id="tags in words",
    ),
    case(
        TypeError,
        r"Task 'tags': label 2 is of type int: give one integer class index per token",
        tasks=TAGS,
        labels=[2, 1],
        id="one tag for all",
    ),
    case(
        ValueError,
        r"Task 'tags': a row has 4 labels and 7 tokens\. Give a label to every token .*`word_ids\(\)`",
        tasks=TAGS,
        labels=[[1] * LENGTH, [1] * 4],
        id="a tag per word",
    ),
    case(
        ValueError,
        r"Task 'tags': a row has 9 labels and 7 tokens",
        tasks=TAGS,
        labels=[[1] * 9] * 2,
        id="inputs cut, tags not",
    ),
]

COLUMNS = [
    case(
        ValueError,
        r"Task 'topic': its train dataset has the columns \['sentence', 'labels'\], of which the model takes none as "
        r"an input\. It takes \[.*'input_ids'.*\]: tokenize the texts first, rename the columns, or set "
        r"`remove_unused_columns=False`",
        data=with_topic(Dataset.from_dict({"sentence": ["a", "b"], "labels": [0, 1]})),
        id="raw text",
    ),
    case(
        ValueError,
        r"Task 'topic': its train dataset has the columns \['sentence', 'labels'\].*tokenize the texts first",
        data=with_topic(Dataset.from_dict({"sentence": ["a", "b"], "labels": [0, 1]})),
        remove_unused_columns=False,
        id="raw text, kept",
    ),
    case(
        ValueError,
        r"Task 'topic': its train dataset has the columns \['labels'\], of which",
        data=with_topic(Dataset.from_dict({"labels": [0, 1]})),
        id="labels alone",
    ),
    case(
        ValueError,
        r"Task 'topic': its eval dataset has the columns \['text', 'label'\], of which the model takes none",
        data=BOTH,
        eval_dataset={"topic": Dataset.from_dict({"text": ["a"], "label": [0]})},
        id="to evaluate on",
    ),
    case(
        ValueError,
        r"Task 'topic': .*cannot be grouped by length, .*neither 'input_ids' nor a column 'length'",
        data=with_topic(Dataset.from_dict({"inputs_embeds": [[[0.0] * 8]] * 2, "labels": [0, 1]})),
        train_sampling_strategy="group_by_length",
        id="no length",
    ),
]

OTHERS = [
    case(
        TypeError,
        r"Task 'topic': its `data_collator` must be a function .*and is 'padding'",
        data=BOTH,
        data_collator={"topic": "padding"},
        id="collator",
    ),
    case(
        TypeError,
        r"Task 'topic': its `data_collator` must be .*and is <class",
        data=BOTH,
        data_collator=Rows,
        id="a collator's class",
    ),
    case(
        ValueError,
        r"does not take `accelerator_config\.split_batches`: .*`per_device_train_batch_size` counts rows of each task",
        data=BOTH,
        accelerator_config={"split_batches": True},
        id="split_batches",
    ),
    case(
        ValueError,
        r"does not take `accelerator_config\.dispatch_batches`: .*leave it at None",
        data=BOTH,
        accelerator_config={"dispatch_batches": True},
        id="dispatch_batches",
    ),
    case(
        ValueError,
        r"does not take `label_smoothing_factor`",
        data=BOTH,
        label_smoothing_factor=0.1,
        id="label smoothing",
    ),
    case(
        ValueError,
        r"No trainable parameter of MultiTaskModel is shared with shared_parameters='\^bert'",
        data=BOTH,
        shared_parameters="^bert",
        id="regex",
    ),
    case(
        ValueError,
        r"shared_parameters='\(' is not a regular expression",
        data=BOTH,
        shared_parameters="(",
        id="no regex",
    ),
    case(
        ValueError,
        r"names 'encoder\.layers', and no parameter or module of MultiTaskModel is called so; did you mean encoder",
        data=BOTH,
        shared_parameters=["encoder.layers"],
        id="names",
    ),
    case(
        ValueError,
        r"is a BertModel that is not a part of MultiTaskModel: pass one of the model's own submodules",
        data=BOTH,
        shared_parameters=tiny_encoder(),
        id="another module",
    ),
    case(
        TypeError,
        r"`shared_parameters` must be a regular expression, .*and is 12",
        data=BOTH,
        shared_parameters=12,
        id="a number",
    ),
]


@pytest.mark.parametrize(("error", "message", "given"), [*NAMES, *DATASETS, *LABELS, *COLUMNS, *OTHERS])
def test_the_trainer_refuses(error: type, message: str, given: dict, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        construct(tmp_path, **given)


@pytest.mark.parametrize(("error", "message", "given"), LABELS_OF_OTHER_KINDS)
def test_the_trainer_refuses_labels(error: type, message: str, given: dict, tmp_path: Path) -> None:
    name = next(iter(given["tasks"]))
    with pytest.raises(error, match=message):
        construct(tmp_path, {name: labelled(given["labels"]), "topic": good()}, tiny_model(given["tasks"]))


def test_what_is_refused_would_train_without_its_fault(tmp_path: Path) -> None:
    """The control of the tables above."""
    data = {**BOTH, "score": labelled([1, 2.5, None, math.nan] * 2, "label")}
    options = {"task_weights": {"score": 2.0}, "per_task_batch_size": {"topic": 4}, "shared_parameters": "^encoder"}
    assert construct(tmp_path, data, eval_dataset={"topic": good()}, **options).train().global_step == 2
    for name, tasks in (("traits", TRAITS), ("tags", TAGS)):
        assert construct(tmp_path, {name: good(name), "topic": good()}, tiny_model(tasks)).train().global_step == 1


def test_arguments_of_another_class(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="`args` must be MultiTaskTrainingArguments, and is TrainingArguments"):
        construct(tmp_path, BOTH, args=TrainingArguments(str(tmp_path), use_cpu=True))
    with pytest.raises(TypeError, match="`args` must be MultiTaskTrainingArguments, and is dict"):
        construct(tmp_path, BOTH, args={"output_dir": str(tmp_path)})


@pytest.mark.parametrize("data", [[], {1, 2}, pd.DataFrame({"topic": [1, 2]})], ids=["list", "set", "frame"])
def test_no_dataset_at_all(data: Any, tmp_path: Path) -> None:
    message = f"`train_dataset` must be a dictionary .*or a dataset with a column .*and is {type(data).__name__}"
    with pytest.raises(TypeError, match=message):
        construct(tmp_path, data)


def test_several_gpus_in_one_process(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(
        ValueError, match=r"does not run on 2 GPUs in one process \(torch\.nn\.DataParallel\)\. Start one .*torchrun"
    ):
        construct(tmp_path, BOTH, args=args)
    args._n_gpu = 1
    construct(tmp_path, BOTH, args=args)


def test_no_data_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Training needs a `train_dataset`, a dictionary of one dataset per task"):
        construct(tmp_path, None).train()
    with pytest.raises(ValueError, match="Evaluation needs an `eval_dataset`"):
        construct(tmp_path, BOTH).evaluate()


def test_everything_frozen(tmp_path: Path) -> None:
    model = model_of()
    model.encoder.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"No trainable parameter of MultiTaskModel is shared: .*Unfreeze a part of the encoder"
    ):
        construct(tmp_path, BOTH, model)
    model.encoder.pooler.requires_grad_(True)
    construct(tmp_path, BOTH, model)


# ---- What is found as a batch is made: before it reaches the model ---------------------------------------------------


class Untouched(MultiTaskTrainer):
    """A run in which no batch may reach the model."""

    def training_step(self, *args: Any) -> Tensor:
        pytest.fail("the batch reached a training step")


def with_transform(labels: list) -> Dataset:
    return good().with_transform(
        lambda batch: {**inputs(len(batch["labels"])), "labels": labels[: len(batch["labels"])]}
    )


def unnamed(rows: list[dict]) -> tuple:
    return tuple(rows)


def stacked(rows: list[dict]) -> dict[str, Tensor]:
    return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}


COLLATED = [
    case(
        ValueError,
        r"Task 'topic': label 3 is outside \[0, 3\): set num_labels=4",
        data=with_topic(torch_rows([0, 1, 3])),
        id="too large",
    ),
    case(
        ValueError,
        r"Task 'topic': label 12 is outside",
        data=with_topic(torch_rows([np.int64(12), torch.tensor(0)])),
        id="of NumPy",
    ),
    case(
        ValueError,
        r"Task 'topic': label 3 is outside",
        data=with_topic(torch_rows([0, 3])),
        dataloader_num_workers=1,
        id="in a worker",
    ),
    case(
        TypeError,
        r"Task 'topic': label 'sports' is of type str",
        data=with_topic(torch_rows(["sports"] * 2)),
        id="a text",
    ),
    case(
        TypeError,
        r"Task 'score': label '3' is of type str: give num_labels numbers",
        data=with_score(torch_rows(["3"] * 2)),
        id="a number in quotes",
    ),
    case(
        ValueError, r"Task 'topic': label 9 is outside", data=with_topic(with_transform([9] * 8)), id="by a transform"
    ),
    case(
        TypeError,
        r"Task 'topic': a row of its dataset is a tuple and must be a dictionary of columns",
        data=with_topic(Rows([([5], 0)] * 2)),
        id="tuples",
    ),
    case(
        ValueError,
        r"Task 'topic': its rows hold no column that the model takes as an input: tokenize the texts first",
        data=with_topic(Rows([{"text": "a", "labels": 0}] * 2)),
        id="raw text",
    ),
    case(
        ValueError,
        r"Task 'topic': its rows hold no column .*tokenize the texts first",
        data=with_topic(Rows([{"text": "a", "labels": 0}] * 2)),
        remove_unused_columns=False,
        id="raw text, kept",
    ),
    case(
        ValueError,
        r"Task 'topic': its rows cannot be put into one batch: .*Rows of different lengths need a "
        r"`processing_class` that pads",
        data=with_topic(Rows([{"input_ids": [5] * n, "labels": 0} for n in (1, 2)])),
        id="nothing to pad with",
    ),
    case(
        ValueError,
        r"Task 'topic': label 4 is outside",
        data=with_topic(torch_rows([4, 0])),
        data_collator=stacked,
        id="a collator of one's own",
    ),
    case(
        TypeError,
        r"Task 'topic': its collator made a tuple of its rows and must make a dictionary",
        data=BOTH,
        data_collator={"topic": unnamed},
        id="a collator that makes a tuple",
    ),
]


@pytest.mark.parametrize(("error", "message", "given"), COLLATED)
def test_a_batch_is_refused_as_it_is_made(error: type, message: str, given: dict, tmp_path: Path) -> None:
    given = dict(given)
    data, collator = given.pop("data"), given.pop("data_collator", None)
    model = model_of()
    before = flat(model.parameters())
    trainer = Untouched(model, arguments(tmp_path, **given), train_dataset=data, data_collator=collator)
    with pytest.raises(error, match=message):
        trainer.train()
    assert torch.equal(flat(model.parameters()), before)


def test_token_labels_that_are_not_aligned(tmp_path: Path) -> None:
    rows = Rows([{"input_ids": [5] * LENGTH, "labels": [1] * 4}] * 2)
    trainer = Untouched(tiny_model(TAGS), arguments(tmp_path), train_dataset={"tags": rows, "topic": good()})
    with pytest.raises(ValueError, match=r"Task 'tags': a row has 4 labels and 7 tokens\."):
        trainer.train()


def test_a_text_beside_the_inputs(tmp_path: Path) -> None:
    """It is dropped where columns are, and names the task where the tokenizer chokes on it."""
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])}
    )
    data = with_topic(good().add_column("text", ["a"] * ROWS))
    assert construct(tmp_path, data, processing_class=tokenizer).train().global_step == 1
    trainer = construct(tmp_path, data, processing_class=tokenizer, remove_unused_columns=False)
    with pytest.raises(ValueError, match=r"Task 'topic': its rows cannot be put into one batch: .*text"):
        trainer.train()


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    """In a torch dataset, which cannot be looked into beforehand; to predict on, it needs none."""
    rows = Rows([{"input_ids": [5] * LENGTH, "target": 0}] * 2)
    model = model_of()
    before = flat(model.parameters())
    trainer = construct(tmp_path, with_topic(rows), model)
    with pytest.raises(
        ValueError, match=r"Task 'topic': a batch of its rows has no labels\. Give every row one in a column 'labels'"
    ):
        trainer.train()
    assert torch.equal(flat(model.parameters()), before)
    assert trainer.predict({"topic": rows})["topic"].predictions.shape == (2, 3)
    assert trainer.predict({"topic": labelled([None, -100])})["topic"].predictions.shape == (2, 3)


EVALUATED = [
    case(
        TypeError,
        r"The dataset to evaluate on must be a dictionary of one dataset per task, .*and is Dataset",
        data=good(),
        id="a dataset",
    ),
    case(
        ValueError,
        r"The dataset to evaluate on names a task 'topics', .*did you mean 'topic'",
        data={"topics": good()},
        id="a name",
    ),
    case(ValueError, r"Task 'topic': its \w+ dataset is empty", data={"topic": Rows([])}, id="no row"),
    case(ValueError, r"Task 'topic': label 3 is outside \[0, 3\)", data={"topic": labelled([0, 3])}, id="a label"),
    case(
        ValueError,
        r"Task 'topic': label 3 is outside \[0, 3\)",
        data={"topic": torch_rows([0, 3])},
        id="a label in a torch dataset",
    ),
    case(
        ValueError,
        r"Task 'topic': its \w+ dataset has the columns \['text'\], of which the model takes none",
        data={"topic": Dataset.from_dict({"text": ["a"]})},
        id="raw text",
    ),
]


@pytest.mark.parametrize(("error", "message", "given"), EVALUATED)
@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_evaluation_refuses(method: str, error: type, message: str, given: dict, tmp_path: Path) -> None:
    trainer = construct(tmp_path, BOTH)
    with pytest.raises(error, match=message):
        getattr(trainer, method)(given["data"])


# ---- A module of one's own -------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A module whose loss and number of items can be spoilt, for one task, from a step on."""

    spoil: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    from_step = 1  # of 0, 1, ...: one good step first

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(2, 3)
        self.heads = nn.ModuleDict({task: nn.Linear(3, 1) for task in ("a", "b", "c")})
        self.forwards = dict.fromkeys(self.heads, 0)

    def forward(self, task: str, features: Tensor, labels: Tensor) -> dict[str, Any]:
        errors = (self.heads[task](self.trunk(features)).squeeze(-1) - labels).square()
        result = {"loss": errors.mean(), "errors": errors, "num_items": len(labels)}
        self.forwards[task] += 1
        if task == "b" and self.spoil is not None and self.forwards[task] > self.from_step:
            result = self.spoil(result)
        return result


def own_data(tasks: str = "abc") -> dict[str, Dataset]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 2, generator=generator)
    return {
        task: Dataset.from_dict({"features": features.tolist(), "labels": features.sum(-1).tolist()}) for task in tasks
    }


class Watch(TrainerCallback):
    """The parameters and averages after every step."""

    def __init__(self) -> None:
        self.after: list[tuple[Tensor, dict[str, Tensor]]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        memory = self.trainer.balancer.memory
        rows = {task: flat(row.tensors) for task, row in memory.rows.items()} if memory else {}
        self.after.append((flat(model.parameters()), rows))


RETURNED = [
    case(
        ValueError,
        r"Task 'b': Own\.forward must return `loss`, a tensor of shape \(\) .*returned a tensor of shape \([24],\)",
        spoil=lambda result: {"loss": result["errors"]},
        id="a loss per row",
    ),
    case(
        ValueError,
        r"Task 'b': Own\.forward must return `loss`, .*returned a tensor of shape \(1,\)",
        spoil=lambda result: {"loss": result["loss"].reshape(1)},
        id="a loss of shape (1,)",
    ),
    case(
        ValueError,
        r"Task 'b': Own\.forward must return `loss`, .*returned float",
        spoil=lambda result: {"loss": result["loss"].item()},
        id="a number",
    ),
    case(
        ValueError,
        r"Task 'b': Own\.forward must return `loss`, .*returned NoneType",
        spoil=lambda result: {"logits": result["errors"]},
        id="no loss",
    ),
    case(
        ValueError,
        r"Task 'b': Own\.forward must return `loss`, .*returned NoneType",
        spoil=lambda result: result["loss"],
        id="the loss alone",
    ),
    case(
        ValueError,
        r"Task 'b': its loss hangs on no trainable parameter\. .*without `\.detach\(\)`",
        spoil=lambda result: {"loss": result["loss"].detach()},
        id="detached",
    ),
    case(
        ValueError,
        r"Task 'b': its loss is -.*needs a loss of zero or more\. Add a constant",
        spoil=lambda result: {"loss": result["loss"] - 100},
        id="negative under a logarithm",
    ),
    case(
        ValueError,
        r"Task 'b': its loss is .* over num_items=0\. .*over none of them the loss must be a zero that is attached",
        spoil=lambda result: {**result, "num_items": 0},
        id="a loss over no item",
    ),
    case(
        ValueError,
        r"Task 'b': its loss is nan over num_items=0",
        spoil=lambda result: {"loss": result["loss"] * math.nan, "num_items": 0},
        id="NaN over no item",
    ),
    case(
        ValueError,
        r"Task 'b': its loss is .* over num_items=-3\. .*zero or more",
        spoil=lambda result: {**result, "num_items": -3},
        id="a negative number of items",
    ),
    case(
        ValueError,
        r"Task 'b': its loss is .* over num_items=nan",
        spoil=lambda result: {**result, "num_items": math.nan},
        id="NaN items",
    ),
    case(
        ValueError,
        r"Task 'b': Own\.forward must return `num_items`, .*returned a tensor of shape \(4,\)",
        spoil=lambda result: {**result, "num_items": torch.ones(4)},
        id="items per row",
    ),
    case(
        ValueError,
        r"Task 'b': Own\.forward must return `num_items`, .*returned str",
        spoil=lambda result: {**result, "num_items": "4"},
        id="items in quotes",
    ),
]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("error", "message", "given"), RETURNED)
def test_what_a_forward_may_not_return(
    error: type, message: str, given: dict, accumulation: int, tmp_path: Path
) -> None:
    """The second step is refused: nothing of it has entered the parameters, the bad task's average or the counter."""
    model, watch = Own(), Watch()
    model.spoil, model.from_step = given["spoil"], accumulation
    options = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
    args = arguments(tmp_path, optim="adamw_torch", weight_decay=0.1, **options)
    trainer = MultiTaskTrainer(model, args, train_dataset=own_data(), callbacks=[watch])
    watch.trainer = trainer
    with pytest.raises(error, match=message):
        trainer.train()
    ((weights, rows),) = watch.after
    assert torch.equal(flat(model.parameters()), weights)
    for task in "bc":  # that of `a`, finite and taken in before, may keep what it took
        assert torch.equal(flat(trainer.balancer.memory.rows[task].tensors), rows[task])
    assert trainer.balancer.steps == 1 and trainer.state.global_step == 1

    model.spoil = None  # mended, the same Trainer goes on
    trainer.train()
    assert len(watch.after) == 4 and all(torch.isfinite(weights).all() for weights, _ in watch.after)
    assert trainer.balancer.steps == 4


@pytest.mark.parametrize("balancer", ["db_mtl", "log"])
def test_a_loss_of_zero_trains(balancer: str, tmp_path: Path) -> None:
    """It is what the epsilon is for: its gradient is zero, the others' are not."""
    model = Own()
    model.spoil, model.from_step = (lambda result: {"loss": result["loss"] * 0, "num_items": 4}), 0
    before = flat(model.parameters())
    trainer = MultiTaskTrainer(model, arguments(tmp_path, balancer=balancer), train_dataset=own_data())
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.balancer.steps == 2
    after = flat(model.parameters())
    assert torch.isfinite(after).all() and not torch.equal(after, before)


@pytest.mark.parametrize("balancer", ["ew", "max_norm", "ema+max_norm"])
def test_a_negative_loss_trains_without_a_logarithm(balancer: str, tmp_path: Path) -> None:
    model = Own()
    model.spoil, model.from_step = (lambda result: {"loss": result["loss"] - 100}), 0
    trainer = MultiTaskTrainer(model, arguments(tmp_path, balancer=balancer), train_dataset=own_data())
    trainer.train()
    assert trainer.balancer.steps == 2 and torch.isfinite(flat(model.parameters())).all()


class Headless(Own):
    def __init__(self) -> None:
        super().__init__()
        self.outputs = self.heads
        del self.heads


class Nameless(Own):
    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Any]:
        return super().forward("a", features, labels)


def of_transformers() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )


FEATURES = {"features": [[0.0, 1.0]] * 2}

MODULES = [
    case(
        ValueError,
        r"Headless has no submodule `heads`, .*MultiTaskTrainer\(shared_parameters=\.\.\.\) takes",
        model=Headless,
        id="no heads",
    ),
    case(
        TypeError,
        r"Nameless\.forward takes no `task`: .*`forward\(task=\.\.\., \*\*batch\)`",
        model=Nameless,
        id="no task",
    ),
    case(
        TypeError,
        r"BertForSequenceClassification\.forward takes no `task`: .*`MultiTaskModel\.from_encoder",
        model=of_transformers,
        id="of transformers",
    ),
    case(
        ValueError,
        r"Task 'a': its train dataset has the columns \['text', 'labels'\], of which the model takes none as an "
        r"input\. It takes \['features'\]",
        model=Own,
        data={"a": Dataset.from_dict({"text": ["a"], "labels": [0.0]})},
        id="columns",
    ),
    case(
        ValueError,
        r"Task 'a': its train dataset is empty",
        model=Own,
        data={"a": Dataset.from_dict({"features": [], "labels": []})},
        id="no row",
    ),
    case(
        ValueError,
        r"`eval_dataset` names a task 'd', and the tasks are \['a', 'b', 'c'\]",
        model=Own,
        eval_dataset={"d": Dataset.from_dict({**FEATURES, "labels": [0.0] * 2})},
        id="another task",
    ),
    case(
        ValueError,
        r"the name of a task is a non-empty string without '/', and not 'a/b'",
        model=Own,
        data={"a/b": own_data("a")["a"]},
        id="a name",
    ),
    case(
        ValueError, r"No trainable parameter of Own is shared", model=lambda: Own().requires_grad_(False), id="frozen"
    ),
    case(
        ValueError,
        r"No trainable parameter of Own is shared with shared_parameters='encoder'",
        model=Own,
        shared_parameters="encoder",
        id="no match",
    ),
    case(
        ValueError,
        r"names 'trunc', and no parameter or module of Own is called so; did you mean trunk",
        model=Own,
        shared_parameters=["trunc"],
        id="a typo",
    ),
    case(
        ValueError,
        r"is a Linear that is not a part of Own",
        model=Own,
        shared_parameters=nn.Linear(2, 3),
        id="a foreign module",
    ),
]


@pytest.mark.parametrize(("error", "message", "given"), MODULES)
def test_modules_are_refused(error: type, message: str, given: dict, tmp_path: Path) -> None:
    given = dict(given)
    model, data = given.pop("model")(), given.pop("data", None) or own_data()
    with pytest.raises(error, match=message):
        construct(tmp_path, data, model, **given)


def test_labels_of_a_user_module_are_its_own_business(tmp_path: Path) -> None:
    """No column must be called so, and what is in it is not checked."""

    class Words(Own):
        def forward(self, task: str, features: Tensor, target: Tensor) -> dict[str, Any]:
            return super().forward(task, features, target)

    columns = {"features": [[0.0, 1.0], [1.0, 0.0]], "target": [-5.0, 1e6]}
    assert (
        construct(tmp_path, {"a": Dataset.from_dict(columns), "b": Dataset.from_dict(columns)}, Words())
        .train()
        .global_step
        == 1
    )
