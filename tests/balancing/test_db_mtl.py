"""DB-MTL's parts and the whole of it, against the paper's Algorithm 1 written down once more in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_dbmtl.balancing import EMA, Balancer, Identity, Log, MaxNorm, make_balancer
from hf_dbmtl.gradients import GradientVector


EPSILON = 1e-8
SHAPES = [(2, 3), (4,), (3, 1)]  # of three shared parameters


def rows(seed: int, missing: tuple[int, ...] = (), scale: float = 1.0) -> list[np.ndarray | None]:
    """A gradient, `None` at the parameters it does not reach."""
    random = np.random.default_rng(seed)
    drawn = [scale * random.normal(size=shape) for shape in SHAPES]
    return [None if i in missing else entry for i, entry in enumerate(drawn)]


def vector(entries: list[np.ndarray | None], dtype: torch.dtype = torch.float64) -> GradientVector:
    return GradientVector([None if entry is None else torch.tensor(entry, dtype=dtype) for entry in entries])


def flat(entries: list[np.ndarray | torch.Tensor | None]) -> np.ndarray:
    """One float64 array, zero at what is not reached."""
    arrays = [
        np.zeros(shape) if entry is None else np.asarray(entry, np.float64) for shape, entry in zip(SHAPES, entries)
    ]
    return np.concatenate([array.reshape(-1) for array in arrays])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ---- The logarithm ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("loss", [0.0, 1e-12, 1e-8, 0.3, 1.0, 1e12])
def test_log_derivative(loss: float, dtype: torch.dtype) -> None:
    value = torch.tensor(loss, dtype=dtype)
    leaf = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    (leaf + EPSILON).log().backward()
    found = Log().derivative("a", value)
    assert found.dtype == dtype and found.shape == ()
    assert found.item() == pytest.approx(leaf.grad.item(), rel=1e-12 if dtype is torch.float64 else 1e-6)


@pytest.mark.parametrize("loss", [0.0, 1e-300, 5.0])
def test_log_takes_a_loss_of_zero_or_more(loss: float) -> None:
    Log().check("a", loss)


@pytest.mark.parametrize("loss", [-1e-9, -3.5, -math.inf])
def test_log_refuses_a_negative_loss(loss: float) -> None:
    with pytest.raises(ValueError, match=r"Task 'a': its loss is -.*needs a loss of zero or more\. Add a constant"):
        Log().check("a", loss)
    Identity().check("a", loss)  # which any other transform may well take


# ---- The memory ------------------------------------------------------------------------------------------------------


def averages(gradients: list[list[np.ndarray | None]], beta: float, decay: float) -> list[np.ndarray]:
    """The recursion of the paper from zero, coordinate by coordinate, what is not reached counting as zero."""
    row, found = flat([None] * len(SHAPES)), []
    for k, gradient in enumerate(gradients, start=1):
        beta_k = beta / k**decay
        row = beta_k * row + (1 - beta_k) * flat(gradient)
        found.append(row)
    return found


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0, 2])
def test_ema_is_the_recursion(beta: float, decay: float) -> None:
    gradients = [rows(seed) for seed in range(6)]
    ema = EMA(beta, decay)
    for k, (gradient, expected) in enumerate(zip(gradients, averages(gradients, beta, decay)), start=1):
        assert relative(flat(ema.update("a", vector(gradient), k)[0].tensors), expected) < 1e-13
    if beta > 0:  # the control: the same with another exponent is something else
        assert relative(averages(gradients, beta, decay + 0.1)[-1], expected) > 1e-4


def test_ema_of_parameters_that_are_not_always_reached() -> None:
    """Parameter 0 is never reached, 1 from the second step on, 2 not in the third."""
    gradients = [rows(0, (0, 1)), rows(1, (0,)), rows(2, (0, 2)), rows(3, (0,))]
    ema = EMA(0.9, 0.5)
    for k, (gradient, expected) in enumerate(zip(gradients, averages(gradients, 0.9, 0.5)), start=1):
        row, _ = ema.update("a", vector(gradient), k)
        assert relative(flat(row.tensors), expected) < 1e-13
        assert row.tensors[0] is None
        assert (row.tensors[1] is None) == (k == 1)
    kept = averages([rows(0, (0, 1)), rows(1, (0,)), rows(1, (0,)), rows(3, (0,))], 0.9, 0.5)[-1]
    assert relative(flat(row.tensors), kept) > 1e-3  # the control: a gradient repeated where there was none


def test_ema_keeps_a_row_per_task() -> None:
    """A task that is absent keeps its row, and the k of its next update is the run's, not the number of its own."""
    ema = EMA(0.9, 0.5)
    first = flat(ema.update("a", vector(rows(0)), 1)[0].tensors)
    for k in (1, 2, 3):
        ema.update("b", vector(rows(k)), k)
    assert np.array_equal(flat(ema.rows["a"].tensors), first)
    beta_k = 0.9 / 4**0.5
    expected = beta_k * first + (1 - beta_k) * flat(rows(9))
    assert relative(flat(ema.update("a", vector(rows(9)), 4)[0].tensors), expected) < 1e-13
    own = 0.9 / 2**0.5
    assert relative(own * first + (1 - own) * flat(rows(9)), expected) > 1e-2


@pytest.mark.parametrize(
    ("ema_dtype", "of", "kept"),
    [
        (None, torch.float64, torch.float64),
        (None, torch.float32, torch.float32),
        ("bfloat16", torch.float32, torch.bfloat16),
        ("torch.bfloat16", torch.float64, torch.bfloat16),
        (torch.float16, torch.float32, torch.float16),
        ("float64", torch.float32, torch.float64),
    ],
    ids=str,
)
def test_ema_dtype(ema_dtype: str | torch.dtype | None, of: torch.dtype, kept: torch.dtype) -> None:
    ema = EMA(ema_dtype=ema_dtype)
    for k in (1, 2):
        row, _ = ema.update("a", vector(rows(k), of), k)
    assert {tensor.dtype for tensor in row.tensors} == {kept}


def test_ema_in_bfloat16_rounds_once_a_step() -> None:
    gradients = [rows(seed) for seed in range(8)]
    ema, exact, rounded = EMA(ema_dtype="bfloat16"), averages(gradients, 0.9, 0.5), None
    for k, gradient in enumerate(gradients, start=1):
        row = flat([tensor.float() for tensor in ema.update("a", vector(gradient, torch.float32), k)[0].tensors])
        weight = 1 - 0.9 / k**0.5
        new = torch.tensor(flat(gradient), dtype=torch.float32)
        rounded = weight * new if rounded is None else torch.lerp(rounded, new, weight)
        rounded = rounded.bfloat16().float()
        assert np.array_equal(row, rounded.double().numpy())
    assert 1e-4 < relative(row, exact[-1]) < 1e-2  # the rounding is there, and small


def test_a_gradient_that_is_not_finite_is_not_remembered() -> None:
    ema = EMA()
    before = flat(ema.update("a", vector(rows(0)), 1)[0].tensors)
    bad = vector(rows(1))
    bad.tensors[1][0] = float("nan")
    row, norm = ema.update("a", bad, 2)
    assert not np.isfinite(norm) and np.array_equal(flat(row.tensors), before)
    row, norm = ema.update("a", vector(rows(1)), 2)  # the control: a finite one is
    assert np.isfinite(norm) and not np.array_equal(flat(row.tensors), before)


@pytest.mark.parametrize("ema_dtype", [None, "bfloat16"])
def test_ema_state(ema_dtype: str | None) -> None:
    """Loaded, it goes on as it would have, also at a parameter that is reached only afterwards, and on its own."""
    ema, other = EMA(ema_dtype=ema_dtype), EMA(ema_dtype=ema_dtype)
    for k in (1, 2):
        for task in "ab":
            ema.update(task, vector(rows(k, (1,)), torch.float32), k)
    other.load_vectors(ema.vectors())
    assert other.rows.keys() == {"a", "b"}
    for task in "ab":
        went_on, loaded, began_anew = (
            one.update(task, vector(rows(5), torch.float32), 3)[0].tensors
            for one in (ema, other, EMA(ema_dtype=ema_dtype))
        )
        assert [tensor.dtype for tensor in loaded] == [tensor.dtype for tensor in went_on]
        assert all(map(torch.equal, loaded, went_on))
        assert not torch.equal(began_anew[0], went_on[0])


# ---- The norms -------------------------------------------------------------------------------------------------------

ALPHAS = {
    "max": np.max,
    "min": np.min,
    "mean": np.mean,
    "median": np.median,
    "1/T": lambda norms: 1 / len(norms),
    0.3: lambda norms: 0.3,
    2: lambda norms: 2,
}


def max_norm_update(gradients: list[np.ndarray], alpha: str | float) -> np.ndarray:
    norms = [np.sqrt((gradient**2).sum()) for gradient in gradients]
    return ALPHAS[alpha](norms) * sum(gradient / (norm + EPSILON) for gradient, norm in zip(gradients, norms))


def balance(balancer: Balancer, gradients: dict[str, GradientVector], losses: dict[str, float] | None = None):
    balancer.begin()
    for task, gradient in gradients.items():
        balancer.take(task, (losses or {}).get(task, 1.0), gradient)
    return balancer.balance()


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_alpha(alpha: str | float, tasks: int) -> None:
    gradients = [rows(seed, scale=10.0**seed) for seed in range(tasks)]
    balancer = Balancer(Identity(), None, MaxNorm(alpha))
    balanced = balance(balancer, {str(i): vector(gradient) for i, gradient in enumerate(gradients)})
    expected = max_norm_update([flat(gradient) for gradient in gradients], alpha)
    assert relative(flat(balanced.update.tensors), expected) < 1e-13
    norms = np.array([np.linalg.norm(flat(gradient)) for gradient in gradients])
    assert list(balanced.weights.values()) == pytest.approx(list(ALPHAS[alpha](norms) / (norms + EPSILON)), rel=1e-13)
    if tasks > 1:
        others = [
            max_norm_update([flat(gradient) for gradient in gradients], other) for other in ALPHAS if other != alpha
        ]
        different = [relative(other, expected) for other in others]
        # the mean and the median of two are the same number, the others are not
        assert sorted(different)[1] > 1e-3 and (min(different) > 1e-3 or (tasks == 2 and alpha in ("mean", "median")))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_norms_from_1e_minus_12_to_1e12(dtype: torch.dtype, bound: float) -> None:
    scales = [1e-12, 1e-6, 1.0, 1e6, 1e12]
    gradients = [[scale * entry for entry in rows(seed)] for seed, scale in enumerate(scales)]
    balancer = Balancer(Identity(), None, MaxNorm())
    balanced = balance(balancer, {str(i): vector(gradient, dtype) for i, gradient in enumerate(gradients)})
    assert relative(flat(balanced.update.tensors), max_norm_update([flat(one) for one in gradients], "max")) < bound
    norms = [np.linalg.norm(flat(gradient)) for gradient in gradients]
    for weight, norm in zip(balanced.weights.values(), norms):
        assert weight * norm == pytest.approx(max(norms) * norm / (norm + EPSILON), rel=bound)


@pytest.mark.parametrize("alpha", ["max", "min", "mean", "median", "1/T", 0.3])
@pytest.mark.parametrize("name", ["max_norm", "db_mtl"])
def test_all_gradients_zero(name: str, alpha: str | float) -> None:
    """The update is zero, not NaN: everything has been learned."""
    zero = [np.zeros(shape) for shape in SHAPES]
    balancer = make_balancer(name, {"alpha": alpha})
    for _ in range(2):
        balanced = balance(balancer, {"a": vector(zero), "b": vector(zero)})
        assert np.array_equal(flat(balanced.update.tensors), flat(zero))
        assert all(map(math.isfinite, balanced.weights.values()))


def test_one_gradient_zero() -> None:
    balanced = balance(make_balancer("max_norm"), {"a": vector([0 * entry for entry in rows(0)]), "b": vector(rows(1))})
    assert relative(flat(balanced.update.tensors), flat(rows(1))) < 1e-7  # the norm of b, its direction
    assert math.isfinite(balanced.weights["a"])


def test_no_task_present() -> None:
    balancer = make_balancer("db_mtl")
    balanced = balance(balancer, {})
    assert balanced.update is None and balanced.weights == {} and balancer.steps == 0
    assert balance(balancer, {"a": vector(rows(0))}).update is not None and balancer.steps == 1


def test_a_parameter_that_no_task_reaches_stays_without_gradient() -> None:
    for name in ("ew", "log", "max_norm", "db_mtl", "ema"):
        balanced = balance(make_balancer(name), {"a": vector(rows(0, (1,))), "b": vector(rows(1, (1, 2)))})
        assert [entry is None for entry in balanced.update.tensors] == [False, True, False], name


# ---- The whole -------------------------------------------------------------------------------------------------------


def algorithm_1(steps: list[dict[str, np.ndarray]], beta: float, decay: float, weights: dict[str, float]):
    """The updates of DB-MTL from the gradients of the log losses; `weights` are the user's."""
    averages: dict[str, np.ndarray] = {}
    for k, gradients in enumerate(steps, start=1):
        beta_k = beta / k**decay
        for task, gradient in gradients.items():
            averages[task] = beta_k * averages.get(task, 0.0) + (1 - beta_k) * gradient
        norms = {task: np.linalg.norm(averages[task]) for task in gradients}
        yield max(norms.values()) * sum(
            weights.get(task, 1.0) * averages[task] / (norms[task] + EPSILON) for task in gradients
        )


PRESENT = ["abc", "abc", "ac", "b", "abc", "bc", "abc"]


@pytest.mark.parametrize("task_weights", [{}, {"a": 2.5, "c": 0.0}])
@pytest.mark.parametrize(("beta", "decay"), [(0.9, 0.5), (0.9, 0.0), (0.3, 1.0), (0.0, 0.5)])
def test_db_mtl_is_algorithm_1(beta: float, decay: float, task_weights: dict[str, float]) -> None:
    steps = [
        {task: rows(10 * k + ord(task), scale=10.0 ** (ord(task) - ord("b"))) for task in present}
        for k, present in enumerate(PRESENT)
    ]
    balancer = make_balancer("db_mtl", {"beta": beta, "decay": decay}, task_weights)
    expected = list(algorithm_1([{t: flat(g) for t, g in step.items()} for step in steps], beta, decay, task_weights))
    for step, update in zip(steps, expected):
        balanced = balance(balancer, {task: vector(gradient) for task, gradient in step.items()})
        assert balanced.weights.keys() == step.keys()
        assert relative(flat(balanced.update.tensors), update) < 1e-13
        assert balanced.head_weights == {task: task_weights.get(task, 1.0) for task in step}
    other = list(algorithm_1([{t: flat(g) for t, g in step.items()} for step in steps], beta, decay, {"a": 1.1}))
    assert relative(other[-1], expected[-1]) > 1e-3


def test_without_memory_one_running_sum_suffices() -> None:
    """With beta = 0 nothing is kept, and the gradients are not kept either once they are added."""
    balancer = make_balancer("db_mtl", {"beta": 0.0})
    assert balancer.memory is None
    balancer.begin()
    for task in "abc":
        balancer.take(task, 1.0, vector(rows(ord(task))))
        assert not balancer._rows
    assert (
        relative(
            flat(balancer.balance().update.tensors), max_norm_update([flat(rows(ord(task))) for task in "abc"], "max")
        )
        < 1e-13
    )


def test_a_step_given_up_is_not_counted() -> None:
    """The rows already taken in stay, the running sum and the counter do not (G3)."""
    balancer = make_balancer("db_mtl")
    balance(balancer, {"a": vector(rows(0)), "b": vector(rows(1))})
    before = {task: flat(row.tensors) for task, row in balancer.memory.rows.items()}
    balancer.begin()
    balancer.take("a", 1.0, vector(rows(2)))
    balancer.begin()
    assert balancer.steps == 1
    assert np.array_equal(flat(balancer.memory.rows["b"].tensors), before["b"])
    assert not np.array_equal(flat(balancer.memory.rows["a"].tensors), before["a"])
    beta_2 = 0.9 / 2**0.5
    expected = beta_2 * before["b"] + (1 - beta_2) * flat(rows(3))
    balanced = balance(balancer, {"b": vector(rows(3))})
    assert relative(flat(balanced.update.tensors), expected) < 1e-7  # of a lone task the average itself
    assert balancer.steps == 2


def test_a_refused_loss_leaves_the_memory_alone() -> None:
    balancer = make_balancer("db_mtl")
    balance(balancer, {"a": vector(rows(0))})
    before = flat(balancer.memory.rows["a"].tensors)
    balancer.begin()
    with pytest.raises(ValueError, match="Task 'a'"):
        balancer.take("a", -1.0, vector(rows(1)))
    assert np.array_equal(flat(balancer.memory.rows["a"].tensors), before)
    assert balancer.steps == 1
