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
  kind                   classification, multi_label_classification, regression, token_classification,
                         question_answering, multiple_choice, masked_language_modeling, semantic_segmentation,
                         depth_estimation or surface_normals
  dataset                path (on the Hub or here), name, revision, split: {train, eval}, data_files, delimiter,
                         eval_fraction (held out of the training data)
  text, label            columns; two texts make a pair, several labels a vector; choices, image
  label_names or num_labels, main_metric, dropout, max_train_samples, max_eval_samples

several processes: hf-dbmtl train config.yaml --num_processes 2
               or: torchrun --nproc_per_node 2 -m hf_dbmtl train config.yaml
               or: accelerate launch -m hf_dbmtl train config.yaml\
"""

COMPARE = """\
Train a model for each task alone and one for each balancer, over several seeds, and compare them in one table: mean and
deviation per task, the relative improvement over the single-task models (Δp), time and memory per step.

The file and the settings are those of `hf-dbmtl train`; everything goes to OUTPUT_DIR/compare. The same command, started
again after whatever ended it, goes on with the runs that are not finished.\
"""

EVALUATE = """\
Evaluate a trained model on the evaluation data of a YAML file, those it was trained by or another. Its tasks may be some of the
model's.\
"""

INSPECT = """\
Show what a run will be before it is: tasks and rows, the first row of each as the encoder reads it, rows per step, steps,
shared and head parameters, and the memory that the balancer will take.\
"""

PREDICT = """\
Predict for files or standard input, one JSON object per line out: the row with what the tasks predict. The encoder runs once
for all tasks.

  hf-dbmtl predict outputs/glue reviews.csv --text review
  echo "A fine film." | hf-dbmtl predict outputs/glue --tasks sst2,cola

csv, tsv and jsonl files have columns; any other file is one text per line. Standard input is text per line, or JSON objects.
Tasks that answer questions or choose are asked about rows that have these.\
"""

EXPORT = """\
Write one task of a trained model as a stock checkpoint of transformers, which loads where hf_dbmtl is not installed.\
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
    _compare(commands)
    _inspect(commands)
    _evaluate(commands)
    _predict(commands)
    _export(commands)
    _balancers(commands)
    _command(commands, "env", "show versions and devices, for a bug report")
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


def _takes_processes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--num_processes", type=int, metavar="N", help="run on N processes of this machine")
    command.add_argument(
        "--accelerate_config",
        metavar="NAME",
        help="run as a file says that `accelerate config` wrote (its path or name)",
    )


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
    _takes_processes(train)


def _compare(commands: Any) -> None:
    compare = _command(
        commands,
        "compare",
        "compare balancers with one another and with single-task models",
        usage="hf-dbmtl compare config.yaml --balancers ew,db_mtl [--seeds 3] [--any_setting value ...]",
        description=COMPARE,
    )
    _takes_settings(compare)
    _takes_processes(compare)
    compare.add_argument(
        "--balancers",
        default="ew,db_mtl",
        metavar="NAMES",
        help="with commas between them, or a YAML list with options: '[ew, {db_mtl: {beta: 0.5}}]' (default: %(default)s)",
    )
    compare.add_argument(
        "--seeds",
        default="3",
        metavar="N",
        help="how many, from the file's seed on, or these: 0,7,9 (default: %(default)s)",
    )
    compare.add_argument(
        "--reference",
        default="single-task",
        metavar="METHOD",
        help="what Δp is relative to; a balancer does without the single-task models (default: %(default)s)",
    )
    compare.add_argument(
        "--metrics",
        metavar="YAML",
        help="the metrics of a task that Δp averages over, '{mrpc: [accuracy, f1]}'; by default its main metric",
    )
    compare.add_argument("--keep_models", action="store_true", help="keep the trained models")


def _inspect(commands: Any) -> None:
    inspect = _command(
        commands,
        "inspect",
        "show what a run will be: data, steps, parameters, memory",
        usage="hf-dbmtl inspect config.yaml [--any_setting value ...]",
        description=INSPECT,
    )
    _takes_settings(inspect)


def _evaluate(commands: Any) -> None:
    evaluate = _command(
        commands,
        "evaluate",
        "evaluate a trained model",
        usage="hf-dbmtl evaluate config.yaml [--model folder] [--any_setting value ...]",
        description=EVALUATE,
    )
    _takes_settings(evaluate)
    _takes_processes(evaluate)
    evaluate.add_argument(
        "--model", metavar="FOLDER", help="the trained model; by default that in the file's output_dir"
    )


def _predict(commands: Any) -> None:
    predict = _command(commands, "predict", "predict for files or standard input", description=PREDICT)
    predict.add_argument("model", metavar="MODEL", help="a trained model: a folder, or a name on the Hub")
    predict.add_argument("files", nargs="*", metavar="FILE", help="what to predict for; by default standard input")
    predict.add_argument("--tasks", metavar="NAMES", help="with commas between them; by default all")
    predict.add_argument(
        "--text",
        metavar="COLUMN",
        help="of the texts, two for pairs: first,second (default: text, or question,context where rows have these)",
    )
    predict.add_argument(
        "--choices", metavar="COLUMN", help="of a list of choices, or of one each: a,b,c (default: choices)"
    )
    predict.add_argument(
        "--arrays",
        metavar="FOLDER",
        help="where maps of pixels go, as .npy files whose paths the lines then hold; by default the lines hold all numbers",
    )
    predict.add_argument("--output", metavar="FILE", help="where the lines go; by default standard output")
    predict.add_argument(
        "--batch_size", type=int, default=32, metavar="N", help="rows at a time (default: %(default)s)"
    )
    predict.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ...; by default the first GPU there is")


def _export(commands: Any) -> None:
    export = _command(commands, "export", "write one task as a stock checkpoint", description=EXPORT)
    export.add_argument("model", metavar="MODEL", help="a trained model: a folder, or a name on the Hub")
    export.add_argument("task", metavar="TASK", help="the task")
    export.add_argument("folder", metavar="FOLDER", help="where to write")


def _balancers(commands: Any) -> None:
    balancers = _command(commands, "balancers", "list the balancing methods", description=BALANCERS)
    balancers.add_argument("--json", action="store_true", help="as JSON, with properties and options")
