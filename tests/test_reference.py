"""Trajectories of independent implementations, reproduced through the Trainer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments
from qpsolvers import solve_qp
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
    "pcgrad": lambda args, lr: {},
    "gradvac": lambda args, lr: {"beta": args["GradVac_beta"]},
    "cagrad": lambda args, lr: {"c": args["calpha"], "rescale": args["rescale"]},
    "nash_mtl": lambda args, lr: {one: args[one] for one in ("max_norm", "optim_niter", "update_weights_every")},
    "aligned_mtl": lambda args, lr: {},
    "fairgrad": lambda args, lr: {"alpha": args["FairGrad_alpha"]},
    "upgrad": lambda args, lr: {"norm_eps": args["UPGrad_norm_eps"], "reg_eps": args["UPGrad_reg_eps"]},
}
# Of the displacement, for those that call an iterative solver; 1e-9 for all others.
TOLERANCES = {"cagrad": 1e-3, "nash_mtl": 1e-3, "fairgrad": 1e-3}
# The solver of the implementation stops before the solution: what can be compared with it is below.
UNCONVERGED = {("three_tasks", "nash_mtl"), ("three_tasks", "log+nash_mtl")}


def name_of(method: str) -> str | None:
    """The balancer of an entry of the trajectories: "log+cagrad", "db_mtl" for "db_mtl_beta0"."""
    prefix = "log+" if method.startswith("log+") else ""
    rest = method.removeprefix(prefix)
    return next((prefix + name for name in OPTIONS if rest == name or rest.startswith(f"{name}_")), None)


RUNS = [
    (case, method)
    for case, content in CASES.items()
    for method in content["methods"]
    if name_of(method) and (case, method) not in UNCONVERGED
]


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
            {name: torch.tensor(case[name][k][task], dtype=torch.float64) for name in ("A", "b")}
            for k in range(case["K"])
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


class Trajectory(TrainerCallback):
    def __init__(self) -> None:
        self.theta: list[torch.Tensor] = []
        self.psi: list[torch.Tensor] = []
        self.trainer: MultiTaskTrainer | None = None

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.theta.append(model.theta.detach().clone())
        self.psi.append(torch.stack([value.detach().clone() for value in model.heads.values()]))


class FromRecorded(Trajectory):
    """Begins every step where the implementation began it, and Nash-MTL's sequence at the weights it began with."""

    def __init__(self, expected: dict) -> None:
        super().__init__()
        self.expected = expected

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        super().on_step_end(args, state, control, model=model, **kwargs)
        theta, psi, weights = (
            torch.tensor(self.expected[name][state.global_step - 1], dtype=torch.float64)
            for name in ("theta", "psi", "weights")
        )
        model.theta.copy_(theta)
        for value, recorded in zip(model.heads.values(), psi):
            value.copy_(recorded)
        self.trainer.balancer.weighting.last.copy_(weights)


def run(
    folder: Path, case: dict, trajectory: Trajectory | None = None, **options
) -> tuple[Trajectory, MultiTaskTrainer]:
    trajectory = trajectory or Trajectory()
    args = arguments(
        folder,
        per_device_train_batch_size=1,
        learning_rate=case["lr"],
        train_sampling_strategy="sequential",
        **options,
    )
    data = {f"task{t}": Batches(case, t) for t in range(case["T"])}
    trainer = MultiTaskTrainer(model=Quadratic(case), args=args, train_dataset=data, callbacks=[trajectory])
    trajectory.trainer = trainer
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
    recorded = torch.tensor(expected["losses"], dtype=losses.dtype)
    torch.testing.assert_close(losses, recorded, rtol=max(1e-6, tolerance), atol=0)


@pytest.mark.parametrize("solver", ["ccp", "newton"])
def test_nash_mtl_step_by_step(solver: str, tmp_path: Path) -> None:
    """From the recorded state at every step; here the sequence of convex problems reaches the solution."""
    case = CASES["three_tasks"]
    expected = case["methods"]["log+nash_mtl"]
    options = options_of("log+nash_mtl", expected["args"], case["lr"])
    options["balancer_kwargs"]["solver"] = solver
    found, _ = run(tmp_path, case, FromRecorded(expected), **options)
    assert deviation(found.theta, expected["theta"], case["theta0"]) < 1e-5
    assert deviation(found.psi, expected["psi"], case["psi0"]) < 1e-5


def exact_point(gradients: np.ndarray) -> np.ndarray:
    """The shortest vector in the convex hull of the rows, by a solver of quadratic programs."""
    count = len(gradients)
    scale = np.linalg.norm(gradients, axis=1).min()
    gramian = gradients @ gradients.T / scale**2
    weights = solve_qp(
        gramian, np.zeros(count), A=np.ones((1, count)), b=np.ones(1), lb=np.zeros(count), solver="quadprog"
    )
    return weights @ gradients


@pytest.mark.parametrize("case", CASES)
def test_mgda_follows_the_exact_point(case: str, tmp_path: Path) -> None:
    """The recorded trajectory is for information: the implementation stops early, with weights of 0.999 for 1."""
    case = CASES[case]
    model, theta, psi = Quadratic(case), [], []
    for k in range(case["K"]):
        batches = [[torch.tensor([case[x][k][t]], dtype=torch.float64) for x in "Ab"] for t in range(case["T"])]
        losses = [model(f"task{t}", *batch)["loss"] for t, batch in enumerate(batches)]
        slopes = [torch.autograd.grad(loss, [model.theta, *model.heads.values()], allow_unused=True) for loss in losses]
        with torch.no_grad():
            model.theta -= case["lr"] * torch.from_numpy(exact_point(torch.stack([one[0] for one in slopes]).numpy()))
            for t, head in enumerate(model.heads.values()):
                head -= case["lr"] * slopes[t][1 + t]
        theta.append(model.theta.tolist())
        psi.append([head.item() for head in model.heads.values()])
    found, _ = run(tmp_path, case, balancer="mgda")
    assert deviation(found.theta, theta, case["theta0"]) < 1e-9
    assert deviation(found.psi, psi, case["psi0"]) < 1e-9
    # the wrong control: what the implementation made of the same problem
    assert deviation(found.theta, case["methods"]["mgda"]["theta"], case["theta0"]) > 1e-4


@pytest.mark.parametrize(
    ("case", "method", "wrong"),
    [
        ("three_tasks", "db_mtl_beta0.9_decay0.5", {"beta": 0.9, "decay": 0.4}),
        ("three_tasks", "db_mtl_beta0.9_decay0.5", {"beta": 0.89}),
        ("three_tasks", "db_mtl_beta0.9_decay0.5", {"alpha": "mean"}),
        ("three_tasks", "gradnorm", {"learning_rate": 0.02}),
        ("three_tasks", "gradnorm", {"learning_rate": 0.01, "parametrization": "paper"}),
        ("three_tasks", "moco", {"normalize": False}),
        ("three_tasks", "moco", {"projection": "simplex"}),
        ("three_tasks", "moco", {"beta": 0.45}),
        ("three_tasks", "excess_mtl", {"step_size": 0.02}),
        ("three_tasks", "excess_mtl", {"warmup_steps": 2}),
        ("two_tasks", "gradvac", {"beta": 0.01}),
        ("three_tasks", "cagrad", {"c": 0.4}),
        ("three_tasks", "cagrad", {"rescale": 0}),
        ("two_tasks", "nash_mtl", {"max_norm": 0.0}),
        ("two_tasks", "nash_mtl", {"solver": "newton"}),
        ("three_tasks", "aligned_mtl", {"reduction": "mean"}),
        ("three_tasks", "aligned_mtl", {"scale": "rmse"}),
        ("three_tasks", "fairgrad", {"alpha": 1.1}),
        ("three_tasks", "upgrad", {"norm_eps": 1e9}),
    ],
    ids=str,
)
def test_another_setting_leaves_the_trajectory(case: str, method: str, wrong: dict, tmp_path: Path) -> None:
    case = CASES[case]
    expected = case["methods"][method]
    found, _ = run(tmp_path, case, balancer=name_of(method), balancer_kwargs=wrong)
    assert deviation(found.theta, expected["theta"], case["theta0"]) > 1e-3
