"""The memory that is kept for the next backward pass. In a process of its own, since it is kept until that ends."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest


PROGRAM = """
import resource
import torch
from hf_dbmtl.gradients.memory import keep_freed_memory

def faults(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(mebibytes << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = [faults(size) for size in (4, 48)]
assert keep_freed_memory()
[faults(size) for size in (4, 48)]
print(*without, *(faults(size) for size in (4, 48)))
"""


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="a C library other than glibc"
)
def test_the_system_need_not_give_freed_memory_anew() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=300)
    small, large, small_kept, large_kept = map(int, done.stdout.split())
    assert large > 100  # what the control is for: of 48 MiB every block is given anew
    assert large_kept < large / 10
    assert small_kept <= max(small, 10)
