"""Objects of TorchJD as balancers: what they give, what they keep, and what they are refused for."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cases import CASES, Item, distance, draw, play, vector
from catalogue_faults import saved
from helpers import arguments, tiny_data, tiny_model
from torch import Tensor, nn
from torchjd import aggregation as jd
from torchjd import scalarization as jds
from torchjd._mixins import Stateful

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.balancing import Balancer, describe_balancer, make_balancer
from hf_dbmtl.balancing.gramian import drawing_from


ONES = torch.ones(3)
# By what they are given: the gradients as rows, or their Gramian.
OF_GRADIENTS: dict[str, Callable[[], nn.Module]] = {
    "AlignedMTL": jd.AlignedMTL,
    "CAGrad": lambda: jd.CAGrad(0.5),
    "ConFIG": jd.ConFIG,
    "Constant": lambda: jd.Constant(ONES),
    "ConstantWeighting": lambda: jd.ConstantWeighting(ONES),
    "CRMOGM of a matrix": lambda: jd.WeightedAggregator(jd.CRMOGMWeighting(jd.ExcessMTLWeighting(0.1), alpha=0.5)),
    "DualProj": jd.DualProj,
    "ExcessMTL": jd.ExcessMTL,
    "ExcessMTLWeighting": lambda: jd.ExcessMTLWeighting(0.01, n_warmup_steps=2),
    "FairGrad": lambda: jd.FairGrad(1.0),
    "GradDrop": lambda: jd.GradDrop(leak=torch.tensor([0.0, 0.5, 1.0])),
    "GradVac": jd.GradVac,
    "IMTLG": jd.IMTLG,
    "Krum": lambda: jd.Krum(0),
    "Mean": jd.Mean,
    "MGDA": jd.MGDA,
    "NashMTL": lambda: jd.NashMTL(3, update_weights_every=2),
    "PCD": lambda: jd.PCD(beta=0.5),
    "PCGrad": jd.PCGrad,
    "Random": jd.Random,
    "RandomWeighting": jd.RandomWeighting,
    "Sum": jd.Sum,
    "TrimmedMean": lambda: jd.TrimmedMean(1),
    "UPGrad": lambda: jd.UPGrad(pref_vector=torch.tensor([0.1, 0.2, 0.3])),
    "the weighting of an aggregator": lambda: jd.UPGrad().weighting,
}
OF_GRAMIANS: dict[str, Callable[[], nn.Module]] = {
    "CRMOGMWeighting": lambda: jd.CRMOGMWeighting(jd.GradVacWeighting(), alpha=0.5),
    "GradVacWeighting": jd.GradVacWeighting,
    "MoDoWeighting": lambda: jd.MoDoWeighting(gamma=0.01),
    "PCDWeighting": lambda: jd.PCDWeighting(beta=0.5),
    "SDMGradWeighting": lambda: jd.SDMGradWeighting(lr=0.01),
    "UPGradWeighting": jd.UPGradWeighting,
}
OF_LOSSES: dict[str, Callable[[], jds.Scalarizer]] = {
    "Constant": lambda: jds.Constant(ONES),
    "COSMOS": lambda: jds.COSMOS(0.1, ONES),
    "DWA": jds.DWA,
    "FAMO": lambda: jds.FAMO(3, lr=0.5),
    "GeometricMean": jds.GeometricMean,
    "IMTLL": lambda: jds.IMTLL(3),
    "Mean": jds.Mean,
    "PBI": lambda: jds.PBI(5.0, ONES, torch.zeros(3)),
    "Random": jds.Random,
    "STCH": lambda: jds.STCH(0.5),
    "Sum": jds.Sum,
    "UW": lambda: jds.UW(3),
}
ALL = {
    f"{name} of {what}": make
    for what, of in (("gradients", OF_GRADIENTS), ("gramians", OF_GRAMIANS), ("losses", OF_LOSSES))
    for name, make in of.items()
}
STATEFUL = [name for name, make in ALL.items() if any(isinstance(part, Stateful) for part in make().modules())]
STEPS = CASES[0]
LONG = draw(3, 8, 5, steps=6)

pytestmark = pytest.mark.filterwarnings("ignore:TorchJD's .* is given the Gramian of one batch")


def balancer(of: nn.Module, options: dict | None = None, tasks: list[str] | None = None) -> Balancer:
    return make_balancer(of, options).setup(tasks or ["t0", "t1", "t2"], 0)


def in_double(module: nn.Module) -> nn.Module:
    """The object as TorchJD's users would prepare it for float64."""
    module = copy.deepcopy(module).double()
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                vars(part)[name] = value.double()
    return module


def gradients_of(step: dict[str, Item]) -> Tensor:
    return torch.stack([item.gradient for item in step.values()])


@pytest.mark.parametrize("name", OF_GRADIENTS)
def test_of_the_gradients(name: str) -> None:
    """Step by step what the object itself makes of the matrix of gradients."""
    adapted, alone = balancer(OF_GRADIENTS[name]()), in_double(OF_GRADIENTS[name]())
    expected = []
    for number, step in enumerate(STEPS, start=1):
        with drawing_from(adapted.weighting.generator(number)), torch.no_grad():
            found = alone(gradients_of(step))
        expected.append(found @ gradients_of(step) if isinstance(alone, jd.Weighting) else found)
    tolerance = 1e-4 if name == "NashMTL" else 1e-7
    assert distance(play(adapted, STEPS)[0], expected) < tolerance
    if name not in ("Sum", "Constant", "ConstantWeighting"):
        assert distance(expected, [gradients_of(step).sum(0) for step in STEPS]) > 1e-2


@pytest.mark.parametrize("name", OF_GRAMIANS)
def test_of_the_gramian(name: str) -> None:
    adapted, alone = balancer(OF_GRAMIANS[name]()), in_double(OF_GRAMIANS[name]())
    expected = []
    for number, step in enumerate(STEPS, start=1):
        gradients = gradients_of(step)
        with drawing_from(adapted.weighting.generator(number)), torch.no_grad():
            expected.append(alone(gradients @ gradients.T) @ gradients)
    assert distance(play(adapted, STEPS)[0], expected) < 1e-10


@pytest.mark.parametrize("name", OF_LOSSES)
def test_of_the_losses(name: str) -> None:
    """The gradient of the scalarized losses, for the shared parameters and the heads."""
    learns = name in ("UW", "IMTLL")
    adapted = balancer(OF_LOSSES[name](), {"learning_rate": 0.1} if learns else None)
    alone = in_double(OF_LOSSES[name]())
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1) if learns else None
    expected = []
    for number, step in enumerate(LONG, start=1):
        if name == "DWA" and number > 1:
            alone.step()  # `play` makes an epoch of every step
        values = torch.tensor([item.loss for item in step.values()], dtype=torch.float64, requires_grad=True)
        with drawing_from(adapted.transform.generator(number)):
            alone(values).backward()
        expected.append(values.grad @ gradients_of(step))
        if name == "FAMO":
            alone.update(torch.tensor([item.later for item in step.values()], dtype=torch.float64))
        if learns:
            optimizer.step()
            optimizer.zero_grad()
    assert distance(play(adapted, LONG)[0], expected) < 1e-12
    if name not in ("Sum", "Constant"):
        assert distance(expected, [gradients_of(step).sum(0) for step in LONG]) > 1e-3


def test_heads_carry_the_derivative_of_a_scalarizer() -> None:
    adapted = balancer(jds.STCH(0.5))
    adapted.begin()
    losses = torch.tensor([item.loss for item in STEPS[0].values()], dtype=torch.float64, requires_grad=True)
    jds.STCH(0.5)(losses).backward()
    for task, item in STEPS[0].items():
        adapted.take(task, item.loss, vector(item.gradient))
    assert list(adapted.balance().head_weights.values()) == pytest.approx(losses.grad.tolist())


@pytest.mark.parametrize("name", STATEFUL)
def test_state_is_kept_bit_for_bit(name: str) -> None:
    whole = play(balancer(ALL[name]()), LONG)[0]
    for cut in range(1, len(LONG)):
        first = balancer(ALL[name]())
        play(first, LONG[:cut])
        state = saved(first)
        play(first, LONG[cut:])
        second = balancer(ALL[name]())
        second.load_state_dict(state)
        assert distance(play(second, LONG[cut:])[0], whole[cut:]) == 0.0, f"after step {cut}"
    # the control: without the state it does not go on as before
    fresh = balancer(ALL[name]())
    fresh.load_state_dict({"steps": 3, "tensors": {}, "vectors": {}})
    assert distance(play(fresh, LONG[3:])[0], whole[3:]) > 0.0


def test_every_stateful_object_is_in_the_list() -> None:
    """A new one in TorchJD must come in here."""

    def every(kind: type) -> set[type]:
        return {kind}.union(*(every(one) for one in kind.__subclasses__()))

    public = {one for one in every(Stateful) if one.__module__.startswith("torchjd") and one is not Stateful}
    tested = {type(part) for name in STATEFUL for part in ALL[name]().modules()}
    assert public <= tested, public - tested
    assert len(STATEFUL) > 10


@pytest.mark.parametrize("name", ALL)
def test_the_users_object_is_left_alone(name: str) -> None:
    """Two runs with one object are the same, and torch's own generator is where it was."""
    of = ALL[name]()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert distance(play(balancer(of), LONG)[0], play(balancer(of), LONG)[0]) == 0.0
    assert torch.equal(torch.get_rng_state(), before)
    if not any(True for _ in of.parameters()):
        assert balancer(of).state_dict()["tensors"] == {}


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_what_is_no_object_of_torchjd() -> None:
    for other in (3, None, ["ew"], nn.Linear(1, 1), jd.UPGrad):
        with pytest.raises(TypeError, match="`balancer` must be a name such as 'db_mtl' or 'log"):
            make_balancer(other)


def test_options() -> None:
    with pytest.raises(ValueError, match="TorchJD's GradVac is given as an object, and has no option 'beta'"):
        make_balancer(jd.GradVac(), {"beta": 0.1})
    with pytest.raises(
        ValueError, match=r"no option 'lr' in `balancer_kwargs`: they are \['learning_rate', 'optimizer'\]"
    ):
        make_balancer(jds.UW(3), {"lr": 0.1})
    with pytest.raises(ValueError, match="`optimizer` must be one of"):
        make_balancer(jds.UW(3), {"optimizer": "lion"})
    for rate in (-1.0, math.inf):
        with pytest.raises(ValueError, match=f"`learning_rate` must be a finite number, zero or more, and is {rate}"):
            make_balancer(jds.UW(3), {"learning_rate": rate})
    assert make_balancer(jds.UW(3), {"optimizer": "adam"}).transform.kept.optimizer.defaults["lr"] == 2.5e-3


def test_task_weights() -> None:
    with pytest.raises(ValueError, match="TorchJD's TrimmedMean gives a vector that is not one"):
        make_balancer(jd.TrimmedMean(1), None, {"t0": 2.0})
    of = jd.ExcessMTL(n_warmup_steps=5)  # until when the weights are 1/3
    weighted = make_balancer(of, None, {"t0": 3.0}).setup(["t0", "t1", "t2"], 0)
    expected = torch.tensor([1.0, 1 / 3, 1 / 3], dtype=torch.float64) @ gradients_of(STEPS[0])
    assert distance(play(weighted, STEPS[:1])[0], [expected]) < 1e-12
    assert distance(play(balancer(of), STEPS[:1])[0], [expected]) > 1e-2


@pytest.mark.parametrize("of", [jd.GradVac(), jd.ExcessMTL(), jds.DWA()], ids=describe_balancer)
def test_an_absent_task_and_a_state(of: nn.Module) -> None:
    """TorchJD would silently begin anew with two tasks, and anew with three."""
    with pytest.raises(
        ValueError, match=r"No example of the task 't1' has a label in balanced step 2, and TorchJD's .* keeps"
    ):
        play(balancer(of), [STEPS[0], {task: STEPS[1][task] for task in ("t0", "t2")}])


def test_an_absent_task_without_a_state() -> None:
    two = [{task: step[task] for task in ("t0", "t2")} for step in STEPS]
    assert distance(play(balancer(jd.PCGrad()), two)[0], play(balancer(jd.PCGrad(), tasks=["t0", "t2"]), two)[0]) == 0.0
    with pytest.raises(
        ValueError, match=r"TorchJD's Constant failed in balanced step 1, with the tasks \['t0', 't2'\]: "
    ):
        play(balancer(jd.Constant(ONES)), two)


def test_numbers_that_are_not_finite() -> None:
    class Broken(jd.Weighting):
        def forward(self, gramian: Tensor) -> Tensor:
            return gramian.diagonal() / 0.0

    with pytest.raises(ValueError, match="TorchJD's Broken gave .*inf.* in balanced step 1"):
        play(balancer(Broken()), STEPS)


def test_derivatives_that_are_not_finite() -> None:
    """The geometric mean has none at a loss of zero."""
    adapted = balancer(jds.GeometricMean())
    adapted.begin()
    for number, (task, item) in enumerate(STEPS[0].items()):
        adapted.take(task, item.loss * number, vector(item.gradient))
    with pytest.raises(
        ValueError, match=r"TorchJD's GeometricMean has the derivatives \[nan, .* losses {'t0': 0.0, .*name"
    ):
        adapted.balance()


def test_what_cannot_be_saved() -> None:
    class Keeps(jd.Weighting):
        kept = None

        def forward(self, gramian: Tensor) -> Tensor:
            self.seen = lambda: gramian
            return gramian.new_ones(len(gramian))

    adapted = balancer(Keeps())
    play(adapted, STEPS)
    with pytest.raises(ValueError, match="The state of Keeps cannot be saved: its attribute ':seen' is now a function"):
        adapted.state_dict()


# ---- In the Trainer --------------------------------------------------------------------------------------------------


def test_the_arguments_stay_json(tmp_path: Path) -> None:
    args = arguments(tmp_path, balancer=jd.GradVac(beta=0.3))
    assert json.loads(args.to_json_string())["balancer"] == "GradVac(beta=0.3, eps=1e-08)"
    assert args.to_sanitized_dict()["balancer"] == "GradVac(beta=0.3, eps=1e-08)"
    assert "GradVac" in str(args)
    assert pickle.loads(pickle.dumps(args)).balancer.beta == 0.3
    assert " at 0x" not in describe_balancer(jd.GradDrop())
    with pytest.raises(ValueError, match="cannot be saved with the training arguments"):
        arguments(tmp_path, balancer=jd.GradDrop(f=lambda purity: purity))


def train(folder: Path, resume: Path | None = None, **options) -> MultiTaskTrainer:
    trainer_options = {key: options.pop(key) for key in ("balancer",) if options.pop("direct", False)}
    saving = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
    args = arguments(folder, **saving, **options)
    trainer = MultiTaskTrainer(model=tiny_model(), args=args, train_dataset=tiny_data(rows=12), **trainer_options)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def same(one: MultiTaskTrainer, other: MultiTaskTrainer) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values())
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("of", [jd.GradVac(), jd.ExcessMTL(), jds.FAMO(4), jds.UW(4)], ids=describe_balancer)
def test_training_and_resuming(of: nn.Module, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", balancer=of, direct=True)
    assert whole.state.global_step == 6
    assert same(whole, train(tmp_path / "by-args", balancer=of))
    assert same(whole, train(tmp_path / "resumed", tmp_path / "whole" / "checkpoint-3", balancer=of))
    assert not same(whole, train(tmp_path / "plain", balancer="ew"))


def test_the_trainers_own_argument_wins_and_the_users_arguments_stay(tmp_path: Path) -> None:
    args = arguments(tmp_path, balancer="ew")
    trainer = MultiTaskTrainer(model=tiny_model(), args=args, train_dataset=tiny_data(), balancer=jd.UPGrad())
    assert args.balancer == "ew" and describe_balancer(trainer.args.balancer).startswith("UPGrad(")
    with pytest.raises(TypeError, match="`balancer` must be a name"):
        MultiTaskTrainer(model=tiny_model(), args=args, train_dataset=tiny_data(), balancer=3)
