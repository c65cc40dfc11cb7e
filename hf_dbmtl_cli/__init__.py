"""
What the console script `hf-dbmtl` starts with: the commands and their help. It stands beside `hf_dbmtl` because
importing anything in there brings torch in, which takes seconds, and a question for help should not wait for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from .commands import make_parser


__all__ = ["CommandError", "main"]


class CommandError(Exception):
    """What the person at the command line can mend: shown without a traceback."""


def main(argv: Sequence[str] | None = None) -> None:
    """
    Runs a command.

    Args:
        argv (`Sequence[str]`, *optional*):
            The arguments behind the name of the program; by default those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    if len(arguments) > 1 and {"-h", "--help"} & set(arguments[1:]):
        arguments = [arguments[0], "--help"]  # wherever it stands, also among the settings
    given, unknown = parser.parse_known_args(arguments or ["--help"])
    _take_settings(parser, given, unknown, arguments)
    given.words = arguments
    module, _, name = given.run.partition(":")
    try:
        getattr(import_module(module), name)(given)
    except CommandError as error:
        parser.exit(2, f"hf-dbmtl {given.command}: error: {error}\n")


def _take_settings(
    parser: argparse.ArgumentParser, given: argparse.Namespace, unknown: list[str], arguments: list[str]
) -> None:
    """Words that are no option of the command are settings that override the file, where the command reads one."""
    if not unknown:
        return
    if not hasattr(given, "settings"):
        parser.error(f"{unknown[0]}: `hf-dbmtl {given.command}` has no such option; --help shows those it has.")
    if unknown[0] in arguments[:2]:
        parser.error(f"{unknown[0]}: name the command and its file first, then what overrides the file.")
    given.settings = unknown
