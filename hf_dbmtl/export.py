"""One task of a multi-task model as a stock checkpoint of transformers, which knows nothing of this package."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .features import features, flatten_choices
from .modeling import MultiTaskModel
from .stock_heads import NoStockClass, OwnHead, agree, load_encoder, stock_layers
from .stock_trial import find_way, random_inputs


__all__ = ["STOCK_KINDS", "StockKind", "export_task"]


@dataclass(frozen=True)
class StockKind:
    """
    What a kind of task is called in transformers.

    Args:
        auto_classes (`dict[str, str]`):
            The auto class that knows the stock classes, by what the encoder takes: `"text"` or `"image"`.
        problem_type (`str`, *optional*):
            What is written into the configuration, by which the pipelines choose softmax, sigmoid or neither.
        logits (`Callable`, *optional*):
            Reads from a stock output what the head here calls logits. Default: its `logits`.
    """

    auto_classes: dict[str, str]
    problem_type: str | None = None
    logits: Callable[[Any], Tensor] = lambda output: output.logits


SEQUENCE = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}
STOCK_KINDS = {
    "classification": StockKind(SEQUENCE, "single_label_classification"),
    "multi_label_classification": StockKind(SEQUENCE, "multi_label_classification"),
    "regression": StockKind(SEQUENCE, "regression"),
    "token_classification": StockKind({"text": "AutoModelForTokenClassification"}),
    "multiple_choice": StockKind({"text": "AutoModelForMultipleChoice"}),
    "question_answering": StockKind(
        {"text": "AutoModelForQuestionAnswering"},
        logits=lambda output: torch.stack([output.start_logits, output.end_logits], -1),
    ),
}
PIXELS = "the stock models for pixels read several layers of their encoders, the head here the last one"
NO_STOCK_KIND = {
    "masked_language_modeling": "as an auxiliary task it has no checkpoint of its own (the encoder alone is written by "
    "model.encoder.save_pretrained)",
    "semantic_segmentation": PIXELS,
    "depth_estimation": PIXELS,
    "surface_normals": PIXELS,
}
MODALITIES = {"input_ids": "text", "pixel_values": "image"}


@torch.no_grad()
def export_task(
    model: MultiTaskModel, task: str, folder: str | PathLike, processing_class: Any = None, **kwargs: Any
) -> Path:
    """
    Writes one task as a stock checkpoint: `BertForSequenceClassification`, `ViTForImageClassification` and their siblings,
    that `AutoModelForSequenceClassification.from_pretrained(folder)` and `pipeline("text-classification", folder)` load
    where this package has never been heard of.

    The logits are the same. That is tried out, not assumed: with random weights when the layers are matched, and with the
    written checkpoint, loaded again, before it is put in place. Adapters in the encoder are merged into what is written.

    Args:
        model ([`MultiTaskModel`]):
            The model. It stays as it is.
        task (`str`):
            The name of the task.
        folder (`str` or `PathLike`):
            Where to write.
        processing_class (*optional*):
            The tokenizer or image processor to save beside it, without which a pipeline does not find one.
        kwargs:
            Passed on to `save_pretrained`, such as `max_shard_size`.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: an unknown task; no stock class for its kind and encoder; a stock class that pools otherwise, has
        layers of its own in between, or lacks a bias, so that no weights of it give these logits. The message says what
        would be possible.
    """
    if not isinstance(model, MultiTaskModel):
        raise TypeError(f"model must be a MultiTaskModel, got {type(model).__name__}.")
    if task not in model.tasks:
        raise ValueError(f"Unknown task {task!r}: this model has {', '.join(map(repr, model.tasks))}.")
    folder = Path(folder)
    _check_folder(folder)
    if model.config.adapter is not None:
        model = copy.deepcopy(model)
        model.merge_adapter()
    try:
        with _evaluating(model):
            return _export(model, task, folder, processing_class, kwargs)
    except NoStockClass as error:
        raise ValueError(f"Task {task!r} has no exact stock checkpoint: {error}") from error


def _export(model: MultiTaskModel, name: str, folder: Path, processing_class: Any, options: dict[str, Any]) -> Path:
    kind, config = _stock_config(model, name, processing_class)
    inputs = random_inputs(model, name, config, getattr(processing_class, "padding_side", "right"))
    dtype = model.encoder.dtype
    encoder: Any = model.encoder
    head: Any = model.heads[name]
    if torch.finfo(dtype).bits < 32:  # compared in float32: the weights are the same numbers there
        encoder, head = (copy.deepcopy(module).float() for module in (encoder, head))
    auto_class = getattr(transformers, kind.auto_classes[MODALITIES[model.main_input_name]])
    try:
        stock = auto_class.from_config(config, dtype=encoder.dtype).to(encoder.device).eval()
    except ValueError as error:  # the auto class names the configurations that it knows
        raise NoStockClass(f"{auto_class.__name__} knows no model for {type(config).__name__}.") from error
    outputs = encoder(**flatten_choices(inputs), return_dict=True)
    way = find_way(stock, kind.logits, model, head, encoder, outputs, inputs)
    load_encoder(stock, encoder)
    way(OwnHead.of(head), stock_layers(stock), encoder)

    expected = head(features(head.level, outputs, model.config.pooling, inputs, encoder.config))
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as draft:  # what is wrong never gets to its place
        stock.to(dtype).save_pretrained(draft, **options)
        if processing_class is not None:
            processing_class.save_pretrained(draft)
        again = auto_class.from_pretrained(draft, dtype=encoder.dtype).to(encoder.device).eval()
        if not agree(kind.logits(again(**inputs)), expected):
            raise NoStockClass(f"the checkpoint of {type(stock).__name__}, loaded again, gives other logits.")
        for path in Path(draft).iterdir():
            path.replace(folder / path.name)
    return folder


def _stock_config(model: MultiTaskModel, name: str, processing_class: Any) -> tuple[StockKind, PreTrainedConfig]:
    """The kind, and the encoder's configuration with what a stock model of that kind has in it."""
    task: Any = model.tasks[name]
    modality = MODALITIES.get(model.main_input_name)
    kind = STOCK_KINDS.get(task.kind)
    if kind is None or modality not in kind.auto_classes:
        what = f"there is no stock class for {task.kind.replace('_', ' ')} on an encoder of {model.main_input_name}"
        raise NoStockClass(f"{NO_STOCK_KIND.get(task.kind, what)}.")
    config = copy.deepcopy(model.config.encoder)
    names = task.label_names or ([name] if task.num_labels == 1 else [f"LABEL_{i}" for i in range(task.num_labels)])
    config.id2label = dict(enumerate(names))
    config.label2id = {label: index for index, label in config.id2label.items()}
    config.problem_type = kind.problem_type
    if modality == "text":
        text = config.get_text_config()
        if text.pad_token_id is None:
            text.pad_token_id = getattr(processing_class, "pad_token_id", None)
        if text.pad_token_id is None and task.level == "sequence":
            raise NoStockClass(
                "the stock class looks for the last token that is not padding, and neither the encoder's configuration "
                "nor a tokenizer says which token that is: pass `processing_class=` with a pad_token."
            )
    return kind, config


def _check_folder(folder: Path) -> None:
    path = folder / "config.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("model_type") == "multi_task":
        raise ValueError(f"'{folder}' holds a multi-task model, which would be lost: choose another folder.")


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards in the mode in which it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
