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
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration import POOLINGS
from .heads import features, has_pooler
from .modeling import MultiTaskModel
from .stock_heads import WAYS, OwnHead, StockLayers, Way, agree, load_encoder, random_head, stock_layers
from .tasks import Task


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
    logits: Callable[[ModelOutput], Tensor] = lambda output: output.logits


SEQUENCE = {"text": "AutoModelForSequenceClassification", "image": "AutoModelForImageClassification"}
STOCK_KINDS = {
    "classification": StockKind(SEQUENCE, "single_label_classification"),
    "multi_label_classification": StockKind(SEQUENCE, "multi_label_classification"),
    "regression": StockKind(SEQUENCE, "regression"),
    "token_classification": StockKind({"text": "AutoModelForTokenClassification"}),
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
    written checkpoint, loaded again, before it is put in place.

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
    try:
        with _evaluating(model):
            return _export(model, task, folder, processing_class, kwargs)
    except NoStockClass as error:
        raise ValueError(f"Task {task!r} has no exact stock checkpoint: {error}") from error


class NoStockClass(ValueError):
    """Why a task cannot be exported."""


def _export(model: MultiTaskModel, name: str, folder: Path, processing_class: Any, options: dict[str, Any]) -> Path:
    kind, config = _stock_config(model, name, processing_class)
    inputs = _random_inputs(model, config, getattr(processing_class, "padding_side", "right"))
    dtype = model.encoder.dtype
    encoder, head = model.encoder, model.heads[name]
    if torch.finfo(dtype).bits < 32:  # compared in float32: the weights are the same numbers there
        encoder, head = (copy.deepcopy(module).float() for module in (encoder, head))
    auto_class = getattr(transformers, kind.auto_classes[MODALITIES[model.main_input_name]])
    try:
        stock = auto_class.from_config(config, dtype=encoder.dtype).to(encoder.device).eval()
    except ValueError as error:  # the auto class names the configurations that it knows
        raise NoStockClass(f"{auto_class.__name__} knows no model for {type(config).__name__}.") from error
    outputs = encoder(**inputs, return_dict=True)
    way = _find_way(stock, kind, model, name, encoder, head, outputs, inputs)
    load_encoder(stock, encoder)
    way(OwnHead.of(head), stock_layers(stock), encoder)

    expected = head(_seen(model.tasks[name], outputs, model.config.pooling, inputs))
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
    task, modality = model.tasks[name], MODALITIES.get(model.main_input_name)
    kind = STOCK_KINDS.get(task.kind)
    if kind is None or modality not in kind.auto_classes:
        raise NoStockClass(
            f"there is no stock class for {task.kind.replace('_', ' ')} on an encoder of {model.main_input_name}."
        )
    config = copy.deepcopy(model.config.encoder)
    names = task.label_names or ([name] if task.num_labels == 1 else [f"LABEL_{i}" for i in range(task.num_labels)])
    config.id2label = dict(enumerate(names))
    config.label2id = {label: index for index, label in config.id2label.items()}
    config.problem_type = kind.problem_type
    if modality == "text":
        text = config.get_text_config()
        if text.pad_token_id is None:
            text.pad_token_id = getattr(processing_class, "pad_token_id", None)
        if text.pad_token_id is None:
            raise NoStockClass(
                "the stock class looks for the last token that is not padding, and neither the encoder's configuration "
                "nor a tokenizer says which token that is: pass `processing_class=` with a pad_token."
            )
    return kind, config


def _find_way(
    stock: PreTrainedModel,
    kind: StockKind,
    model: MultiTaskModel,
    name: str,
    encoder: PreTrainedModel,
    head: nn.Module,
    outputs: ModelOutput,
    inputs: dict[str, Tensor],
) -> Way:
    """The way to write the head into the stock model, found with random weights."""
    what, task = type(stock).__name__, model.tasks[name]
    if OwnHead.of(head) is None:
        raise NoStockClass(f"its head, a {type(head).__name__}, is not made of one or two linear layers.")
    lacking, left = load_encoder(stock, encoder)
    if lacking:
        raise NoStockClass(f"{what} also runs {_some(lacking)}, which this encoder does not have.")
    if left:
        raise NoStockClass(f"{what} has no place for {_some(left)}: merge adapters before.")
    layers = stock_layers(stock)
    if layers.out is None or layers.others:
        raise NoStockClass(f"{what} has layers of its own that no weights turn off: {', '.join(layers.others)}.")
    probe = random_head(head)

    def fitting(pooling: str) -> Way | None:
        expected = probe(_seen(task, outputs, pooling, inputs))
        for way in WAYS:
            load_encoder(stock, encoder)
            if way(OwnHead.of(probe), layers, encoder) and agree(kind.logits(stock(**inputs)), expected):
                return way
        return None

    if (way := fitting(model.config.pooling)) is not None:
        return way
    others = []
    if task.level == "sequence":
        known = [one for one in POOLINGS if one != "pooler" or has_pooler(encoder)]
        others = [repr(one) for one in known if one != model.config.pooling and fitting(one)]
    raise NoStockClass(_reason(layers, model, name, others))


def _reason(layers: StockLayers, model: MultiTaskModel, name: str, poolings: list[str]) -> str:
    """Why no way fits, and what would."""
    what, labels = type(layers.model).__name__, model.tasks[name].num_labels
    reasons = [f"no weights of {what} give what its head gives"]
    if model.tasks[name].level == "sequence":
        reasons[0] += f" on pooling={model.config.pooling!r}"
    if poolings:
        reasons.append(f"that of a model trained with pooling={' or '.join(poolings)} can be exported")
    elif layers.out.bias is None:
        reasons.append("its last layer has no bias, and neither has the norm before it")
    if layers.dense is not None and 2 * labels > layers.dense.out_features:
        reasons.append(f"its {layers.dense.out_features} hidden units are too few for {labels} labels")
    return "; ".join(reasons) + "."


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _seen(task: Task, outputs: ModelOutput, pooling: str, inputs: dict[str, Tensor]) -> Tensor:
    return features(task.level, outputs, pooling, inputs.get("attention_mask"))


def _random_inputs(model: MultiTaskModel, config: PreTrainedConfig, padding_side: str) -> dict[str, Tensor]:
    """Three random texts of several lengths, padded, or three random images."""
    generator, device = torch.Generator().manual_seed(0), model.encoder.device
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 64)
        height, width = (size, size) if isinstance(size, int) else size
        images = torch.randn(3, getattr(config, "num_channels", 3), height, width, generator=generator)
        return {"pixel_values": images.to(device)}
    text = config.get_text_config()
    special = {text.pad_token_id, getattr(text, "eos_token_id", None)}
    words = torch.tensor([index for index in range(min(text.vocab_size, 10_000)) if index not in special])
    ids = words[torch.randint(len(words), (3, 12), generator=generator)]
    mask = (torch.arange(12) < torch.tensor([[12], [9], [4]])).long()
    mask = mask.flip(1) if padding_side == "left" else mask
    ids = ids.where(mask.bool(), text.pad_token_id)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


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
