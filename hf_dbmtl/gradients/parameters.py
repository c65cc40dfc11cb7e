"""Which parameters are shared, and so balanced, and which belong to the heads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence, Set

from torch import nn


__all__ = ["split_parameters"]

# what FSDP's activation checkpointing puts into the names of parameters
WRAPPERS = re.compile(r"\b_checkpoint_wrapped_module\.")


def split_parameters(
    model: nn.Module,
    shared_parameters: str | Sequence[str] | nn.Module | None = None,
    heads_alone: bool = False,
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """
    Splits the trainable parameters of a model into shared ones and those of the heads.

    It goes by identity: a parameter with several names, such as the embedding that a tied decoder reads, is shared as
    soon as one of them is.

    Args:
        model (`torch.nn.Module`):
            The model, not wrapped.
        shared_parameters (`str`, `Sequence[str]` or `torch.nn.Module`, *optional*):
            A regular expression searched for in the names, a list of names or of module prefixes, or a module of the
            model. By default everything outside `model.heads`.
        heads_alone (`bool`, *optional*, defaults to `False`):
            Whether nothing may be shared, since all of it is frozen.

    Returns:
        `tuple[dict[str, Parameter], dict[str, Parameter]]`: the shared parameters and the heads', by name. Frozen
        parameters are in neither.

    Raises:
        `ValueError`: where nothing is shared, a name fits nothing, or neither `shared_parameters` nor `heads` is there.
        `TypeError`: where `shared_parameters` is anything else.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(WRAPPERS.sub("", name))
    is_shared = _rule(model, shared_parameters, [name for several in names.values() for name in several])
    shared: dict[str, nn.Parameter] = {}
    heads: dict[str, nn.Parameter] = {}
    for parameter, aliases in names.items():
        if parameter.requires_grad:
            side = shared if any(is_shared(name, parameter) for name in aliases) else heads
            side[aliases[0]] = parameter
    if not shared and not (heads_alone and heads):
        raise ValueError(
            f"No trainable parameter of {type(model).__name__} is shared"
            + (
                ""
                if isinstance(shared_parameters, nn.Module | None)
                else f" with shared_parameters={shared_parameters!r}"
            )
            + ": there is nothing to balance. Unfreeze a part of the encoder, or name others in `shared_parameters`; "
            "`freeze_encoder=True` trains the heads alone."
        )
    return shared, heads


def _rule(
    model: nn.Module, shared_parameters: str | Sequence[str] | nn.Module | None, names: list[str]
) -> Callable[[str, nn.Parameter], bool]:
    """A function of (name, parameter) that tells whether it is shared."""
    if shared_parameters is None:
        modules = dict(model.named_children())
        if "heads" not in modules:
            raise ValueError(
                f"{type(model).__name__} has no submodule `heads`, so it is unknown which parameters its tasks share. "
                "Name them: MultiTaskTrainer(shared_parameters=...) takes a regular expression, a list of names or a "
                "module."
            )
        return lambda name, parameter: not name.startswith("heads.")
    if isinstance(shared_parameters, nn.Module):
        if not any(module is shared_parameters for module in model.modules()):
            raise ValueError(
                f"`shared_parameters` is a {type(shared_parameters).__name__} that is not a part of "
                f"{type(model).__name__}: pass one of the model's own submodules."
            )
        inside = set(shared_parameters.parameters())
        return lambda name, parameter: parameter in inside
    if isinstance(shared_parameters, str):
        try:
            pattern = re.compile(shared_parameters)
        except re.error as error:
            raise ValueError(
                f"shared_parameters={shared_parameters!r} is not a regular expression: {error}."
            ) from error
        return lambda name, parameter: pattern.search(name) is not None
    if not isinstance(shared_parameters, (Sequence, Set)) or isinstance(shared_parameters, bytes):
        raise TypeError(
            "`shared_parameters` must be a regular expression, a list of names of parameters or modules, or a module "
            f"of the model, and is {shared_parameters!r}."
        )
    for entry in shared_parameters:
        if not isinstance(entry, str):
            raise TypeError(
                f"`shared_parameters` holds a {type(entry).__name__}: give the names of parameters or modules."
            )
        if not any(_under(name, entry) for name in names):
            near = difflib.get_close_matches(entry, _names_and_prefixes(names), n=3)
            raise ValueError(
                f"shared_parameters names '{entry}', and no parameter or module of {type(model).__name__} is called so"
                + (f"; did you mean {' or '.join(near)}?" if near else ".")
            )
    return lambda name, parameter: any(_under(name, entry) for entry in shared_parameters)


def _names_and_prefixes(names: Sequence[str]) -> list[str]:
    words = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(parts[:length]) for parts in words for length in range(1, len(parts) + 1)))


def _under(name: str, entry: str) -> bool:
    return name == entry or name.startswith(entry + ".")
