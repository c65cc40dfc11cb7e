"""How the Trainer comes by its batches: the tasks by name, their collators and columns, and the joint loader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import RemoveColumnsCollator, seed_worker
from transformers.utils import logging

from .collators import LABEL_COLUMNS, CheckedCollator, JointCollator, TaskCollator, input_collator
from .data import JointBatchSampler, JointDataset, rows_per_step
from .dataset_checks import check_dataset, check_names
from .modeling import MultiTaskModel
from .tasks import Task
from .trainer_part import TrainerPart


__all__ = ["LoadingMixin"]

logger = logging.get_logger(__name__)


class LoadingMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that deals with datasets."""

    tasks: dict[str, Task | None]
    collators: dict[str, Callable]
    _own_collators: list[str]  # the tasks whose collator the user gave

    def _declare_tasks(self) -> None:
        """The tasks by name: those the model declares, or for a user's module those the datasets name."""
        if isinstance(self.model, MultiTaskModel):
            self.tasks = dict(self.model.tasks)
        else:
            self.tasks = dict.fromkeys(self.train_dataset or self.eval_dataset or ())
            parameters = inspect.signature(self.model.forward).parameters
            takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
            # those of transformers let unknown keywords pass unread: every task would train the same head
            if "task" not in parameters and (not takes_any or isinstance(self.model, PreTrainedModel)):
                raise TypeError(
                    f"{type(self.model).__name__}.forward takes no `task`: a module of yours is called as "
                    "`forward(task=..., **batch)`. A transformers model becomes the encoder of several tasks by "
                    "`MultiTaskModel.from_encoder(encoder, tasks={...})`."
                )
        for what, given, complete in (
            ("`train_dataset`", self.train_dataset, True),
            ("`eval_dataset`", self.eval_dataset, False),
            ("`task_weights`", self.args.task_weights, False),
            ("`task_lr_multipliers`", self.args.task_lr_multipliers, False),
            ("`per_task_batch_size`", self.args.per_task_batch_size, False),
        ):
            if given is not None:
                check_names(what, given, list(self.tasks), complete)

    def _set_collators(self, data_collator: Mapping[str, Callable] | Callable | None) -> None:
        given = data_collator if isinstance(data_collator, Mapping) else dict.fromkeys(self.tasks, data_collator)
        check_names("`data_collator`", given, list(self.tasks))
        self._own_collators = [task for task in self.tasks if given.get(task) is not None]
        for task in self._own_collators:
            if not callable(given[task]) or isinstance(given[task], type):
                raise TypeError(
                    f"Task '{task}': its `data_collator` must be a function or an object that makes a batch of a list "
                    f"of rows, and is {given[task]!r}."
                )
        self.collators = {task: self._collator(task, given.get(task)) for task in self.tasks}

    def _collator(self, task: str, given: Callable | None) -> Callable:
        declared, columns = self.tasks[task], self._columns()
        if declared is None:
            collator = given or input_collator(self.processing_class)
        elif given is None:
            args = self.args
            seed = args.seed if args.data_seed is None else args.data_seed
            collator = TaskCollator(task, declared, self.processing_class, seed)
        else:
            collator = CheckedCollator(task, declared, given)
        if columns is None:
            return collator
        return RemoveColumnsCollator(collator, columns, logger=logger, model_name=type(self.model).__name__)

    def _columns(self) -> list[str] | None:
        """The columns of a dataset that are passed on to the model; `None` if all are."""
        return self._accepted_columns() if self.args.remove_unused_columns else None

    def _accepted_columns(self) -> list[str] | None:
        """The columns of a dataset that the model takes; `None` if it takes any."""
        declared = isinstance(self.model, MultiTaskModel)
        parameters = inspect.signature((self.model.encoder if declared else self.model).forward).parameters.values()
        if not declared and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return None
        names = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        return [name for name in dict.fromkeys([*names, *self.label_names, *LABEL_COLUMNS]) if name != "task"]

    def _check_data(self) -> None:
        for split, given in (("train", self.train_dataset), ("eval", self.eval_dataset)):
            for task, dataset in (given or {}).items():
                self._check_dataset(split, task, dataset)
        if self.args.train_sampling_strategy == "group_by_length":
            for task in self.train_dataset or ():
                self._length_column(task)

    def _check_dataset(self, split: str, task: str, dataset: Any) -> None:
        if task in self._own_collators:  # which may make inputs of texts, and labels of whatever there is
            check_dataset(split, task, dataset, None, self._columns())
        else:
            check_dataset(split, task, dataset, self.tasks[task], self._accepted_columns())

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        return data_collator  # which does so already, by what the encoder takes and not the model around it

    def _remove_unused_columns(self, dataset: datasets.Dataset, description: str | None = None) -> datasets.Dataset:
        columns = self._columns()
        if columns is None or dataset.format["type"] == "custom":  # a transform makes the columns as they are read
            return dataset
        return dataset.remove_columns([column for column in dataset.column_names if column not in columns])

    def get_train_dataloader(self) -> DataLoader:
        """The loader of joint batches, `{task: batch}`. A lone task of a lone process is dealt as in the stock one."""
        if self.train_dataset is None:
            raise ValueError("Training needs a `train_dataset`, a dictionary of one dataset per task.")
        train = {}
        for task in self.tasks:
            dataset = self.train_dataset[task]
            train[task] = self._remove_unused_columns(dataset) if isinstance(dataset, datasets.Dataset) else dataset
        args = self.args
        options: dict[str, Any] = {
            "collate_fn": JointCollator(self.collators),
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "in_order": args.dataloader_in_order,
            "worker_init_fn": partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        }
        sampler = None
        if len(train) == 1 and self.accelerator.num_processes == 1:
            (task,) = train
            options["sampler"] = self._get_train_sampler(self.train_dataset[task])
            options["batch_size"] = (args.per_task_batch_size or {}).get(task, self._train_batch_size)
            options["drop_last"] = args.dataloader_drop_last
        else:
            options["batch_sampler"] = sampler = self._joint_sampler()
        return self.accelerator.prepare(DataLoader(JointDataset(train, sampler), **options))

    def _joint_sampler(self) -> JointBatchSampler:
        args = self.args
        parts = args.gradient_accumulation_steps * self.accelerator.num_processes
        sizes = {task: len(self.train_dataset[task]) for task in self.tasks}
        rows = rows_per_step(
            sizes, self._train_batch_size, parts, args.mixing, args.mixing_temperature, args.per_task_batch_size
        )
        by_length = args.train_sampling_strategy == "group_by_length"
        return JointBatchSampler(
            sizes,
            rows,
            parts,
            args.train_sampling_strategy,
            {task: self._lengths(task) for task in self.tasks} if by_length else None,
            args.stopping_strategy,
            args.dataloader_drop_last,
            args.seed if args.data_seed is None else args.data_seed,
        )

    def _lengths(self, task: str) -> Sequence[int]:
        dataset, column = self.train_dataset[task], self._length_column(task)
        if column == self.args.length_column_name:
            return dataset[column][:]
        return [len(dataset[row][column]) for row in range(len(dataset))]

    def _length_column(self, task: str) -> str:
        """What tells how long a task's rows are: their `length_column_name`, or else the model's main input."""
        dataset, column = self.train_dataset[task], self.args.length_column_name
        if isinstance(dataset, datasets.Dataset) and column in dataset.column_names:
            return column
        main_input = self.processing_class.model_input_names[0] if self.processing_class is not None else "input_ids"
        if main_input not in dataset[0]:
            raise ValueError(
                f"Task '{task}': its rows cannot be grouped by length, since they have neither '{main_input}' nor a "
                f"column '{column}' (`length_column_name`). Add one, or choose another `train_sampling_strategy`."
            )
        return main_input
