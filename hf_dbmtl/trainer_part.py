"""What the parts of the Trainer may take for granted of one another, for the type checker alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


__all__ = ["TrainerPart"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor, nn
    from transformers import Trainer

    from .balancing import Balancer
    from .gradients import Gradients, TaskGradient
    from .task import Task
    from .training_args import MultiTaskTrainingArguments
    from .units import Unit

    class TrainerPart(Trainer):
        """transformers' Trainer, as the parts of [`MultiTaskTrainer`] find it once it is made and trains."""

        args: MultiTaskTrainingArguments
        model: nn.Module
        optimizer: torch.optim.Optimizer
        lr_scheduler: torch.optim.lr_scheduler.LambdaLR
        train_dataset: Any  # by unit
        eval_dataset: Any
        shared_parameters: str | Sequence[str] | nn.Module | None
        tasks: dict[str, Task | None]  # None for those of a user's module
        units: dict[str, Unit]  # the datasets, by task or by group of tasks that share one
        eval_units: dict[str, Unit]
        collators: dict[str, Callable]  # by unit
        balancer: Balancer
        gradients: Gradients

        def _split_parameters(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]: ...
        def _check_dataset(self, split: str, unit: Unit, dataset: Any) -> None: ...
        def _collator_of(self, unit: Unit) -> Callable: ...
        def _seed_of_step(self) -> int: ...
        def _batches_of(
            self, micro_batches: Sequence[dict[str, Any]], units: Mapping[str, Unit]
        ) -> Callable[[str], list[Any]]: ...
        def _losses_and_items(
            self, model: nn.Module, unit: Unit, batch: dict[str, Any]
        ) -> dict[str, tuple[Tensor, Tensor]]: ...
        def _task_gradients(
            self,
            model: nn.Module,
            micro_batches: list[dict[str, Any]],
            derivative: Callable[[str, Tensor], Tensor],
            norms: bool = True,
            summed: bool = False,
            blend: Callable[[str], Any] | None = None,
            units: Mapping[str, Unit] | None = None,
        ) -> Iterator[tuple[str, TaskGradient]]: ...
        @staticmethod
        def _num_items(outputs: Any, batch: Mapping[str, Any], task: str) -> Any: ...

else:
    TrainerPart = object
