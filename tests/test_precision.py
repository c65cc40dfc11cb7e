"""bfloat16 and float16: autocast, weights in half precision, and a scaler that finds one task overflowing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import arguments, distance, flat, tiny_data, tiny_model, train
from torch import Tensor, nn

from hf_dbmtl import MultiTaskTrainer


BAD_STEP = 2  # of 1 to 4
SCALE = 2.0**10


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def first_step(folder: Path, dtype: torch.dtype = torch.float32, **options: Any):
    model = tiny_model(dtype=torch.float32)
    trainer, steps = train(model.to(dtype), arguments(folder, max_steps=1, **options), tiny_data(rows=8))
    return trainer, steps


def test_bf16_autocast(tmp_path: Path) -> None:
    trainer, (half,) = first_step(tmp_path, bf16=True)
    _, (full,) = first_step(tmp_path)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert {row.tensors[0].dtype for row in trainer.balancer.memory.rows.values()} == {torch.float32}
    assert 1e-6 < relative(half["update"], full["update"]) < 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """Gradients are added up in float32, and only the update is rounded."""
    trainer, (half,) = first_step(tmp_path, dtype)
    _, (full,) = first_step(tmp_path)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {dtype}
    assert {row.tensors[0].dtype for row in trainer.balancer.memory.rows.values()} == {torch.float32}
    assert 1e-6 < relative(half["update"], full["update"]) < 0.2


class Sums(nn.Module):
    """Every row pulls at the trunk with its own number: the gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(1, 4, bias=False)
        self.heads = nn.ModuleDict({task: nn.Linear(1, 1) for task in ("a", "b")})
        nn.init.zeros_(self.trunk.weight)
        self.to(torch.bfloat16)

    def forward(self, task: str, x: Tensor) -> dict[str, Any]:
        pull = self.trunk(x.to(torch.bfloat16).unsqueeze(-1)).float().sum()
        return {"loss": pull + 0 * self.heads[task].weight.float().sum(), "num_items": 1}


def test_micro_batches_are_added_up_in_float32(tmp_path: Path) -> None:
    from datasets import Dataset

    # 256 + 1 + ... + 1: in bfloat16 the ones would be lost one by one
    values = [256.0] + [1.0] * 15
    data = {task: Dataset.from_dict({"x": values}) for task in ("a", "b")}
    args = arguments(
        tmp_path,
        balancer="ew",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=16,
        train_sampling_strategy="sequential",
    )
    _, (step,) = train(Sums(), args, data)
    expected = torch.full((4,), 2 * sum(values) / 16, dtype=torch.float64)
    assert torch.equal(step["update"], expected.to(torch.bfloat16).double())
    lost = torch.tensor(0.0, dtype=torch.bfloat16)
    for value in values:
        lost += value
    assert lost.item() != torch.tensor(sum(values), dtype=torch.bfloat16).item()  # the control


class Scaled(MultiTaskTrainer):
    """Has a scaler on the CPU, and one task overflow at one step."""

    bad_task: str | None = "traits"

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)
        self.accelerator.unscale_gradients = lambda: self.accelerator.scaler.unscale_(self.optimizer.optimizer)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if inputs["task"] == self.bad_task and self.state.global_step == BAD_STEP - 1:
            loss.register_hook(lambda gradient: gradient * torch.inf)
        return (loss, outputs) if return_outputs else loss


def scaled_run(folder: Path, kind: type[MultiTaskTrainer], **options: Any):
    seen: list[dict[str, Any]] = []

    class Watched(kind):
        def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
            state = self.balancer.state_dict()
            seen.append(
                {
                    "weights": flat(self.model.parameters()),
                    "rows": {task: flat(row.tensors) for task, row in state["vectors"].get("memory/ema", {}).items()},
                    "learned": {name: value.clone() for name, value in state["tensors"].items()},
                    "steps": state["steps"],
                    "scale": self.accelerator.scaler.get_scale() if self.accelerator.scaler else None,
                    "rate": self.lr_scheduler.get_last_lr(),
                }
            )
            super()._maybe_log_save_evaluate(*args, **kwargs)

    args = arguments(folder, max_steps=4, optim="adamw_torch", lr_scheduler_type="linear", **options)
    trainer, steps = train(tiny_model(), args, tiny_data(rows=32), trainer=Watched)
    return trainer, steps, seen


class Unharmed(Scaled):
    bad_task = None


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("balancer", ["db_mtl", "max_norm", "log+pcgrad", "ew", "log"])
def test_the_scale_is_taken_out_of_steps_that_are_not_logged(balancer: str, accumulation: int, tmp_path: Path) -> None:
    """Under plain SGD, which a gradient of another length would carry elsewhere; without a scaler it is the same."""
    ends = []
    for kind, often in ((Unharmed, 1), (Unharmed, 100), (MultiTaskTrainer, 100)):
        args = arguments(
            tmp_path,
            max_steps=3,
            logging_steps=often,
            balancer=balancer,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
        trainer, _ = train(tiny_model(), args, tiny_data(rows=32), trainer=kind)
        ends.append(flat(trainer.model.parameters()))
    start = flat(tiny_model().parameters())
    for end in ends[1:]:
        assert (end - ends[0]).norm() < 1e-10 * (ends[0] - start).norm()


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, {"max_grad_norm": 0.5}],
    ids=["db_mtl", "accumulated", "clipped"],
)
def test_one_task_overflows(options: dict, tmp_path: Path) -> None:
    trainer, _, seen = scaled_run(tmp_path, Scaled, **options)
    before, bad, after = seen[:3]
    assert torch.equal(bad["weights"], before["weights"])
    assert torch.equal(bad["rows"]["traits"], before["rows"]["traits"])
    assert (bad["steps"], after["steps"]) == (1, 2)
    assert (before["scale"], bad["scale"], after["scale"]) == (SCALE, SCALE / 2, SCALE / 2)
    assert not torch.equal(after["weights"], bad["weights"]) and torch.isfinite(after["weights"]).all()
    assert trainer.state.global_step == 4


def test_what_is_learned_does_not_learn_from_an_overflow(tmp_path: Path) -> None:
    _, _, seen = scaled_run(tmp_path, Scaled, balancer="uw", balancer_kwargs={"learning_rate": 0.1})
    before, bad, after = seen[:3]
    assert before["learned"] and before["learned"].keys() == bad["learned"].keys()
    assert all(torch.equal(before["learned"][name], bad["learned"][name]) for name in before["learned"])
    assert any(not torch.equal(after["learned"][name], bad["learned"][name]) for name in bad["learned"])


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}], ids=["plain", "clipped"])
def test_the_scale_leaves_no_trace(options: dict, tmp_path: Path) -> None:
    kind = type("Fine", (Scaled,), {"bad_task": None})
    _, _, scaled = scaled_run(tmp_path, kind, **options)
    _, _, plain = scaled_run(tmp_path, MultiTaskTrainer, **options)
    assert relative(scaled[-1]["weights"], plain[-1]["weights"]) < 1e-12
    assert distance([scaled[-1]["rows"]], [plain[-1]["rows"]]) < 1e-12
    _, _, other = scaled_run(tmp_path, Scaled, **options)  # the control: a step less
    assert relative(other[-1]["weights"], plain[-1]["weights"]) > 1e-3
