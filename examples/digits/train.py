"""
Three tasks about images, one small vision transformer that starts from nothing, two ways to add up the gradients.

Trains a ViT on scikit-learn's handwritten digits, once on the plain sum of the losses (equal weighting, `ew`) and once
balanced by DB-MTL, from the same weights and on the same batches; evaluates both on images that neither has seen, beside a
predictor that never looks; prints a table, draws what happened, saves the DB-MTL model with its card, asks the saved model
about a few images, and exports one task as a stock checkpoint of transformers.

    python examples/digits/train.py           # offline, a minute or two on two cores
    python examples/digits/train.py --tiny    # the same in seconds
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digit_images import TASKS, Digits, build, processor
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoModel, ViTConfig, pipeline, set_seed

from hf_dbmtl import (
    MultiTaskModel,
    MultiTaskProgressCallback,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    export_task,
)
from hf_dbmtl.card_from_trainer import content_from_trainer
from hf_dbmtl.metrics import baseline_metrics, main_metric
from hf_dbmtl.model_card import create_model_card
from hf_dbmtl.plots import plot_training


NAMES = {"ew": "equal weighting", "db_mtl": "DB-MTL"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/digits"), help="where results go")
    parser.add_argument("--max_steps", type=int, default=500, help="steps of each run (default: 500)")
    parser.add_argument("--batch_size", type=int, default=32, help="rows of each task in a step (default: 32)")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="of the encoder (default: 2e-3)")
    parser.add_argument(
        "--heads_lr_multiplier", type=float, default=10.0, help="of the heads, times that (default: 10)"
    )
    parser.add_argument(
        "--split", choices=["test", "validation"], default="test", help="to evaluate on (default: test)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--tiny", action="store_true", help="few rows and steps, to see that it runs")
    options = parser.parse_args()
    options.rows = 64 if options.tiny else None
    if options.tiny:
        options.max_steps, options.batch_size = 4, 4
    return options


def make_model(seed: int) -> MultiTaskModel:
    """A ViT of 4 layers and 64 units, for patches of 2 x 2 pixels, with random weights; the heads see its CLS token."""
    set_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
    )
    return MultiTaskModel.from_encoder(AutoModel.from_config(config), TASKS, pooling="cls")


def train(balancer: str, options: argparse.Namespace, splits: dict[str, Digits]) -> tuple[MultiTaskTrainer, dict]:
    """One run, evaluated; the trainer and its metrics by task."""
    trainer = MultiTaskTrainer(
        model=make_model(options.seed),
        args=MultiTaskTrainingArguments(
            output_dir=str(options.output_dir / balancer),
            balancer=balancer,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=100,
            learning_rate=options.learning_rate,
            heads_lr_multiplier=options.heads_lr_multiplier,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            logging_steps=max(1, options.max_steps // 100),
            save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=options.seed,
        ),
        train_dataset=splits["train"].datasets(options.rows),
        eval_dataset=splits[options.split].datasets(options.rows),
        processing_class=processor(),
    )
    MultiTaskProgressCallback.replace(trainer)
    trainer.train()
    metrics = trainer.evaluate()
    return trainer, {
        task: {key.removeprefix(f"eval_{task}_"): value for key, value in metrics.items() if f"eval_{task}_" in key}
        for task in TASKS
    }


def show(console: Console, results: dict[str, dict], seconds: dict[str, float]) -> str:
    """Prints the table of main metrics, and gives it as Markdown for a README."""
    columns = list(results)
    heads = ["task", "metric", *(NAMES.get(column, column) for column in columns)]
    table = Table(title="On unseen images", title_justify="left")
    for name in heads:
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * len(columns)]
    for task, declared in TASKS.items():
        metric = main_metric(declared)
        values = [round(results[column][task][metric], 3) + 0.0 for column in columns]  # no -0
        table.add_row(task, metric, *(f"[bold]{v:.3f}[/]" if v == max(values) else f"{v:.3f}" for v in values))
        lines.append(f"| {task} | {metric} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    console.print(table)
    console.print(", ".join(f"{NAMES[name]}: {took:.0f} s" for name, took in seconds.items()))
    return "\n".join(lines) + "\n"


def ask(console: Console, folder: Path, images: list[Image.Image]) -> None:
    """Loads the saved model, and the digit alone as a stock checkpoint, as anyone would, and shows what they say."""
    every = pipeline("multi-task", model=str(folder / "model"), device="cpu")
    export_task(every.model, "digit", folder / "digit", processing_class=every.image_processor)
    alone = pipeline("image-classification", model=str(folder / "digit"), top_k=1, device="cpu")
    table = Table(title=f"Answers of the model loaded from {folder / 'model'}", title_justify="left")
    for name in ("image", "digit", "parity", "ink", f"the stock {type(alone.model).__name__}"):
        table.add_column(name)
    for image, answer, (digit,) in zip(images, every(images, batch_size=len(images)), alone(images)):
        labels = [f"{one['label']} ({one['score']:.0%})" for one in (answer["digit"], answer["parity"], digit)]
        table.add_row(drawn(image), *labels[:2], f"{answer['ink']:.1f} %", labels[2])
        table.add_section()
    console.print(table)


def drawn(image: Image.Image) -> str:
    """An image in letters, two rows of pixels to a line."""
    grey = np.asarray(image.convert("L")).astype(int)
    both = (grey[::2] + grey[1::2]) * 5 // 512
    return "\n".join("".join(" ░▒▓█"[value] * 2 for value in row) for row in both)


def main() -> None:
    options, console = parse(), Console()
    splits, folder = build(), options.output_dir
    labels = [
        {task: one[: options.rows] for task, one in splits[name].labels.items()} for name in ("train", options.split)
    ]
    results: dict[str, Any] = {
        "never looks": {task: baseline_metrics(TASKS[task], *(one[task] for one in labels)) for task in TASKS}
    }
    histories, seconds = {}, {}
    for balancer in NAMES:
        console.rule(NAMES[balancer])
        start = time.time()
        trainer, results[balancer] = train(balancer, options, splits)
        seconds[balancer] = time.time() - start
        histories[NAMES[balancer]] = trainer.state.log_history

    console.rule("Results")
    markdown = show(console, results, seconds)
    trainer.save_model(str(folder / "model"))
    picture = plot_training(histories, folder / "training.png")
    plot_training(histories["DB-MTL"], folder / "model" / "training.png")
    card = content_from_trainer(
        trainer,
        model_name="Three tasks on handwritten digits",
        picture="training.png",
        baselines=results["never looks"],
    )
    create_model_card(card).save(folder / "model" / "README.md")
    (folder / "results.md").write_text(markdown)
    (folder / "results.json").write_text(json.dumps({"results": results, "seconds": seconds}, indent=2))
    ask(console, folder, splits["test"].images[:3])
    console.print(f"The picture: {picture}\nThe model with its card: {folder / 'model'}")


if __name__ == "__main__":
    main()
