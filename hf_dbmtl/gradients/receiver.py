"""Where the gradients of the shared parameters arrive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from .flat import FlatVector


__all__ = ["Hooks", "Receiver", "Receives"]

LARGE = 1 << 20  # entries from which a copy is cheaper than zeros to which autograd adds


class Receives(Protocol):
    """Takes in the gradient of a task: `flat`, where it is added up, and which parameters it `reached`."""

    flat: Tensor
    reached: list[bool]

    def receiving(self, hooks: Hooks) -> AbstractContextManager[None]: ...

    def finish(self) -> Tensor: ...


class Receiver:
    """
    Adds up gradients in one flat tensor that stays from task to task: left to `.grad`, the gradients of all parameters would
    be given memory anew by the system for every task, which costs more than all that balancing does to them. Autograd adds
    to views of the flat tensor where it can. A gradient of another type (that of a parameter in half precision) and one of
    a large parameter is copied as soon as it is made, and its memory is free again.

    Args:
        parameters (`Sequence[torch.nn.Parameter]`):
            The parameters.
        flat (`torch.Tensor` of shape `(at least the sum of their sizes,)`):
            Where their gradients are added up, one behind the other.
        reached (`list[bool]`, *optional*):
            The parameters whose gradients `flat` holds already. By default what it holds is overwritten.
        blend (`tuple[FlatVector, float]`, *optional*):
            A vector and a share: what is added up is blended with it, every gradient as soon as it is made, while it is in
            the processor's cache.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        flat: Tensor,
        reached: list[bool] | None = None,
        blend: tuple[FlatVector, float] | None = None,
    ):
        self.parameters = parameters
        self.flat = flat
        self.reached = [False] * len(parameters) if reached is None else reached
        self._views = _unflatten_dense_tensors(flat, parameters)
        self._share = 0.0
        self._others: Sequence[Tensor] = ()
        if blend is not None:
            other, self._share = blend
            self._others = _unflatten_dense_tensors(other.tensors[0], parameters)
        self._in_place = [
            blend is None
            and parameter.dtype == flat.dtype
            and parameter.device == flat.device
            and parameter.numel() < LARGE
            for parameter in parameters
        ]
        if reached is None:
            self._clear()

    def _clear(self) -> None:
        """Zeros where autograd will add, in as few stretches as there are."""
        start = end = 0
        for parameter, here in zip(self.parameters, self._in_place):
            if not here:
                self.flat[start:end].zero_()
                start = end + parameter.numel()
            end += parameter.numel()
        self.flat[start:].zero_()

    @contextlib.contextmanager
    def receiving(self, hooks: Hooks) -> Iterator[None]:
        """Takes in the gradients of the backward pass that runs inside."""
        for parameter, view, here in zip(self.parameters, self._views, self._in_place):
            parameter.grad = view if here else None
        hooks.receiver = self
        try:
            yield
        finally:
            hooks.receiver = None
            for parameter in self.parameters:
                parameter.grad = None

    def arrived(self, position: int, parameter: Tensor) -> None:
        """Told when a backward pass has made the gradient of a parameter."""
        if not self._in_place[position]:
            grad, parameter.grad = parameter.grad, None
            assert grad is not None  # it has just been made
            if grad.is_sparse:
                grad = grad.to_dense()
            view = self._views[position]
            if self.reached[position]:
                view.add_(grad.to(view), alpha=1.0 - self._share)
            elif self._others:
                torch.lerp(grad.to(view), self._others[position], self._share, out=view)
            else:
                view.copy_(grad)
        self.reached[position] = True

    def finish(self) -> Tensor:
        """The flat tensor, where no gradient has arrived blended with zero."""
        for position, view in enumerate(self._views):
            if not self._in_place[position] and not self.reached[position]:
                view.zero_()
                if self._others:
                    view.lerp_(self._others[position], self._share)
        return self.flat


class Hooks:
    """
    Hooks on parameters, for as long as this context lasts, that tell a receiver what arrives.

    Args:
        parameters (`Sequence[torch.nn.Parameter]`):
            The parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = parameters
        self.receiver: Receiver | None = None

    def __enter__(self) -> Hooks:
        self._handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, position))
            for position, parameter in enumerate(self.parameters)
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _arrived(self, position: int, parameter: Tensor) -> None:
        if self.receiver is not None:
            self.receiver.arrived(position, parameter)
