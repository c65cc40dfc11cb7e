"""The steps of the libraries that peers.py compares with: each its own code, on the same model and batches."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchjd.aggregation import Aggregator
from torchjd.autojac import jac_to_grad, mtl_backward

from hf_dbmtl import MultiTaskModel


__all__ = ["libmtl_step", "torchjd_step"]

EPSILON = 1e-8
BETA, DECAY = 0.9, 0.5  # beta_k = 0.9 / sqrt(k), as this package has it by default


class Pooled(nn.Module):
    """The encoder, as a model of one tensor: the first token's output."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.encoder(**inputs).last_hidden_state[:, 0]


def _split(batch: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]


# ---- LibMTL ----------------------------------------------------------------------------------------------------------


def _import_libmtl(folder: Path) -> tuple[type, type]:
    """Its DB-MTL and its architecture, without the package's `__init__`, which needs torch_geometric and more."""
    if not (folder / "LibMTL" / "weighting" / "DB_MTL.py").is_file():
        raise SystemExit(
            f"--libmtl: {folder} has no LibMTL/weighting/DB_MTL.py; the release on PyPI lacks it: give a clone of "
            "https://github.com/median-research-group/LibMTL."
        )
    for name in ("LibMTL", "LibMTL.weighting", "LibMTL.architecture"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = module
    method = importlib.import_module("LibMTL.weighting.DB_MTL").DB_MTL
    return importlib.import_module("LibMTL.architecture.HPS").HPS, method


def libmtl_step(model: MultiTaskModel, folder: Path, shared: bool) -> Callable[[dict[str, Any]], None]:
    """What LibMTL's Trainer does between fetching a batch and the optimizer's step (`forward4loss` and `backward`)."""
    architecture, method = _import_libmtl(folder)

    class MTLModel(architecture, method):  # as its Trainer puts them together
        def __init__(self) -> None:
            super().__init__(
                list(model.tasks), lambda: Pooled(model.encoder), model.heads, False, not shared, torch.device("cpu")
            )
            self.init_param()

    whole = MTLModel()

    def step(batch: dict[str, Any]) -> None:
        losses = torch.zeros(len(model.tasks))
        if shared:
            inputs, labels = _split(batch)
            outputs = whole(inputs)
        for place, (name, task) in enumerate(model.tasks.items()):
            if not shared:
                inputs, own = _split(batch[name])
                outputs, labels = whole(inputs, name), {name: own}
            losses[place] = task.loss(outputs[name], labels[name])[0]
        model.zero_grad(set_to_none=False)
        whole.backward(losses, DB_beta=BETA, DB_beta_sigma=DECAY)

    return step


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


def torchjd_step(
    model: MultiTaskModel, parallel_chunk_size: int | None, shared: bool
) -> Callable[[dict[str, Any]], None]:
    """`mtl_backward` and `jac_to_grad`, as TorchJD's example of multi-task learning has them."""
    aggregator, encoder = DualBalancing(), Pooled(model.encoder)
    parameters = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    heads = [list(model.heads[name].parameters()) for name in model.tasks]

    def step(batch: dict[str, Any]) -> None:
        features, losses = [], []
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
