"""
A module of one's own in place of a transformer: a small network over scikit-learn's handwritten digits that learns three
things about each: which digit it is, whether it holds a closed loop, and how much ink it took.

What the Trainer asks of a module is a `forward(task=..., **batch)` that returns the task's mean loss over its labelled items
(and, if it likes, `num_items` and `logits`), and which of its parameters the tasks share.

    python examples/own_module.py            # seconds
    python examples/own_module.py --tiny
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from datasets import Dataset
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import EvalPrediction, set_seed

from hf_dbmtl import MultiTaskTrainer, MultiTaskTrainingArguments


class DigitNetwork(nn.Module):
    """A trunk that all tasks share, and a layer for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.outputs = nn.ModuleDict({"digit": nn.Linear(32, 10), "loop": nn.Linear(32, 2), "ink": nn.Linear(32, 1)})

    def forward(self, task: str, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.outputs[task](self.trunk(pixels))
        loss = mse_loss(logits.squeeze(-1), labels.float()) if task == "ink" else cross_entropy(logits, labels)
        return {"loss": loss, "num_items": torch.tensor(len(labels)), "logits": logits}


def make_data(rows: int) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
    digits = load_digits()
    pixels = (digits.data[:rows] / 16).astype(np.float32)
    labels = {
        "digit": digits.target[:rows].tolist(),
        "loop": np.isin(digits.target[:rows], [0, 6, 8, 9]).astype(int).tolist(),
        "ink": digits.data[:rows].sum(1).tolist(),  # in the hundreds: its loss would drown the others' in a sum
    }
    sets = {task: Dataset.from_dict({"pixels": pixels, "labels": values}) for task, values in labels.items()}
    split = {task: one.train_test_split(0.25, seed=0) for task, one in sets.items()}
    return {task: one["train"] for task, one in split.items()}, {task: one["test"] for task, one in split.items()}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def error(prediction: EvalPrediction) -> dict[str, float]:
    return {"mean_error": float(np.abs(prediction.predictions.squeeze(-1) - prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few rows and steps, to see that it runs")
    parser.add_argument("--balancer", default="db_mtl", help="try ew beside it (default: %(default)s)")
    parser.add_argument("--output_dir", default="outputs/own_module")
    options = parser.parse_args()

    set_seed(0)
    train, test = make_data(200 if options.tiny else 1797)
    trainer = MultiTaskTrainer(
        model=DigitNetwork(),
        args=MultiTaskTrainingArguments(
            output_dir=options.output_dir,
            balancer=options.balancer,
            num_train_epochs=1 if options.tiny else 10,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            logging_steps=20,
            save_strategy="no",
        ),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics={"digit": accuracy, "loop": accuracy, "ink": error},
        shared_parameters=r"^trunk\.",
    )
    trainer.train()
    metrics = trainer.evaluate()
    print(f"digit: accuracy {metrics['eval_digit_accuracy']:.3f}, loop: accuracy {metrics['eval_loop_accuracy']:.3f}")
    print(f"ink: mean error {metrics['eval_ink_mean_error']:.1f} of {np.mean(test['ink']['labels']):.0f}")


if __name__ == "__main__":
    main()
