"""An encoder with one head per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple, logging

from .adapters import AdapterMixin, inject_adapter
from .configuration import MultiTaskConfig, check_task_name
from .features import default_pooling, features, flatten_choices, has_pooler
from .heads import MaskedLanguageModelingHead, make_head
from .limits import MAX_NEW_PARAMETERS, limited_modules, the_first
from .tasks import Task


if (
    TYPE_CHECKING
):  # never imported here: transformers copies what is named so into a saved folder, code without a use too
    from .pipeline import MultiTaskPipeline  # noqa: F401

__all__ = ["MultiTaskModel", "MultiTaskOutput"]

logger = logging.get_logger(__name__)

# How transformers, torch and safetensors end on what is no model: each layer in a way of its own.
_DAMAGED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, SafetensorError)


@dataclass
class MultiTaskOutput(ModelOutput):
    """
    Output of a [`MultiTaskModel`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` is given):
            The task's mean loss over its labelled items, in the scale of the task. A dictionary by task where several were
            named.
        logits (`torch.Tensor`, or `dict[str, torch.Tensor]` when no task was named, or several):
            Of the shape that the kind of task says: `(batch, num_labels)`, or `(batch, length, num_labels)` at token level.
        num_items (`torch.Tensor` of shape `()`, *optional*, returned when `labels` is given):
            How many labelled items `loss` is the mean over. A dictionary by task where several were named.
        hidden_states (`tuple[torch.Tensor]`, *optional*): the encoder's, where asked for.
        attentions (`tuple[torch.Tensor]`, *optional*): the encoder's, where asked for.
    """

    loss: Tensor | dict[str, Tensor] | None = None
    logits: Tensor | dict[str, Tensor] | None = None
    num_items: Tensor | dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class MultiTaskModel(AdapterMixin, PreTrainedModel):
    """
    A shared encoder and a head per task. [`~MultiTaskModel.from_encoder`] puts new heads on a pretrained encoder.

    Args:
        config ([`MultiTaskConfig`]):
            What to build.
        encoder (`PreTrainedModel`, *optional*):
            The encoder, where there is one already; its configuration is `config.encoder`.
    """

    config_class = MultiTaskConfig
    base_model_prefix = "encoder"
    # `forward` takes **kwargs, from which the Trainer would conclude that it scales the loss for gradient accumulation.
    accepts_loss_kwargs = False
    # What an attention implementation needs is the encoder's to check.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultiTaskConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        self.tasks = config.task_objects
        if not self.tasks:
            raise ValueError(
                "The configuration has no task. To put heads on an encoder, call "
                "MultiTaskModel.from_encoder(name_or_path, tasks={'name': Classification(num_labels=2), ...})."
            )
        of_encoder: Any = config.encoder
        if encoder is None:
            # The default dtype is the one that `from_pretrained` asks for, as it is for the heads below.
            with limited_modules():
                encoder = _auto_class(of_encoder).from_config(of_encoder, dtype=torch.get_default_dtype())
        else:
            # `post_init` would draw anew the weights of modules put in after loading: adapters, a new layer.
            for module in encoder.modules():
                setattr(module, "_is_hf_initialized", True)
        if config.adapter is not None:
            inject_adapter(encoder, config.adapter)
        self.encoder = encoder
        with limited_modules():
            self.heads = nn.ModuleDict({name: self._make_head(name, task) for name, task in self.tasks.items()})
        self.main_input_name = encoder.main_input_name
        self.input_modalities = encoder.input_modalities
        self.supports_gradient_checkpointing = encoder.supports_gradient_checkpointing
        if getattr(of_encoder, "use_cache", False):  # a decoder's, of no use without generation
            of_encoder.use_cache = False
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> MultiTaskModel:
        """
        As [`~PreTrainedModel.from_pretrained`], but in float32 unless `dtype` says otherwise: the library's default is
        the dtype of the checkpoint, and a bfloat16 one would train in bfloat16. Weights are read from safetensors only.

        Raises:
            `ValueError`: weights that are damaged or do not fit the configuration, or one that describes no model; names
                of weights that are not the model's while some of its own are missing, which transformers would make up.
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        kwargs.setdefault("use_safetensors", True)
        wants_info = kwargs.pop("output_loading_info", False)
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except torch.OutOfMemoryError:
            raise
        except _DAMAGED as error:
            raise ValueError(
                f"The model '{pretrained_model_name_or_path}' cannot be loaded: its weights are damaged, or its config.json "
                f"does not describe them ({type(error).__name__}: {' '.join(str(error).split())[:500]}). Fetch it again, or "
                "ask who made it."
            ) from error
        missing, unexpected = (sorted(map(repr, loaded[1][f"{which}_keys"])) for which in ("missing", "unexpected"))
        if missing and unexpected:
            raise ValueError(
                f"The model '{pretrained_model_name_or_path}' cannot be loaded: its weights lack {the_first(missing)}, and hold "
                f"{the_first(unexpected)}, which config.json does not describe. Fetch it again, or ask who made it; a task or a "
                "part that was renamed by hand has to be renamed in both."
            )
        return loaded if wants_info else loaded[0]

    def _move_missing_keys_from_meta_to_device(self, missing_keys: Any, *args: Any, **kwargs: Any) -> None:
        """Before transformers makes up what the checkpoint lacks, or holds in another shape: there must not be much."""
        size = sum(self.get_parameter_or_buffer(key).numel() for key in missing_keys)
        size += sum(buffer.numel() for _, buffer in self.named_non_persistent_buffers())
        if size > MAX_NEW_PARAMETERS:
            raise ValueError(
                f"Of the model that config.json describes {size} numbers are not among the weights, or have other shapes "
                f"there: the two do not belong together. (More than {MAX_NEW_PARAMETERS} are not made up.)"
            )
        super()._move_missing_keys_from_meta_to_device(missing_keys, *args, **kwargs)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PathLike | PreTrainedModel,
        tasks: dict[str, Task],
        *,
        pooling: str | None = None,
        processing_class: Any = None,
        dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> MultiTaskModel:
        """
        Puts a new head for every task on a pretrained encoder.

        Args:
            encoder (`str`, `PathLike` or `PreTrainedModel`):
                Name on the Hub or folder of any model that `AutoModel` loads, or such a model itself, which is then
                shared, not copied, and keeps its dtype, device and mode.
            tasks (`dict[str, Task]`):
                The tasks by name.
            pooling (`str`, *optional*):
                `"pooler"`, `"cls"`, `"mean"` or `"last"`, see [`MultiTaskConfig`]. Defaults to the encoder's pooler if
                it has one, `"last"` for a decoder, else `"cls"` where the tokenizer has a CLS token, else `"mean"`.
            processing_class (*optional*):
                The tokenizer or processor, to look for a CLS token; defaults to the one that lies beside the encoder.
            dtype (`torch.dtype` or `str`, *optional*):
                Of the weights loaded; defaults to float32.
            kwargs:
                Passed on to `AutoModel.from_pretrained`.

        Raises:
            `TypeError`, `ValueError`: an encoder that could not be built again when a saved model loads, or tasks or
            a pooling that [`MultiTaskConfig`] refuses.
        """
        missing: set[str] = set()
        if isinstance(encoder, (str, PathLike)):
            dtype = torch.float32 if dtype is None else dtype
            encoder, missing = _load_encoder(encoder, dtype, kwargs)
        elif kwargs or dtype is not None:
            raise TypeError(f"{', '.join(kwargs) or 'dtype'}: only for an encoder that is loaded here, by its name.")
        _check_encoder(encoder)
        if pooling is None:
            pooling = default_pooling(encoder, processing_class)
        elif pooling == "pooler" and not has_pooler(encoder):
            raise ValueError(f"{type(encoder).__name__} has no pooler: choose pooling='cls', 'mean' or 'last'.")
        if pooling == "pooler" and any(key.startswith("pooler.") for key in missing):
            logger.warning_once(
                "The encoder's checkpoint holds no weights for its pooler, which starts at random: train it, or choose "
                "pooling='cls' or 'mean'."
            )
        if dtype is None and encoder.dtype in (torch.float16, torch.bfloat16):
            logger.warning_once(
                f"The encoder's weights are {encoder.dtype}. To train in float32 give from_encoder its name, or call "
                "encoder.float() before."
            )
        encoder.config.architectures = [type(encoder).__name__]
        config = MultiTaskConfig(encoder=encoder.config, tasks=tasks, pooling=pooling)
        config.name_or_path = encoder.name_or_path
        model = cls(config, encoder=encoder)
        model.heads.to(encoder.device, encoder.dtype)
        return model.train(encoder.training)

    @can_return_tuple
    def forward(
        self,
        task: str | Sequence[str] | None = None,
        labels: Tensor | Mapping[str, Tensor] | None = None,
        **inputs: Any,
    ) -> MultiTaskOutput:
        """
        Args:
            task (`str` or `Sequence[str]`, *optional*):
                The task whose head runs, or several that share one pass of the encoder; `None` runs all of them.
            labels (`torch.Tensor` or `Mapping[str, torch.Tensor]`, *optional*):
                Labels of the task, as [`Task.label_tensor`] makes them; of several tasks by name.
            inputs:
                What the encoder takes: `input_ids`, `attention_mask`, `pixel_values`, `output_hidden_states`, ...

        Raises:
            `ValueError`: an unknown task, labels without a task, or labels whose shape does not fit the logits.
        """
        asked = list(self.tasks) if task is None else [task] if isinstance(task, str) else task
        names = [self._known(one) for one in asked]
        alone = names[0] if isinstance(task, str) else None
        by_name = _by_name(task, names, labels)
        outputs = self.encoder(**flatten_choices(inputs), return_dict=True)
        heads: dict[str, Any] = {name: self.heads[name] for name in names}
        seen = {
            level: features(level, outputs, self.config.pooling, inputs, self.config.encoder)
            for level in {head.level for head in heads.values()}
        }
        logits = {name: head(seen[head.level]) for name, head in heads.items()}
        measured = {name: self._loss(name, logits[name], by_name[name]) for name in names if name in by_name}
        loss = {name: one for name, (one, _) in measured.items()} or None
        num_items = {name: items for name, (_, items) in measured.items()} or None
        return MultiTaskOutput(
            loss=loss[alone] if alone and loss else loss,
            logits=logits[alone] if alone else logits,
            num_items=num_items[alone] if alone and num_items else num_items,
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _loss(self, name: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        try:
            return self.tasks[name].loss(logits, labels)
        except ValueError as error:
            raise ValueError(f"Task {name!r}: {error}") from error

    def add_task(self, name: str, task: Task) -> None:
        """
        Adds a task with a new head; the rest stays as it is. An optimizer made before does not know the new head.

        Raises:
            `TypeError`, `ValueError`: a name that is taken or cannot be one, or not a task.
        """
        check_task_name(name)
        if name in self.tasks:
            raise ValueError(f"Task {name!r} exists already: call remove_task({name!r}) first, or choose another name.")
        if not isinstance(task, Task):
            raise TypeError(f"Task {name!r}: expected a task such as Classification(num_labels=2), got {task!r}.")
        head = self._make_head(name, task)
        head.apply(self._init_weights)
        self.heads[name] = head.to(self.encoder.device, self.encoder.dtype).train(self.training)
        self.tasks[name] = task
        self.config.tasks[name] = task.to_dict()

    def remove_task(self, name: str) -> None:
        """
        Removes a task and its head.

        Raises:
            `ValueError`: an unknown task, or the only one.
        """
        self._known(name)
        if len(self.tasks) == 1:
            raise ValueError(f"Task {name!r} is the only one left: add another before you remove it.")
        del self.heads[name], self.tasks[name], self.config.tasks[name]

    def _make_head(self, name: str, task: Task) -> nn.Module:
        try:
            return make_head(task, self.encoder)
        except ValueError as error:
            raise ValueError(f"Task {name!r}: {error}") from error

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MaskedLanguageModelingHead):
            init.zeros_(module.bias)

    def _known(self, task: str) -> str:
        if task not in self.tasks:
            raise ValueError(f"Unknown task {task!r}: this model has {', '.join(map(repr, self.tasks))}.")
        return task


def _by_name(task: Any, names: list[str], labels: Any) -> dict[str, Tensor]:
    """The labels of a forward pass by task."""
    if labels is None:
        return {}
    if task is None:
        raise ValueError("labels belong to a task: pass task=... with them.")
    if isinstance(task, str) and not isinstance(labels, Mapping):
        return {task: labels}
    if isinstance(task, str) or not isinstance(labels, Mapping):
        raise ValueError(
            f"task={task!r} and labels of type {type(labels).__name__} do not go together: one task takes a tensor, several "
            "in a list take a dictionary of tensors by task."
        )
    for name in labels:
        if name not in names:
            raise ValueError(f"labels hold {name!r}, which is none of the tasks asked for, {names}.")
    return dict(labels)


def _load_encoder(name: str | PathLike, dtype: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """The encoder, and the names of the weights that its checkpoint lacks."""
    auto_class = _auto_class(AutoConfig.from_pretrained(name, **kwargs))
    encoder, info = auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True, **kwargs)
    return encoder, info["missing_keys"]


def _auto_class(config: PreTrainedConfig) -> type[AutoModel] | type[AutoModelForTextEncoding]:
    """`AutoModel`, or where that is an encoder with a decoder (T5 and its family) the class of the encoder alone."""
    model_class: Any = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    alone = model_class is not None and model_class.__name__.endswith("EncoderModel")
    return AutoModelForTextEncoding if alone else AutoModel


def _check_encoder(encoder: Any) -> None:
    """Refuses what a saved model could not be built with again from its configuration."""
    if not isinstance(encoder, PreTrainedModel):
        raise TypeError(
            f"encoder must be the name or folder of a transformers model, or one itself, got {type(encoder).__name__}. "
            "MultiTaskTrainer also trains modules of your own, whose forward(task=..., **batch) gives a loss."
        )
    if isinstance(encoder, MultiTaskModel):
        raise ValueError("encoder is a MultiTaskModel already: give it heads with add_task, or pass its .encoder.")
    mapping = MODEL_MAPPING if _auto_class(encoder.config) is AutoModel else MODEL_FOR_TEXT_ENCODING_MAPPING
    known: Any = mapping.get(type(encoder.config), ())
    known = known if isinstance(known, tuple) else (known,)
    if type(encoder) not in known:
        raise ValueError(
            f"{type(encoder).__name__} is not what AutoModel builds from {type(encoder.config).__name__} "
            f"({' or '.join(cls.__name__ for cls in known) or 'nothing'}), so a saved model could not be loaded again: "
            "pass the model without its head (.base_model), or make the class known to AutoConfig and AutoModel."
        )


MultiTaskModel.register_for_auto_class("AutoModel")  # see the end of configuration.py
