"""A few hundred steps of the long run: nothing grows. `benchmarks/long_run.py` does it with 20,000."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import long_run


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_nothing_grows(dtype: str) -> None:
    found = long_run.run(200, dtype, samples=10)
    assert found["steps"] == 200 and found["finite"]
    assert found["skipped"] == 3 and found["balanced"] == 197
    grown = found["grown"]
    assert abs(grown["tensors"]) < 20 and grown["open_files"] == 0 and grown["files"] == 0
    assert grown["resident_kib"] < 8 * 1024
    assert grown["log_bytes"] < 3000  # a line for each skipped step
    assert found["records"] < 80


def test_a_leak_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a trainer that keeps its losses, and a file that it forgets to close."""
    kept: list = []

    class Leaks(long_run.Poisoned):
        def training_step(self, *args, **kwargs):
            kept.append((torch.zeros(1), open(__file__)))  # noqa: SIM115
            return super().training_step(*args, **kwargs)

    monkeypatch.setattr(long_run, "Poisoned", Leaks)
    grown = long_run.run(60, "float32", samples=12)["grown"]
    for _, file in kept:
        file.close()
    assert grown["tensors"] > 30 and grown["open_files"] > 30
