"""Which parts of a model are trained, through which adapters, and at which learning rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .checks import check_unwrapped
from .modeling import MultiTaskModel
from .trainer_part import TrainerPart
from .training_args import MultiTaskTrainingArguments


__all__ = ["PartsMixin", "freeze", "hold_batch_norm"]


class PartsMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that deals with the parts of the model."""

    _peft_config: Any

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """A new model, with the adapters that were asked for, and parts frozen."""
        return freeze(self._adapt(super().call_model_init(trial)), self.args)

    def _adapt(self, model: nn.Module) -> nn.Module:
        check_unwrapped(model)
        if self._peft_config is not None:
            if not isinstance(model, MultiTaskModel):
                raise TypeError(
                    f"`peft_config` is for a MultiTaskModel, and not for {type(model).__name__}: put the adapters into "
                    "your module yourself."
                )
            model.add_adapter(self._peft_config)
        return model

    def _multiply_learning_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Splits the optimizer's groups into encoder and heads where their learning rates differ."""
        args = self.args
        if not args.multiplies_learning_rates:
            return
        multipliers: Any = args.task_lr_multipliers or {}
        shared, heads = self._split_parameters()
        of = dict.fromkeys(shared.values(), args.encoder_lr_multiplier)
        for name, parameter in heads.items():
            _, task, *_ = f"{name}..".split(".")  # heads.mrpc.linear.weight
            of[parameter] = args.heads_lr_multiplier * multipliers.get(task, 1.0)
        groups = []
        for group in optimizer.param_groups:
            for multiplier in dict.fromkeys(of.values()):
                params = [parameter for parameter in group["params"] if of[parameter] == multiplier]
                if params:
                    groups.append({**group, "params": params, "lr": group["lr"] * multiplier})
        optimizer.param_groups[:] = groups


def freeze(model: nn.Module, args: MultiTaskTrainingArguments) -> nn.Module:
    """
    Freezes what the arguments say, and returns the model.

    Raises:
        `ValueError`: for an encoder without that many layers, or a module of the user's, whose parts are not known.
    """
    if (args.freeze_encoder or args.freeze_layers) and not isinstance(model, MultiTaskModel):
        raise ValueError(
            f"`freeze_encoder` and `freeze_layers` know the parts of a MultiTaskModel alone, and not of {type(model).__name__}: "
            "call `.requires_grad_(False)` on yours."
        )
    if args.freeze_encoder:
        model.encoder.requires_grad_(False)
    elif args.freeze_layers:
        _freeze_layers(model.get_submodule("encoder"), args.freeze_layers)
    if args.freeze_batch_norm:
        for module in _batch_norms(model):
            module.requires_grad_(False)
    return model


def hold_batch_norm(model: nn.Module) -> None:
    """Keeps the running statistics of frozen BatchNorms as they are, in a model that has entered training mode."""
    for module in _batch_norms(model):
        module.eval()


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _freeze_layers(encoder: nn.Module, count: int) -> None:
    """Freezes the first layers of the encoder's stack (stages, where it has these), and what lies before it."""
    stacks = ((name, module) for name, module in encoder.named_modules() if isinstance(module, nn.ModuleList))
    stack, layers = next(stacks, (None, ()))
    if not 0 < count <= len(layers):
        raise ValueError(
            f"`freeze_layers` is {count}, and the encoder ({type(encoder).__name__}) has {len(layers)} layers"
            + (
                f", `{stack}`."
                if layers
                else " that can be told apart: freeze its parameters by requires_grad_(False)."
            )
        )
    for name, parameter in encoder.named_parameters():  # in the order in which a model is built: the embeddings first
        if name.startswith(f"{stack}."):
            break
        parameter.requires_grad_(False)
    for layer in layers[:count]:
        layer.requires_grad_(False)
