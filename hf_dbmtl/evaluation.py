"""How the Trainer evaluates and predicts: task by task, and one event with the metrics of all."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
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
from .metrics import AnswerMetric, default_compute_metrics, main_metric, resolve_metric
from .repeated_rows import first_rows, new_rows
from .trainer_part import TrainerPart


__all__ = ["EvaluationMixin"]


class EvaluationMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that evaluates."""

    metrics: dict[str, Callable[[EvalPrediction], dict[str, float]] | None]
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
    def _serving(self, task: str, dataset: Dataset | None = None) -> Iterator[None]:
        """Lets the stock Trainer's evaluation work for one task: its metric, its collator, its running sums."""
        kept = self.compute_metrics, self.data_collator, self.preprocess_logits_for_metrics
        self.compute_metrics, self.data_collator = self.metrics[task], self.collators[task]
        if isinstance(self.compute_metrics, AnswerMetric):  # the texts of the answers are not in the batches
            self.compute_metrics = self.compute_metrics.of_rows(dataset)
        if task in self._default_metrics and self.preprocess_logits_for_metrics is None:
            self.preprocess_logits_for_metrics = self.tasks[task].for_metrics
        self._task, self._loss_sum, self._item_sum = task, 0.0, 0.0
        try:
            yield
        finally:
            self.compute_metrics, self.data_collator, self.preprocess_logits_for_metrics = kept

    def evaluate(
        self,
        eval_dataset: Mapping[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Evaluates every task and reports once.

        Args:
            eval_dataset (`dict[str, Dataset]`, *optional*):
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
        outputs = self._loop_over_tasks(
            eval_dataset if eval_dataset is not None else self.eval_dataset,
            "Evaluation",
            ignore_keys,
            metric_key_prefix,
            prediction_loss_only=self.args.prediction_loss_only,
        )
        metrics = self._merge(outputs, metric_key_prefix, start)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return metrics

    def predict(
        self,
        test_dataset: Mapping[str, Dataset],
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> dict[str, PredictionOutput]:
        """
        Predicts for every task of a dictionary of datasets.

        Returns:
            `dict[str, PredictionOutput]`: by task its `predictions`, its `label_ids` and, where there were labels, its
            `metrics`.
        """
        self._memory_tracker.start()
        start = time.time()
        outputs = self._loop_over_tasks(test_dataset, "Prediction", ignore_keys, metric_key_prefix)
        metrics = self._merge(outputs, metric_key_prefix, start)
        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, metrics)
        self._memory_tracker.stop_and_update_metrics(metrics)
        return {
            task: PredictionOutput(output.predictions, output.label_ids, output.metrics)
            for task, output in outputs.items()
        }

    def _loop_over_tasks(
        self,
        given: Mapping[str, Dataset] | None,
        description: str,
        ignore_keys: list[str] | None,
        prefix: str,
        prediction_loss_only: bool = False,
    ) -> dict[str, EvalLoopOutput]:
        average_buffers(self.model)
        own = given is self.eval_dataset
        if given is None:
            raise ValueError("Evaluation needs an `eval_dataset`, a dictionary of one dataset per task.")
        given = check_datasets("The dataset to evaluate on", given)
        check_names("The dataset to evaluate on", given, list(self.tasks))
        outputs = {}
        for task, dataset in given.items():
            if not own:
                self._check_dataset("test" if description == "Prediction" else "eval", task, dataset)
            with self._serving(task, dataset):
                output = self.evaluation_loop(
                    self.get_eval_dataloader(task) if own else self.get_test_dataloader(dataset),
                    description=f"{description} of {task}",
                    prediction_loss_only=prediction_loss_only or (True if self._needs_loss_only(description) else None),
                    ignore_keys=ignore_keys,
                    metric_key_prefix=f"{prefix}_{task}",
                )
                self._exact_loss(output.metrics, f"{prefix}_{task}_loss")
            outputs[task] = output
        return outputs

    def _needs_loss_only(self, description: str) -> bool:
        """No predictions need gathering where nothing is computed from them."""
        return description == "Evaluation" and self.compute_metrics is None

    def _exact_loss(self, metrics: dict[str, float], key: str) -> None:
        """The mean over all labelled items in place of the stock Trainer's mean of batch means."""
        sums = torch.tensor([self._loss_sum, self._item_sum], dtype=torch.float64)
        total, items = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        metrics.pop(key, None)
        if items > 0:
            metrics[key] = total / items

    def _merge(self, outputs: Mapping[str, EvalLoopOutput], prefix: str, start: float) -> dict[str, float]:
        metrics: dict[str, float] = {}
        losses, mains = [], []
        for task, output in outputs.items():
            preparation = output.metrics.pop(f"{prefix}_{task}_model_preparation_time", None)
            if preparation is not None:  # the model's, not the task's
                metrics[f"{prefix}_model_preparation_time"] = preparation
            metrics |= output.metrics
            losses.append(output.metrics.get(f"{prefix}_{task}_loss"))
            mains.append(self._main_value(task, output.metrics, f"{prefix}_{task}_"))
        for key, values in (("loss", losses), ("average", mains)):
            present = [value for value in values if value is not None]
            if present:
                metrics[f"{prefix}_{key}"] = fmean(present)
        samples = sum(output.num_samples for output in outputs.values())
        rows = self.args.eval_batch_size * self.args.world_size
        steps = sum(math.ceil(output.num_samples / rows) for output in outputs.values())
        return metrics | speed_metrics(prefix, start, num_samples=samples, num_steps=steps)

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

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | tuple[Tensor, ...] | None, Tensor | tuple[Tensor, ...] | None]:
        """One evaluation step of the task that is being evaluated: its loss, logits and labels, each where there is one."""
        inputs = self._prepare_inputs(inputs)
        names = self.label_names or [name for name in LABEL_COLUMNS if name in inputs][:1]
        labels = tuple(inputs[name].detach() for name in names if inputs.get(name) is not None)
        named = {**inputs, "task": self._task}  # the task's name, whatever columns there are
        ignored = {"loss", "num_items", *(ignore_keys or self._ignored_keys())}
        loss = None
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels:
                loss, outputs = self.compute_loss(model, named, return_outputs=True)
                self._add_loss(model, named, loss, float(self._num_items(outputs, inputs)))
            else:
                outputs = model(**named)
        if prediction_loss_only:
            return loss, None, None
        entries = outputs.items() if isinstance(outputs, Mapping) else vars(outputs).items()
        logits = tuple(value.detach() for key, value in entries if key not in ignored and isinstance(value, Tensor))
        return loss, _unpack(logits), _unpack(labels)

    def _add_loss(self, model: nn.Module, named: dict[str, Any], loss: Tensor, items: float) -> None:
        """Adds the loss of a batch to the sum, without the rows that fill up the last batch of several processes."""
        rows = find_batch_size(named) or 0
        count = new_rows(self.accelerator, rows)
        if count is not None:  # on all processes: FSDP wants a forward pass of all or of none
            part = first_rows(named, rows, max(count, 1))
            loss, outputs = self.compute_loss(model, part, return_outputs=True)
            items = float(self._num_items(outputs, part)) if count else 0.0
        if items:
            self._loss_sum += items * loss.item()
            self._item_sum += items

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
