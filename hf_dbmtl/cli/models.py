"""Trained models, as the commands load them."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from hf_dbmtl_cli import CommandError

from ..configuration import MultiTaskConfig
from ..modeling import MultiTaskModel
from .values import nearest


__all__ = ["choose_tasks", "load_model"]


def load_model(name: str) -> tuple[MultiTaskModel, Any]:
    """
    A trained model, and its tokenizer or image processor.

    Args:
        name (`str`):
            Its folder, or its name on the Hub.

    Raises:
        [`CommandError`]: it is not there, or was not trained by this package.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, MultiTaskConfig):
            raise CommandError(f"'{name}' is a {config.model_type} model without tasks: train one, by hf-dbmtl train.")
        model = AutoModel.from_pretrained(name)
        auto_class = AutoImageProcessor if model.main_input_name == "pixel_values" else AutoTokenizer
        return model.eval(), auto_class.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CommandError(f"the model '{name}' could not be loaded: {' '.join(str(error).split())}") from error


def choose_tasks(model: MultiTaskModel, words: str | None) -> list[str]:
    """Tasks of a model: all of them, or those named with commas between."""
    names = list(model.tasks) if words is None else [word.strip() for word in words.split(",")]
    for name in names:
        if name not in model.tasks:
            hint = nearest(name, model.tasks) or f", only {', '.join(model.tasks)}."
            raise CommandError(f"the model has no task '{name}'{hint}")
    return names
