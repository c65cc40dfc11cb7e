"""torch.compile for a model with several tasks: what they share is compiled, and not the switch between them."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn

from .modeling import MultiTaskModel
from .trainer_part import TrainerPart


__all__ = ["CompilationMixin"]


class CompilationMixin(TrainerPart):
    """The part of [`MultiTaskTrainer`] that compiles."""

    _compile_options: dict[str, Any] | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """
        Takes the compiling out of accelerate's hands. It would compile the model around the encoder, with the name of the
        task for a guard: a graph for every task, and after the eighth none.
        """
        super().create_accelerator_and_postprocess()
        # from the arguments, or else from what `accelerate launch` has set
        plugin = TorchDynamoPlugin(backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
        if plugin.backend != DynamoBackend.NO:
            self._compile_options = plugin.to_kwargs()
            self._compile_options.pop("use_regional_compilation", None)
            self.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend="no")

    def _check_compilation(self) -> None:
        """Refuses `torch_compile` for a module of which it is not known what all tasks run."""
        if self._compile_options is not None and self._common_part() is None:
            raise ValueError(
                f"MultiTaskTrainer does not take `torch_compile` for {type(self.model).__name__}, of which it does not know "
                "what all tasks run: pass that part as `shared_parameters=model.trunk`, or call `model.trunk.compile()`."
            )

    def _common_part(self) -> nn.Module | None:
        if isinstance(self.model, MultiTaskModel):
            return self.model.encoder
        return self.shared_parameters if isinstance(self.shared_parameters, nn.Module) else None

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """Compiles what all tasks run, in place, before the model is prepared."""
        part = self._common_part()
        if self._compile_options is not None and part is not None and part._compiled_call_impl is None:
            _leave_pooler_out(part)
            part.compile(**self._compile_options)
        return super()._wrap_model(model, *args, **kwargs)


def _leave_pooler_out(encoder: nn.Module) -> None:
    """
    Has a pooler run as it is. The backward pass of a compiled graph gives every parameter in it a gradient, a zero where no
    task has looked at what it makes, and an optimizer such as AdamW moves a weight whose gradient is zero.
    """
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.forward = torch.compiler.disable(pooler.forward)
