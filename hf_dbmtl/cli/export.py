"""`hf-dbmtl export`: one task of a trained model as a stock checkpoint of transformers."""

from __future__ import annotations

import argparse

from hf_dbmtl_cli import CommandError

from ..export import export_task
from .models import choose_tasks, load_model


__all__ = ["run"]


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    model, processing_class = load_model(given.model)
    (task,) = choose_tasks(model, given.task)
    try:
        export_task(model, task, given.folder, processing_class=processing_class)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(f"Task '{task}' is in {given.folder}: transformers loads it without hf_dbmtl.")
