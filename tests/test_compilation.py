"""`torch_compile` compiles what all tasks run, once, whatever the number of tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import CHECKPOINTING, arguments, distance, tiny_data, tiny_model, train
from test_user_module import Net, rows
from torch._dynamo.utils import counters

from hf_dbmtl import Classification


TWELVE = {f"task{number}": Classification(num_labels=2 + number % 3) for number in range(12)}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BACKEND", "MODE", "USE_FULLGRAPH", "USE_DYNAMIC"):  # transformers sets them, and leaves them there
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "")
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    torch._dynamo.reset()
    counters.clear()


def run(folder: Path, tasks: dict, model=None, **options):
    args = arguments(folder, max_steps=2, **options)
    model = tiny_model(tasks, dtype=torch.float64) if model is None else model
    return train(model, args, tiny_data(tasks, rows=16))


def test_twelve_tasks_are_one_graph(tmp_path: Path) -> None:
    compiled, steps = run(tmp_path, TWELVE, torch_compile=True, torch_compile_backend="aot_eager")
    assert counters["stats"]["unique_graphs"] == 1
    assert compiled.model.encoder._compiled_call_impl is not None
    assert "_orig_mod" not in "".join(compiled.model.state_dict())
    assert compiled.evaluate(tiny_data(TWELVE, rows=8))["eval_loss"] > 0
    counters.clear()
    _, plain = run(tmp_path, TWELVE)
    assert counters["stats"]["unique_graphs"] == 0
    assert distance(steps, plain) < 1e-10


def test_the_whole_model_would_be_many_graphs() -> None:
    """The control: what is avoided."""
    model = tiny_model(TWELVE)
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.int64), "labels": torch.zeros(2, dtype=torch.int64)}
    compiled = torch.compile(model, backend="eager")
    for task in list(TWELVE)[:4]:
        compiled(task=task, **batch)
    assert counters["stats"]["unique_graphs"] >= 4


@pytest.mark.parametrize("checkpointing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_with_activation_checkpointing(checkpointing: bool, tmp_path: Path) -> None:
    two = dict(list(TWELVE.items())[:2])
    options = {CHECKPOINTING: checkpointing}
    _, steps = run(tmp_path, two, torch_compile_backend="aot_eager", **options)
    assert counters["stats"]["unique_graphs"] > 0
    _, plain = run(tmp_path, two, **options)
    assert distance(steps, plain) < 1e-10


class Trunk(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features).tanh()


def net_with_trunk() -> Net:
    net = Net()
    torch.manual_seed(0)
    net.trunk = Trunk().double()
    return net


def test_a_users_module(tmp_path: Path) -> None:
    data = {"price": rows(8, 0), "size": rows(8, 1)}
    args = arguments(tmp_path, torch_compile_backend="aot_eager")
    with pytest.raises(ValueError, match="`torch_compile` for Net.*shared_parameters=model.trunk"):
        train(net_with_trunk(), args, data, shared_parameters=r"^trunk\.")
    net = net_with_trunk()
    _, steps = train(net, args, data, shared_parameters=net.trunk)
    assert counters["stats"]["unique_graphs"] == 1
    plain = net_with_trunk()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACCELERATE_DYNAMO_BACKEND", raising=False)
        _, expected = train(plain, arguments(tmp_path), data, shared_parameters=plain.trunk)
    assert distance(steps, expected) < 1e-10
