"""`hf-dbmtl evaluate`: a trained model on the evaluation data of a YAML file."""

from __future__ import annotations

import argparse

from rich.console import Console
from transformers.utils import logging

from hf_dbmtl_cli import CommandError

from ..trainer import MultiTaskTrainer
from .building import longest_input
from .config import read_config
from .launching import relaunch
from .models import load_model
from .preparation import load_evaluation
from .tables import results_table


__all__ = ["run"]


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    if given.config is None:
        raise CommandError("name the YAML file: hf-dbmtl evaluate config.yaml [--model folder]")
    settings, args = read_config(given.config, given.settings)
    relaunch(given, args.use_cpu or args.device.type == "cpu")
    logging.set_verbosity(args.get_process_log_level())
    model, tokenizer = load_model(given.model or str(args.output_dir))
    with args.main_process_first(desc="loading and tokenizing the data"):
        data = load_evaluation(settings, model.tasks, tokenizer, longest_input(tokenizer, model.config.encoder))
    if not data.eval:
        raise CommandError("none of the tasks has anything to evaluate on: see eval_fraction, split and data_files.")
    try:
        trainer = MultiTaskTrainer(model=model, args=args, eval_dataset=data.eval, processing_class=tokenizer)
        metrics = trainer.evaluate()
    except (TypeError, ValueError) as error:  # they name the task, the value and the remedy
        raise CommandError(str(error)) from error
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        console = Console()
        console.print(results_table(data.tasks, metrics, data.baselines, data.by_task(data.eval)))
        where = f"Every metric is in {args.output_dir}/eval_results.json."
        console.print(where, highlight=False, markup=False, soft_wrap=True)
