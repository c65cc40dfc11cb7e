"""Weights tuned on validation data: what a virtual step with the weights as they are does to the validation losses."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers.utils import logging

from .dataset_checks import check_datasets
from .gradients import GradientVector
from .second_look import random_numbers_aside
from .trainer_part import TrainerPart
from .units import Unit, units_of


__all__ = ["ValidationMixin", "ValidationRows"]

logger = logging.get_logger(__name__)


class ValidationRows:
    """
    Which rows of a validation set belong to a step: the set is gone through again and again, shuffled anew each time.
    They are a function of the seed and the step, so that a resumed run sees the same ones.

    Args:
        size (`int`):
            The number of rows of the set.
        seed (`int`):
            The seed.
    """

    def __init__(self, size: int, seed: int):
        self.size = size
        self.seed = seed
        self._pass = -1
        self._order: list[int] = []

    def of_step(self, step: int, count: int) -> list[int]:
        """The `count` rows of `step` (from 0)."""
        return [self._row(*divmod(position, self.size)) for position in range(step * count, (step + 1) * count)]

    def _row(self, number: int, place: int) -> int:
        if number != self._pass:
            generator = torch.Generator().manual_seed(self.seed + number)
            self._pass, self._order = number, torch.randperm(self.size, generator=generator).tolist()
        return self._order[place]


class ValidationMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that tunes weights on validation data."""

    validation_dataset: Any  # by unit
    _validation_units: dict[str, Unit]
    _validation_rows: dict[str, ValidationRows]

    def _set_validation_data(self, given: Mapping[str, Dataset] | None) -> None:
        self.validation_dataset, self._validation_rows = None, {}
        if given is None:
            if self.args.make_balancer().validates and self.train_dataset is not None:
                raise ValueError(
                    f"The balancer '{self.args.balancer}' tunes its weights on validation data: give "
                    "MultiTaskTrainer(validation_dataset={task: dataset}), rows that are neither trained nor evaluated "
                    "on, for every task that is to become better."
                )
            return
        self.validation_dataset = check_datasets("`validation_dataset`", given)
        self._validation_units = units_of("`validation_dataset`", self.validation_dataset, list(self.tasks), self.units)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        for name, unit in self._validation_units.items():
            dataset = self.validation_dataset[name]
            self._check_dataset("validation", unit, dataset)
            self._validation_rows[name] = ValidationRows(len(dataset), (seed << 32) + zlib.crc32(name.encode()))

    def _validation_batches(self) -> list[dict[str, Any]]:
        """
        This process's micro-batches of the validation rows of the step: of every unit as many as a training step has by
        `per_device_train_batch_size`, the same over all processes however many these are.
        """
        rows, parts = self._train_batch_size, self.args.gradient_accumulation_steps
        first = self.args.process_index * parts
        batches: list[dict[str, Any]] = [{} for _ in range(parts)]
        for name, unit in self._validation_units.items():
            dataset, collator = self.validation_dataset[name], self._collator_of(unit)
            chosen = self._validation_rows[name].of_step(self.state.global_step, rows * parts * self.args.world_size)
            for part, batch in enumerate(batches, start=first):
                batch[name] = collator([dataset[row] for row in chosen[part * rows : (part + 1) * rows]])
        return batches

    def _tune_on_validation(self, model: nn.Module, head_gradients: Mapping[str, GradientVector]) -> None:
        """
        Lets the balancer tune its weights: takes a step of gradient descent with the weights as they are, at the
        learning rate of the run, multiplies the gradients of the validation losses behind it with those of the training
        losses before it, heads included, and takes the step back. The model and the random numbers of the run stay as
        they were.
        """
        balancer, rate = self.balancer, self._get_learning_rate()
        of_heads = {task: self.gradients.summed(gradient) for task, gradient in head_gradients.items()}
        shared: Any  # a vector of `self.gradients`, which balancing knows by what it can do
        shared, weights = balancer.planned()
        _, heads = self.gradients.zero()
        for task, gradient in of_heads.items():
            heads.add_(gradient, weights[task])
        products = []
        with random_numbers_aside(self.args.device, self._seed_of_step()), _state_aside(self.model):
            _descend(self.gradients.shared, self.gradients.like_parameters(shared), rate)
            _descend(self.gradients.heads, heads.tensors, rate)
            batches, units = self._validation_batches(), self._validation_units
            for task, measured in self._task_gradients(model, batches, _untransformed, units=units):
                if not measured.is_finite:
                    logger.warning(
                        f"Step {self.state.global_step + 1}: the validation loss of task '{task}' or its gradient is "
                        "not finite. The weights are not tuned in this step."
                    )
                    return
                if measured.num_items > 0:
                    own = self.gradients.summed(measured.heads)
                    of_head = [own.gramian([gradient])[0, 1] for gradient in of_heads.values()]
                    products.append(balancer.products(measured.shared) + torch.stack(of_head))
        if products:
            balancer.tune(torch.stack(products), rate)


def _untransformed(task: str, loss: torch.Tensor) -> torch.Tensor:
    return loss.new_ones(())


@torch.no_grad()
def _descend(parameters: Mapping[str, nn.Parameter], gradient: list[torch.Tensor | None], rate: float) -> None:
    for parameter, tensor in zip(parameters.values(), gradient):
        if tensor is not None:
            parameter.sub_(tensor.to(parameter.dtype), alpha=rate)


@contextlib.contextmanager
def _state_aside(model: nn.Module) -> Iterator[None]:
    """Gives the trainable parameters and the buffers (of BatchNorm, say) back as they were."""
    tensors = [*(one for one in model.parameters() if one.requires_grad), *model.buffers()]
    kept = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in zip(tensors, kept):
                tensor.copy_(before)
