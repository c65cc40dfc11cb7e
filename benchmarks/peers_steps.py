"""The steps of the libraries that peers.py compares with: each its own code, on the same model and batches."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchjd.aggregation import Aggregator
from torchjd.autojac import jac_to_grad, mtl_backward

from hf_dbmtl import MultiTaskModel


__all__ = ["TEMPERATURE", "find_libmtl", "has_db_mtl", "libmtl_step", "torchjd_step"]

EPSILON = 1e-8
BETA, DECAY = 0.9, 0.5  # beta_k = 0.9 / sqrt(k), as this package has it by default
TEMPERATURE = 2.0  # of DWA, the default of both
Step = Callable[[dict[str, Any]], None]


class Pooled(nn.Module):
    """The encoder, as a model of one tensor: the first token's output."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.encoder(**inputs).last_hidden_state[:, 0]


def autocast(options: argparse.Namespace) -> torch.autocast:
    """What Accelerate puts around the forward pass where training is in bf16."""
    return torch.autocast(options.device, torch.bfloat16, enabled=options.bf16)


def _split(batch: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]


# ---- LibMTL ----------------------------------------------------------------------------------------------------------


def find_libmtl(clone: Path | None) -> Path | None:
    """
    The folder that has the package `LibMTL`: the clone, or without one where it is installed, or None.

    Raises:
        `SystemExit`: if there is no LibMTL in the folder that was given.
    """
    if clone is not None:
        if not (clone / "LibMTL" / "weighting" / "EW.py").is_file():
            raise SystemExit(
                f"--libmtl: {clone} has no LibMTL/weighting/EW.py: give a clone of "
                "https://github.com/median-research-group/LibMTL, or leave it out after `pip install --no-deps LibMTL`."
            )
        return clone
    found = importlib.util.find_spec("LibMTL")
    return Path(found.submodule_search_locations[0]).parent if found and found.submodule_search_locations else None


def has_db_mtl(libmtl: Path | None) -> bool:
    """Whether it is the repository, and not the release on PyPI (1.1.5), which lacks DB-MTL."""
    return libmtl is not None and (libmtl / "LibMTL" / "weighting" / "DB_MTL.py").is_file()


def _import_libmtl(folder: Path, method: str) -> tuple[type, type]:
    """Its architecture and the method, without the package's `__init__`, which needs torchvision, torch_geometric and more."""
    for name in ("LibMTL", "LibMTL.weighting", "LibMTL.architecture"):
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    weighting = getattr(importlib.import_module(f"LibMTL.weighting.{method}"), method)
    return importlib.import_module("LibMTL.architecture.HPS").HPS, weighting


def libmtl_step(
    model: MultiTaskModel, folder: Path, method: str, options: argparse.Namespace
) -> tuple[Step, Iterable[nn.Parameter]]:
    """
    What LibMTL's Trainer does, in float32 only, between fetching a batch and the optimizer's step (`forward4loss` and
    `backward`), and the parameters that it optimizes. For `DWA` every step is an epoch.
    """
    architecture, weighting = _import_libmtl(folder, method)
    shared, device = options.inputs == "shared", torch.device(options.device)

    class MTLModel(architecture, weighting):  # as its Trainer puts them together
        def __init__(self) -> None:
            super().__init__(list(model.tasks), lambda: Pooled(model.encoder), model.heads, False, not shared, device)
            self.init_param()
            self.epoch, self.train_loss_buffer = 0, np.zeros((self.task_num, 0))

    whole = MTLModel()

    def step(batch: dict[str, Any]) -> None:
        losses = torch.zeros(len(model.tasks), device=device)
        with autocast(options):
            if shared:
                inputs, labels = _split(batch)
                outputs = whole(inputs)
            for place, (name, task) in enumerate(model.tasks.items()):
                if not shared:
                    inputs, own = _split(batch[name])
                    outputs, labels = whole(inputs, name), {name: own}
                losses[place] = task.loss(outputs[name], labels[name])[0]
        whole.zero_grad(set_to_none=False)
        whole.backward(losses, DB_beta=BETA, DB_beta_sigma=DECAY, T=TEMPERATURE, dist="Normal")
        whole.train_loss_buffer = np.column_stack([whole.train_loss_buffer, losses.detach().cpu()])
        whole.epoch += 1

    return step, whole.parameters()


# ---- TorchJD ---------------------------------------------------------------------------------------------------------


class DualBalancing(Aggregator):
    """DB-MTL's averages and norms (Algorithm 1 of the paper) on TorchJD's interface."""

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.average: Tensor | None = None

    def forward(self, matrix: Any, /) -> Tensor:
        self.step += 1
        average = torch.zeros_like(matrix) if self.average is None else self.average
        self.average = average.lerp_(matrix, 1 - BETA / self.step**DECAY)
        # in pieces: that of a whole row, in float32, is wrong from the fourth digit on
        pieces = [piece.norm(dim=1) for piece in self.average.split(1 << 14, dim=1)]
        norms = torch.stack(pieces).double().norm(dim=0).to(self.average)
        return (norms.max() / (norms + EPSILON)) @ self.average


def torchjd_step(model: MultiTaskModel, parallel_chunk_size: int | None, options: argparse.Namespace) -> Step:
    """`mtl_backward` and `jac_to_grad`, as TorchJD's example of multi-task learning has them."""
    shared = options.inputs == "shared"
    aggregator, encoder = DualBalancing(), Pooled(model.encoder)
    parameters = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    heads = [list(model.heads[name].parameters()) for name in model.tasks]

    def step(batch: dict[str, Any]) -> None:
        features, losses = [], []
        with autocast(options):
            if shared:
                inputs, labels = _split(batch)
                features.append(encoder(inputs))
            for name, task in model.tasks.items():
                if not shared:
                    inputs, own = _split(batch[name])
                    labels = {name: own}
                    features.append(encoder(inputs))
                losses.append(torch.log(task.loss(model.heads[name](features[-1]), labels[name])[0] + EPSILON))
        model.zero_grad()
        mtl_backward(
            losses, features, tasks_params=heads, shared_params=parameters, parallel_chunk_size=parallel_chunk_size
        )
        jac_to_grad(parameters, aggregator)

    return step
