"""Joint batches: every batch holds rows of every task, so that every process works on all tasks in every step."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, SequenceFeatureExtractor, default_data_collator
from transformers.trainer_pt_utils import get_length_grouped_indices

from .tasks import Task


__all__ = [
    "CheckedCollator",
    "JointBatchSampler",
    "JointCollator",
    "JointDataset",
    "TaskCollator",
    "check_alignment",
    "rows_per_step",
]

LABEL_COLUMNS = ("labels", "label", "label_ids")


class JointDataset(Dataset):
    """
    The datasets of several tasks behind one another. An item is a pair `(task, example)`.

    Args:
        datasets (`Mapping[str, Dataset]`):
            A dataset with a length by task.
        sampler (`JointBatchSampler`, *optional*):
            What `set_epoch` is passed on to. accelerate wraps batch samplers several times over, the more so after a
            resume in the middle of an epoch, and then reaches the dataset only.
    """

    def __init__(self, datasets: Mapping[str, Any], sampler: JointBatchSampler | None = None):
        self.datasets = dict(datasets)
        self.tasks = list(self.datasets)
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
            task = self.tasks[position]
            start = self.ends[position - 1] if position else 0
            dataset, rows = self.datasets[task], [index - start for index in group]
            fetch = getattr(dataset, "__getitems__", None)  # the hook that torch's own fetcher looks for
            examples += [(task, one) for one in (fetch(rows) if fetch else [dataset[row] for row in rows])]
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
    How many rows of each task a step takes, over all its micro-batches and processes: $b_t = \max(1, \mathrm{round}(B T
    p_t))$ with $p_t \propto n_t^{1/\tau}$ and $B$ = `batch_size` x `parts`.

    Args:
        sizes (`Mapping[str, int]`):
            $n_t$, the number of rows of each dataset.
        batch_size (`int`):
            The rows of each task in a micro-batch of one process, on average over the tasks.
        parts (`int`, *optional*, defaults to 1):
            The number of micro-batches in a step, over all processes.
        mixing (`str`, *optional*, defaults to `"equal"`):
            `"equal"` ($\tau = \infty$), `"proportional"` ($\tau = 1$) or `"temperature"` ($\tau$ = `temperature`).
        temperature (`float`, *optional*, defaults to 2.0):
            $\tau$ of `mixing="temperature"`.
        per_task_batch_size (`Mapping[str, int]`, *optional*):
            The rows in a micro-batch of the tasks named, in place of what the mixing gives.

    Returns:
        `dict[str, int]`: $b_t$ by task.
    """
    exponent = {"equal": 0.0, "proportional": 1.0, "temperature": 1.0 / temperature}[mixing]
    masses = {task: size**exponent for task, size in sizes.items()}
    rows = batch_size * parts * len(sizes) / sum(masses.values())
    mixed = {task: max(1, round(mass * rows)) for task, mass in masses.items()}
    return mixed | {task: size * parts for task, size in (per_task_batch_size or {}).items()}


class JointBatchSampler:
    """
    Yields the micro-batches of joint steps, as lists of indices into a [`JointDataset`]. A step's rows are fixed by the
    seed, the epoch and the step alone and then dealt to its micro-batches, so that 1 process with 8 rows, 2 with 4 and 1
    with 2 rows and 4 micro-batches see the same steps. Only whole steps are emitted; a task that has run out of rows
    begins anew, in a new order, while others go on.

    Args:
        sizes (`Mapping[str, int]`):
            The number of rows of each task's dataset, in the order of the [`JointDataset`].
        rows (`Mapping[str, int]`):
            The rows of each task in a step, see [`rows_per_step`].
        parts (`int`, *optional*, defaults to 1):
            The number of micro-batches in a step, over all processes. Micro-batch i of the epoch goes to process i modulo
            the number of processes (accelerate deals them so).
        strategy (`str`, *optional*, defaults to `"random"`):
            The order of rows within a task: `"random"`, `"sequential"` or `"group_by_length"`.
        lengths (`Mapping[str, Sequence[int]]`, *optional*):
            The length of every row by task, for `"group_by_length"`.
        stopping_strategy (`str`, *optional*, defaults to `"all_exhausted"`):
            An epoch ends when every row of every task has been seen (`"all_exhausted"`), or before any row would be seen
            twice (`"first_exhausted"`).
        drop_last (`bool`, *optional*, defaults to `False`):
            With `"all_exhausted"`, leave out the last step of the epoch where the largest task does not fill it.
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
        self.rows = {task: rows[task] for task in sizes}
        self.parts = parts
        self.strategy = strategy
        self.lengths = lengths
        self.drop_last = True  # for accelerate: nothing is to be filled up, every step is whole
        self.seed = seed
        self.epoch = 0
        whole = [size // self.rows[task] for task, size in self.sizes.items()]
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
        orders = [self._order(task, position) for position, task in enumerate(self.sizes)]
        for _ in range(self.steps):
            parts: list[list[int]] = [[] for _ in range(self.parts)]
            for position, task in enumerate(self.sizes):
                count = self.rows[task]
                indices = [starts[position] + row for row in itertools.islice(orders[position], count)]
                for j in range(self.parts):
                    # by turns, so that not all the tasks with fewer rows than micro-batches crowd into the same one
                    part = parts[(j + position) % self.parts]
                    part += indices[j * count // self.parts : (j + 1) * count // self.parts]
            yield from parts

    def _order(self, task: str, position: int) -> Iterator[int]:
        """The rows of a task in the order of the epoch, without end."""
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch + (position << 32))  # another order for every task
        while True:
            if self.strategy == "sequential":
                yield from range(self.sizes[task])
            elif self.strategy == "group_by_length":
                yield from get_length_grouped_indices(self.lengths[task], self.rows[task], generator=generator)
            else:
                yield from torch.randperm(self.sizes[task], generator=generator).tolist()


class JointCollator:
    """
    Turns `(task, example)` pairs into `{task: batch}`, each batch made by the task's own collator.

    Args:
        collators (`Mapping[str, Callable]`):
            A collator by task.
    """

    def __init__(self, collators: Mapping[str, Callable[[list[Any]], Any]]):
        self.collators = dict(collators)

    def __call__(self, examples: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        by_task: dict[str, list[Any]] = {}
        for task, example in examples:
            by_task.setdefault(task, []).append(example)
        return {task: self.collators[task](by_task[task]) for task in self.collators if task in by_task}


class TaskCollator:
    """
    The default collator of a declared task: the inputs padded by the tokenizer (or stacked where there is none), the
    labels checked and made a tensor by the task. A missing label may be `None`, -100 or, where labels are numbers, NaN.

    Args:
        name (`str`):
            The name of the task, for errors.
        task (`Task`):
            The task.
        processing_class (`PreTrainedTokenizerBase` or any other processing class, *optional*):
            What the inputs were made with; only a tokenizer or a sequence feature extractor can pad.
    """

    def __init__(self, name: str, task: Task, processing_class: Any = None):
        self.name = name
        self.task = task
        self.collate_inputs = input_collator(processing_class)
        self.padding_side = getattr(processing_class, "padding_side", "right")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        for row in examples:
            if not isinstance(row, Mapping):
                raise TypeError(
                    f"Task '{self.name}': a row of its dataset is a {type(row).__name__} and must be a dictionary of columns, "
                    "such as {'input_ids': ..., 'labels': ...}: let the dataset return these, or pass a `data_collator`."
                )
        column = next((column for column in LABEL_COLUMNS if any(column in row for row in examples)), None)
        batch = self._inputs([{key: value for key, value in row.items() if key not in LABEL_COLUMNS} for row in examples])
        if column is not None:
            labels, length = [row.get(column) for row in examples], None
            if self.task.level == "token":
                check_alignment(self.name, labels, [row.get("input_ids") for row in examples])
                length = batch["input_ids" if "input_ids" in batch else next(iter(batch))].shape[1]
            batch["labels"] = self.task.label_tensor(self.name, labels, length, self.padding_side)
        return batch

    def _inputs(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        if all(rows):
            try:
                batch = dict(self.collate_inputs(rows))
            except (TypeError, ValueError) as error:
                pads = isinstance(self.collate_inputs, DataCollatorWithPadding)
                raise ValueError(
                    f"Task '{self.name}': its rows cannot be put into one batch: {error}"
                    + ("" if pads else " Rows of different lengths need a `processing_class` that pads, such as the tokenizer.")
                ) from error
        if not batch:  # a text counts for nothing: what stacks numbers passes over it
            raise ValueError(
                f"Task '{self.name}': its rows hold no column that the model takes as an input: tokenize the texts first, or "
                "rename the columns."
            )
        return batch


def check_alignment(name: str, labels: Sequence[Any], tokens: Sequence[Any]) -> None:
    """Refuses labels of a token-level task that do not stand one to one beside the tokens, such as one label per word."""
    for given, ids in zip(labels, tokens):
        if given is not None and ids is not None and isinstance(given, Sized) and len(given) != len(ids):
            raise ValueError(
                f"Task '{name}': a row has {len(given)} labels and {len(ids)} tokens. Give a label to every token (-100 or None "
                "where there is none), by the `word_ids()` of the tokenizer's output."
            )


class CheckedCollator:
    """
    A user's collator for a declared task, whose labels are checked before they reach the model, where a class out of range
    could end the process.

    Args:
        name (`str`):
            The name of the task, for errors.
        task (`Task`):
            The task.
        collator (`Callable`):
            The collator.
    """

    def __init__(self, name: str, task: Task, collator: Callable[[list[Any]], Any]):
        self.name = name
        self.task = task
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        batch = self.collator(examples)
        if isinstance(batch, Mapping) and isinstance(batch.get("labels"), Tensor):
            self.task.check_labels(self.name, batch["labels"])
        return batch


def input_collator(processing_class: Any) -> Callable[[list[Any]], dict[str, Any]]:
    """transformers' own choice: padding where the processing class can pad, else stacking."""
    if isinstance(processing_class, (PreTrainedTokenizerBase, SequenceFeatureExtractor)):
        return DataCollatorWithPadding(processing_class)
    return default_data_collator
