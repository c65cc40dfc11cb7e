"""From settings to what trains: the tokenizer, the data of all tasks, the model and its Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import IterableDataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TrainerCallback,
    enable_full_determinism,
    set_seed,
)
from transformers.utils import logging

from hf_dbmtl_cli import CommandError

from ..configuration import MultiTaskConfig
from ..data import JointBatchSampler, rows_per_step
from ..modeling import MultiTaskModel
from ..trainer import MultiTaskTrainer
from ..training_args import MultiTaskTrainingArguments
from .columns import DENSE
from .images import show_whole_images
from .preparation import Data, load_data
from .settings import TrainSettings


__all__ = ["load_tokenizer", "longest_input", "make_trainer", "prepare", "steps"]

NO_LIMIT = 1_000_000  # tokenizers that know of no limit name a much larger number


def prepare(settings: TrainSettings, args: MultiTaskTrainingArguments) -> tuple[Any, Data]:
    """
    Sets the seed, and loads the tokenizer and the data.

    Raises:
        [`CommandError`]: what cannot be loaded, or does not fit together.
    """
    logging.set_verbosity(args.get_process_log_level())
    # the heads are made before the Trainer sets the seed
    enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
    tokenizer, longest = load_tokenizer(settings)
    with args.main_process_first(desc="loading and tokenizing the data"):  # the others find it in the cache
        return tokenizer, load_data(settings, tokenizer, longest)


def load_tokenizer(settings: TrainSettings) -> tuple[Any, int | None]:
    """
    The tokenizer, and how many tokens it and the encoder take (`None` where neither tells); of tasks over images the image
    processor.
    """
    images = [name for name, source in settings.inputs.items() if source.image is not None]
    if images and len(images) < len(settings.inputs):
        texts = [name for name in settings.inputs if name not in images]
        raise CommandError(f"tasks {images} have images and {texts} have texts, and one encoder reads one of the two.")
    name = settings.model_name_or_path
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    what = "model_name_or_path"
    try:
        config = AutoConfig.from_pretrained(name, revision=settings.model_revision or "main", **options)
        if settings.tokenizer_name is None:
            options["revision"] = settings.model_revision or "main"
        else:
            what, name = "tokenizer_name", settings.tokenizer_name
        tokenizer = (AutoImageProcessor if images else AutoTokenizer).from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise CommandError(f"{what} '{name}' could not be loaded: {' '.join(str(error).split())}") from error
    if isinstance(config, MultiTaskConfig):
        raise CommandError(
            f"model_name_or_path '{settings.model_name_or_path}' has its heads already: name its encoder, or go on "
            "with an interrupted run by --resume_from_checkpoint."
        )
    if images:
        if any(task.kind in DENSE for task in settings.tasks.values()):
            show_whole_images(tokenizer)
        return tokenizer, None
    if tokenizer.pad_token is None:  # decoders have none; what is padded is masked
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, longest_input(tokenizer, config)


def longest_input(tokenizer: Any, config: PreTrainedConfig) -> int | None:
    """How many tokens the tokenizer and an encoder of this configuration take; `None` where neither tells."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    longest = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", None) or NO_LIMIT)
    return longest if longest < NO_LIMIT else None


def make_trainer(
    settings: TrainSettings,
    args: MultiTaskTrainingArguments,
    tokenizer: Any,
    data: Data,
    callbacks: Sequence[TrainerCallback] = (),
) -> MultiTaskTrainer:
    """
    The Trainer of a new model for the tasks of `data`.

    Raises:
        [`CommandError`]: what the model or the Trainer refuses; it names the task, the value and the remedy.
    """
    options: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    if settings.model_revision is not None:
        options["revision"] = settings.model_revision
    if args.make_balancer().validates and not data.validation:
        raise CommandError(
            f"balancer '{args.balancer}' tunes its weights on rows that are neither trained nor evaluated on: hold some out "
            "in the dataset of every task that is to become better (validation_fraction: 0.1, or split.validation)."
        )
    try:
        model = MultiTaskModel.from_encoder(
            settings.model_name_or_path, data.tasks, pooling=settings.pooling, processing_class=tokenizer, **options
        )
        return MultiTaskTrainer(
            model=model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.eval or None,
            validation_dataset=data.validation or None,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
    except (OSError, TypeError, ValueError) as error:  # they name the task, the value and the remedy
        raise CommandError(str(error)) from error


def steps(data: Data, args: MultiTaskTrainingArguments) -> tuple[dict[str, int], int]:
    """The rows of each task, or of its group, in an optimizer step, and the steps of an epoch, 0 where nobody knows."""
    parts = args.gradient_accumulation_steps * args.world_size
    per_task: Any = args.per_task_batch_size
    if any(isinstance(rows, IterableDataset) for rows in data.train.values()):  # mixed equally, until max_steps
        sizes = dict.fromkeys(data.train, 1)
        return rows_per_step(sizes, args.train_batch_size, parts, per_task_batch_size=per_task), 0
    sizes = {name: len(rows) for name, rows in data.train.items()}
    rows = rows_per_step(sizes, args.train_batch_size, parts, args.mixing, args.mixing_temperature, per_task)
    sampler = JointBatchSampler(
        sizes, rows, parts, stopping_strategy=args.stopping_strategy, drop_last=args.dataloader_drop_last
    )
    return rows, sampler.steps
