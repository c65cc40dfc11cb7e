"""How the Trainer comes by its batches: the tasks by name, their collators and columns, and the joint loader."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import RemoveColumnsCollator, seed_worker
from transformers.utils import logging

from .collators import LABEL_COLUMNS, CheckedCollator, JointCollator, TaskCollator, input_collator
from .data import JointBatchSampler, JointDataset, rows_per_step
from .dataset_checks import Lone, check_dataset, check_names
from .group_collator import GroupCollator
from .modeling import MultiTaskModel
from .streaming import StreamingMixin
from .tasks import Task
from .units import Unit, units_of


__all__ = ["LoadingMixin"]

logger = logging.get_logger(__name__)


class LoadingMixin(StreamingMixin):
    """The part of [`MultiTaskTrainer`] that deals with datasets."""

    tasks: dict[str, Task | None]
    units: dict[str, Unit]  # what is trained on: which tasks each training set feeds, in the order of the tasks
    collators: dict[str, Callable]  # by unit
    _collated: dict[str, Unit]  # the units that these are for
    eval_units: dict[str, Unit]  # the same of the evaluation sets, in their order
    _own_collators: list[str]  # the units whose collator the user gave

    def _declare_tasks(self) -> None:
        """The tasks by name, and what feeds them: those the model declares, or for a user's module the datasets name."""
        given = self.train_dataset or self.eval_dataset or {}
        if isinstance(self.model, MultiTaskModel):
            self.tasks = dict(self.model.tasks)
        else:
            named = getattr(self.model, "tasks", ())
            names = list(named) if isinstance(named, (Mapping, list, tuple, nn.ModuleDict)) else []
            self.tasks = dict.fromkeys(given)
            if names or isinstance(given, Lone):
                every = units_of("`train_dataset`" if self.train_dataset else "`eval_dataset`", given, names).values()
                self.tasks = dict.fromkeys(name for name in names if any(name in unit for unit in every))
            parameters = inspect.signature(self.model.forward).parameters
            takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
            # those of transformers let unknown keywords pass unread: every task would train the same head
            if "task" not in parameters and (not takes_any or isinstance(self.model, PreTrainedModel)):
                raise TypeError(
                    f"{type(self.model).__name__}.forward takes no `task`: a module of yours is called as "
                    "`forward(task=..., **batch)`. A transformers model becomes the encoder of several tasks by "
                    "`MultiTaskModel.from_encoder(encoder, tasks={...})`."
                )
        tasks = list(self.tasks)
        units = {} if self.train_dataset is None else units_of("`train_dataset`", self.train_dataset, tasks)
        self.units = dict(sorted(units.items(), key=lambda entry: tasks.index(entry[1][0])))
        self.eval_units = {} if self.eval_dataset is None else units_of("`eval_dataset`", self.eval_dataset, tasks)
        if self.train_dataset is not None:
            fed = [task for unit in units.values() for task in unit]
            check_names("`train_dataset`", fed, tasks, complete=True)
        for what, named in (
            ("`task_weights`", self.args.task_weights),
            ("`task_lr_multipliers`", self.args.task_lr_multipliers),
        ):
            check_names(what, named or (), tasks)
        check_names("`per_task_batch_size`", self.args.per_task_batch_size or (), list(self.units) or tasks)

    def _set_collators(self, data_collator: Mapping[str, Callable] | Callable | None) -> None:
        alone = {task: Unit.alone(task) for task in self.tasks}
        self._collated = {**alone, **self.eval_units, **self.units}
        given = data_collator if isinstance(data_collator, Mapping) else dict.fromkeys(self._collated, data_collator)
        check_names("`data_collator`", given, list(self._collated))
        self._own_collators = [unit for unit in self._collated if given.get(unit) is not None]
        for unit in self._own_collators:
            if not callable(given[unit]) or isinstance(given[unit], type):
                raise TypeError(
                    f"{self._collated[unit]}: its `data_collator` must be a function or an object that makes a batch of a "
                    f"list of rows, and is {given[unit]!r}."
                )
            grouped = next((group for group in self.units.values() if group.is_group and unit in group.tasks), None)
            if isinstance(data_collator, Mapping) and grouped is not None and unit not in self.eval_units:
                raise ValueError(
                    f"`data_collator` has one for the task '{unit}', whose rows are those of the group '{grouped.name}': give "
                    f"it under that name."
                )
        self._given_collators = given
        self.collators = {name: self._collator(unit) for name, unit in self._collated.items()}

    def _collator_of(self, unit: Unit) -> Callable:
        """What makes batches of the rows of a unit, which need not be one of those the Trainer was made with."""
        return self.collators[unit.name] if self._collated.get(unit.name) == unit else self._collator(unit)

    def _collator(self, unit: Unit) -> Callable:
        declared = self._declared(unit)
        columns, given = self._columns(), self._given_collators.get(unit.name)
        if given is not None:
            collator = CheckedCollator(unit, declared, given) if declared else given
        elif unit.is_group:
            collator = GroupCollator(unit.name, {task: self.tasks[task] for task in unit}, self.processing_class)
        elif not declared:
            collator = input_collator(self.processing_class)
        else:
            args = self.args
            seed = args.seed if args.data_seed is None else args.data_seed
            collator = TaskCollator(unit.name, declared[unit.name], self.processing_class, seed)
        if columns is None:
            return collator
        columns = [*columns, *unit] if unit.is_group else columns
        return RemoveColumnsCollator(collator, columns, logger=logger, model_name=type(self.model).__name__)

    def _columns(self) -> list[str] | None:
        """The columns of a dataset that are passed on to the model; `None` if all are."""
        return self._accepted_columns() if self.args.remove_unused_columns else None

    def _accepted_columns(self) -> list[str] | None:
        """The columns of a dataset that the model takes; `None` if it takes any."""
        declared = isinstance(self.model, MultiTaskModel)
        reader: Any = self.model.encoder if declared else self.model
        parameters = inspect.signature(reader.forward).parameters.values()
        if not declared and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return None
        names = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        return [name for name in dict.fromkeys([*names, *self.label_names, *LABEL_COLUMNS]) if name != "task"]

    def _check_data(self) -> None:
        for split, given, units in (
            ("train", self.train_dataset, self.units),
            ("eval", self.eval_dataset, self.eval_units),
        ):
            for unit in units.values():
                self._check_dataset(split, unit, given[unit.name])
        self._check_streams()
        if self.args.train_sampling_strategy == "group_by_length":
            for name in self.units:
                self._length_column(name)

    def _check_dataset(self, split: str, unit: Unit, dataset: Any) -> None:
        if unit.name in self._own_collators:  # which may make inputs of texts, and labels of whatever there is
            check_dataset(split, unit, dataset, {}, self._columns())
        else:
            check_dataset(split, unit, dataset, self._declared(unit), self._accepted_columns())

    def _declared(self, unit: Unit) -> dict[str, Task]:
        """The tasks of a unit, without those of a user's module."""
        return {name: task for name in unit if (task := self.tasks[name]) is not None}

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        return data_collator  # which does so already, by what the encoder takes and not the model around it

    def _remove_unused_columns(self, dataset: datasets.Dataset, description: str | None = None) -> datasets.Dataset:
        columns = self._columns()
        if columns is None or dataset.format["type"] == "custom":  # a transform makes the columns as they are read
            return dataset
        kept = {*columns, *self.tasks}  # a task of a group has its labels in a column of its name
        return dataset.remove_columns([column for column in dataset.column_names if column not in kept])

    def get_train_dataloader(self) -> DataLoader:
        """The loader of joint batches, `{unit: batch}`. A lone task of a lone process is dealt as in the stock one."""
        if self.train_dataset is None:
            raise ValueError("Training needs a `train_dataset`, a dictionary of one dataset per task.")
        train: dict[str, Any] = {}
        for unit in self.units:
            dataset = self.train_dataset[unit]
            train[unit] = self._remove_unused_columns(dataset) if isinstance(dataset, datasets.Dataset) else dataset
        args = self.args
        options: dict[str, Any] = {
            "collate_fn": JointCollator({unit: self.collators[unit] for unit in train}, self.units),
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
            "persistent_workers": args.dataloader_persistent_workers,
            "multiprocessing_context": args.dataloader_multiprocessing_context,
            "prefetch_factor": args.dataloader_prefetch_factor,
            "in_order": args.dataloader_in_order,
            "worker_init_fn": partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        }
        if self._streams:
            return self._stream_loader(train, options.pop("collate_fn"), options)
        sampler = None
        if len(self.tasks) == 1 and self.accelerator.num_processes == 1:
            (unit,) = train
            options["sampler"] = self._get_train_sampler(self.train_dataset[unit])
            options["batch_size"] = self._own_sizes().get(unit, self._train_batch_size)
            options["drop_last"] = args.dataloader_drop_last
        else:
            options["batch_sampler"] = sampler = self._joint_sampler()
        return self.accelerator.prepare(DataLoader(JointDataset(train, sampler, self.units), **options))

    def _joint_sampler(self) -> JointBatchSampler:
        args = self.args
        parts = args.gradient_accumulation_steps * self.accelerator.num_processes
        sizes = {unit: len(self.train_dataset[unit]) for unit in self.units}
        rows = rows_per_step(
            sizes, self._train_batch_size, parts, args.mixing, args.mixing_temperature, self._own_sizes()
        )
        by_length = args.train_sampling_strategy == "group_by_length"
        return JointBatchSampler(
            sizes,
            rows,
            parts,
            args.train_sampling_strategy,
            {unit: self._lengths(unit) for unit in self.units} if by_length else None,
            args.stopping_strategy,
            args.dataloader_drop_last,
            args.seed if args.data_seed is None else args.data_seed,
        )

    def _own_sizes(self) -> dict[str, int]:
        sizes: Any = self.args.per_task_batch_size  # a dictionary since `__post_init__`, where it is given
        return sizes or {}

    def _lengths(self, unit: str) -> Sequence[int]:
        dataset, column = self.train_dataset[unit], self._length_column(unit)
        if column == self.args.length_column_name:
            return dataset[column][:]
        return [len(dataset[row][column]) for row in range(len(dataset))]

    def _length_column(self, unit: str) -> str:
        """What tells how long a unit's rows are: their `length_column_name`, or else the model's main input."""
        dataset, column = self.train_dataset[unit], self.args.length_column_name
        if isinstance(dataset, datasets.Dataset) and column in dataset.column_names:
            return column
        processing_class: Any = self.processing_class
        main_input = "input_ids" if processing_class is None else processing_class.model_input_names[0]
        if main_input not in dataset[0]:
            raise ValueError(
                f"{self.units[unit]}: its rows cannot be grouped by length, since they have neither '{main_input}' nor a "
                f"column '{column}' (`length_column_name`). Add one, or choose another `train_sampling_strategy`."
            )
        return main_input
