"""The arms of peers.py: the model and its batches by size, and the training of it by each of them."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import shared_input
import step_cost
import torch
from accelerate.utils import send_to_device
from peers_steps import TEMPERATURE, find_libmtl, has_db_mtl, libmtl_step, torchjd_step
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, PrinterCallback, TrainerCallback, TrainerControl

from hf_dbmtl import Classification, MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments


__all__ = ["FLOOR", "OURS", "PEERS", "SIZES", "arms_of", "counterpart", "make_model", "of_a_task", "train"]

# layers, width, heads, vocabulary, rows of a task in a step, tokens
SIZES = {
    "tiny": (1, 16, 2, 50, 2, 4),
    "5M": (4, 256, 4, 8000, 8, 64),
    "22M": (6, 384, 12, 30522, 4, 32),  # MiniLM-L6
    "110M": (12, 768, 12, 30522, 2, 32),  # BERT-base
}
OURS, FLOOR = "hf_dbmtl", "stock Trainer, summed losses"
PEERS = ("LibMTL", "TorchJD", "TorchJD, one task at a time")
SGD_RATE = 1e-2  # where updates are compared
# the methods of LibMTL's release that look at losses only, and the options with which ours computes the same
LOSS_ONLY: dict[str, dict[str, Any]] = {
    "EW": {},
    "UW": {"init": -0.5, "learning_rate": SGD_RATE},  # LibMTL learns its weights by the optimizer of the model
    "DWA": {"temperature": TEMPERATURE, "period": 1},
    "RLW": {},
    "GLS": {},
}


def _loss_only(arm: str) -> str | None:
    """The method of an arm like "LibMTL, GLS" or "hf_dbmtl, GLS"; None is DB-MTL, or the floor."""
    name = arm.rpartition(", ")[2]
    return name if name in LOSS_ONLY else None


def counterpart(arm: str) -> str | None:
    """The arm of this package that makes the same update, or None: the draws of RLW are each library's own."""
    method = _loss_only(arm)
    return OURS if method is None else None if method == "RLW" else f"{OURS}, {method}"


def arms_of(options: argparse.Namespace) -> list[str]:
    """
    The floor, this package and the peers that were asked for. LibMTL is an arm where its DB-MTL is there; where it is
    the release, which lacks it, its methods on losses stand in, each with ours beside it.
    """
    arms = [FLOOR, OURS, *(peer for peer in options.peers if peer != "LibMTL")]
    libmtl = find_libmtl(options.libmtl) if "LibMTL" in options.peers else None
    if libmtl is None:
        return arms
    if has_db_mtl(libmtl):
        return [*arms[:2], "LibMTL", *arms[2:]]
    return [*arms, *(f"{library}, {method}" for method in LOSS_ONLY for library in (OURS, "LibMTL"))]


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
    model, batches = make_model(size, tasks), make_batches(size, tasks, options)
    method = _loss_only(arm)
    if arm == FLOOR or arm.startswith(OURS):
        balancer = {"balancer": (method or "db_mtl").lower(), "balancer_kwargs": LOSS_ONLY.get(method or "", {})}
        callbacks = [turn] if turn else []
        _train_by_trainer(None if arm == FLOOR else balancer, model, batches, steps, sgd, options, callbacks)
        return model
    model.to(options.device)
    batches = send_to_device(batches, options.device)  # all at once, and not step by step as a Trainer does
    if arm.startswith("LibMTL"):
        step, parameters = libmtl_step(model, find_libmtl(options.libmtl), method or "DB_MTL", options)
    else:
        step = torchjd_step(model, 1 if arm.endswith("one task at a time") else None, options)
        parameters = model.parameters()
    optimizer = (torch.optim.SGD if sgd else torch.optim.AdamW)(parameters, lr=SGD_RATE if sgd else 5e-5)
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
    balancer: dict[str, Any] | None,
    model: MultiTaskModel,
    batches: list,
    steps: int,
    sgd: bool,
    options: argparse.Namespace,
    callbacks: list[TrainerCallback],
) -> None:
    """With the arguments of a balancer, or without by the stock Trainer."""
    stock, shared = balancer is None, options.inputs == "shared"
    summed = shared_input.StockTrainer if shared else step_cost.StockTrainer
    dealt = [{"all": batch} for batch in batches] if shared and not stock else batches

    class Fixed(summed if stock else MultiTaskTrainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> DataLoader:
            return self.accelerator.prepare(DataLoader(dealt * (steps // len(dealt) + 1), batch_size=None))

    how: dict[str, Any] = {"optim": "adamw_torch", **(balancer or {})}
    if sgd:
        how |= {"optim": "sgd", "learning_rate": SGD_RATE, "lr_scheduler_type": "constant"}
    # what is checked at construction; the batches are trained on
    own = [{"input_ids": [0], "labels": 0}]
    together = [{"input_ids": [0], **dict.fromkeys(model.tasks, 0)}]
    data = {} if stock else {"train_dataset": together if shared else dict.fromkeys(model.tasks, own)}
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            output_dir=folder, max_steps=steps, save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=options.device == "cpu", bf16=options.bf16, max_grad_norm=0.0, **how,
        )  # fmt: skip
        trainer = Fixed(model=model, args=args, callbacks=callbacks, **data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
