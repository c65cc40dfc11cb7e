"""All modules check under mypy, strict: `make types`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def mypy(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mypy", *words], cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_all_modules_check(tmp_path: Path) -> None:
    done = mypy("--cache-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_a_wrong_type_would_show(tmp_path: Path) -> None:
    """The control: users of the package are told, since it has types of its own."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text('from hf_dbmtl import Classification\n\nClassification(label_names="three")\n')
    done = mypy("--cache-dir", str(tmp_path / "cache"), str(wrong))
    assert done.returncode == 1 and 'error: Argument "label_names"' in done.stdout, done.stdout
