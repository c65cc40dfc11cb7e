"""What a configuration from a stranger may ask for: sizes that exist, and no more modules than a machine can build."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook


__all__ = ["MAX_LABELS", "MAX_NEW_PARAMETERS", "check_label_names", "check_sizes", "limited_modules", "the_first"]

# A head is a dense matrix: beyond this a configuration is a mistake, or an attempt to exhaust the memory.
MAX_LABELS = 1_000_000
MAX_LAYERS = 10_000
MAX_SIZE = 2**31 - 1
MAX_MODULES = 50_000
# What is not in a checkpoint is made at random when it is loaded: new heads, a pooler. 1 GiB in float32.
MAX_NEW_PARAMETERS = 2**28
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of surrogate pairs, line and paragraph separators

_LAYERS = re.compile(r"layers?$|^depths?$|_depths?$|_blocks$|^num_stages$")
_SIZES = re.compile(
    r"_(size|dim|heads|channels|embeddings|positions|experts|features|groups|classes)$|^(num|n|d)_|^(dim|width)$"
)
_OPTIONAL = re.compile(r"^max_|chunk|_images$")  # where transformers' own configurations say -1 for none


def check_sizes(values: Any, where: str = "encoder") -> None:
    """
    Refuses sizes in the description of a configuration that none can have, before anything is built of it.

    Args:
        values (`Any`):
            The description, as read from JSON.
        where (`str`, *optional*, defaults to `"encoder"`):
            What to call it in a message.

    Raises:
        `ValueError`: a size that is negative or beyond all measure.
    """
    pending = [(where, "", values)]
    while pending:
        path, name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{path}.{key}", str(key), one) for key, one in value.items()]
        elif isinstance(value, (list, tuple)):
            pending += [(path, name, one) for one in value]
        elif isinstance(value, int) and not isinstance(value, bool):
            limit, least = _limit(name), -1 if _OPTIONAL.search(name) else 0
            if limit is not None and not least <= value <= limit:
                raise ValueError(
                    f"{path}={value} is outside [{least}, {limit}]: this configuration describes no model."
                )


def _limit(name: str) -> int | None:
    if name == "num_labels":
        return MAX_LABELS
    if _LAYERS.search(name) and (name.startswith(("num_", "n_")) or "depth" in name or name == "layers"):
        return MAX_LAYERS
    return MAX_SIZE if _SIZES.search(name) else None


def check_label_names(names: Sequence[str]) -> None:
    """
    Refuses names that cannot stand in a table, a card or on a terminal, or are there twice.

    Raises:
        `ValueError`: it names them.
    """
    for name in names:
        if any(unicodedata.category(letter) in _UNPRINTABLE for letter in name):
            shown = repr(name if len(name) <= 80 else f"{name[:77]}...")
            raise ValueError(
                f"label_names holds {shown}: a name holds no line break, tab or other control character. Rename it."
            )
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        shown = the_first(list(map(repr, repeated)), 10, "others")
        raise ValueError(f"label_names holds {shown} more than once.")


def the_first(names: Sequence[str], most: int = 3, rest: str = "more") -> str:
    """The names in a row for an error, those behind the first few as their number."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} {rest}" if len(names) > most else "")


@contextlib.contextmanager
def limited_modules() -> Iterator[None]:
    """
    Within, a model can be built of so many modules only.

    Raises:
        `ValueError`: where it goes on and on.
    """
    count = 0

    def one_more(module: nn.Module, name: str, submodule: nn.Module) -> None:
        nonlocal count
        count += 1
        if count > MAX_MODULES:
            raise ValueError(f"The configuration asks for more than {MAX_MODULES} modules: it describes no model.")

    hook = register_module_module_registration_hook(one_more)
    try:
        yield
    finally:
        hook.remove()
