"""What the fields of TrainingArguments do under a MultiTaskTrainer: for each a small run that shows its effect."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from helpers import LENGTH, TASKS, arguments, flat, tiny_data, tiny_model
from test_evaluation import ObjectModule, object_data
from torch import Tensor
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_dbmtl import MultiTaskTrainer


Probe = Callable[[Path, "Seeing"], None]
PROBES: dict[str, Probe] = {}

TWO = {"topic": TASKS["topic"], "score": TASKS["score"]}
ROWS, BATCH = 16, 8
GIVEN = ("callbacks", "compute_metrics", "data_collator", "optimizers", "shared_parameters")


def probe(*fields: str) -> Callable[[Probe], Probe]:
    """Registers a function of (folder, the run with nothing set) as the probe of these fields."""

    def register(function: Probe) -> Probe:
        assert not PROBES.keys() & set(fields)
        PROBES.update(dict.fromkeys(fields, function))
        return function

    return register


class Seeing(MultiTaskTrainer):
    """Keeps the rows of every micro-batch by task."""

    poison: float | None = None  # what the loss of the first step is multiplied by

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen: list[dict[str, list]] = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen.append({task: batch["input_ids"].tolist() for task, batch in inputs.items()})
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if self.poison is not None and self.state.global_step == 0:
            loss = loss * self.poison
        return (loss, outputs) if return_outputs else loss


def make(
    folder: Path, data: dict | None = None, dropout: float = 0.0, kind: type[Seeing] = Seeing, **options
) -> Seeing:
    given = {key: options.pop(key) for key in GIVEN if key in options}
    data = data or tiny_data(TWO, rows=ROWS)
    model = tiny_model(TWO, dropout, dtype=torch.float32)
    args = arguments(folder, **options)
    return kind(model=model, args=args, train_dataset=data, eval_dataset=data, **given)


def run(folder: Path, resume: Path | None = None, **options: Any) -> Seeing:
    trainer = make(folder, **options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def weights(trainer: MultiTaskTrainer) -> Tensor:
    return flat(trainer.model.state_dict().values())


def logged(trainer: MultiTaskTrainer, key: str = "loss") -> list[float]:
    return [record[key] for record in trainer.state.log_history if key in record]


def logged_at(trainer: MultiTaskTrainer, key: str) -> list[int]:
    return [record["step"] for record in trainer.state.log_history if key in record]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


# ---- how long, how much, how fast


@probe("per_device_train_batch_size", "num_train_epochs", "max_steps")
def lengths_of_a_run(folder: Path, plain: Seeing) -> None:
    assert plain.state.global_step == ROWS / BATCH
    assert [[len(rows) for rows in batch.values()] for batch in plain.seen] == [[BATCH, BATCH]] * 2
    smaller = run(folder, per_device_train_batch_size=4, num_train_epochs=2)
    assert [[len(rows) for rows in batch.values()] for batch in smaller.seen] == [[4, 4]] * 8
    assert run(folder, max_steps=3).state.global_step == 3


@probe("gradient_accumulation_steps")
def accumulation(folder: Path, plain: Seeing) -> None:
    trainer = run(folder, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    assert trainer.state.global_step == 2 and len(trainer.seen) == 4
    assert torch.allclose(weights(trainer), weights(plain), atol=1e-6)
    assert not torch.allclose(weights(run(folder, per_device_train_batch_size=4)), weights(plain), atol=1e-3)


@probe("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
def learning_rates(folder: Path, plain: Seeing) -> None:
    options = {"learning_rate": 1e-3, "max_steps": 4}
    assert logged(run(folder, **options), "learning_rate") == [1e-3] * 4
    linear = {**options, "lr_scheduler_type": "linear"}
    assert logged(run(folder, **linear), "learning_rate") == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert logged(run(folder, **linear, warmup_steps=2), "learning_rate") == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    assert logged(run(folder, **linear, warmup_steps=0.5), "learning_rate") == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    cosine = {**options, "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 1.0}}
    expected = [1e-3 * 0.5 * (1 + math.cos(2 * math.pi * step / 4)) for step in range(4)]
    assert logged(run(folder, **cosine), "learning_rate") == pytest.approx(expected, abs=1e-12)
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0, "factor": 0.5}}
    evaluated = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "average"}
    rates = logged(run(folder, **{**options, "learning_rate": 1e-6}, **plateau, **evaluated), "learning_rate")
    assert rates == pytest.approx([1e-6, 1e-6, 5e-7, 2.5e-7])  # the average hardly moves: every evaluation is a bad one


@probe("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
def optimizers(folder: Path, plain: Seeing) -> None:
    names = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
    ends = {name: run(folder / name, optim=name, max_steps=2) for name in names}
    kinds = ["AdamW", "AdamW", "Adafactor", "SGD", "Adagrad", "RMSprop"]
    assert [type(trainer.optimizer.optimizer).__name__ for trainer in ends.values()] == kinds
    start = flat(tiny_model(TWO, dtype=torch.float32).state_dict().values())
    distinct = [*(weights(trainer) for trainer in ends.values() if trainer is not ends["adamw_torch_fused"]), start]
    assert all(not torch.allclose(a, b, atol=1e-6) for i, a in enumerate(distinct) for b in distinct[:i])
    adam = {"adam_beta1": 0.5, "adam_beta2": 0.6, "adam_epsilon": 0.1, "weight_decay": 0.3}
    decayed, not_decayed = run(folder, optim="adamw_torch", max_steps=1, **adam).optimizer.param_groups
    assert decayed["betas"] == (0.5, 0.6) and decayed["eps"] == 0.1
    assert decayed["weight_decay"] == 0.3 and not_decayed["weight_decay"] == 0.0
    assert run(folder, optim_args="momentum=0.9", max_steps=1).optimizer.param_groups[0]["momentum"] == 0.9


@probe("max_grad_norm")
def clipping(folder: Path, plain: Seeing) -> None:
    assert plain.args.max_grad_norm == 0 and min(logged(plain, "grad_norm")) > 1e-2
    clipped = run(folder, max_steps=1, max_grad_norm=1e-2)
    moved = weights(clipped) - flat(tiny_model(TWO, dtype=torch.float32).state_dict().values())
    assert moved.norm().item() == pytest.approx(1e-2 * clipped.args.learning_rate, rel=1e-2)


@probe("auto_find_batch_size")
def smaller_batches_where_memory_ends(folder: Path, plain: Seeing) -> None:
    class Small(Seeing):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > 7:
                raise RuntimeError("CUDA out of memory.")
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = run(folder, kind=Small, auto_find_batch_size=True)
    assert trainer.state.train_batch_size == 7 == len(trainer.seen[-1]["score"])
    assert trainer.state.global_step == 3 == trainer.balancer.steps


# ---- numbers and memory


@probe("bf16", "bf16_full_eval", "fp16_full_eval")
def half_precision(folder: Path, plain: Seeing) -> None:
    trainer = run(folder, bf16=True)
    assert logged(trainer) == pytest.approx(logged(plain), rel=0.05) and logged(trainer) != logged(plain)
    assert next(trainer.model.parameters()).dtype == torch.float32
    whole = make(folder).evaluate()
    for field, dtype in (("bf16_full_eval", torch.bfloat16), ("fp16_full_eval", torch.float16)):
        half = make(folder, **{field: True})
        metrics = half.evaluate()
        assert next(half.model.parameters()).dtype == dtype
        assert metrics["eval_loss"] == pytest.approx(whole["eval_loss"], rel=0.05)
        assert metrics["eval_loss"] != whole["eval_loss"]


def layer_runs(trainer: Seeing) -> int:
    """How often a layer of the encoder runs forward, in training."""
    calls = []
    for layer in trainer.model.encoder.encoder.layer:
        layer.attention.self.query.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    return len(calls)


@probe(
    "activation_checkpointing",
    "activation_checkpointing_kwargs",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
)
def checkpointing(folder: Path, plain: Seeing) -> None:
    once = 2 * 2 * 2  # steps, tasks, layers
    assert layer_runs(make(folder)) == once
    every = make(folder, activation_checkpointing=True)
    assert layer_runs(every) == 2 * once
    assert torch.equal(weights(every), weights(plain))
    half = make(folder, activation_checkpointing=True, activation_checkpointing_kwargs={"every_n_layers": 2})
    assert layer_runs(half) == 1.5 * once
    with pytest.warns(FutureWarning, match="gradient_checkpointing"):
        old = make(folder, gradient_checkpointing=True, gradient_checkpointing_kwargs={"every_n_layers": 2})
    assert layer_runs(old) == 1.5 * once


@probe("neftune_noise_alpha")
def noise_on_embeddings(folder: Path, plain: Seeing) -> None:
    noisy = run(folder, neftune_noise_alpha=5.0)
    assert logged(noisy)[0] != logged(plain)[0]
    assert noisy.evaluate() and not noisy.model.get_input_embeddings()._forward_hooks  # taken off at the end


@probe("torch_empty_cache_steps")
def emptied_cache(folder: Path, plain: Seeing) -> None:
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_dbmtl.trainer.clear_device_cache", lambda: calls.append(1))
        run(folder, max_steps=4)
        assert calls == []
        run(folder, max_steps=4, torch_empty_cache_steps=2)
    assert calls == [1, 1]


@probe("skip_memory_metrics")
def measured_memory(folder: Path, plain: Seeing) -> None:
    trainer = make(folder, skip_memory_metrics=False, max_steps=1)
    assert "train_mem_cpu_alloc_delta" in trainer.train().metrics
    assert "eval_mem_cpu_alloc_delta" in trainer.evaluate()
    assert "eval_mem_cpu_alloc_delta" not in make(folder).evaluate()


@probe("debug")
def overflow_found(folder: Path, plain: Seeing) -> None:
    trainer = make(folder, debug="underflow_overflow")
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight.fill_(math.inf)
    with pytest.raises(ValueError, match="inf/nan"):
        trainer.train()


# ---- what is logged


@probe("logging_strategy", "logging_steps", "logging_first_step")
def log_records(folder: Path, plain: Seeing) -> None:
    assert logged_at(plain, "loss") == [1, 2] == logged_at(plain, "loss/score")
    options = {"per_device_train_batch_size": 4}
    mean = fmean(logged(run(folder, **options), "loss/score")[:3])
    trainer = run(folder, **options, logging_steps=3, logging_first_step=True)
    assert logged_at(trainer, "loss") == logged_at(trainer, "weight/topic") == [1, 3]
    every_third = run(folder, **options, logging_steps=3)
    assert logged(every_third, "loss/score") == pytest.approx([mean])  # over the steps since the last record
    again = run(folder, **options, learning_rate=0.0, logging_steps=3)
    first = logged(again, "loss/score")
    again.train()  # the fourth step of the run before does not enter the first record of this one
    assert logged(again, "loss/score") == pytest.approx(first)
    assert logged_at(run(folder, **options, logging_strategy="epoch", num_train_epochs=2), "loss/score") == [4, 8]
    assert logged_at(run(folder, **options, logging_strategy="no"), "loss") == []


@probe("logging_nan_inf_filter")
def non_finite_losses_logged(folder: Path, plain: Seeing) -> None:
    kind = type("Poisoned", (Seeing,), {"poison": math.nan})
    assert math.isfinite(logged(run(folder, kind=kind))[0])
    assert math.isnan(logged(run(folder, kind=kind, logging_nan_inf_filter=False))[0])


@probe("include_num_input_tokens_seen")
def tokens_counted(folder: Path, plain: Seeing) -> None:
    def padded(row: dict) -> dict:
        return {"attention_mask": [1] * 3 + [0] * (LENGTH - 3)}

    data = {task: dataset.map(padded) for task, dataset in tiny_data(TWO, rows=ROWS).items()}
    everything = run(folder, data=data, include_num_input_tokens_seen=True)
    assert logged(everything, "num_input_tokens_seen") == [2 * BATCH * LENGTH, *[2 * ROWS * LENGTH] * 2]
    attended = run(folder, data=data, include_num_input_tokens_seen="non_padding")
    assert attended.state.num_input_tokens_seen == 2 * ROWS * 3
    assert plain.state.num_input_tokens_seen == 0
    parameters = plain.model.num_parameters(exclude_embeddings=True)
    assert plain.state.total_flos == 6 * parameters * 2 * ROWS * LENGTH


# ---- evaluation


@probe("eval_strategy", "eval_steps", "eval_delay", "eval_on_start")
def evaluations(folder: Path, plain: Seeing) -> None:
    assert logged_at(plain, "eval_loss") == []
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 1}
    assert logged_at(run(folder, **options), "eval_loss") == [1, 2, 3, 4]
    assert logged_at(run(folder, **options, eval_delay=3), "eval_loss") == [3, 4]
    epochs = {"eval_strategy": "epoch", "eval_on_start": True, "num_train_epochs": 2}
    assert logged_at(run(folder, **epochs), "eval_average") == [0, 2, 4]


@probe("per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only", "include_for_metrics")
def evaluation_steps(folder: Path, plain: Seeing) -> None:
    class Count(TrainerCallback):
        steps = 0

        def on_prediction_step(self, *args, **kwargs):
            self.steps += 1

    whole = make(folder).evaluate()
    numbers = [key for key in whole if not key.endswith(("runtime", "second", "time"))]
    for options, steps in (({"per_device_eval_batch_size": 4}, 8), ({"eval_accumulation_steps": 1}, 4)):
        count = Count()
        metrics = make(folder, callbacks=[count], **options).evaluate()
        assert count.steps == steps
        assert [metrics[key] for key in numbers] == pytest.approx([whole[key] for key in numbers], rel=1e-5)
    losses = make(folder, prediction_loss_only=True)
    keys = {"eval_topic_loss", "eval_score_loss", "eval_loss"}
    assert keys == {key for key in losses.evaluate() if key in numbers} - {"epoch"}
    given: list[tuple] = []
    metric = {"compute_metrics": {"topic": lambda p: given.append((p.inputs, p.losses)) or {"n": 1.0}}}
    make(folder, **metric).evaluate()
    make(folder, **metric, include_for_metrics=["inputs", "loss"]).evaluate()
    assert given[0] == (None, None)
    assert given[1][0].tolist() == tiny_data(TWO, rows=ROWS)["topic"]["input_ids"][:] and given[1][1].shape == (ROWS,)


@probe("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
def best_model(folder: Path, plain: Seeing) -> None:
    choices = [
        ({"metric_for_best_model": "average"}, "eval_average", max),
        ({}, "eval_loss", min),
        ({"metric_for_best_model": "loss", "greater_is_better": True}, "eval_loss", max),
        ({"metric_for_best_model": "score_r2"}, "eval_score_r2", max),
    ]
    for number, (options, key, best) in enumerate(choices):
        options = {**options, **EVERY_STEP, "max_steps": 3, "learning_rate": 0.3}
        trainer = run(folder / str(number), **options, load_best_model_at_end=True)
        values = logged(trainer, key)
        assert len(set(values)) == 3 and trainer.state.best_metric == best(values)
        assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{1 + values.index(best(values))}")
        assert trainer.evaluate()[key] == pytest.approx(best(values), rel=1e-5)
    with pytest.raises(KeyError, match="'eval_topics_accuracy', which is not found .*'eval_topic_accuracy'"):
        run(folder, **{**options, "metric_for_best_model": "topics_accuracy"})


# ---- checkpoints


@probe("output_dir", "save_strategy", "save_steps", "save_total_limit", "save_only_model")
def saved(folder: Path, plain: Seeing) -> None:
    assert checkpoints(Path(plain.args.output_dir)) == []
    steps = {"max_steps": 4, "save_strategy": "steps"}
    run(folder / "all", **steps, save_steps=2)
    assert checkpoints(folder / "all") == ["checkpoint-2", "checkpoint-4"]
    run(folder / "last", **steps, save_steps=1, save_total_limit=2)
    assert checkpoints(folder / "last") == ["checkpoint-3", "checkpoint-4"]
    run(folder / "epochs", save_strategy="epoch", num_train_epochs=2)
    assert checkpoints(folder / "epochs") == ["checkpoint-2", "checkpoint-4"]
    best = {
        **EVERY_STEP,
        "save_strategy": "best",
        "metric_for_best_model": "loss",
        "max_steps": 3,
        "learning_rate": 0.0,
    }
    run(folder / "best", **best)
    assert checkpoints(folder / "best") == ["checkpoint-1"]  # nothing is learned
    state = {"optimizer.pt", "balancer.safetensors", "rng_state.pth"}
    assert state <= {path.name for path in (folder / "all" / "checkpoint-4").iterdir()}
    run(folder / "model", **steps, save_steps=4, save_only_model=True)
    names = {path.name for path in (folder / "model" / "checkpoint-4").iterdir()}
    assert "model.safetensors" in names and not state & names


@probe("ignore_data_skip", "restore_callback_states_from_checkpoint")
def resumed(folder: Path, plain: Seeing) -> None:
    def options(patience: int) -> dict[str, Any]:
        stop = {"callbacks": [EarlyStoppingCallback(patience)], "metric_for_best_model": "loss"}
        return {**EVERY_STEP, **stop, "max_steps": 4, "per_device_train_batch_size": 4}

    whole = run(folder / "whole", **options(7))
    middle = folder / "whole" / "checkpoint-2"
    on = run(folder / "on", middle, **options(5))
    assert on.seen == whole.seen[2:]
    anew = run(folder / "anew", middle, **options(5), ignore_data_skip=True)
    assert anew.seen == whole.seen[:2]
    restored = run(folder / "restored", middle, **options(5), restore_callback_states_from_checkpoint=True)

    def patience(trainer: Seeing) -> int:
        (callback,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback))
        return callback.early_stopping_patience

    assert (patience(on), patience(restored)) == (5, 7)


# ---- data


@probe("seed", "data_seed")
def seeds(folder: Path, plain: Seeing) -> None:
    base = run(folder, dropout=0.3)
    assert logged(run(folder, dropout=0.3)) == logged(base)
    other = run(folder, dropout=0.3, seed=1)
    assert other.seen != base.seen and logged(other) != logged(base)
    other_rows = run(folder, dropout=0.3, data_seed=1)
    assert other_rows.seen == other.seen != base.seen
    other_dropout = run(folder, dropout=0.3, seed=1, data_seed=42)
    assert other_dropout.seen == base.seen and logged(other_dropout) != logged(base)


@probe("dataloader_drop_last")
def last_step_dropped(folder: Path, plain: Seeing) -> None:
    data = tiny_data(TWO, rows=20)
    assert run(folder, data=data).state.global_step == 3  # the last of which begins anew with the rows
    assert run(folder, data=data, dataloader_drop_last=True).state.global_step == 2


@probe(
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_multiprocessing_context",
    "dataloader_in_order",
)
def loaders(folder: Path, plain: Seeing) -> None:
    options: dict[str, Any] = {
        "num_workers": 2,
        "persistent_workers": True,
        "prefetch_factor": 3,
        "multiprocessing_context": "fork",
        "in_order": False,
    }
    named = {f"dataloader_{key}": value for key, value in options.items()}
    loader = make(folder, **named, dataloader_pin_memory=False, use_cpu=False).get_train_dataloader()
    assert {key: getattr(loader, key) for key in options if key != "multiprocessing_context"} == {
        key: value for key, value in options.items() if key != "multiprocessing_context"
    }
    assert loader.multiprocessing_context.get_start_method() == "fork" and loader.pin_memory is False
    assert make(folder, use_cpu=False).get_train_dataloader().pin_memory is True
    working = run(folder, dataloader_num_workers=1, dataloader_persistent_workers=True, num_train_epochs=2)
    assert working.seen == run(folder, num_train_epochs=2).seen


@probe("remove_unused_columns")
def columns(folder: Path, plain: Seeing) -> None:
    data = {task: dataset.add_column("extra", [1] * ROWS) for task, dataset in tiny_data(TWO, rows=ROWS).items()}

    def keys(**options) -> set[str]:
        trainer = make(folder, data=data, **options)
        trained = {key for batch in next(iter(trainer.get_train_dataloader())).values() for key in batch}
        with trainer._serving(trainer.units["topic"]):
            return trained & set(next(iter(trainer.get_eval_dataloader("topic"))))

    assert keys() == {"input_ids", "attention_mask", "labels"}
    assert keys(remove_unused_columns=False) == keys() | {"extra"}


@probe("train_sampling_strategy", "length_column_name")
def orders(folder: Path, plain: Seeing) -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = {name: torch.randperm(32, generator=generator).tolist() for name in ("length", "long")}
    data = {
        task: dataset.add_column("length", lengths["length"]).add_column("long", lengths["long"])
        for task, dataset in tiny_data(TWO, rows=32).items()
    }
    ids = {task: dataset["input_ids"][:] for task, dataset in data.items()}
    sequential = run(folder, data=data, train_sampling_strategy="sequential")
    for task, rows in ids.items():
        assert [row for batch in sequential.seen for row in batch[task]] == rows
        assert [row for batch in run(folder, data=data).seen for row in batch[task]] != rows

    def spread(trainer: Seeing, task: str, column: str) -> float:
        """How far apart the lengths in a batch are, on average."""
        taken = [[lengths[column][ids[task].index(row)] for row in batch[task]] for batch in trainer.seen]
        return fmean(max(batch) - min(batch) for batch in taken)

    options = {"data": data, "per_device_train_batch_size": 2, "train_sampling_strategy": "group_by_length"}
    for column, other in (("length", "long"), ("long", "length")):
        grouped = run(folder, length_column_name=column, **options)
        for task in ids:
            assert spread(grouped, task, column) < 6 < spread(grouped, task, other)


@probe("label_names")
def labels_of_a_users_module(folder: Path, plain: Seeing) -> None:
    data = object_data(8)
    for names, found in ((None, False), (["target"], True)):
        trainer = MultiTaskTrainer(ObjectModule(), arguments(folder, label_names=names), eval_dataset=data)
        assert ("eval_loss" in trainer.evaluate()) == found
        assert (trainer.predict(data)["height"].label_ids is not None) == found


@probe("accelerator_config")
def accelerators_options(folder: Path, plain: Seeing) -> None:
    config = {"gradient_accumulation_kwargs": {"num_steps": 2}}
    trainer = run(folder, per_device_train_batch_size=4, accelerator_config=config)
    assert trainer.state.global_step == 2 and len(trainer.seen) == 4
