"""Which parameters are shared: by default, by regular expression, by names and by module; tied and frozen ones."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import TASKS, tiny_model
from torch import nn

from hf_dbmtl.gradients import split_parameters


class Net(nn.Module):
    """A trunk of two parts, a neck, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        self.trunk2 = nn.Linear(4, 4)
        self.temperature = nn.Parameter(torch.ones(()))
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)})
        self.heads_norm = nn.LayerNorm(4)


class Headless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 3)
        self.outputs = nn.ModuleDict({"a": nn.Linear(3, 1)})


TRUNK = ["trunk.0.weight", "trunk.0.bias", "trunk.1.weight", "trunk.1.bias"]
HEADS = ["heads.a.weight", "heads.a.bias", "heads.b.weight", "heads.b.bias"]
ALL = [name for name, _ in Net().named_parameters()]


def names_of(model: nn.Module, shared_parameters: Any = None) -> tuple[list[str], list[str]]:
    shared, heads = split_parameters(model, shared_parameters)
    by_name = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in [*shared.items(), *heads.items()]:
        assert by_name[name] is parameter
    return list(shared), list(heads)


def test_by_default_everything_outside_the_heads() -> None:
    shared, heads = names_of(Net())
    assert heads == HEADS
    assert shared == [name for name in ALL if name not in HEADS]
    assert {"heads_norm.weight", "temperature"} <= set(shared)  # it goes by the module, not by how a name begins


def test_of_a_declared_model() -> None:
    model = tiny_model()
    shared, heads = names_of(model)
    assert shared == [f"encoder.{name}" for name, _ in model.encoder.named_parameters()]
    assert len(heads) == 2 * len(TASKS) and all(name.startswith("heads.") for name in heads)


@pytest.mark.parametrize(
    ("shared_parameters", "expected"),
    [
        (r"^trunk\.", TRUNK),
        (r"trunk", [*TRUNK, "trunk2.weight", "trunk2.bias"]),  # re.search, not re.match
        (r"unk\.1", ["trunk.1.weight", "trunk.1.bias"]),
        (r"^trunk\.(0|1)\.weight$", ["trunk.0.weight", "trunk.1.weight"]),
        (r"", ALL),
        (["trunk"], TRUNK),  # not trunk2: a prefix is a module
        (("trunk.0", "trunk2.bias"), ["trunk.0.weight", "trunk.0.bias", "trunk2.bias"]),
        (["heads.a.weight"], ["heads.a.weight"]),
        ({"temperature"}, ["temperature"]),
    ],
    ids=str,
)
def test_by_regular_expression_or_names(shared_parameters: Any, expected: list[str]) -> None:
    shared, heads = names_of(Net(), shared_parameters)
    assert shared == [name for name in ALL if name in expected]
    assert heads == [name for name in ALL if name not in expected]


def test_by_module() -> None:
    model = Net()
    assert names_of(model, model.trunk) == (TRUNK, [name for name in ALL if name not in TRUNK])
    assert names_of(model, model.trunk[1])[0] == TRUNK[2:]
    assert names_of(model, model) == (ALL, [])


def test_frozen_parameters_are_on_neither_side() -> None:
    model = Net()
    model.trunk[0].requires_grad_(False)
    model.heads["a"].bias.requires_grad_(False)
    shared, heads = names_of(model)
    assert shared == [name for name in ALL if name not in HEADS and not name.startswith("trunk.0")]
    assert heads == [name for name in HEADS if name != "heads.a.bias"]


@pytest.mark.parametrize("heads_first", [False, True])
def test_a_head_tied_to_the_encoder_is_shared(heads_first: bool) -> None:
    """By identity: the decoder of a language model is the embedding, under whichever name it is found first."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            encoder, heads = nn.Embedding(5, 3), nn.ModuleDict({"lm": nn.Linear(3, 5), "a": nn.Linear(3, 1)})
            heads["lm"].weight = encoder.weight
            for name, part in (
                (("heads", heads), ("encoder", encoder)) if heads_first else (("encoder", encoder), ("heads", heads))
            ):
                setattr(self, name, part)

    model = Tied()
    shared, heads = split_parameters(model)
    assert list(shared.values()) == [model.encoder.weight]
    assert {id(one) for one in heads.values()} == {
        id(one) for one in (model.heads.lm.bias, *model.heads.a.parameters())
    }
    for chosen in ("encoder", ["encoder"], model.encoder, r"heads\.lm\.weight", ["heads.lm.weight"]):
        assert list(split_parameters(model, chosen)[0].values()) == [model.encoder.weight]
    assert len(split_parameters(model, model.heads)[0]) == 4
    model.heads["lm"].weight = nn.Parameter(model.encoder.weight.detach().clone())  # the control: equal, not tied
    assert len(split_parameters(model)[1]) == 4


def frozen() -> nn.Module:
    model = Net().requires_grad_(False)
    model.heads.requires_grad_(True)
    return model


class Closed(nn.Module):
    """Heads that are not a module, and so cannot be found."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, 2)
        self.heads = [nn.Linear(2, 1)]


@pytest.mark.parametrize(
    ("model", "shared_parameters", "error", "message"),
    [
        (
            Headless(),
            None,
            ValueError,
            r"Headless has no submodule `heads`.*shared_parameters=\.\.\.\) takes a regular",
        ),
        (Closed(), None, ValueError, r"Closed has no submodule `heads`"),
        (Net(), r"^encoder", ValueError, r"No trainable parameter of Net is shared with shared_parameters='\^encoder'"),
        (Net(), [], ValueError, r"No trainable parameter of Net is shared with shared_parameters=\[\]"),
        (Net(), "trunk[", ValueError, r"shared_parameters='trunk\[' is not a regular expression: "),
        (
            Net(),
            ["trunk", "trunk.2"],
            ValueError,
            r"names 'trunk.2', and no parameter or module of Net is called so; did you",
        ),
        (Net(), ["trunk."], ValueError, r"names 'trunk\.', .*did you mean trunk"),
        (Net(), ["encoder"], ValueError, r"names 'encoder', and no parameter or module of Net is called so"),
        (Net(), nn.Linear(2, 2), ValueError, r"is a Linear that is not a part of Net: pass one of the model's own"),
        (Net(), nn.Sequential(), ValueError, r"is a Sequential that is not a part of Net"),
        (frozen(), None, ValueError, r"No trainable parameter of Net is shared: .*Unfreeze a part of the encoder"),
        (frozen(), "trunk", ValueError, r"No trainable parameter of Net is shared with .*Unfreeze"),
        (frozen(), ("trunk",), ValueError, r"No trainable parameter of Net is shared with .*Unfreeze"),
        (
            Net(),
            3,
            TypeError,
            r"`shared_parameters` must be a regular expression, a list of names .* or a module .*, and is 3",
        ),
        (Net(), b"trunk", TypeError, r"`shared_parameters` .* is b'trunk'"),
        (Net(), [nn.Linear(2, 2)], TypeError, r"holds a Linear.*names"),
        (Net(), list(Net().parameters()), TypeError, r"holds a Parameter.*names"),
        (Net(), Net().parameters(), TypeError, r"`shared_parameters` .* is <generator"),
    ],
    ids=lambda value: re.sub(r"\W+", "-", str(value))[:40] if isinstance(value, (str, list, tuple)) else "",
)
def test_what_cannot_be_shared_is_refused(model: nn.Module, shared_parameters: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        split_parameters(model, shared_parameters)
