"""Metrics against numbers worked out by hand; beside each equality a near miss that must not be equal."""

import ast
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from transformers import EvalPrediction

from hf_dbmtl import metrics
from hf_dbmtl.metrics import (
    GREATER_IS_BETTER,
    baseline_metrics,
    default_compute_metrics,
    delta_p,
    delta_p_per_task,
    main_metric,
    resolve_metric,
)
from hf_dbmtl.tasks import (
    Classification,
    MaskedLanguageModeling,
    MultiLabelClassification,
    Regression,
    TokenClassification,
)


NAN = math.nan
BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def one_hot(classes, num_labels):
    """Logits whose most likely class is `classes`."""
    return np.eye(num_labels, dtype=np.float32)[np.asarray(classes)]


def judge(task, predictions, labels):
    return default_compute_metrics(task)(EvalPrediction(np.asarray(predictions), np.asarray(labels)))


# ---- classification


def test_binary_classification_by_hand():
    labels, predicted = [0, 0, 1, 1, -100, 1], [0, 1, 1, 1, 1, 0]
    scores = judge(Classification(2), one_hot(predicted, 2), labels)
    # TP 2, FP 1, FN 1, TN 1; F1 of class 0 is 1/2
    by_hand = {"accuracy": 3 / 5, "f1": 2 / 3, "f1_macro": (2 / 3 + 1 / 2) / 2, "matthews_correlation": 1 / 6}
    assert scores == pytest.approx(by_hand, abs=1e-12)
    unmasked = judge(Classification(2), one_hot(predicted, 2), [0, 0, 1, 1, 0, 1])
    assert all(abs(unmasked[key] - scores[key]) > 0.01 for key in scores)


def test_three_classes_have_no_binary_f1():
    scores = judge(Classification(3), one_hot([0, 1, 2, 2], 3), [0, 1, 2, 1])
    # F1: class 0: 1, class 1: 2/3, class 2: 2/3. Matthews from the confusion matrix of Gorodkin's R_K
    assert scores["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    c, s, p, t = 3, 4, np.array([1, 1, 2]), np.array([1, 2, 1])
    r_k = (c * s - p @ t) / math.sqrt((s**2 - p @ p) * (s**2 - t @ t))
    assert scores["matthews_correlation"] == pytest.approx(r_k)
    assert scores["matthews_correlation"] != pytest.approx(scores["accuracy"], abs=0.01)
    assert "f1" not in scores


def test_one_class_only_is_quiet_and_finite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = judge(Classification(2), one_hot([1, 1], 2), [1, 1])
    assert scores == {"accuracy": 1.0, "f1": 1.0, "f1_macro": 1.0, "matthews_correlation": 0.0}


# ---- multi-label


def test_multi_label_by_hand_with_missing_entries():
    logits = [[2.0, -1.0, 0.3], [-1.0, 1.0, 0.2], [0.5, 2.0, 0.1], [-3.0, 3.0, 0.0]]
    labels = [[1, 0, NAN], [1, 1, NAN], [0, -100, NAN], [0, 1, NAN]]
    scores = judge(MultiLabelClassification(3), logits, labels)
    # label 0: predicted 1 0 1 0 of 1 1 0 0: TP 1, FP 1, FN 1. label 1: predicted 0 1 . 1 of 0 1 . 1: TP 2.
    # Pairs of label 0: 2 lies above .5 and -3, -1 above -3 but not above .5.
    by_hand = {
        "f1_micro": 2 * 3 / (2 * 3 + 1 + 1),
        "f1_macro": (1 / 2 + 1) / 2,
        "accuracy": 5 / 7,
        "roc_auc": (3 / 4 + 1) / 2,
    }
    assert scores == pytest.approx(by_hand, abs=1e-12)
    filled = judge(MultiLabelClassification(3), logits, np.nan_to_num(np.where(np.array(labels) == -100, 0, labels)))
    assert all(abs(filled[key] - scores[key]) > 0.01 for key in scores)


def test_roc_auc_is_left_out_without_both_classes():
    task = MultiLabelClassification(2)
    assert "roc_auc" not in judge(task, [[1.0, 1.0], [2.0, 0.1]], [[1, 0], [1, 0]])
    assert judge(task, [[1.0, 1.0], [2.0, 0.1]], [[1, 0], [1, 1]])["roc_auc"] == 0.0  # only the second label counts


# ---- regression


def test_regression_by_hand():
    labels, predicted = [1.0, 2.0, NAN, 4.0], [[2.0], [2.0], [100.0], [3.0]]
    scores = judge(Regression(), predicted, labels)
    # mean 7/3, total squares 14/3, residual squares 2; the order is 2 2 3 against 1 2 4
    covariance, spread = 5 / 3, math.sqrt(14 / 3 * 2 / 3)
    by_hand = {
        "r2": 1 - 2 / (14 / 3),
        "mse": 2 / 3,
        "mae": 2 / 3,
        "pearson": covariance / spread,
        "spearman": math.sqrt(3) / 2,  # ranks 1.5 1.5 3 and 1 2 3
    }
    assert scores == pytest.approx(by_hand, abs=1e-12)
    assert judge(Regression(), [[2.0], [2.0], [3.0], [3.0]], [1.0, 2.0, 2.0, 4.0])["r2"] != pytest.approx(scores["r2"])


def test_several_targets_are_averaged_over_those_with_labels():
    labels = np.array([[0.0, 10.0, NAN], [1.0, 20.0, NAN], [2.0, NAN, NAN]])
    predicted = np.array([[0.0, 12.0, 5.0], [1.0, 18.0, 5.0], [3.0, 0.0, 5.0]])
    scores = judge(Regression(3), predicted, labels)
    assert scores["mse"] == pytest.approx((1 / 3 + 4) / 2)
    assert scores["r2"] == pytest.approx(((1 - 1 / 2) + (1 - 8 / 50)) / 2)
    over_entries = (1 + 4 + 4) / 5
    assert scores["mse"] != pytest.approx(over_entries)


def test_constant_predictions_correlate_at_zero_not_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = judge(Regression(), [[2.0]] * 3, [1.0, 2.0, 4.0])
        single = judge(Regression(), [[2.0]], [1.0])
    assert constant["pearson"] == constant["spearman"] == 0.0
    assert constant["r2"] < 0
    assert single == {"r2": 0.0, "mse": 1.0, "mae": 1.0, "pearson": 0.0, "spearman": 0.0}
    assert judge(Regression(), [[2.0], [2.0], [2.1]], [1.0, 2.0, 4.0])["pearson"] > 0.9


def test_minus_100_is_a_value_in_regression():
    assert judge(Regression(), [[0.0], [0.0]], [-100.0, 0.0])["mae"] == 50.0


@pytest.mark.parametrize(
    ("task", "predictions", "labels"),
    [
        (Classification(2), [[1.0, NAN], [0.0, 1.0]], [0, 1]),
        (MultiLabelClassification(2), [[1.0, NAN], [0.0, 1.0]], [[0, 1], [1, 0]]),
        (Regression(), [[math.inf], [1.0]], [1.0, 2.0]),
        (TokenClassification(2), [[[1.0, NAN], [0.0, 1.0]]], [[0, 1]]),
    ],
)
def test_predictions_of_a_diverged_model_give_nan(task, predictions, labels):
    diverged = judge(task, predictions, labels)
    sane = judge(task, np.nan_to_num(predictions, posinf=3.0), labels)
    assert list(diverged) == list(sane)
    assert all(math.isnan(value) for value in diverged.values())
    assert all(math.isfinite(value) for value in sane.values())


def test_without_labels_there_is_nothing_and_shapes_must_fit():
    assert judge(Classification(2), one_hot([0, 1], 2), [-100, -100]) == {}
    assert judge(Regression(), [[1.0]], [NAN]) == {}
    with pytest.raises(
        ValueError, match=r"Task 'mrpc': predictions of shape \(2, 2\) do not fit labels of shape \(3,\)"
    ):
        default_compute_metrics(Classification(2), "mrpc")(EvalPrediction(one_hot([0, 1], 2), np.zeros(3, int)))


# ---- token classification


def tokens(rows, width, fill=-100):
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows])


def test_token_classification_masks_padding():
    labels, predicted = tokens([[0, 1, 2], [2, -100]], 4), tokens([[0, 1, 1], [2, 0]], 4, fill=0)
    scores = judge(TokenClassification(3), one_hot(predicted, 3), labels)
    assert scores == pytest.approx({"accuracy": 3 / 4, "f1_macro": (1 + 2 / 3 + 2 / 3) / 3})
    assert (labels == predicted).mean() != pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("truth", "guess", "right", "true", "found"),
    [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC", 2, 2, 2),
        ("B-PER I-PER O B-LOC", "B-PER O O B-LOC", 1, 2, 2),  # too short is wrong
        ("B-PER I-PER O B-LOC", "B-PER I-PER I-PER B-LOC", 1, 2, 2),  # too long is wrong
        ("B-PER I-PER", "B-LOC I-LOC", 0, 1, 1),  # the type counts
        ("B-PER B-PER", "B-PER I-PER", 0, 2, 1),  # two neighbours are not one
        ("B-PER I-PER", "I-PER I-PER", 1, 1, 1),  # I- begins a span where none of its type is open (conlleval)
        ("O I-PER I-LOC", "O B-PER B-LOC", 2, 2, 2),
        ("B-PER I-LOC", "B-PER O", 1, 2, 1),
        ("O O", "O O", 0, 0, 0),
        ("O O", "B-PER O", 0, 0, 1),
        ("B-LOC I-LOC I-LOC", "O I-LOC I-LOC", 0, 1, 1),
    ],
)
def test_spans_by_hand(truth, guess, right, true, found):
    labels, predicted = ([[BIO.index(tag) for tag in tags.split()]] for tags in (truth, guess))
    scores = judge(TokenClassification(label_names=BIO), one_hot(predicted, 5), labels)
    assert scores["precision"] == (right / found if found else 0.0)
    assert scores["recall"] == (right / true if true else 0.0)
    assert scores["f1"] == pytest.approx(2 * right / (true + found) if true + found else 0.0)


def test_spans_end_with_the_row_and_skip_unlabelled_pieces():
    task = TokenClassification(label_names=BIO)
    labels = np.array([[1, -100, 2, -100], [2, 0, 0, -100]])  # B-PER (##piece) I-PER | I-PER O O
    predicted = np.array([[1, 0, 2, 3], [0, 0, 0, 0]])
    scores = judge(task, one_hot(predicted, 5), labels)
    assert (scores["precision"], scores["recall"]) == (1.0, 0.5)
    with_pieces = judge(task, one_hot(predicted, 5), np.where(labels == -100, 0, labels))
    assert with_pieces["recall"] != 0.5 or with_pieces["precision"] != 1.0


def test_token_f1_and_span_f1_differ():
    scores = judge(TokenClassification(label_names=BIO), one_hot([[1, 0]], 5), [[1, 2]])
    assert scores["accuracy"] == 0.5 and scores["f1"] == 0.0 and scores["f1_macro"] == pytest.approx(1 / 3)


# ---- the main metric


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Classification(3), "accuracy"),
        (MultiLabelClassification(3), "f1_micro"),
        (Regression(), "r2"),
        (TokenClassification(3), "accuracy"),
        (TokenClassification(label_names=BIO), "f1"),
        (TokenClassification(label_names=["NOUN", "VERB", "O"]), "accuracy"),
        (TokenClassification(label_names=["O", "I-PER"]), "accuracy"),  # no B-: not IOB2
        (TokenClassification(label_names=["O", "B-PER", "I-PER", "E-PER"]), "accuracy"),  # another scheme
        (TokenClassification(label_names=BIO, main_metric="accuracy"), "accuracy"),
        (Classification(2, main_metric="matthews_correlation"), "matthews_correlation"),
    ],
)
def test_main_metric(task, name):
    assert main_metric(task) == name


def test_main_metrics_are_computed_and_every_default_has_a_direction():
    cases = [
        (Classification(2), one_hot([0, 1], 2), [0, 1]),
        (MultiLabelClassification(2), [[1.0, -1.0], [-1.0, 1.0]], [[1, 0], [0, 1]]),
        (Regression(), [[1.0], [2.0]], [1.0, 2.5]),
        (TokenClassification(label_names=BIO), one_hot([[1, 2]], 5), [[1, 2]]),
    ]
    for task, predictions, labels in cases:
        scores = judge(task, predictions, labels)
        assert main_metric(task) in scores
        assert set(scores) <= set(GREATER_IS_BETTER)
        assert all(type(value) is float for value in scores.values())
    errors = ["mse", "mae", "loss", "absolute_error", "relative_error", "mean_angle", "median_angle"]
    assert [name for name, better in GREATER_IS_BETTER.items() if not better] == errors


def test_unknown_kind_is_a_type_error():
    class Ranking(Classification):
        kind = "ranking"

    with pytest.raises(TypeError, match=r"kind 'ranking', only for .*regression"):
        default_compute_metrics(Ranking(2))


# ---- baselines


def test_majority_class_comes_from_the_training_labels():
    scores = baseline_metrics(Classification(3), [2, 2, 0, None, -100], [2, 0, 0, 1])
    assert scores["accuracy"] == 0.25
    assert baseline_metrics(Classification(3), [2, 0, 0, 1])["accuracy"] == 0.5  # the evaluation labels' own majority
    assert scores["matthews_correlation"] == 0.0


def test_majority_per_label():
    train = [[1, 0, 1], [1, 0, None], [0, 0, None], [1, 1, None]]
    scores = baseline_metrics(MultiLabelClassification(3), train, [[1, 0, 0], [0, 0, 1]])
    # predicts 1 0 1: right are 1 0 . and . 0 1
    assert scores["accuracy"] == pytest.approx(4 / 6) and scores["roc_auc"] == 0.5
    assert scores["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 2))
    everywhere_no = baseline_metrics(MultiLabelClassification(3), [[0, 0, 0]], [[1, 0, 0], [0, 0, 1]])
    assert everywhere_no["f1_micro"] == 0.0


def test_mean_predictor():
    scores = baseline_metrics(Regression(), [1.0, 3.0, NAN], [2.0, 4.0, 6.0])
    assert scores == pytest.approx({"mse": (0 + 4 + 16) / 3, "mae": 2.0, "r2": -1.5, "pearson": 0.0, "spearman": 0.0})
    assert baseline_metrics(Regression(), [2.0, 4.0, 6.0])["r2"] == 0.0
    several = baseline_metrics(Regression(2), [[1.0, None], [3.0, 5.0], None], [[2.0, 6.0]])
    assert several["mse"] == pytest.approx((0 + 1) / 2)


def test_majority_per_token_takes_ragged_rows():
    train = [[1, 1, 0], [1], None, [-100, None]]
    scores = baseline_metrics(TokenClassification(2), train, [[0, 1], [1, 1, -100]])
    assert scores["accuracy"] == 0.75
    assert baseline_metrics(TokenClassification(2), [[0, 0], [1]], [[0, 1], [1, 1]])["accuracy"] == 0.25
    spans = baseline_metrics(TokenClassification(label_names=BIO), [[0, 0, 1, 2]], [[0, 1, 2, 0]])
    assert spans["f1"] == 0.0 and spans["accuracy"] == 0.5


def test_baseline_needs_training_labels():
    with pytest.raises(ValueError, match="at least one training label"):
        baseline_metrics(Classification(2), [None, -100], [0, 1])
    with pytest.raises(
        TypeError, match="no baseline for tasks of kind 'masked_language_modeling', whose labels no dataset"
    ):
        baseline_metrics(MaskedLanguageModeling(), [[1, 2]])


# ---- Δp


def test_delta_p_is_a_mean_of_means():
    """The metrics of NYUv2: 2, 2 and 5 of them by task, so that a mean over all nine is something else."""
    higher = {"mIoU": True, "pAcc": True, "abs": False, "rel": False, "mean": False, "median": False}
    higher |= {key: True for key in ("11.25", "22.5", "30")}
    single = {
        "seg": {"mIoU": 50.0, "pAcc": 80.0},
        "depth": {"abs": 0.5, "rel": 0.2},
        "normal": {"mean": 20.0, "median": 10.0, "11.25": 40.0, "22.5": 60.0, "30": 80.0},
    }
    ours = {
        "seg": {"mIoU": 51.0, "pAcc": 80.0},
        "depth": {"abs": 0.45, "rel": 0.21},
        "normal": {"mean": 21.0, "median": 10.0, "11.25": 42.0, "22.5": 60.0, "30": 80.0},
    }
    terms = {"seg": (2 + 0) / 2, "depth": (10 - 5) / 2, "normal": (-5 + 0 + 5 + 0 + 0) / 5}
    assert delta_p_per_task(ours, single, higher) == pytest.approx(terms)
    assert delta_p(ours, single, higher) == pytest.approx((1 + 2.5 + 0) / 3)
    over_all_metrics = (2 + 0 + 10 - 5 - 5 + 0 + 5 + 0 + 0) / 9
    assert delta_p(ours, single, higher) != pytest.approx(over_all_metrics)
    assert delta_p(single, single, higher) == 0.0


def test_delta_p_knows_the_defaults_and_negative_baselines():
    assert delta_p({"a": {"mse": 1.0}}, {"a": {"mse": 2.0}}) == pytest.approx(50.0)
    assert delta_p({"a": {"accuracy": 1.0}}, {"a": {"accuracy": 2.0}}) == pytest.approx(-50.0)
    assert delta_p({"a": {"r2": 0.5}}, {"a": {"r2": -0.5}}) == pytest.approx(200.0)
    assert delta_p({"a": {"mse": 1.0, "extra": 3.0}}, {"a": {"mse": 1.0}}) == 0.0
    assert delta_p({"a": {"mse": 1.0}}, {"a": {"mse": 2.0}}, {"mse": True}) == pytest.approx(-50.0)


@pytest.mark.parametrize(
    ("results", "baselines", "message"),
    [
        ({"a": {"f1": 1.0}}, {"b": {"f1": 1.0}}, r"same tasks: got \['a'\], with baselines for \['b'\]"),
        ({"a": {"f1": 1.0}}, {"a": {"r2": 1.0}}, "Task 'a': the results lack the baseline's 'r2'"),
        ({"a": {"bleu": 1.0}}, {"a": {"bleu": 1.0}}, "Task 'a': say whether 'bleu' is better high"),
        ({"a": {"f1": 1.0}}, {"a": {"f1": 0.0}}, "Task 'a': nothing is relative to a 'f1' of 0"),
        ({"a": {"f1": 1.0}}, {"a": {}}, "Task 'a': its baseline holds no metric"),
    ],
)
def test_delta_p_refuses(results, baselines, message):
    with pytest.raises(ValueError, match=message):
        delta_p(results, baselines)


# ---- metrics of the user's own

SCRIPT = """
import datasets
import evaluate
import numpy as np


class Share(evaluate.Metric):
    def _info(self):
        value = datasets.Value("float64")
        if self.config_name == "multilabel":
            value = datasets.Sequence(value)
        features = datasets.Features({"predictions": value, "references": value})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        hits = np.asarray(predictions) == np.asarray(references)
        return {"share": hits.mean(), "rows": len(predictions), "all": hits.all(), "each": hits}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("metrics") / "share"
    path.mkdir()
    (path / "share.py").write_text(SCRIPT)
    return str(path)


def test_a_callable_stays_what_it_is():
    def own(prediction):
        return {"own": 1.0}

    assert resolve_metric(own, Classification(2)) is own
    assert resolve_metric(own) is own


@pytest.mark.parametrize("spec", [None, 3, ["accuracy"], {"accuracy": 1}])
def test_anything_else_is_a_type_error(spec):
    with pytest.raises(TypeError, match=r"callable .*`evaluate` module or the name of one, not .*evaluate\.combine"):
        resolve_metric(spec, Classification(2))


def test_evaluate_module_gets_classes_values_and_flat_tokens(folder):
    evaluate = pytest.importorskip("evaluate")
    module = evaluate.load(folder)
    cases = [
        (Classification(2), one_hot([0, 1, 1], 2), [0, 0, -100], 1 / 2, 2),
        (TokenClassification(3), one_hot([[0, 1], [2, 2]], 3), [[0, 2], [2, -100]], 2 / 3, 3),
        (Regression(), np.array([[1.5], [2.5], [3.5]]), [1.5, NAN, 3.0], 1 / 2, 2),
        (MultiLabelClassification(2), np.array([[3.0, -3.0], [3.0, 3.0]]), [[1, 0], [NAN, 0]], 2 / 3, 3),
    ]
    for task, logits, labels, share, rows in cases:
        scores = resolve_metric(module, task)(EvalPrediction(logits, np.array(labels)))
        assert scores == {"share": pytest.approx(share), "rows": rows}
        assert type(scores["rows"]) is float
    # without a task the shapes decide, which is all that a module of the user's own has
    for _, logits, labels, share, _ in cases[:3]:
        assert resolve_metric(module)(EvalPrediction(logits, np.array(labels)))["share"] == pytest.approx(share)
    whole_numbers = EvalPrediction(np.array([[1.0], [2.5]]), np.array([1, 2]))  # one logit is no choice between classes
    assert resolve_metric(module)(whole_numbers)["share"] == 0.5
    whole = np.array([[1, 0], [1, 0]])
    assert resolve_metric(module)(EvalPrediction(cases[3][1], whole))["share"] == pytest.approx(3 / 4)


def test_multilabel_configuration_gets_whole_rows(folder):
    evaluate = pytest.importorskip("evaluate")
    module = evaluate.load(folder, "multilabel")
    prediction = EvalPrediction(np.array([[3.0, -3.0], [3.0, 3.0]]), np.array([[1, 0], [NAN, 0]]))
    assert resolve_metric(module, MultiLabelClassification(2))(prediction) == {"share": 1.0, "rows": 1}
    flat = resolve_metric(evaluate.load(folder), MultiLabelClassification(2))(prediction)
    assert flat == {"share": pytest.approx(2 / 3), "rows": 3}


def test_combined_modules_work(folder):
    evaluate = pytest.importorskip("evaluate")
    combined = evaluate.combine([evaluate.load(folder)])
    scores = resolve_metric(combined, Classification(2))(EvalPrediction(one_hot([0, 1], 2), np.array([0, 0])))
    assert scores["share"] == 0.5


def test_a_name_is_loaded_when_first_used(folder, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    calls, load = [], evaluate.load
    monkeypatch.setattr(evaluate, "load", lambda name: calls.append(name) or load(name))
    metric = resolve_metric(folder, Classification(2))
    assert calls == []
    prediction = EvalPrediction(one_hot([0, 1], 2), np.array([0, 0]))
    assert metric(prediction)["share"] == metric(prediction)["share"] == 0.5
    assert calls == [folder]


def test_a_name_that_cannot_be_loaded_says_what_to_do(tmp_path):
    pytest.importorskip("evaluate")
    metric = resolve_metric(str(tmp_path / "nothing"), Classification(2))
    with pytest.raises(ValueError, match=r"evaluate\.load\(.*nothing.*give the folder .* or pass a callable"):
        metric(EvalPrediction(one_hot([0], 2), np.array([0])))


def test_heavy_libraries_are_imported_on_use():
    trees = [ast.parse(file.read_text()) for file in Path(metrics.__file__).parent.glob("*.py")]
    imports = {node for tree in trees for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))}
    names = {alias.name for node in imports for alias in node.names} | {getattr(node, "module", "") for node in imports}
    assert "numpy" in names
    assert not {name for name in names if name and name.partition(".")[0] in ("sklearn", "scipy", "evaluate")}
