"""The arithmetic of gradient vectors, against NumPy on the flattened whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_dbmtl.gradients import GradientVector
from hf_dbmtl.gradients import vector as module


SHAPES = [(2, 3), (4,), (), (3, 1, 2)]
SIZE = sum(math.prod(shape) for shape in SHAPES)


def make(seed: int, missing: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> GradientVector:
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    return GradientVector([None if i in missing else tensor for i, tensor in enumerate(tensors)])


def flat(vector: GradientVector) -> np.ndarray:
    pieces = [
        np.zeros(math.prod(shape)) if tensor is None else tensor.double().numpy().reshape(-1)
        for shape, tensor in zip(SHAPES, vector.tensors)
    ]
    return np.concatenate(pieces)


def reached(vector: GradientVector) -> list[bool]:
    return [tensor is not None for tensor in vector.tensors]


MISSING = {"all reached": (), "one is not": (1,), "none is": (0, 1, 2, 3)}


@pytest.mark.parametrize("missing", MISSING.values(), ids=MISSING)
def test_norm(missing: tuple[int, ...]) -> None:
    vector = make(0, missing)
    assert vector.norm() == pytest.approx(np.linalg.norm(flat(vector)), rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1e-15, 1e-12, 1e12, 1e15])
def test_norm_of_small_and_large_entries(scale: float, dtype: torch.dtype) -> None:
    tensors = [tensor * scale for tensor in make(0, dtype=dtype).tensors]
    vector = GradientVector(tensors)
    assert vector.norm() == pytest.approx(np.linalg.norm(flat(vector)), rel=1e-14 if dtype is torch.float64 else 1e-6)


def test_norm_of_half_precision_is_taken_in_float32() -> None:
    vector = GradientVector(
        [torch.full((1000,), 250.0, dtype=torch.float16), torch.full((24,), 250.0, dtype=torch.float16)]
    )
    assert vector.norm() == pytest.approx(250 * 1024**0.5, rel=1e-6)  # its square is beyond what float16 holds


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 3])
def test_norm_shows_what_is_not_finite(bad: float, where: int) -> None:
    vector = make(0, (1,))
    vector.tensors[where].view(-1)[-1] = bad
    assert not math.isfinite(vector.norm())


@pytest.mark.parametrize("stretch", [1, 4, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gramian(dtype: torch.dtype, stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH", stretch)
    vectors = [make(0, dtype=dtype), make(1, (1,), dtype), make(2, (0, 3), dtype), make(3, (0, 1, 2, 3), dtype)]
    gramian = vectors[0].gramian(vectors[1:])
    matrix = np.stack([flat(vector) for vector in vectors])
    assert gramian.dtype == torch.float64 and gramian.shape == (4, 4)
    np.testing.assert_allclose(
        gramian.numpy(), matrix @ matrix.T, rtol=1e-13, atol=1e-13
    )  # the products are in float64


def test_gramian_of_nothing() -> None:
    nothing = make(0, (0, 1, 2, 3))
    assert torch.equal(nothing.gramian([nothing]), torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("stretch", [1, 4, 1 << 18])
def test_map_sees_every_entry_once_and_knows_where(stretch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRETCH", stretch)
    one, other = make(0, (1, 3)), make(1, (1,))
    seen: list[tuple[int, int, int]] = []

    def combine(pieces: torch.Tensor, parameter: int, start: int) -> torch.Tensor:
        assert pieces.shape[0] == 2 and pieces.dtype == torch.float64
        seen.append((parameter, start, pieces.shape[1]))
        places = torch.arange(start, start + pieces.shape[1]) + 100 * parameter
        return pieces[0] - 3 * pieces[1] + places

    result = one.map([other], combine)
    places = np.concatenate([100 * i + np.arange(math.prod(shape)) for i, shape in enumerate(SHAPES)])
    places[6:10] = 0  # parameter 1, which neither reaches
    np.testing.assert_allclose(flat(result), flat(one) - 3 * flat(other) + places, rtol=1e-15)
    assert reached(result) == [True, False, True, True]
    assert [tensor.shape for tensor in result.tensors if tensor is not None] == [(2, 3), (), (3, 1, 2)]
    assert sum(length for _, _, length in seen) == SIZE - 4


def test_map_keeps_the_type_and_the_arguments() -> None:
    one, other = make(0, dtype=torch.float32), make(1, dtype=torch.float32)
    before = [flat(one), flat(other)]
    result = one.map([other], lambda pieces, parameter, start: pieces.prod(0))
    assert {tensor.dtype for tensor in result.tensors} == {torch.float32}
    assert np.array_equal(before, [flat(one), flat(other)])


def test_sums() -> None:
    one, other = make(0, (2,)), make(1, (0,))
    found = one.sums([other], lambda pieces, parameter, start: torch.stack([pieces.sum(), pieces.abs().sum()]))
    both = np.concatenate([flat(one), flat(other)])
    np.testing.assert_allclose(found.numpy(), [both.sum(), np.abs(both).sum()], rtol=1e-13)


@pytest.mark.parametrize("mine", [(), (1,), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("theirs", [(), (1, 2), (0,)], ids=str)
def test_add_and_lerp(mine: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    for operate, expect in (
        (lambda a, b: a.add_(b), lambda a, b: a + b),
        (lambda a, b: a.add_(b, -0.7), lambda a, b: a - 0.7 * b),
        (lambda a, b: a.lerp_(b, 0.3), lambda a, b: 0.7 * a + 0.3 * b),
        (lambda a, b: a.lerp_(b, 1.0), lambda a, b: b),
        (lambda a, b: a.lerp_(b, 0.0), lambda a, b: a),
    ):
        one, other = make(0, mine), make(1, theirs)
        expected, untouched = expect(flat(one), flat(other)), flat(other)
        assert operate(one, other) is one
        np.testing.assert_allclose(flat(one), expected, rtol=1e-14, atol=1e-15)
        assert np.array_equal(flat(other), untouched)
        assert reached(one) == [i not in mine or i not in theirs for i in range(len(SHAPES))]
        one.mul_(2.0)  # nor does it hold a part of the other from now on
        assert np.array_equal(flat(other), untouched)


@pytest.mark.parametrize("factor", [2.5, 1.0, 0.0, torch.tensor(-1.5, dtype=torch.float64)], ids=str)
def test_mul(factor: float | torch.Tensor) -> None:
    vector = make(0, (1,))
    before = flat(vector)
    assert vector.mul_(factor) is vector
    np.testing.assert_allclose(flat(vector), before * float(factor), rtol=1e-15)
    assert reached(vector) == [True, False, True, True]
    assert not any(reached(make(0, (0, 1, 2, 3)).mul_(factor)))


@pytest.mark.parametrize(
    ("asked", "of", "kept"),
    [
        (None, torch.float32, torch.float32),
        (None, torch.float64, torch.float64),
        (None, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
        (torch.float64, torch.float32, torch.float64),
    ],
    ids=str,
)
def test_what_a_zero_vector_keeps(asked: torch.dtype | None, of: torch.dtype, kept: torch.dtype) -> None:
    zero = make(0, dtype=of).new_zero(asked)
    assert not any(reached(zero)) and zero.norm() == 0.0
    for seed, missing in ((1, (2,)), (2, ())):
        zero.lerp_(make(seed, missing, of), 0.25)
    assert {tensor.dtype for tensor in zero.tensors} == {kept}


def test_set_into_another_type() -> None:
    """In the memory that is there, and where there is none in that of its own."""
    mine, theirs = make(0, (1,), torch.float32), make(1, (3,))
    places = [tensor.data_ptr() for tensor in mine.tensors[:3:2]]
    mine.set_(theirs, 0.5)
    assert [tensor.data_ptr() for tensor in mine.tensors[:3:2]] == places
    assert [None if tensor is None else tensor.dtype for tensor in mine.tensors] == [
        torch.float32, torch.float64, torch.float32, None
    ]  # fmt: skip
    np.testing.assert_allclose(flat(mine), 0.5 * flat(theirs), rtol=1e-6)


def test_entries_are_what_is_reached() -> None:
    vector = make(0, (1,))
    assert [(position, start) for position, start, _ in vector.entries()] == [(0, 0), (2, 0), (3, 0)]
    assert all(piece is vector.tensors[position] for position, _, piece in vector.entries())


def test_lerp_into_a_smaller_type_rounds_once() -> None:
    vector = make(0, dtype=torch.float32).new_zero(torch.bfloat16)
    expected = torch.zeros(SIZE, dtype=torch.bfloat16)
    for seed in range(5):
        new = torch.tensor(flat(make(seed, dtype=torch.float32)), dtype=torch.float32)
        vector.lerp_(make(seed, dtype=torch.float32), 0.3)
        expected = (new * 0.3 if seed == 0 else torch.lerp(expected.float(), new, 0.3)).bfloat16()
    assert np.array_equal(flat(vector), expected.double().numpy())
    naive = torch.zeros(SIZE, dtype=torch.bfloat16)  # the control: rounding every operand loses more
    for seed in range(5):
        naive = naive * 0.7 + torch.tensor(flat(make(seed)), dtype=torch.bfloat16) * 0.3
    assert not np.array_equal(flat(vector), naive.double().numpy())


def test_transposed_gradients() -> None:
    """Autograd hands out what is not contiguous."""
    tensor = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T
    vector, other = GradientVector([tensor.clone(memory_format=torch.preserve_format)]), GradientVector([tensor])
    assert not vector.tensors[0].is_contiguous()
    assert vector.norm() == pytest.approx(55**0.5)
    assert vector.gramian([other])[0, 1].item() == pytest.approx(55)
    mapped = vector.map([other], lambda pieces, parameter, start: pieces[0] + pieces[1])
    assert torch.equal(mapped.tensors[0], 2 * tensor)
    assert torch.equal(vector.lerp_(other, 0.5).add_(other).tensors[0], 2 * tensor)
