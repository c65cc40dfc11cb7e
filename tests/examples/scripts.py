"""Runs an example as Python runs a script, but in this process, which has imported everything already."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path
from unittest import mock


EXAMPLES = Path(__file__).parents[2] / "examples"


def printed_by(name: str, *words: str | Path) -> str:
    """What the script of that name below `examples` prints, given these arguments."""
    script = EXAMPLES / name
    with contextlib.ExitStack() as stack:
        printed = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(mock.patch.object(sys, "argv", [str(script), *map(str, words)]))
        stack.enter_context(mock.patch.object(sys, "path", [str(script.parent), *sys.path]))
        stack.enter_context(mock.patch.dict(os.environ, {"COLUMNS": "160"}))
        runpy.run_path(str(script), run_name="__main__")
    return printed.getvalue()
