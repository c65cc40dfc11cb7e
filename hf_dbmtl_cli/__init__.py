"""
What the console script `hf-dbmtl` starts with: the commands and their help. It stands beside `hf_dbmtl` because
importing anything in there brings torch in, which takes seconds, and a question for help should not wait for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version


__all__ = ["CommandError", "main"]


class CommandError(Exception):
    """What the person at the command line can mend: shown without a traceback."""


DESCRIPTION = "Multi-task fine-tuning with the Hugging Face Trainer, the encoder's gradients balanced by DB-MTL."

TRAIN = """\
Train one encoder on several tasks, evaluate it, and leave a folder with the model, its card, a plot and the metrics.

The YAML file holds the settings, the command line wins over it. Each setting has one name in both:

  learning_rate: 2e-5                  --learning_rate 3e-5
  balancer_kwargs: {beta: 0.9}         --balancer_kwargs.beta 0.5
  tasks: {mrpc: {text: [a, b]}}        --tasks.mrpc.text a b\
"""

TRAIN_SETTINGS = """\
the main settings (every one, those of transformers' TrainingArguments included: hf-dbmtl train --help_all):
  model_name_or_path     an encoder of the Hub, or a folder
  pooling                what sequence-level heads see: pooler, cls, mean or last
  max_length             tokens of an input
  max_train_samples      rows of each task, also per task; likewise max_eval_samples
  output_dir             where everything goes
  balancer               db_mtl, ew, log, max_norm, ...; with balancer_kwargs
  learning_rate, num_train_epochs, max_steps, per_device_train_batch_size (rows of each task), seed, ...

tasks, each under its name:
  kind                   classification, multi_label_classification, regression or token_classification
  dataset                path (on the Hub or here), name, revision, split: {train, eval}, data_files, delimiter,
                         eval_fraction (held out of the training data)
  text, label            columns; two texts make a pair, several labels a vector
  label_names or num_labels, main_metric, dropout, max_train_samples, max_eval_samples

several processes: torchrun --nproc_per_node 2 -m hf_dbmtl train config.yaml
               or: accelerate launch -m hf_dbmtl train config.yaml\
"""


def main(argv: Sequence[str] | None = None) -> None:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments behind the name of the program; by default those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    if len(arguments) > 1 and {"-h", "--help"} & set(arguments[1:]):
        arguments = [arguments[0], "--help"]  # wherever it stands, also among the settings
    given, unknown = parser.parse_known_args(arguments or ["--help"])
    if unknown:
        parser.error(f"{unknown[0]}: name the command and its file first, then what overrides the file.")
    module, _, name = given.run.partition(":")
    try:
        getattr(import_module(module), name)(given)
    except CommandError as error:
        parser.exit(2, f"hf-dbmtl {given.command}: error: {error}\n")


class _Version(argparse.Action):
    """Looks the version up when it is asked for: a checkout that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version("hf-dbmtl"))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("hf-dbmtl", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    train = commands.add_parser(
        "train",
        help="train an encoder on several tasks, from a YAML file",
        usage="hf-dbmtl train config.yaml [--any_setting value ...]",
        description=TRAIN,
        epilog=TRAIN_SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument("--help_all", action="store_true", help="list every setting (takes seconds) and exit")
    train.add_argument("config", nargs="?", metavar="config.yaml", help="the settings, before those that override it")
    train.add_argument("settings", nargs=argparse.REMAINDER, metavar="--any_setting value", help="override the file's")
    train.set_defaults(run="hf_dbmtl.cli.train:run")
    return parser
