"""Trajectories of independent implementations, reproduced through the Trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import arguments
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

from hf_dbmtl import MultiTaskTrainer


CASES = json.loads((Path(__file__).parent / "reference" / "trajectories.json").read_text())

# By balancer, its options from the `args` of a trajectory and the learning rate `lr` that learned weights share with
# everything else. "log+x" takes those of x, and an entry such as "db_mtl_beta0" those of db_mtl.
OPTIONS = {
    "ew": lambda args, lr: {},
    "uw": lambda args, lr: {"init": -0.5, "learning_rate": lr, "optimizer": "sgd"},
    "gls": lambda args, lr: {},
    "imtl": lambda args, lr: {"learning_rate": lr, "optimizer": "sgd"},
    "famo": lambda args, lr: {"learning_rate": args["FAMO_w_lr"], "weight_decay": args["FAMO_w_gamma"]},
    "db_mtl": lambda args, lr: {"beta": args["DB_beta"], "decay": args["DB_beta_sigma"], "alpha": "max"},
    "gradnorm": lambda args, lr: {
        "alpha": args["alpha"],
        "parametrization": "softmax",
        "learning_rate": lr,
        "optimizer": "sgd",
    },
    "moco": lambda args, lr: {
        "beta": args["MoCo_beta"],
        "beta_decay": args["MoCo_beta_sigma"],
        "gamma": args["MoCo_gamma"],
        "gamma_decay": args["MoCo_gamma_sigma"],
        "rho": args["MoCo_rho"],
        "normalize": True,
    },
    "excess_mtl": lambda args, lr: {"step_size": args["robust_step_size"]},
}
TOLERANCES: dict[str, float] = {}  # of the displacement, for those that call a solver; 1e-9 for all others


def name_of(method: str) -> str | None:
    """The balancer of an entry of the trajectories: "log+cagrad", "db_mtl" for "db_mtl_beta0"."""
    prefix = "log+" if method.startswith("log+") else ""
    rest = method.removeprefix(prefix)
    return next((prefix + name for name in OPTIONS if rest == name or rest.startswith(f"{name}_")), None)


RUNS = [(case, method) for case, content in CASES.items() for method in content["methods"] if name_of(method)]


class Quadratic(nn.Module):
    """The problem of the reference: a shared vector and one scalar head per task."""

    def __init__(self, case: dict):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(case["theta0"], dtype=torch.float64))
        psi = torch.tensor(case["psi0"], dtype=torch.float64)
        self.heads = nn.ParameterDict({f"task{t}": nn.Parameter(value) for t, value in enumerate(psi)})
        self.scales = {f"task{t}": scale for t, scale in enumerate(case["scales"])}
        self.constant = case["constant"]

    def forward(self, task: str, A: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        residual = A[0] @ self.theta + self.heads[task] - b[0]
        return {"loss": self.scales[task] * (0.5 * residual.square().mean() + self.constant)}


class Batches(Dataset):
    """Row k is the batch of step k."""

    def __init__(self, case: dict, task: int):
        self.rows = [
            {name: torch.tensor(case[name][k][task], dtype=torch.float64) for name in ("A", "b")} for k in range(case["K"])
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class Trajectory(TrainerCallback):
    def __init__(self) -> None:
        self.theta: list[torch.Tensor] = []
        self.psi: list[torch.Tensor] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.theta.append(model.theta.detach().clone())
        self.psi.append(torch.stack([value.detach().clone() for value in model.heads.values()]))


def run(folder: Path, case: dict, **options) -> tuple[Trajectory, MultiTaskTrainer]:
    trajectory = Trajectory()
    args = arguments(
        folder,
        per_device_train_batch_size=1,
        learning_rate=case["lr"],
        train_sampling_strategy="sequential",
        **options,
    )
    data = {f"task{t}": Batches(case, t) for t in range(case["T"])}
    trainer = MultiTaskTrainer(model=Quadratic(case), args=args, train_dataset=data, callbacks=[trajectory])
    trainer.train()
    return trajectory, trainer


def deviation(found: list[torch.Tensor], expected: list, start: list) -> float:
    """The largest distance at any step, relative to the displacement from the start."""
    expected = torch.tensor(expected, dtype=torch.float64)
    displacement = (expected - torch.tensor(start, dtype=torch.float64)).norm(dim=1)
    return ((torch.stack(found) - expected).norm(dim=1) / displacement).max().item()


def options_of(method: str, args: dict, lr: float) -> dict:
    name = name_of(method)
    return {"balancer": name, "balancer_kwargs": OPTIONS[name.removeprefix("log+")](args, lr)}


@pytest.mark.parametrize(("case", "method"), RUNS)
def test_trajectory(case: str, method: str, tmp_path: Path) -> None:
    case = CASES[case]
    expected = case["methods"][method]
    found, trainer = run(tmp_path, case, **options_of(method, expected["args"], case["lr"]))
    tolerance = TOLERANCES.get(name_of(method).removeprefix("log+"), 1e-9)
    assert deviation(found.theta, expected["theta"], case["theta0"]) < tolerance
    assert deviation(found.psi, expected["psi"], case["psi0"]) < tolerance
    records = [record for record in trainer.state.log_history if "loss" in record]
    losses = torch.tensor([[record[f"loss/task{t}"] for t in range(case["T"])] for record in records])
    torch.testing.assert_close(losses, torch.tensor(expected["losses"], dtype=losses.dtype), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.9, "decay": 0.4}, {"beta": 0.89}, {"alpha": "mean"}], ids=["decay", "beta", "alpha"]
)
def test_another_setting_leaves_the_trajectory(wrong: dict, tmp_path: Path) -> None:
    case = CASES["three_tasks"]
    expected = case["methods"]["db_mtl_beta0.9_decay0.5"]
    found, _ = run(tmp_path, case, balancer="db_mtl", balancer_kwargs=wrong)
    assert deviation(found.theta, expected["theta"], case["theta0"]) > 1e-3
