"""What a forward pass tells of a task: its loss, and the items that this is the mean over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import find_batch_size

from .checks import check_loss, check_measured
from .modeling import MultiTaskModel
from .sharding import Filler
from .trainer_part import TrainerPart
from .units import Unit, of_task


__all__ = ["MeasuringMixin"]


class MeasuringMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that runs the model on a batch."""

    def _losses_and_items(
        self, model: nn.Module, unit: Unit, batch: dict[str, Any]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The mean loss on a batch of the tasks that share it, and the number of items it is the mean over, by task."""
        with self.compute_loss_context_manager():
            losses, outputs = self.compute_loss(model, {**batch, "task": unit.asked}, return_outputs=True)
        measured = {}
        for task in unit:
            loss, items = of_task(losses, task), self._num_items(outputs, batch, task)
            check_measured(self.model, task, loss, items)
            loss = loss.to(torch.promote_types(loss.dtype, torch.float32))
            if isinstance(batch, Filler):
                loss, items = loss * 0, 0
            measured[task] = loss, torch.as_tensor(items, dtype=loss.dtype, device=loss.device)
        return measured

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """
        The loss of one task: `inputs` hold its name as `task` beside its batch. Override it for a loss of your own. For tasks
        that share their input, `task` is the list of their names, and the loss a dictionary.
        """
        outputs = model(**inputs)
        loss = _get(outputs, "loss")
        check_loss(self.model, inputs, loss)
        return (loss, outputs) if return_outputs else loss

    @staticmethod
    def _num_items(outputs: Any, batch: Mapping[str, Any], task: str) -> Any:
        items = of_task(_get(outputs, "num_items"), task)
        return find_batch_size(batch) if items is None else items

    @property
    def _knows_items(self) -> bool:
        """Whether labels tell before the forward pass over how many items a loss will be the mean: that of the tasks' kinds."""
        model = self.model
        declared = isinstance(model, MultiTaskModel) and type(model).forward is MultiTaskModel.forward
        own = type(self).compute_loss is not MeasuringMixin.compute_loss
        return declared and not own and self.balancer.known_before

    def _count_items(self, unit: Sequence[str], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The number of items of a batch by task, from its labels."""
        counts = {}
        for task in unit:
            kind, labels = self.tasks[task], of_task(batch.get("labels"), task)
            if kind is None or labels is None or isinstance(batch, Filler):
                # the forward pass tells what is wrong, if it is
                counts[task] = torch.tensor(0, device=self.args.device)
            else:
                counts[task] = kind.labelled(labels).sum()
        return counts


def _get(outputs: Any, name: str) -> Any:
    """An entry of what a forward returned, a mapping or an object."""
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
