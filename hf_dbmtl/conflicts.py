"""How far the tasks pull in different directions: the cosines between their gradients, for any balancer."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .second_look import random_numbers_aside
from .streams import is_stream
from .units import Unit, of_task


if TYPE_CHECKING:
    from .trainer import MultiTaskTrainer

__all__ = ["ConflictCallback", "mean_cosines"]


class ConflictCallback(TrainerCallback):
    """
    Measures, now and then, the cosine between the gradients of every two tasks with respect to the shared parameters, and
    adds it to the log as `cosine/{one}/{other}`: below 0 the two tasks are in conflict. It costs a forward and backward
    pass per task and a gradient per task of memory, each time, and leaves the run as it is: its random numbers, its model,
    its optimizer. The rows are drawn from the training sets by the seed and the step, so that runs with different
    balancers are measured on the same ones.

    ```python
    trainer = MultiTaskTrainer(...)
    trainer.add_callback(ConflictCallback(trainer, every=50))
    ```

    Args:
        trainer ([`MultiTaskTrainer`]):
            The trainer that it is added to.
        every (`int` or `float`):
            After how many steps it measures; below 1 as a share of all steps.
        rows (`int`, *optional*, defaults to 16):
            Rows of each task that the gradients are taken on.

    Raises:
        `ValueError`: `every` or `rows` is not positive.
    """

    def __init__(self, trainer: MultiTaskTrainer, every: int | float, rows: int = 16):
        if not every > 0 or rows < 1:
            raise ValueError(f"`every` and `rows` must be positive, and are {every} and {rows}.")
        if any(map(is_stream, (trainer.train_dataset or {}).values())):
            raise ValueError(
                "Conflicts are measured on rows drawn from the training sets by number, and these have no length: leave "
                "ConflictCallback (conflict_steps) out."
            )
        self.every, self.rows = every, rows
        self._trainer = weakref.proxy(trainer)  # which holds this: dropped, it is to go at once

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        every = self.every if self.every >= 1 else max(1, round(self.every * state.max_steps))
        if state.global_step % every:
            return
        for (one, other), cosine in self.cosines().items():
            self._trainer.step_log.add(f"{one}/{other}", cosine=cosine)

    def cosines(self) -> dict[tuple[str, str], float]:
        """The cosines now, by pair of tasks, in the order of the tasks; 0 where a gradient is. None of a frozen encoder."""
        trainer = self._trainer
        if not trainer.gradients.shared:  # a frozen encoder
            return {}
        module = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=True)
        training = module.training
        module.eval()  # the model's own directions, not those of a draw of dropout
        try:
            with random_numbers_aside(trainer.args.device, trainer.args.seed + trainer.state.global_step):
                found = {task: one for unit in trainer.units.values() for task, one in self._gradients(module, unit)}
                gradients = {task: found[task] for task in trainer.tasks if task in found}
        finally:
            module.train(training)
        unit = {task: one / one.norm().clamp(min=torch.finfo(one.dtype).tiny) for task, one in gradients.items()}
        pairs = itertools.combinations(gradients, 2)
        return {(one, other): (unit[one] @ unit[other]).item() for one, other in pairs}

    def _gradients(self, module: nn.Module, unit: Unit) -> Iterator[tuple[str, Tensor]]:
        trainer = self._trainer
        dataset = trainer.train_dataset[unit.name]
        draw = np.random.default_rng([trainer.args.seed, trainer.state.global_step])
        rows = draw.choice(len(dataset), min(self.rows, len(dataset)), replace=False).tolist()
        batch = trainer._prepare_inputs(trainer.collators[unit.name]([dataset[row] for row in rows]))
        parameters = list(trainer.gradients.shared.values())
        with torch.enable_grad():
            with trainer.compute_loss_context_manager():
                losses = trainer.compute_loss(module, {**batch, "task": unit.asked})
            for task in unit:
                loss = of_task(losses, task)
                found: Sequence[Tensor | None] = [None] * len(parameters)
                if loss.requires_grad:
                    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=unit.is_group)
                flat = [(torch.zeros_like(p) if one is None else one).flatten() for p, one in zip(parameters, found)]
                yield task, torch.cat([one.to(torch.promote_types(one.dtype, torch.float32)) for one in flat])


def mean_cosines(log_history: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> np.ndarray:
    """
    The cosines between the tasks, each the mean over all records of a log.

    Returns:
        `np.ndarray` of shape `(tasks, tasks)`: 1 on the diagonal, NaN where a pair was not measured.
    """
    means = np.full((len(tasks), len(tasks)), np.nan)
    np.fill_diagonal(means, 1.0)
    for (i, one), (j, other) in itertools.permutations(enumerate(tasks), 2):
        values = [record[key] for record in log_history if (key := f"cosine/{one}/{other}") in record]
        if values:
            means[i, j] = means[j, i] = float(np.mean(values))
    return means
