"""Adapters (LoRA and others of PEFT) in the encoder, saved with the heads and merged into the weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.utils import is_peft_available


__all__ = ["AdapterMixin", "inject_adapter"]


class AdapterMixin:
    """The part of [`MultiTaskModel`] that deals with adapters."""

    if TYPE_CHECKING:
        config: Any
        encoder: Any

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """
        Puts adapters into the encoder, in place, and freezes the rest of it. The heads stay as they are: trained, and saved
        with the adapters. A saved model holds the encoder's own weights too, and loads as it is where `peft` is installed;
        after [`~MultiTaskModel.merge_adapter`] anywhere. `model.encoder.save_pretrained(folder)` writes the adapters alone,
        as PEFT does.

        Args:
            adapter_config (`peft.PeftConfig`):
                What adapters, such as `LoraConfig(r=8)`. All methods of PEFT that change modules in place serve; those that
                add tokens to a prompt do not.
            adapter_name (`str`, *optional*, defaults to `"default"`):
                Their name.

        Raises:
            `ImportError`: `peft` is not installed. `ValueError`: there are adapters already, or `modules_to_save`, which
            the heads are anyway.
        """
        if self.config.adapter is not None:
            raise ValueError("The encoder has adapters already: call merge_adapter() first.")
        if getattr(adapter_config, "modules_to_save", None):
            raise ValueError(
                f"modules_to_save={adapter_config.modules_to_save}: the heads are trained and saved anyway, and of the "
                "encoder only the adapters: leave it out."
            )
        described = _described(adapter_config)
        self.encoder.add_adapter(adapter_config, adapter_name)
        self.config.adapter = described

    def merge_adapter(self) -> None:
        """
        Adds what the adapters learned to the encoder's own weights and takes them out; the encoder is trainable again.

        Raises:
            `ValueError`: there is no adapter.
        """
        if self.config.adapter is None:
            raise ValueError("The encoder has no adapters to merge.")
        for name, module in _tuned_modules(self.encoder):
            module.merge(safe_merge=True)
            parent, _, attribute = name.rpartition(".")
            setattr(self.encoder.get_submodule(parent), attribute, module.get_base_layer())
        del self.encoder.peft_config
        self.encoder._hf_peft_config_loaded = False
        self.encoder.requires_grad_(True)
        self.config.adapter = None


def inject_adapter(encoder: PreTrainedModel, described: dict[str, Any]) -> None:
    """Puts new adapters into the encoder, as the configuration of a saved model describes them."""
    if not is_peft_available():
        raise ImportError(
            "This model has adapters in its encoder: pip install 'hf-dbmtl[peft]', or have it saved anew after "
            "merge_adapter()."
        )
    try:
        from peft import get_peft_config
    except ImportError:  # caught above; written so that loading remote code does not ask every model for peft
        raise
    encoder.add_adapter(get_peft_config(dict(described)))
    for _, module in _tuned_modules(encoder):
        for inner in module.modules():  # `post_init` would draw weights anew that have to start from zero
            inner._is_hf_initialized = True


def _tuned_modules(encoder: PreTrainedModel) -> list[tuple[str, Any]]:
    """The modules that an adapter has taken the place of, by name."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError:
        raise
    return [(name, module) for name, module in encoder.named_modules() if isinstance(module, BaseTunerLayer)]


def _described(adapter_config: Any) -> dict[str, Any]:
    """What differs from the defaults, as JSON has it."""
    defaults = type(adapter_config)().to_dict()
    values = {key: value for key, value in adapter_config.to_dict().items() if value != defaults[key]}
    values.pop("base_model_name_or_path", None)
    values["peft_type"] = adapter_config.peft_type
    return json.loads(json.dumps(values, default=list))  # sets, and enumerations of strings
