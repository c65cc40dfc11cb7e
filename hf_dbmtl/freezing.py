"""Parts of a model that are not to be trained."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .modeling import MultiTaskModel
from .training_args import MultiTaskTrainingArguments


__all__ = ["freeze", "hold_batch_norm"]


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
        _freeze_layers(model.encoder, args.freeze_layers)
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
