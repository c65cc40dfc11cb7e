"""The arms of peers.py: the model and its batches by size, and the training of it by each of them."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import shared_input
import step_cost
import torch
from peers_steps import libmtl_step, torchjd_step
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, PrinterCallback, TrainerCallback, TrainerControl

from hf_dbmtl import Classification, MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments


__all__ = ["FLOOR", "OURS", "PEERS", "SIZES", "make_model", "of_a_task", "train"]

# layers, width, heads, vocabulary, rows of a task in a step, tokens
SIZES = {
    "tiny": (1, 16, 2, 50, 2, 4),
    "5M": (4, 256, 4, 8000, 8, 64),
    "22M": (6, 384, 12, 30522, 4, 32),  # MiniLM-L6
    "110M": (12, 768, 12, 30522, 2, 32),  # BERT-base
}
OURS, FLOOR = "hf_dbmtl", "stock Trainer, summed losses"
PEERS = ("LibMTL", "TorchJD", "TorchJD, one task at a time")


def make_model(size: str, tasks: int) -> MultiTaskModel:
    layers, width, heads, vocabulary, *_ = SIZES[size]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = BertModel(config, add_pooling_layer=False)
    declared = {f"task{t}": Classification(3) for t in range(tasks)}
    return MultiTaskModel.from_encoder(encoder, declared, pooling="cls").to(torch.get_default_dtype())


def of_a_task(size: str, options: argparse.Namespace) -> tuple[int, int]:
    """The rows of a task in a step, and the tokens of a row."""
    *_, rows, length = SIZES[size]
    return options.rows or rows, options.tokens or length


def make_batches(size: str, tasks: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches by task, or where the tasks share their input one for all, whose labels are by task."""
    vocabulary = SIZES[size][3]
    rows, length = of_a_task(size, options)
    if options.inputs != "shared":
        return step_cost.make_batches(tasks, vocabulary, rows, length)
    return shared_input.make_batches(tasks, argparse.Namespace(rows=rows, length=length, vocab=vocabulary))


def train(
    arm: str, size: str, tasks: int, steps: int, options: argparse.Namespace, sgd: bool = False, turn: Any = None
) -> MultiTaskModel:
    """Trains by one arm; `turn`, a callback of transformers, is told the end of every step."""
    shared = options.inputs == "shared"
    model, batches = make_model(size, tasks), make_batches(size, tasks, options)
    if arm in (OURS, FLOOR):
        _train_by_trainer(arm == FLOOR, model, batches, steps, sgd, shared, [turn] if turn else [])
        return model
    if arm == "LibMTL":
        step = libmtl_step(model, options.libmtl, shared)
    else:
        step = torchjd_step(model, 1 if arm.endswith("one task at a time") else None, shared)
    optimizer = (torch.optim.SGD if sgd else torch.optim.AdamW)(model.parameters(), lr=1e-2 if sgd else 5e-5)
    model.train()
    control = TrainerControl()
    for number in range(steps):
        step(batches[number % len(batches)])
        optimizer.step()
        if turn is not None:
            turn.on_step_end(None, None, control)
        if control.should_training_stop:
            break
    return model


def _train_by_trainer(
    stock: bool,
    model: MultiTaskModel,
    batches: list,
    steps: int,
    sgd: bool,
    shared: bool,
    callbacks: list[TrainerCallback],
) -> None:
    summed = shared_input.StockTrainer if shared else step_cost.StockTrainer
    dealt = [{"all": batch} for batch in batches] if shared and not stock else batches

    class Fixed(summed if stock else MultiTaskTrainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> DataLoader:
            return self.accelerator.prepare(DataLoader(dealt * (steps // len(dealt) + 1), batch_size=None))

    how = {"optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant"} if sgd else {"optim": "adamw_torch"}
    # what is checked at construction; the batches are trained on
    own = [{"input_ids": [0], "labels": 0}]
    together = [{"input_ids": [0], **dict.fromkeys(model.tasks, 0)}]
    data = {} if stock else {"train_dataset": together if shared else dict.fromkeys(model.tasks, own)}
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            output_dir=folder, max_steps=steps, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=True, balancer="db_mtl", max_grad_norm=0.0, **how,
        )  # fmt: skip
        trainer = Fixed(model=model, args=args, callbacks=callbacks, **data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
