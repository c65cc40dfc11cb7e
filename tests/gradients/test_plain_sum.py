"""The plain sum in one backward pass of a micro-batch, against autograd on every task alone (G1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_local import CUTS, Setting, difference
from torch import Tensor

from hf_dbmtl.gradients import GradientVector, How, TaskGradient


FACTORS = {"a": 0.7, "b": 2.0}
UNITS = {"together": {"both": ("a", "b")}, "apart": {"a": ("a",), "b": ("b",)}}


class Both(Setting):
    """Two tasks with labels of their own on the same rows, and what is told of them before a forward pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.passes = 0
        generator = torch.Generator().manual_seed(7)
        self.of_task = {"a": self.labelled, "b": torch.rand(self.labelled.shape, generator=generator) < 0.4}

    def forward(self, tasks: Sequence[str], rows: slice) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for task in tasks:
            self.labelled = self.of_task[task]
            found[task] = self.loss_and_items(task, rows)
        return found

    def count(self, tasks: Sequence[str], rows: slice) -> dict[str, Tensor]:
        return {task: self.of_task[task][rows].sum() for task in tasks}

    def pass_back(self, loss: Tensor, retain_graph: bool) -> None:
        self.passes += 1
        self.backward(loss, retain_graph)

    def alone(self, task: str) -> tuple[float, int, list, list]:
        self.labelled = self.of_task[task]
        return self.expected(task)

    def each(self, units: Mapping[str, Any], cuts: list[int], **options: Any) -> Iterator[tuple[str, TaskGradient]]:
        """The tasks as they come, asked for their sum."""
        how = How(
            self.forward,
            self.pass_back,
            lambda task, loss: loss.new_tensor(FACTORS[task]),
            self.loss_scale,
            norms=False,
            summed=True,
            count=self.count,
        )
        how = replace(how, **options)
        batches = [slice(*cut) for cut in zip(cuts, cuts[1:])]
        yield from self.gradients.each(units, lambda unit: batches, how)

    def summed(self, units: Mapping[str, Any], cuts: list[int], **options: Any) -> dict[str, TaskGradient]:
        """All tasks, the gradients as one tensor per parameter, copied."""
        found = {}
        for task, one in self.each(units, cuts, **options):
            tensors = self.gradients.full(one.shared)
            own = GradientVector([None if tensor is None else tensor.clone() for tensor in tensors])
            found[task] = replace(one, shared=own)
        return found


def total_of(setting: Both, part: int) -> list[Tensor | None]:
    """The weighted sum of the gradients that autograd gives for the tasks alone."""
    sums: list[Tensor | None] = []
    for one, other in zip(setting.alone("a")[part], setting.alone("b")[part]):
        terms = [FACTORS[task] * grad for task, grad in (("a", one), ("b", other)) if grad is not None]
        sums.append(sum(terms[1:], start=terms[0]) if terms else None)
    return sums


@pytest.mark.parametrize("loss_scale", [1.0, 4096.0])
@pytest.mark.parametrize("together", UNITS)
@pytest.mark.parametrize("cuts", list(CUTS.values())[:5], ids=list(CUTS)[:5])
def test_the_sum_in_one_pass_of_a_micro_batch(cuts: list[int], together: str, loss_scale: float) -> None:
    setting = Both(loss_scale=loss_scale)
    found = setting.summed(UNITS[together], cuts)
    micro_batches = len(cuts) - 1
    assert setting.passes == micro_batches * len(UNITS[together])
    assert difference(found["a"].shared, total_of(setting, 2)) < 1e-13
    assert difference(found["a"].heads, total_of(setting, 3)) < 1e-13
    assert all(tensor is None for tensor in (*found["b"].shared.tensors, *found["b"].heads.tensors))
    for task, one in found.items():
        loss, items, *_ = setting.alone(task)
        assert (one.loss, one.num_items) == (pytest.approx(loss, rel=1e-14), items)
        assert one.is_finite
    assert found["a"].norm == pytest.approx(
        math.sqrt(sum(one.square().sum() for one in total_of(setting, 2) if one is not None))
    )
    assert all(parameter.grad is None for parameter in setting.model.parameters())


def test_micro_batches_weighted_alike_would_show() -> None:
    """The control: a forward whose means are taken for means over equally many items."""
    setting, cuts = Both(), CUTS["unequal"]

    def alike(tasks: Sequence[str], rows: Any) -> dict[str, tuple[Tensor, Tensor]]:
        return {task: (loss, torch.ones_like(loss)) for task, (loss, _) in setting.forward(tasks, rows).items()}

    wrong = setting.summed(
        UNITS["together"], cuts, forward=alike, count=lambda tasks, rows: {task: torch.tensor(1) for task in tasks}
    )
    assert difference(wrong["a"].shared, total_of(setting, 2)) > 1e-2


@pytest.mark.parametrize("cuts", [[0, 8], [0, 1, 6, 8]], ids=str)
def test_where_nothing_is_told_before(cuts: list[int]) -> None:
    """A single micro-batch is the whole step and tells itself; several go task by task, and come to the same."""
    setting = Both()
    found = setting.summed(UNITS["together"], cuts, count=None)
    assert setting.passes == (1 if len(cuts) == 2 else 2 * (len(cuts) - 1))
    if len(cuts) == 2:
        summed = found["a"].shared
    else:
        summed = found["a"].shared.add_(found["b"].shared)
    assert difference(summed, total_of(setting, 2)) < 1e-13


@pytest.mark.parametrize("cuts", [[0, 8], [0, 3, 8]], ids=str)
def test_an_absent_task_is_not_in_the_sum(cuts: list[int]) -> None:
    setting = Both()
    setting.of_task["a"] = torch.zeros_like(setting.of_task["a"])
    found = setting.summed(UNITS["together"], cuts)
    assert (found["a"].num_items, found["a"].norm, found["a"].loss) == (0, 0.0, 0.0)
    _, _, shared, heads = setting.alone("b")
    doubled = [[None if one is None else FACTORS["b"] * one for one in part] for part in (shared, heads)]
    assert difference(found["b"].shared, doubled[0]) < 1e-14
    assert difference(found["b"].heads, doubled[1]) < 1e-14  # none for the head of `a`, not even zeros


def test_without_any_task_nothing_is_reached() -> None:
    setting = Both()
    setting.of_task = {task: torch.zeros_like(labelled) for task, labelled in setting.of_task.items()}
    found = setting.summed(UNITS["together"], [0, 4, 8])
    assert setting.passes == 0
    assert all(one.num_items == 0 and not any(map(torch.is_tensor, one.shared.tensors)) for one in found.values())


@pytest.mark.parametrize("cuts", [[0, 8], [0, 4, 8]], ids=str)
def test_a_wrong_count_is_refused(cuts: list[int]) -> None:
    setting = Both()

    def one_more(tasks: Sequence[str], rows: Any) -> dict[str, Tensor]:
        return {task: items + (task == "b") for task, items in setting.count(tasks, rows).items()}

    with pytest.raises(
        ValueError, match=r"Task 'b': its loss is the mean over \d+ items, and its labels hold \d+\. .*labelled"
    ):
        setting.summed(UNITS["together"], cuts, count=one_more)


@pytest.mark.parametrize("cuts", [[0, 8], [0, 4, 8]], ids=str)
def test_of_a_sum_that_is_not_finite_the_task_is_told(cuts: list[int]) -> None:
    setting = Both()

    def poisoned(tasks: Sequence[str], rows: Any) -> dict[str, tuple[Tensor, Tensor]]:
        found = setting.forward(tasks, rows)
        for task in set(tasks) & {"b"}:
            found[task][0].register_hook(lambda grad: grad * math.inf)
        return found

    first = next(setting.each(UNITS["together"], cuts, forward=poisoned))
    assert first[0] == "b" and not first[1].is_finite


def test_the_first_of_several_that_are_not_finite_is_told_alone() -> None:
    setting = Both()

    def poisoned(tasks: Sequence[str], rows: Any) -> dict[str, tuple[Tensor, Tensor]]:
        return {task: (loss * math.inf, items) for task, (loss, items) in setting.forward(tasks, rows).items()}

    (task, found), *summed = setting.each(UNITS["apart"], [0, 8], forward=poisoned)
    assert task == "a" and not found.is_finite
    assert [task for task, _ in summed] == ["a", "b"]  # `b` only with the sum, that of all


@pytest.mark.parametrize("cuts", [[0, 8], [0, 4, 8]], ids=str)
def test_items_that_contradict_the_loss(cuts: list[int]) -> None:
    setting = Both()

    def of_nothing(tasks: Sequence[str], rows: Any) -> dict[str, tuple[Tensor, Tensor]]:
        found = setting.forward(tasks, rows)
        return {task: (loss, items * (task != "b")) for task, (loss, items) in found.items()}

    with pytest.raises(ValueError, match=r"Task 'b': its loss is [\d.]+ over num_items=0\. .*zero or more"):
        setting.summed(UNITS["together"], cuts, forward=of_nothing)
