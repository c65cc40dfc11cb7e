"""The gradient of the mean over all items, however the items are cut, against autograd on all of them at once (G1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

from hf_dbmtl.gradients import GradientVector, How, LocalGradients, TaskGradient, split_parameters
from hf_dbmtl.gradients.flat import FlatVector


class Net(nn.Module):
    """A trunk, a head per task, and a part that only task `b` reaches."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4)
        self.side = nn.Linear(3, 4)
        self.never = nn.Linear(4, 4)
        self.heads = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2)})
        self.to(dtype)

    def squares(self, task: str, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self.trunk(inputs) + (self.side(inputs) if task == "b" else 0)
        return (self.heads[task](hidden.tanh()) - targets).square()


def of_one(forward: Callable) -> Callable:
    """A forward for tasks that share a batch, from that of a task of its own."""

    def forward_all(tasks, batch):
        (task,) = tasks
        return {task: forward(task, batch)}

    return forward_all


def measure(gradients: LocalGradients, task: str, batches: list, how: How) -> TaskGradient:
    """The gradient of a task, as it is in `flat` and one tensor per shared parameter."""
    ((_, found),) = gradients.each({task: [task]}, lambda unit: batches, how)
    found.flat = found.shared
    found.shared = GradientVector([None if one is None else one.clone() for one in gradients.full(found.shared)])
    return found


@dataclass
class Setting:
    """A model, rows of which some entries carry no label, and how a task is computed on a slice of them."""

    dtype: torch.dtype = torch.float64
    derivative: Callable[[str, Tensor], Tensor] = lambda task, loss: torch.ones_like(loss)
    loss_scale: float = 1.0
    asked: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = Net(self.dtype)
        self.gradients = LocalGradients(*split_parameters(self.model))
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(8, 3, generator=generator, dtype=torch.float64).to(self.dtype)
        self.targets = torch.randn(8, 2, generator=generator, dtype=torch.float64).to(self.dtype)
        self.labelled = torch.rand(8, 2, generator=generator) < 0.6
        self.labelled[5:7] = False

    def loss_and_items(self, task: str, rows: slice) -> tuple[Tensor, Tensor]:
        labelled = self.labelled[rows]
        squares = self.model.squares(task, self.inputs[rows], self.targets[rows]).where(labelled, 0.0)
        items = labelled.sum()
        return squares.sum() / items.clamp(min=1), items.to(squares.dtype)

    def how(self) -> How:
        def derivative(task: str, loss: Tensor) -> Tensor:
            self.asked.append(loss.item())
            return self.derivative(task, loss)

        return How(of_one(self.loss_and_items), self.backward, derivative, self.loss_scale)

    def backward(self, loss: Tensor, retain_graph: bool) -> None:
        (loss * self.loss_scale).backward(retain_graph=retain_graph)

    def measure(self, cuts: list[int], task: str = "a") -> TaskGradient:
        return measure(self.gradients, task, [slice(*cut) for cut in zip(cuts, cuts[1:])], self.how())

    def expected(self, task: str = "a") -> tuple[float, int, list[Tensor | None], list[Tensor | None]]:
        """The same by autograd, in one piece, the derivative applied afterwards."""
        loss, items = self.loss_and_items(task, slice(0, 8))
        factor = self.derivative(task, loss.detach())
        shared, heads = (
            [
                None if grad is None else grad * factor
                for grad in torch.autograd.grad(loss, list(part.values()), retain_graph=True, allow_unused=True)
            ]
            for part in (self.gradients.shared, self.gradients.heads)
        )
        return loss.item(), int(items), shared, heads


def difference(found: GradientVector, expected: list[Tensor | None]) -> float:
    assert [one is None for one in found.tensors] == [one is None for one in expected]
    pairs = [(a, b) for a, b in zip(found.tensors, expected) if b is not None]
    return (sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)).sqrt().item()


CUTS = {
    "one piece": [0, 8],
    "halves": [0, 4, 8],
    "unequal": [0, 1, 6, 8],
    "one by one": list(range(9)),
    "one without any item": [0, 5, 7, 8],
    "the first without": [5, 7, 8],
}


def log_derivative(task: str, loss: Tensor) -> Tensor:
    return 1 / (loss + 1e-8)


@pytest.mark.parametrize("task", ["a", "b"])
@pytest.mark.parametrize("derivative", [Setting.derivative, log_derivative], ids=["identity", "log"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 2e-6)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("cuts", list(CUTS.values())[:5], ids=list(CUTS)[:5])
def test_the_gradient_of_the_mean(cuts: list[int], dtype: torch.dtype, bound: float, derivative, task: str) -> None:
    setting = Setting(dtype, derivative)
    loss, items, shared, heads = setting.expected(task)
    found = setting.measure(cuts, task)
    assert found.num_items == items
    assert found.loss == pytest.approx(loss, rel=bound)
    assert difference(found.shared, shared) < bound
    assert difference(found.heads, heads) < bound
    assert found.norm == pytest.approx(
        math.sqrt(sum(one.square().sum() for one in shared if one is not None)), rel=1e-6
    )
    assert found.is_finite
    # asked once, at the mean over everything
    assert setting.asked == [pytest.approx(loss, rel=max(bound, 1e-14))]
    assert all(parameter.grad is None for parameter in setting.model.parameters())


@pytest.mark.parametrize("task", ["a", "b"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 2e-6)], ids=["float64", "float32"]
)
def test_a_gradient_is_blended_as_it_arrives(dtype: torch.dtype, bound: float, task: str) -> None:
    setting = Setting(dtype, log_derivative)
    _, _, shared, _ = setting.expected(task)
    flat = setting.measure([0, 8], "b").flat
    other = FlatVector(setting.gradients.layout, flat.tensors[0].clone() * 3, flat.reached)
    how = replace(setting.how(), norms=False, blend=lambda task: (other, 0.3))
    found = measure(setting.gradients, task, [slice(0, 8)], how)
    assert found.blended
    expected = [
        None if v is None else 0.7 * (torch.zeros_like(v) if g is None else g) + 0.3 * v  # `b` reaches more than `a`
        for g, v in zip(shared, setting.gradients.full(other))
    ]
    assert difference(found.shared, expected) < bound
    # not where its norm is asked for, or where a factor has to come on top of what arrives
    halves = [slice(0, 4), slice(4, 8)]
    setting.loss_scale = 4.0
    scaled = replace(how, loss_scale=4.0)
    assert not measure(setting.gradients, task, [slice(0, 8)], scaled).blended
    setting.loss_scale = 1.0
    for batches, alone in ((halves, how), ([slice(0, 8)], replace(how, norms=True))):
        found = measure(setting.gradients, task, batches, alone)
        assert not found.blended
        assert difference(found.shared, shared) < bound


def test_memory_of_another_type_does_not_serve_again() -> None:
    """As where a task's average, loaded from a checkpoint of a run in float64, has taken the place of its gradient."""
    setting = Setting(torch.float32)
    for _, found in setting.gradients.each({"a": ["a"], "b": ["b"]}, lambda unit: [slice(0, 8)], setting.how()):
        assert found.shared.tensors[0].dtype == torch.float32
        found.shared.tensors[0] = found.shared.tensors[0].double()
    assert setting.measure([0, 8]).flat.tensors[0].dtype == torch.float32


def test_where_the_first_micro_batch_has_no_item() -> None:
    setting = Setting()
    found = setting.measure(CUTS["the first without"])
    other = Setting()
    other.inputs, other.targets, other.labelled = (one[7:] for one in (other.inputs, other.targets, other.labelled))
    loss, items, shared, _ = other.expected()
    assert (found.num_items, found.loss) == (items, pytest.approx(loss))
    assert difference(found.shared, shared) < 1e-14


def test_a_mean_of_means_would_show() -> None:
    """The control: micro-batches weighted alike although they hold different numbers of items."""
    setting = Setting()
    parts = [setting.measure(cut) for cut in ([0, 1], [1, 5])]
    assert parts[0].num_items != parts[1].num_items
    whole = setting.measure([0, 1, 5])
    assert difference(parts[0].shared.add_(parts[1].shared).mul_(0.5), whole.shared.tensors) > 1e-2


@pytest.mark.parametrize("loss_scale", [1.0, 65536.0, 1e-3])
@pytest.mark.parametrize("cuts", [[0, 8], [0, 3, 8]], ids=str)
def test_the_loss_scale_is_taken_out_and_put_back(cuts: list[int], loss_scale: float) -> None:
    setting = Setting(derivative=log_derivative, loss_scale=loss_scale)
    _, _, shared, heads = setting.expected()
    found = setting.measure(cuts)
    assert difference(found.shared, shared) < 1e-13 and difference(found.heads, heads) < 1e-13
    setting.gradients.write(found.flat, found.heads, loss_scale)
    for part, expected in ((setting.gradients.shared, shared), (setting.gradients.heads, heads)):
        scaled = [None if one is None else loss_scale * one for one in expected]
        assert difference(GradientVector([parameter.grad for parameter in part.values()]), scaled) < 1e-13


@pytest.mark.parametrize("cuts", [[5, 5], [5, 7], [5, 6, 7]], ids=["no row", "no label", "no label, twice"])
def test_an_absent_task(cuts: list[int]) -> None:
    """Nothing is reached, not even by a zero, and the transform is not asked at a loss that is none."""
    setting = Setting(derivative=log_derivative)
    found = setting.measure(cuts)
    assert (found.loss, found.num_items, found.norm) == (0.0, 0, 0.0)
    assert not any(tensor is not None for tensor in (*found.shared.tensors, *found.heads.tensors))
    assert all(parameter.grad is None for parameter in setting.model.parameters())
    none = measure(setting.gradients, "a", [], setting.how())
    assert (none.num_items, none.shared.tensors) == (0, found.shared.tensors)


def test_what_is_not_reached_is_none_and_written_so() -> None:
    setting = Setting()
    for task in "ab":
        found = setting.measure([0, 4, 8], task)
        reached = {name for name, tensor in zip(setting.gradients.shared, found.shared.tensors) if tensor is not None}
        assert reached == {
            f"{part}.{kind}" for part in ("trunk", *(["side"] if task == "b" else [])) for kind in ("weight", "bias")
        }
        setting.gradients.write(found.flat, found.heads)
        written = {name for name, parameter in setting.model.named_parameters() if parameter.grad is not None}
        assert written == reached | {f"heads.{task}.weight", f"heads.{task}.bias"}
        setting.model.zero_grad()


def test_parameters_in_half_precision_are_added_up_in_float32() -> None:
    setting = Setting(torch.bfloat16)
    found = setting.measure([0, 8])
    assert {tensor.dtype for tensor in found.shared.tensors if tensor is not None} == {torch.float32}
    setting.gradients.write(found.flat, found.heads)
    assert setting.model.trunk.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("order", ["view first", "view last"])
def test_gradients_of_parameters_that_are_added_are_separate(order: str) -> None:
    """Autograd sends one tensor to both of them: were it stored once, scaling it in place would scale it twice."""
    one, other = (nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in ((6,), (2, 3)))
    weights = torch.arange(6.0, dtype=torch.float64)

    def forward(task: str, batch: int) -> tuple[Tensor, Tensor]:
        parts = (one, other.reshape(6)) if order == "view last" else (other.reshape(6), one)
        return ((parts[0] + parts[1]) * weights).sum() + 7, torch.tensor(float(batch))

    gradients = LocalGradients({"one": one, "other": other}, {})
    how = How(of_one(forward), torch.Tensor.backward, lambda task, loss: torch.full_like(loss, 10.0))
    for batches in ([3], [3, 3]):
        found = measure(gradients, "a", batches, how)
        for tensor in found.shared.tensors:
            torch.testing.assert_close(tensor.reshape(6), 10 * weights)


@pytest.mark.parametrize("rows", [10, 1 << 19], ids=["small", "large"])  # to whose gradient autograd adds, or not
def test_sparse_gradients(rows: int) -> None:
    found = {}
    for sparse in (True, False):
        torch.manual_seed(0)
        table = nn.Embedding(rows, 2, sparse=sparse).double()
        gradients = LocalGradients({"table": table.weight}, {})

        def forward(task: str, batch: list[int], table: nn.Embedding = table) -> tuple[Tensor, Tensor]:
            return table(torch.tensor(batch)).square().mean(), torch.tensor(float(len(batch)))

        how = How(of_one(forward), torch.Tensor.backward, lambda task, loss: torch.ones_like(loss))
        (found[sparse],) = measure(gradients, "a", [[1, 3, 3], [3]], how).shared.tensors
    torch.testing.assert_close(found[True], found[False])
    assert not found[True].is_sparse and found[True][[1, 3]].all() and not found[True][4:].any()


@pytest.mark.parametrize(
    ("loss", "items"), [(1.0, 0), (math.nan, 0), (math.inf, 0), (1.0, -1), (0.0, -2), (1.0, math.nan), (1.0, math.inf)]
)
@pytest.mark.parametrize("place", [None, 0, 1])
def test_items_that_contradict_the_loss(loss: float, items: float, place: int | None) -> None:
    """Refused, alone or as one of two micro-batches, and no gradient is left behind."""
    setting = Setting()

    def forward(task: str, batch: int) -> tuple[Tensor, Tensor]:
        if batch == place or place is None:
            zero = setting.loss_and_items(task, slice(0, 8))[0] * 0
            return zero + loss, torch.tensor(items, dtype=torch.float64)
        return setting.loss_and_items(task, slice(0, 8))

    how = How(of_one(forward), torch.Tensor.backward, setting.derivative)
    with pytest.raises(ValueError, match=rf"Task 'a': its loss is {loss:g} over num_items={items:g}\. .*zero or more"):
        measure(setting.gradients, "a", [0] if place is None else [0, 1], how)
    assert all(parameter.grad is None for parameter in setting.model.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("cuts", [[0, 8], [0, 4, 8]], ids=str)
@pytest.mark.parametrize("where", ["loss", "trunk", "heads"])
def test_what_is_not_finite_shows(where: str, cuts: list[int], bad: float) -> None:
    setting = Setting()
    if where == "loss":
        setting.targets[0, 0], setting.labelled[0, 0] = bad, True
    else:
        part = setting.model.trunk if where == "trunk" else setting.model.heads["a"]
        part.bias.register_hook(lambda gradient: gradient * bad)
    assert not setting.measure(cuts).is_finite
    assert all(parameter.grad is None for parameter in setting.model.parameters())


@pytest.mark.parametrize("scaled", [False, True])
def test_skip(scaled: bool) -> None:
    setting = Setting()
    found = setting.measure([0, 8])
    setting.gradients.write(found.flat, found.heads)
    setting.gradients.skip(scaled)
    for parameter in setting.model.parameters():
        assert parameter.grad.isinf().all() if scaled else parameter.grad is None
