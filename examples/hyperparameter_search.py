"""
A search over the learning rate and the balancer, on the digits of `own_module.py`. What is maximised is the average of the
tasks' main metrics, `eval_average`; give `compute_objective` for another.

    pip install optuna
    python examples/hyperparameter_search.py            # a minute
    python examples/hyperparameter_search.py --tiny
"""

from __future__ import annotations

import argparse
from typing import Any

from own_module import DigitNetwork, accuracy, make_data

from hf_dbmtl import MultiTaskTrainer, MultiTaskTrainingArguments


def space(trial: Any) -> dict[str, Any]:
    """What is tried: any training argument, the balancer among them."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "balancer": trial.suggest_categorical("balancer", ["ew", "log", "db_mtl"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few rows, steps and trials, to see that it runs")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--output_dir", default="outputs/hyperparameter_search")
    options = parser.parse_args()

    train, test = make_data(200 if options.tiny else 1797)
    both = ("digit", "loop")
    trainer = MultiTaskTrainer(
        model_init=lambda trial: DigitNetwork(),  # every trial starts anew
        args=MultiTaskTrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=1 if options.tiny else 5,
            per_device_train_batch_size=32,
            eval_strategy="epoch",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset={task: train[task] for task in both},
        eval_dataset={task: test[task] for task in both},
        compute_metrics=accuracy,
        shared_parameters=r"^trunk\.",
    )
    best = trainer.hyperparameter_search(space, n_trials=2 if options.tiny else options.trials, backend="optuna")
    print(f"average accuracy {best.objective:.3f} with {best.hyperparameters}")


if __name__ == "__main__":
    main()
