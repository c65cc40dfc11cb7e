"""The declared tasks: their losses under missing labels, and labels as users have them."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_dbmtl import Classification, MultiLabelClassification, Regression, TokenClassification
from hf_dbmtl.tasks import task_from_dict


nan, inf = math.nan, math.inf

TASKS = [
    Classification(3, dropout=0.2, main_metric="f1"),
    MultiLabelClassification(label_names=["loops", "raises"]),
    Regression(),
    TokenClassification(5),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_task_survives_json(task):
    again = task_from_dict(json.loads(json.dumps(task.to_dict())))
    assert again == task
    assert again != type(task)(num_labels=9)


def test_only_what_is_set_is_written():
    assert Classification(2).to_dict() == {"kind": "classification", "num_labels": 2}


def test_num_labels_follows_the_names():
    assert Classification(label_names=("a", "b", "c")).num_labels == 3
    assert Regression(label_names=["x", "y"]).num_labels == 2
    assert type(Classification(np.int64(3)).num_labels) is int


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (Classification, {}, ValueError, r"Classification needs num_labels=... or label_names"),
        (Classification, {"num_labels": 1}, ValueError, r"outside \[2, 1000000\]: declare Regression\(\)"),
        (Classification, {"num_labels": -3}, ValueError, r"num_labels=-3 .*outside"),
        (Classification, {"num_labels": 10**12}, ValueError, r"num_labels=1000000000000 .*outside"),
        (Classification, {"num_labels": 2.0}, TypeError, "must be an int, got 2.0"),
        (Classification, {"num_labels": True}, TypeError, "must be an int, got True"),
        (Classification, {"num_labels": "3"}, TypeError, "must be an int, got '3'"),
        (Classification, {"num_labels": 3, "label_names": ["a", "b"]}, ValueError, "label_names has 2"),
        (Classification, {"label_names": ["a", "b", "a"]}, ValueError, "'a' more than once"),
        (Classification, {"label_names": "ab"}, TypeError, "list of strings, got 'ab'"),
        (Classification, {"label_names": [1, 2]}, TypeError, "list of strings"),
        (Regression, {"num_labels": 0}, ValueError, r"outside \[1, 1000000\]\."),
        (Regression, {"dropout": 1.0}, ValueError, r"\[0, 1\), got 1.0"),
        (Regression, {"dropout": "0.1"}, ValueError, r"\[0, 1\), got '0.1'"),
        (Regression, {"main_metric": 3}, TypeError, "name of a metric, got 3"),
        (Regression, {"head": dict}, TypeError, "head must be the name that register_head gave .* got <class 'dict'>"),
    ],
)
def test_impossible_declarations_are_refused(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ("classification", TypeError, "a task is a dict like"),
        ({"num_labels": 2}, ValueError, "unknown kind of task None: choose from classification, "),
        ({"kind": "clasification"}, ValueError, "did you mean 'classification'"),
        ({"kind": ["classification"]}, ValueError, "unknown kind"),
        (
            {"kind": "regression", "num_label": 2},
            ValueError,
            "'num_label' of a regression task: did you mean 'num_labels'",
        ),
        ({"kind": "regression", "__class__": 2}, ValueError, "unknown field '__class__'"),
    ],
)
def test_descriptions_that_are_none_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        task_from_dict(values)


# One row of cases: task, shape of the logits, labels with some missing, torch's own mean over the labelled alone.
LOSSES = [
    (
        Classification(3),
        (4, 3),
        torch.tensor([0, -100, 2, 2]),
        lambda x, y: F.cross_entropy(x[[0, 2, 3]], y[[0, 2, 3]]),
    ),
    (
        TokenClassification(3),
        (2, 3, 3),
        torch.tensor([[0, 1, -100], [-100, 2, -100]]),
        lambda x, y: F.cross_entropy(x[y >= 0], y[y >= 0]),
    ),
    (
        MultiLabelClassification(2),
        (3, 2),
        torch.tensor([[1.0, nan], [-100, 0], [0.3, 1]], dtype=torch.float64),
        lambda x, y: F.binary_cross_entropy_with_logits(x[y >= 0], y[y >= 0]),
    ),
    (
        Regression(),
        (4, 1),
        torch.tensor([1e3, nan, -100, 0], dtype=torch.float64),
        lambda x, y: F.mse_loss(x[[0, 2, 3], 0], y[[0, 2, 3]]),
    ),
    (
        Regression(2),
        (2, 2),
        torch.tensor([[1, nan], [3, 4]], dtype=torch.float64),
        lambda x, y: F.mse_loss(x[~y.isnan()], y[~y.isnan()]),
    ),
]
LABELLED = [3, 3, 4, 3, 3]


@pytest.mark.parametrize(
    ("task", "shape", "labels", "mean", "count"),
    [(*case, count) for case, count in zip(LOSSES, LABELLED)],
    ids=[f"{case[0].kind}-{case[0].num_labels}" for case in LOSSES],
)
def test_the_loss_is_the_mean_over_labelled_items(task, shape, labels, mean, count):
    torch.manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    loss, num_items = task.loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = mean(logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-14, atol=0)
    assert num_items.shape == () and num_items.item() == count
    # The control: a mean over all items, missing ones counted, is another number.
    assert abs(loss * num_items / labels.numel() - expected) > 1e-3 * expected


@pytest.mark.parametrize(("task", "shape", "labels"), [case[:3] for case in LOSSES])
def test_without_a_label_the_gradient_is_zero_and_not_none(task, shape, labels):
    logits = torch.randn(shape, requires_grad=True)
    missing = torch.full_like(labels, nan if labels.is_floating_point() else -100)
    loss, num_items = task.loss(logits, missing)
    loss.backward()
    assert loss.item() == 0 and num_items.item() == 0
    assert torch.equal(logits.grad, torch.zeros(shape))
    task.loss(logits, labels)[0].backward()
    assert logits.grad.abs().sum() > 0


def test_a_loss_is_computed_in_float32_at_least():
    logits = torch.tensor([[300.0], [1.0]], dtype=torch.bfloat16)
    loss, _ = Regression().loss(logits, torch.tensor([1.0, 1.0]))
    assert loss.dtype == torch.float32 and loss.item() == 299**2 / 2
    assert F.mse_loss(logits, torch.ones_like(logits)).float().item() != 299**2 / 2
    assert Regression().loss(logits.double(), torch.tensor([1.0, 1.0]))[0].dtype == torch.float64


def test_labels_of_another_shape_are_refused():
    for task, logits, labels in [
        (Classification(3), torch.randn(4, 3), torch.zeros(4, 1)),
        (TokenClassification(3), torch.randn(2, 5, 3), torch.zeros(2, 4)),
        (MultiLabelClassification(3), torch.randn(2, 3), torch.zeros(2)),
        (Regression(2), torch.randn(2, 2), torch.zeros(2)),
    ]:
        with pytest.raises(ValueError, match="labels of shape .* do not fit logits that ask for"):
            task.loss(logits, labels)


@pytest.mark.parametrize(
    ("task", "labels", "expected"),
    [
        (
            Classification(3),
            [0, True, None, -100, np.int64(2), np.bool_(True), torch.tensor(2)],
            [0, 1, -100, -100, 2, 1, 2],
        ),
        (
            MultiLabelClassification(2),
            [[1, 0], None, (True, 0.5), np.array([0, 1])],
            [[1, 0], [nan, nan], [1, 0.5], [0, 1]],
        ),
        (MultiLabelClassification(2), [[None, 1], [-100, nan]], [[nan, 1], [-100, nan]]),
        (MultiLabelClassification(1), [1, [0], None], [[1], [0], [nan]]),
        (Regression(), [1, 2.5, None, nan, [4], np.float32(0.5), -100], [1, 2.5, nan, nan, 4, 0.5, -100]),
        (Regression(2), [[1, None], None, torch.tensor([3.0, 4.0])], [[1, nan], [nan, nan], [3, 4]]),
        (TokenClassification(3), [[0, None, 2], [1], None], [[0, -100, 2], [1, -100, -100], [-100, -100, -100]]),
        (TokenClassification(3), [[np.int64(2), -100], torch.tensor([1, 1])], [[2, -100], [1, 1]]),
    ],
)
def test_python_labels_become_a_tensor(task, labels, expected):
    tensor = task.label_tensor("t", labels)
    expected = torch.tensor(expected, dtype=tensor.dtype)
    assert tensor.is_floating_point() == isinstance(task, (MultiLabelClassification, Regression))
    torch.testing.assert_close(tensor, expected, rtol=0, atol=0, equal_nan=True)
    logits = (
        torch.randn(*tensor.shape, task.num_labels) if not tensor.is_floating_point() else torch.randn(tensor.shape)
    )
    task.loss(logits.reshape(len(labels), -1, task.num_labels).squeeze(1), tensor)


def test_token_labels_follow_the_padding_of_the_inputs():
    task = TokenClassification(4)
    assert task.label_tensor("t", [[1, 2], [3]], 4).tolist() == [[1, 2, -100, -100], [3, -100, -100, -100]]
    assert task.label_tensor("t", [[1, 2], [3]], 4, "left").tolist() == [[-100, -100, 1, 2], [-100, -100, -100, 3]]


@pytest.mark.parametrize(
    ("task", "label", "error", "message"),
    [
        (Classification(2), 3, ValueError, r"label 3 is outside \[0, 2\): set num_labels=4 or mend the data"),
        (Classification(2), -1, ValueError, r"label -1 is outside \[0, 2\): mend the data \(a missing label is None"),
        (Classification(2), 2**70, ValueError, r"label 1180591620717411303424 is outside \[0, 2\): mend the data"),
        (Classification(2), "yes", TypeError, "label 'yes' is of type str: .*ClassLabel.*label2id"),
        (Classification(2), 1.0, TypeError, "label 1.0 is of type float: give the integer index"),
        (Classification(2), [1], TypeError, r"label \[1\] is of type list"),
        (MultiLabelClassification(3), [0, 2, 1], ValueError, r"entry 2 is outside \[0, 1\]: give a multi-hot"),
        (MultiLabelClassification(3), [0, 2], ValueError, r"has 2 entries but num_labels=3: give a multi-hot"),
        (MultiLabelClassification(3), ["loops"], TypeError, "label 'loops' is of type str: give a multi-hot"),
        (MultiLabelClassification(3), 1, TypeError, "label 1 is of type int: give a multi-hot"),
        (Regression(), "3.5", TypeError, r"label '3.5' is of type str: .*cast the column to float"),
        (Regression(), inf, ValueError, "label inf is not finite"),
        (Regression(), [1, 2], ValueError, "has 2 entries but num_labels=1"),
        (TokenClassification(2), 1, TypeError, "label 1 is of type int: give one integer class index per token"),
        (TokenClassification(2), [0, "B-PER"], TypeError, "label 'B-PER' is of type str"),
        (TokenClassification(2), [0, 5, 3], ValueError, r"label 5 is outside \[0, 2\): set num_labels=6"),
        (TokenClassification(2), [0, 1, 1, 0], ValueError, r"4 token labels but the inputs are 3 long: truncate"),
    ],
)
def test_bad_labels_are_refused_by_name(task, label, error, message):
    good = {"sequence": None, "token": [0, 1]}[task.level]
    with pytest.raises(error, match=f"^Task 'mrpc': .*{message}"):
        task.label_tensor("mrpc", [good, label], 3)
    task.label_tensor("mrpc", [good, None], 3)
