"""Everything runs offline, on the CPU, in one thread per process: set before any import reads it."""

import gc
import os
from collections.abc import Iterator

import pytest


os.environ.update(
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    CUDA_VISIBLE_DEVICES="",
    OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"),
    MPLBACKEND="agg",
)


def pytest_collection_finish(session) -> None:
    """accelerate collects garbage with every Trainer: what the imports left, most of it all, need not be looked at again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """Commands and benchmarks set how much transformers logs, for the whole process, and with it whether there are bars."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)
