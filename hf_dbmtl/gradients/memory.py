"""The memory that a backward pass frees, on the CPU."""

from __future__ import annotations

import ctypes
import functools
import os


__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_MMAP_THRESHOLD = 1 << 25


@functools.cache
def keep_freed_memory() -> bool:
    """
    Asks the C library to keep what a backward pass frees for the next one. Where no gradient is allocated in between, the
    freed memory lies at the end of the heap, and glibc hands it back to the system after every task, which then has to give
    it anew, page by page: 18,000 page faults a step, and 5 % of its time, for a 4-layer, 256-wide BERT with eight tasks.

    Returns:
        `bool`: whether the C library has taken it; one other than glibc is left as it is.
    """
    if os.name != "posix":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    thresholds = {M_MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD, M_TRIM_THRESHOLD: (1 << 31) - 1}
    return all(library.mallopt(parameter, value) for parameter, value in thresholds.items())
