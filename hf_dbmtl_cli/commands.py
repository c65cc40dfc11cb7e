"""The commands, their options and their help."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import Any


__all__ = ["make_parser"]

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
  balancer               db_mtl, ew, log, max_norm, ... (hf-dbmtl balancers lists them); with balancer_kwargs
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

BALANCERS = """\
List the balancing methods: what each looks at in a step, what it keeps in memory, and the paper it is from.

Any loss transform goes with any weighting, with or without `ema` between them: "log+pcgrad", "uw+ema+max_norm".\
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line. `run` of what it parses names the function that runs the command."""
    parser = argparse.ArgumentParser("hf-dbmtl", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    _train(commands)
    _balancers(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up when it is asked for: a checkout that is not installed has none."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(version("hf-dbmtl"))
        parser.exit()


def _command(commands: Any, name: str, help: str, **options: Any) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=help, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
    )
    command.set_defaults(run=f"hf_dbmtl.cli.{name}:run")
    return command


def _takes_settings(command: argparse.ArgumentParser) -> None:
    """A YAML file, and behind it settings that override it, which are left for the command to read."""
    command.add_argument("config", nargs="?", metavar="config.yaml", help="the settings, before those that override it")
    command.set_defaults(settings=[])


def _train(commands: Any) -> None:
    train = _command(
        commands,
        "train",
        "train an encoder on several tasks, from a YAML file",
        usage="hf-dbmtl train config.yaml [--any_setting value ...]",
        description=TRAIN,
        epilog=TRAIN_SETTINGS,
    )
    train.add_argument("--help_all", action="store_true", help="list every setting (takes seconds) and exit")
    _takes_settings(train)


def _balancers(commands: Any) -> None:
    balancers = _command(commands, "balancers", "list the balancing methods", description=BALANCERS)
    balancers.add_argument("--json", action="store_true", help="as JSON, with properties and options")
