"""How the Trainer evaluates and predicts: unit by unit, and one event with the metrics of all tasks."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import EvalPrediction
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import BestRun, EvalLoopOutput, HPSearchBackend, PredictionOutput, speed_metrics

from .buffers import average_buffers
from .collators import LABEL_COLUMNS
from .dataset_checks import check_datasets, check_names
from .map_sizes import as_large_as_others, map_sizes
from .metrics import AnswerMetric, default_compute_metrics, main_metric, resolve_metric
from .repeated_rows import first_rows, new_rows
from .task_metrics import ByTask, PreprocessByTask
from .trainer_part import TrainerPart
from .units import Unit, of_task, units_of


__all__ = ["EvaluationMixin"]


class EvaluationMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that evaluates."""

    metrics: dict[str, Callable[[EvalPrediction], dict[str, float]] | None]
    _unit: Unit  # that is being evaluated
    _sums: dict[str, tuple[float, float]]  # of its losses and items, by task
    _map_sizes: dict[str, tuple[int, int]]  # of its labels for pixels
    _default_metrics: set[str]  # the tasks that are judged by their kind's

    def _set_metrics(self, compute_metrics: Mapping[str, Any] | Callable | None) -> None:
        given = compute_metrics if isinstance(compute_metrics, Mapping) else dict.fromkeys(self.tasks, compute_metrics)
        check_names("`compute_metrics`", given, list(self.tasks))
        self.metrics = {}
        self._default_metrics = {
            name for name, task in self.tasks.items() if task is not None and given.get(name) is None
        }
        for name, task in self.tasks.items():
            if given.get(name) is not None:
                self.metrics[name] = resolve_metric(given[name], task)
            else:
                self.metrics[name] = None if task is None else default_compute_metrics(task, name)

    @contextlib.contextmanager
    def _serving(self, unit: Unit, dataset: Dataset | None = None) -> Iterator[ByTask]:
        """Lets the stock Trainer's evaluation work for the tasks of a unit: metrics, collator, running sums."""
        kept = self.compute_metrics, self.data_collator, self.preprocess_logits_for_metrics
        metrics = {}
        for task in unit:
            metric = self.metrics[task]
            # the texts of answers are not in the batches
            metrics[task] = metric.of_rows(dataset) if isinstance(metric, AnswerMetric) else metric
        by_task = ByTask({task: metric for task, metric in metrics.items() if metric is not None})
        self.compute_metrics = by_task if by_task.metrics else None
        self.data_collator = self._collator_of(unit)
        given = dict.fromkeys(unit, self.preprocess_logits_for_metrics)
        own = {
            task: declared.for_metrics
            for task in unit
            if (declared := self.tasks[task]) is not None and task in self._default_metrics
        }
        preprocess: Any = given if self.preprocess_logits_for_metrics is not None else own
        together: Any = PreprocessByTask(preprocess) if preprocess else None  # of dictionaries, not tensors
        self.preprocess_logits_for_metrics = together
        self._unit, self._sums = unit, {task: (0.0, 0.0) for task in unit}
        self._map_sizes = {} if dataset is None else map_sizes(unit, dataset, self.tasks)
        try:
            yield by_task
        finally:
            self.compute_metrics, self.data_collator, self.preprocess_logits_for_metrics = kept

    def evaluate(
        self,
        eval_dataset: Mapping[str, Dataset] | Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Evaluates every task and reports once.

        Args:
            eval_dataset (`dict[str, Dataset]` or `Dataset`, *optional*):
                Overrides the evaluation sets of the Trainer.
            ignore_keys (`list[str]`, *optional*):
                Keys of the model's output to leave out of the predictions.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                What the names of the metrics begin with.

        Returns:
            `dict[str, float]`: `eval_{task}_{metric}` and `eval_{task}_loss` for every task, `eval_loss` (the mean of the
            tasks' losses), `eval_average` (the mean of their main metrics) and the usual speed metrics.
        """
        self._memory_tracker.start()
        start = time.time()
        outputs, whole = self._loop_over_units(
            eval_dataset if eval_dataset is not None else self.eval_dataset,
            "Evaluation",
            ignore_keys,
            metric_key_prefix,
            prediction_loss_only=self.args.prediction_loss_only,
        )
        metrics = self._merge(outputs, whole, metric_key_prefix, start)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def predict(  # type: ignore[override]  # what there is to return is by task
        self,
        test_dataset: Mapping[str, Dataset] | Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> dict[str, PredictionOutput]:
        """
        Predicts for every task of a dictionary of datasets. One without labels whose key is that of a group of the training
        is predicted on for all tasks of the group.

        Returns:
            `dict[str, PredictionOutput]`: by task its `predictions`, its `label_ids` and, where there were labels, its
            `metrics`.
        """
        self._memory_tracker.start()
        start = time.time()
        outputs, whole = self._loop_over_units(test_dataset, "Prediction", ignore_keys, metric_key_prefix)
        metrics = self._merge(outputs, whole, metric_key_prefix, start)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return {
            task: PredictionOutput(output.predictions, output.label_ids, output.metrics)
            for task, output in outputs.items()
        }

    def _loop_over_units(
        self,
        given: Mapping[str, Dataset] | Dataset | None,
        description: str,
        ignore_keys: list[str] | None,
        prefix: str,
        prediction_loss_only: bool = False,
    ) -> tuple[dict[str, EvalLoopOutput], dict[str, float]]:
        """What came of every task, and of the whole: the rows, the batches, the seconds that the model's preparation took."""
        average_buffers(self.model)
        own = given is self.eval_dataset
        if given is None:
            raise ValueError("Evaluation needs an `eval_dataset`, a dictionary of one dataset per task.")
        datasets: Mapping[str, Any] = self.eval_dataset if own else check_datasets("The dataset to evaluate on", given)
        known = {**self.eval_units, **self.units}
        units = self.eval_units if own else units_of("The dataset to evaluate on", datasets, list(self.tasks), known)
        outputs: dict[str, EvalLoopOutput] = {}
        whole: dict[str, float] = {"samples": 0, "steps": 0}
        for name, unit in units.items():
            dataset = datasets[name]
            if not own:
                self._check_dataset("test" if description == "Prediction" else "eval", unit, dataset)
            with self._serving(unit, dataset) as by_task:
                output = self.evaluation_loop(
                    self.get_eval_dataloader(name) if own else self.get_test_dataloader(dataset),
                    description=f"{description} of {name}",
                    prediction_loss_only=prediction_loss_only or (True if self._needs_loss_only(description) else None),
                    ignore_keys=ignore_keys,
                    metric_key_prefix=prefix,
                )
                losses = self._exact_losses()
            rows, metrics = output.num_samples or 0, output.metrics or {}
            whole["samples"] += rows
            whole["steps"] += math.ceil(rows / (self.args.eval_batch_size * self.args.world_size))
            if (preparation := metrics.get(f"{prefix}_model_preparation_time")) is not None:
                whole["preparation"] = preparation
            for task in unit:
                found = {**by_task.found.get(task, {}), **({"loss": losses[task]} if task in losses else {})}
                outputs[task] = EvalLoopOutput(
                    of_task(output.predictions, task),
                    of_task(output.label_ids, task),
                    {f"{prefix}_{task}_{key.removeprefix(f'{prefix}_{task}_')}": value for key, value in found.items()},
                    output.num_samples,
                )
        return outputs, whole

    def _needs_loss_only(self, description: str) -> bool:
        """No predictions need gathering where nothing is computed from them."""
        return description == "Evaluation" and self.compute_metrics is None

    def _exact_losses(self) -> dict[str, float]:
        """The mean over all labelled items of a task in place of the stock Trainer's mean of batch means, by task."""
        sums = torch.tensor(list(self._sums.values()), dtype=torch.float64)
        sums = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        return {task: total / items for task, (total, items) in zip(self._sums, sums) if items > 0}

    def _merge(
        self, outputs: Mapping[str, EvalLoopOutput], whole: Mapping[str, float], prefix: str, start: float
    ) -> dict[str, float]:
        metrics: dict[str, float] = {}
        losses, mains = [], []
        if "preparation" in whole:
            metrics[f"{prefix}_model_preparation_time"] = whole["preparation"]
        for task, output in outputs.items():
            own = output.metrics or {}
            metrics |= own
            losses.append(own.get(f"{prefix}_{task}_loss"))
            mains.append(self._main_value(task, own, f"{prefix}_{task}_"))
        for key, values in (("loss", losses), ("average", mains)):
            present = [value for value in values if value is not None]
            if present:
                metrics[f"{prefix}_{key}"] = fmean(present)
        return metrics | speed_metrics(prefix, start, num_samples=int(whole["samples"]), num_steps=int(whole["steps"]))

    def _main_value(self, task: str, metrics: Mapping[str, float], own: str) -> float | None:
        """The task's main metric: as declared, else its kind's, else the first that its function gives."""
        given = [key for key in metrics if key != f"{own}loss"]
        declared = self.tasks[task]
        if declared is not None:
            key = own + main_metric(declared)
            if key in metrics:
                return metrics[key]
            if declared.main_metric is not None and given:
                raise ValueError(
                    f"Task '{task}': its main metric '{declared.main_metric}' is not among those computed, "
                    f"{[key.removeprefix(own) for key in given]}. Name one of them in `main_metric`."
                )
        return metrics[given[0]] if given else None

    def prediction_step(  # type: ignore[override]  # logits and labels are by task
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, dict[str, Any] | None, dict[str, Any] | None]:
        """
        One evaluation step of the unit that is being evaluated: the mean loss of its tasks, and their logits and labels by
        task, each where there is one.
        """
        inputs, unit = self._prepare_inputs(inputs), self._unit
        labels = as_large_as_others(self._labels(inputs), self._map_sizes)
        named = {**inputs, "task": unit.asked}  # the task's name, whatever columns there are
        ignored = {"loss", "num_items", *(ignore_keys or self._ignored_keys())}
        loss = None
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels:
                losses, outputs = self.compute_loss(model, named, return_outputs=True)
                loss = torch.stack([of_task(losses, task) for task in labels]).mean()
                self._add_losses(model, inputs, list(labels), losses, outputs)
            else:
                outputs = model(**named)
        if prediction_loss_only:
            return loss, None, None
        entries = [
            (key, value)
            for key, value in (outputs.items() if isinstance(outputs, Mapping) else vars(outputs).items())
            if key not in ignored
        ]
        logits = {}
        for task in unit:
            own = (of_task(value, task) for _, value in entries if isinstance(value, Mapping) == unit.is_group)
            logits[task] = _unpack(tuple(one.detach() for one in own if isinstance(one, Tensor)))
        return loss, logits, labels or None

    def _labels(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The labels in a batch by task, of those tasks that have any."""
        if self._unit.is_group:
            return {task: one.detach() for task, one in (inputs.get("labels") or {}).items() if task in self._unit}
        names = self.label_names or [name for name in LABEL_COLUMNS if name in inputs][:1]
        labels = tuple(inputs[name].detach() for name in names if inputs.get(name) is not None)
        return {self._unit.name: _unpack(labels)} if labels else {}

    def _add_losses(
        self, model: nn.Module, inputs: dict[str, Any], tasks: Sequence[str], losses: Any, outputs: Any
    ) -> None:
        """Adds the losses of a batch to the sums, without the rows that fill up the last batch of several processes."""
        rows = find_batch_size(inputs) or 0
        count = new_rows(self.accelerator, rows)
        if count is not None:  # on all processes: FSDP wants a forward pass of all or of none
            inputs = first_rows(inputs, rows, max(count, 1))
            losses, outputs = self.compute_loss(model, {**inputs, "task": self._unit.asked}, return_outputs=True)
        for task in tasks:
            items = float(self._num_items(outputs, inputs, task)) if count != 0 else 0.0
            if items:
                total, so_far = self._sums[task]
                self._sums[task] = (total + items * of_task(losses, task).item(), so_far + items)

    def _ignored_keys(self) -> list[str]:
        config = getattr(self.model, "config", None)
        return getattr(config, "keys_to_ignore_at_inference", [])

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        n_trials: int = 20,
        direction: str | list[str] | None = None,
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """
        As in transformers, with the average of the tasks' main metrics, to be maximised, as the default objective (the
        sum of all metrics of all tasks, which transformers takes, has no meaning). An objective of your own is minimised
        where `direction` is silent, as in transformers.
        """
        if direction is None:
            direction = "maximize" if compute_objective is None else "minimize"
        objective = _average if compute_objective is None else compute_objective
        return super().hyperparameter_search(hp_space, objective, n_trials, direction, backend, hp_name, **kwargs)


def _average(metrics: Mapping[str, float]) -> float:
    if "eval_average" not in metrics:
        raise ValueError(
            "The search has no `eval_average` to maximise, since no task has a metric: give `compute_metrics`, or "
            "`compute_objective=lambda metrics: metrics['eval_loss']` to minimise the mean loss."
        )
    return metrics["eval_average"]


def _unpack(tensors: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...] | None:
    return tensors[0] if len(tensors) == 1 else tensors or None
