"""The Trainer: the script of a step over several tasks, and what else of transformers' Trainer a step touches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from .buffers import AverageBuffers, Buffers
from .checkpoint import load_balancer, save_balancer
from .checks import check_arguments, check_layout, check_model
from .compilation import CompilationMixin
from .consistency import ConsistencyCheck
from .dataset_checks import check_datasets
from .evaluation import EvaluationMixin
from .gradients import GradientVector, How, TaskGradient
from .gradients.flat import FlatVector
from .hub import HubMixin
from .loading import LoadingMixin
from .measuring import MeasuringMixin
from .parts import PartsMixin, freeze, hold_batch_norm
from .saving import SavingMixin
from .second_look import AfterOptimizerStep, SecondLookMixin
from .sharding import ShardingMixin
from .skip_limit import SkipLimit
from .step_log import StepLog
from .training_args import MultiTaskTrainingArguments
from .units import Unit
from .validation import ValidationMixin


__all__ = ["MultiTaskTrainer"]

logger = logging.get_logger(__name__)


class MultiTaskTrainer(
    HubMixin,
    SavingMixin,
    LoadingMixin,
    EvaluationMixin,
    SecondLookMixin,
    ValidationMixin,
    MeasuringMixin,
    PartsMixin,
    ShardingMixin,
    CompilationMixin,
    Trainer,
):
    """
    transformers' [`~transformers.Trainer`] for a model that learns several tasks at once: every step computes the loss and
    the gradient of every task, balances the gradients of the shared parameters, and lets each head follow its own.

    Args:
        model ([`MultiTaskModel`] or `torch.nn.Module`, *optional*):
            The model. Any module serves whose `forward(task=..., **batch)` returns a mapping or an object with `loss` (the
            mean over its labelled items) and, if it likes, `num_items` (how many these are; the rows of the batch where it
            is silent). Where tasks share their input, `forward(task=[...], labels={task: tensor}, **inputs)` returns
            dictionaries by task of the same; such a module names its tasks in an attribute `tasks`.
        args ([`MultiTaskTrainingArguments`]):
            The training arguments.
        data_collator (`dict[str, Callable]` or `Callable`, *optional*):
            A collator by task or group, or one for all. By default the tasks' kinds decide. That of a group gives
            `labels={task: tensor}`.
        train_dataset (`dict[str, Dataset]` or `Dataset`, *optional*):
            The training sets, each with a length, or all without (`IterableDataset`): these need `max_steps`, are mixed
            equally, and go on after a checkpoint by their `state_dict`. A key that is the name of a task holds that task's own. Any other names a
            group of tasks that share their rows: the dataset has a column of labels for each, named like the task, and the
            encoder runs once for all of them. Each task has one dataset. A dataset without a key is one group.
        eval_dataset (`dict[str, Dataset]` or `Dataset`, *optional*):
            The evaluation sets likewise, of all tasks or of some.
        processing_class (`PreTrainedTokenizerBase` or another processing class, *optional*):
            What pads the batches and is saved with the model.
        model_init (`Callable`, *optional*):
            Makes the model anew for every `train()`, as in transformers.
        compute_metrics (`dict[str, Callable | EvaluationModule | str]`, *optional*):
            A metric by task: a function from [`~transformers.EvalPrediction`] to a dictionary, an `evaluate` module or the
            name of one. Tasks left out get the defaults of their kind. A single one serves all tasks.
        callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics:
            As in transformers.
        shared_parameters (`str`, `Sequence[str]` or `torch.nn.Module`, *optional*):
            Which parameters are shared, and so balanced: a regular expression searched for in their names, a list of names
            or module prefixes, or a submodule. By default everything outside `model.heads`.
        validation_dataset (`dict[str, Dataset]`, *optional*):
            For a balancer that tunes its weights on validation data (`"auto_lambda"`, `"moml"`) the rows of those tasks that
            are to become better, neither trained nor evaluated on. Other balancers do not look at it.
        balancer (`str` or a `Weighting`, `Aggregator` or `Scalarizer` of TorchJD, *optional*):
            What balances, in place of `args.balancer`, with `args.balancer_kwargs` for options.

        peft_config (`peft.PeftConfig`, *optional*):
            Adapters to put into the encoder, see [`MultiTaskModel.add_adapter`]: of the encoder these alone are trained, and
            balanced. Needs `pip install 'hf-dbmtl[peft]'`.

    Raises:
        `ValueError`, `TypeError`: for what is known to be wrong before the first step: task names that differ between the
        model, the datasets and the metrics; an empty dataset; labels of the wrong type or outside the range; columns of
        which the model takes none; training arguments that cannot be honoured.
    """

    args: MultiTaskTrainingArguments

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: MultiTaskTrainingArguments | None = None,
        data_collator: Mapping[str, Callable] | Callable | None = None,
        train_dataset: Mapping[str, Dataset] | Dataset | None = None,
        eval_dataset: Mapping[str, Dataset] | Dataset | None = None,
        processing_class: Any = None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_metrics: Mapping[str, Any] | Callable | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        shared_parameters: str | Sequence[str] | nn.Module | None = None,
        validation_dataset: Mapping[str, Dataset] | None = None,
        balancer: str | Any = None,
        peft_config: Any = None,
    ):
        args = MultiTaskTrainingArguments(output_dir="tmp_trainer") if args is None else args
        if not isinstance(args, MultiTaskTrainingArguments):
            raise TypeError(f"`args` must be MultiTaskTrainingArguments, and is {type(args).__name__}.")
        if balancer is not None:
            args = args.with_balancer(balancer)
        check_arguments(args)
        if optimizers[0] is not None and args.multiplies_learning_rates:
            raise ValueError(
                "`encoder_lr_multiplier`, `heads_lr_multiplier` and `task_lr_multipliers` are for the optimizer that the Trainer makes. Set the "
                "learning rates in the groups of the optimizer that you pass, or pass `optimizer_cls_and_kwargs` instead."
            )
        self._peft_config = peft_config
        if model is not None:
            self._adapt(model)
        super().__init__(
            model=model,
            args=args,
            train_dataset=None if train_dataset is None else check_datasets("`train_dataset`", train_dataset),
            eval_dataset=None if eval_dataset is None else check_datasets("`eval_dataset`", eval_dataset),
            processing_class=processing_class,
            model_init=model_init,  # type: ignore[arg-type]  # modules of the user's own are taken, too
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        check_layout(self.accelerator, args)
        self.model_accepts_loss_kwargs = (
            False  # the loss is a mean per task, whatever keywords a module's forward takes
        )
        self.shared_parameters = shared_parameters
        self.gradients = None  # type: ignore[assignment]  # until there is an optimizer
        self.balancer = None  # type: ignore[assignment]
        self.step_log = StepLog()
        self._micro_batches: list[dict[str, Any]] = []
        self._after_optimizer_step = AfterOptimizerStep()
        self._skip_limit = SkipLimit()
        self.add_callback(self._after_optimizer_step)
        self.add_callback(self._skip_limit)
        self.add_callback(AverageBuffers())
        self.add_callback(ConsistencyCheck(self))
        self._declare_tasks()
        freeze(self.model, args)
        self._split_parameters()  # raises where nothing is shared
        check_model(self.model, args, self._columns())
        self._check_compilation()
        self._set_collators(data_collator)
        self._set_metrics(compute_metrics)
        self._check_data()
        self._set_validation_data(validation_dataset)

    # ---- The step --------------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """
        Keeps the micro-batch until the last one of the step is there, then goes task by task over all of them.

        Args:
            model (`torch.nn.Module`):
                The model, wrapped as accelerate prepared it.
            inputs (`dict[str, Any]`):
                A joint micro-batch, `{unit: batch}`: by task, or by group of tasks that share theirs.
            num_items_in_batch:
                Not used: items are counted per task.

        Returns:
            `torch.Tensor` of shape `()`: at the last micro-batch of the step the sum of the tasks' mean losses, weighted by
            `task_weights`; 0 before it; NaN where the step was skipped.
        """
        self._micro_batches.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        micro_batches, self._micro_batches = self._micro_batches, []
        self._enter_training_mode(model)
        buffers = Buffers(model)

        self.balancer.begin(epoch=int(self.state.epoch or 0))
        head_gradients: dict[str, GradientVector] = {}
        loss = 0.0
        norms = self._logs_this_step()
        summed = self.balancer.is_plain_sum and not norms
        blend = self.balancer.blend
        for task, measured in self._task_gradients(
            model, micro_batches, self.balancer.derivative, norms, summed, blend
        ):
            if measured.num_items == 0:
                continue  # absent: not in the sum, its memory unmoved, its head without a gradient
            finite = measured.is_finite and self.balancer.take(
                task, measured.loss, measured.shared, measured.norm, measured.blended
            )
            if not finite:
                buffers.restore()
                return self._skip_step(task, measured)
            loss += self.balancer.task_weight(task) * measured.loss
            head_gradients[task] = measured.heads
            self.step_log.add(task, loss=measured.loss)
            if norms and measured.norm is not None:
                self.step_log.add(task, grad_norm=measured.norm)
        if self.balancer.validates and head_gradients:
            self._tune_on_validation(model, head_gradients)
        balanced = self.balancer.balance(self.gradients.spare)
        shared, heads = self.gradients.zero()
        for task, gradient in head_gradients.items():
            heads.add_(gradient, balanced.head_weights[task])
        self.gradients.write(cast(FlatVector, balanced.update or shared), heads, self._loss_scale())
        self.step_log.add_weights(balanced.factors, balanced.cosines)
        if self.balancer.looks_again:
            self._after_optimizer_step.pending = partial(self._look_again, model, micro_batches)
        return torch.tensor(loss, device=self.args.device)

    def _task_gradients(
        self,
        model: nn.Module,
        micro_batches: list[dict[str, Any]],
        derivative: Callable[[str, Tensor], Tensor],
        norms: bool = True,
        summed: bool = False,
        blend: Callable[[str], Any] | None = None,
        units: Mapping[str, Unit] | None = None,
    ) -> Iterator[tuple[str, TaskGradient]]:
        """The loss and gradient of one task after the other, over all micro-batches, of the training's units or others."""
        units = self.units if units is None else units
        # not through DDP's own forward, which would exchange buffers as often as this process happens to have a batch
        module = self.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
        how = How(
            forward=partial(self._losses_and_items, module),
            backward=self.accelerator.backward,
            derivative=derivative,
            loss_scale=self._loss_scale(),
            norms=norms,
            summed=summed,
            blend=blend,
            count=self._count_items if summed and self._knows_items else None,
        )
        # FSDP adds up what it shards in every pass
        with contextlib.nullcontext() if self.is_fsdp_enabled else self.accelerator.no_sync(model):
            yield from self.gradients.each(units, self._batches_of(micro_batches, units), how)

    def _skip_step(self, task: str, measured: TaskGradient) -> Tensor:
        """Gives the step up: nothing for the optimizer, the balancer not counted on, and the user told."""
        step = self.state.global_step + 1
        what = f"loss ({measured.loss})" if not math.isfinite(measured.loss) else "gradient"
        overflow = self.accelerator.scaler is not None and math.isfinite(measured.loss)
        if self.args.non_finite_strategy == "raise" and not overflow:
            raise FloatingPointError(
                f"Task '{task}': its {what} is not finite at step {step}. Nothing of it has entered the parameters. Mend the "
                "data or lower the learning rate, or go on past such steps with `non_finite_strategy='skip'`."
            )
        logger.warning(f"Step {step} is skipped: the {what} of task '{task}' is not finite.")
        self.step_log.skip(task)
        self._skip_limit.skip(task)
        self.balancer.begin()
        self.gradients.skip(scaled=self.accelerator.scaler is not None)
        return torch.tensor(math.nan, device=self.args.device)

    def _logs_this_step(self) -> bool:
        """Whether a record may be logged at the end of the step, with the norms of the tasks' gradients in this step."""
        step = self.state.global_step + 1
        if self.args.logging_strategy == IntervalStrategy.STEPS:
            return step % self.state.logging_steps == 0 or (self.args.logging_first_step and step == 1)
        return self.args.logging_strategy != IntervalStrategy.NO

    def _loss_scale(self) -> float:
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()

    def _enter_training_mode(self, model: nn.Module) -> None:
        """What the stock step does before its forward pass."""
        model.train()
        if self.args.freeze_batch_norm:
            hold_batch_norm(model)
        train = getattr(self.optimizer, "train", None)  # of schedule-free optimizers
        if callable(train):
            train()
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Fetches the micro-batches of the next step; whatever an interrupted step has left behind is dropped."""
        self._micro_batches = []
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    # ---- Optimizer, checkpoint and log -----------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Creates the optimizer, and with it the balancer, which lives as long."""
        self.step_log = StepLog()  # what a run that has ended did not come to log is not the next one's
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh or self.balancer is None:
            self.gradients = None  # type: ignore[assignment]  # made when the model has been prepared, see ShardingMixin
            self.balancer = self.args.make_balancer().setup(list(self.tasks), self.args.seed)
        if fresh:
            self._multiply_learning_rates(optimizer)
        if self.is_fsdp_enabled and self.gradients is None:
            self._leave_heads_whole(optimizer)
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_balancer(output_dir, self.balancer, self.gradients, self.args)
        self._save_position(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            load_balancer(checkpoint, self.balancer, self.gradients, self.args)
            self._load_position(checkpoint)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss, weight and gradient norm of every task to each training record."""
        if self.is_in_train and "loss" in logs:
            logs |= self.step_log.drain()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        name = getattr(self.model, "main_input_name", "input_ids")
        sizes = {unit: batch[name].numel() for unit, batch in inputs.items() if name in batch}
        unit = max(sizes, key=sizes.__getitem__, default=None)
        if unit is None or not sizes[unit]:
            return 0
        # in proportion to the input: the parameters are counted once per micro-batch, which for a tiny model takes its time
        return super().floating_point_ops(inputs[unit]) * sum(sizes.values()) // sizes[unit]

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        for batch in inputs.values():
            super()._track_num_input_tokens(batch)
