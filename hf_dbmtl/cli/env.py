"""`hf-dbmtl env`: what a bug report needs, to be pasted into it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import __version__


__all__ = ["facts", "run"]

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "torchjd",
    "numpy",
    "peft",
)
SOLVERS = ("clarabel", "cvxpy", "ecos", "qpsolvers", "quadprog")
# of the environment only what changes how things run: other variables may hold secrets
VARIABLES: tuple[str, ...] = (
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
    "CUDA_VISIBLE_DEVICES",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
)
VARIABLES += ("TOKENIZERS_PARALLELISM", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PYTORCH_CUDA_ALLOC_CONF")


def run(given: argparse.Namespace) -> None:
    """The command, as `hf_dbmtl_cli` parsed it."""
    found = facts()
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")


def facts() -> dict[str, str]:
    """Versions, devices and the settings of the environment that matter."""
    found = {"hf_dbmtl": __version__, "python": platform.python_version(), "platform": platform.platform()}
    found["processors"] = f"{os.cpu_count()} ({platform.machine()}), {torch.get_num_threads()} threads of torch"
    found |= {name: _version(name) for name in PACKAGES}
    found["torch"] = torch.__version__  # with its build, of which the package itself need not tell
    found["solvers"] = ", ".join(f"{name} {_version(name)}" for name in SOLVERS)
    found["image processing"] = "torchvision" if importlib.util.find_spec("torchvision") else "PIL (no torchvision)"
    found["CUDA"] = f"{torch.version.cuda or torch.version.hip or 'none'}, available: {torch.cuda.is_available()}"
    for index in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(index)
        found[f"GPU {index}"] = f"{one.name}, {one.total_memory / 2**30:.1f} GiB"
    found["MPS"] = str(torch.backends.mps.is_available())
    found |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
