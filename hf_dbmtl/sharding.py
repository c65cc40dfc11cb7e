"""What FSDP2 asks of the Trainer: parameters it leaves whole, groups of the optimizer, and the same passes everywhere."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME

from .gradients import make_gradients, split_parameters
from .sharded_optimizer import load_sharded_optimizer
from .trainer_part import TrainerPart
from .units import Unit


__all__ = ["Filler", "ShardingMixin"]


class Filler(dict):
    """A batch that does not count: a process runs it to keep the others company in what FSDP exchanges."""


class ShardingMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that knows of sharded parameters."""

    def _split_parameters(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        return split_parameters(self.model, self.shared_parameters, self.args.freeze_encoder)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Creates the scheduler, and what computes the gradients: the model has been prepared, its parameters are final."""
        if self.gradients is None:
            self.gradients = make_gradients(*self._split_parameters())
        return super().create_scheduler(num_training_steps, optimizer)

    def _leave_heads_whole(self, optimizer: torch.optim.Optimizer) -> None:
        """
        Has FSDP2 leave every parameter whole that is not shared. A head runs only where its task is, so what its own
        gradient needs of other processes is exchanged here, task by task; and it is small. Parameters that are sharded
        and others cannot be in one group of an optimizer.
        """
        plugin = self.accelerator.state.fsdp_plugin
        _, heads = self._split_parameters()
        whole = dict.fromkeys([*heads.values(), *_parameters_of(self.model, plugin.ignored_modules)])
        for parameter in whole:
            parameter.data = parameter.data.to(self.args.device)
        plugin.ignored_modules = [nn.ParameterList(whole)]
        if plugin.transformer_cls_names_to_wrap is None:
            plugin.transformer_cls_names_to_wrap = _units(self.model)
        split_groups(optimizer, lambda parameter: parameter in whole)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        files = {True: OPTIMIZER_NAME_BIN, False: OPTIMIZER_NAME}  # by whether the model is sharded
        if checkpoint is not None:
            own, other = (
                os.path.join(checkpoint, files[sharded]) for sharded in (self.is_fsdp_enabled, not self.is_fsdp_enabled)
            )
            if os.path.isfile(other) and not os.path.isfile(own):
                raise ValueError(
                    f"The checkpoint '{checkpoint}' was saved {'without' if self.is_fsdp_enabled else 'with'} FSDP, and its "
                    "optimizer's state cannot be read otherwise. Resume as it was saved (the number of processes may differ), or "
                    "load its weights into the model and start a new run."
                )
            if self.is_fsdp_enabled and os.path.isfile(own):
                load_sharded_optimizer(checkpoint, self.accelerator, self.optimizer, self.model)
                path = os.path.join(checkpoint, SCHEDULER_NAME)
                self.lr_scheduler.load_state_dict(torch.load(path, weights_only=True))
                return
        super()._load_optimizer_and_scheduler(checkpoint)

    def _has_mixed_mesh_grads(self, model: nn.Module) -> bool:
        return False  # accelerate's clipping knows sharded gradients beside others, and takes out the scaler's factor

    def _batches_of(
        self, micro_batches: Sequence[dict[str, Any]], units: Mapping[str, Unit]
    ) -> Callable[[str], list[Any]]:
        """
        From the name of a unit to its batches among the micro-batches. Where FSDP exchanges parameters in every forward
        pass, they are as many on every process.
        """
        own = {unit: [batch[unit] for batch in micro_batches if unit in batch] for unit in units}
        if self.is_fsdp_enabled:
            counts = torch.tensor([len(batches) for batches in own.values()], device=self.args.device)
            dist.all_reduce(counts, op=dist.ReduceOp.MAX)
            for (unit, batches), count in zip(own.items(), counts.tolist()):
                if len(batches) < count:
                    filler = Filler(self.collators[unit]([self.train_dataset[unit][0]]))
                    batches += [filler] * (count - len(batches))
        return lambda unit: [self._prepare_inputs(batch) for batch in own[unit]]


def _units(model: Any) -> list[str]:
    """
    The classes of the modules that are sharded each by itself: those that transformers does not split, but for what
    contains the input embeddings (such as BertEmbeddings), which accelerate shards by themselves and cannot shard twice.
    """
    there = {type(module).__name__: module for module in model.modules()}
    names = [name for name in getattr(model, "_no_split_modules", None) or () if name in there]
    if not names:
        return []
    embeddings = model.get_input_embeddings()
    return [name for name in names if all(module is not embeddings for module in there[name].modules())]


def split_groups(optimizer: torch.optim.Optimizer, *inside: Callable[[nn.Parameter], bool]) -> None:
    """Splits every group of an optimizer into those parameters for which each function is true, and the others."""
    for is_inside in inside:
        groups = []
        for group in optimizer.param_groups:
            for side in (True, False):
                params = [parameter for parameter in group["params"] if is_inside(parameter) == side]
                if params:
                    groups.append({**group, "params": params})
        optimizer.param_groups[:] = groups


def _parameters_of(model: nn.Module, modules: Iterable[nn.Module] | str | None) -> list[nn.Parameter]:
    """The parameters of modules, or of those whose names fit a regular expression, as accelerate's FSDP plugin has them."""
    if isinstance(modules, str):
        pattern = re.compile(modules)
        modules = [module for name, module in model.named_modules() if pattern.fullmatch(name)]
    return [parameter for module in modules or () for parameter in module.parameters()]
