"""What a module keeps from call to call, in buffers, parameters and plain attributes alike, as tensors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


__all__ = ["Snapshot"]

STRUCTURE = "structure"
# What torch keeps of its own in every module.
INTERNAL = frozenset(vars(nn.Module()))
SCALARS = (bool, int, float, str, type(None))


class Snapshot:
    """
    Saves and restores the state of a module that does not do so itself. `nn.Module.state_dict` knows nothing of plain
    attributes, and does not load a buffer that is `None` in a fresh module and a tensor in one that has been called.

    State is whatever has changed since this object was made: the options of a module stay as the user gave them.

    Args:
        module (`nn.Module`):
            The module, before its first call.
        rebuild (`Callable`, *optional*):
            Called with the module before a state is restored: makes what is no data.
        derived (`frozenset[str]`, *optional*):
            The names of attributes that follow from the others once `rebuild` has been called, and are not saved.
    """

    def __init__(
        self,
        module: nn.Module,
        rebuild: Callable[[nn.Module], None] | None = None,
        derived: frozenset[str] = frozenset(),
    ):
        self.module = module
        self.rebuild = rebuild
        self.derived = derived
        found = self._attributes()
        self.first = {key: copy.deepcopy(value) for key, value in found.items() if _is_data(value)}
        self.others = found.keys() - self.first.keys()

    def _attributes(self) -> dict[str, Any]:
        """Everything that the module and its parts have, by path and name."""
        found = {}
        for path, part in self.module.named_modules():
            own = {name: value for name, value in vars(part).items() if name not in INTERNAL}
            for name, value in (own | part._buffers | part._parameters).items():
                if name not in self.derived:
                    found[f"{path}:{name}"] = value.state_dict() if isinstance(value, Optimizer) else value
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """
        The state as tensors on the CPU: those that the module keeps, and the rest as JSON, in bytes.

        Raises:
            `ValueError`: where something has changed that is no data, and so cannot be saved.
        """
        tensors: dict[str, Tensor] = {}
        structure = {}
        for key, value in self._attributes().items():
            if not _is_data(value):
                if key not in self.others:
                    raise ValueError(
                        f"The state of {type(self.module).__name__} cannot be saved: its attribute '{key}' is now a "
                        f"{type(value).__name__}. State must be made of tensors, arrays, numbers, strings and lists."
                    )
                continue
            if key not in self.first or not _same(value, self.first[key]):
                structure[key] = _encode(value, key, tensors)
        if not structure:
            return {}
        tensors[STRUCTURE] = torch.frombuffer(bytearray(json.dumps(structure).encode()), dtype=torch.uint8).clone()
        return tensors

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what [`~Snapshot.state_dict`] gave."""
        structure = json.loads(bytes(state[STRUCTURE].tolist())) if STRUCTURE in state else {}
        if structure and self.rebuild is not None:
            self.rebuild(self.module)
        parts = dict(self.module.named_modules())
        restored = {key: _decode(value, state) for key, value in structure.items()}
        for key, found in {**copy.deepcopy(self.first), **restored}.items():
            path, _, name = key.partition(":")
            part = parts[path]
            if name in part._parameters:
                part._parameters[name].copy_(found)
            elif name in part._buffers:
                part._buffers[name] = found
            elif isinstance(found, dict) and isinstance(vars(part).get(name), Optimizer):
                vars(part)[name].load_state_dict(found)
            else:
                part.__dict__[name] = found


def _is_data(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_data(one) for key, one in value.items())
    kinds = (*SCALARS, Tensor, np.ndarray, torch.dtype, torch.device)
    return isinstance(value, kinds)


def _same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return one == other


def _encode(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value, in which tensors are named."""
    if isinstance(value, (Tensor, np.ndarray)):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        tensors[key] = torch.as_tensor(value).detach().cpu().contiguous().clone()
        return [kind, key]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [_encode(one, f"{key}.{i}", tensors) for i, one in enumerate(value)]]
    if isinstance(value, dict):
        return ["dict", [[one, _encode(two, f"{key}.{one}", tensors)] for one, two in value.items()]]
    if isinstance(value, (torch.dtype, torch.device)):
        return [type(value).__name__, str(value).removeprefix("torch.")]
    return ["plain", value]


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    kind, content = value
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "array":
        return tensors[content].clone().numpy()
    if kind in ("list", "tuple"):
        found = [_decode(one, tensors) for one in content]
        return tuple(found) if kind == "tuple" else found
    if kind == "dict":
        return {one: _decode(two, tensors) for one, two in content}
    if kind == "dtype":
        return getattr(torch, content)
    return torch.device(content) if kind == "device" else content
