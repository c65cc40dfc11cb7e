"""One evaluation event with every task's metrics, predictions by task, and the search that rests on the average."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import TASKS, arguments, tiny_data, tiny_model
from torch import Tensor, nn
from transformers import EvalPrediction, TrainerCallback

from hf_dbmtl import Classification, ConflictCallback, MultiTaskTrainer
from hf_dbmtl.metrics import main_metric


ROWS, BATCH = 10, 4  # the last batch is short


class Events(TrainerCallback):
    def __init__(self) -> None:
        self.evaluated: list[dict[str, float]] = []
        self.predicted: list[dict[str, float]] = []

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        self.evaluated.append(dict(metrics))

    def on_predict(self, args, state, control, metrics, **kwargs) -> None:
        self.predicted.append(dict(metrics))


def make_trainer(folder: Path, tasks: dict | None = None, data: dict | None = None, **options):
    keys = ("compute_metrics", "callbacks", "train_dataset", "preprocess_logits_for_metrics")
    given = {key: options.pop(key) for key in keys if key in options}
    args = arguments(folder, per_device_eval_batch_size=BATCH, **options)
    data = data or tiny_data(tasks, rows=ROWS, missing=0.3)
    return MultiTaskTrainer(model=tiny_model(tasks), args=args, eval_dataset=data, **given)


def one_batch(trainer: MultiTaskTrainer, data: dict[str, Dataset], task: str) -> SimpleNamespace:
    """A whole dataset in one piece: what the model gives, and the labels."""
    batch = trainer.collators[task]([data[task][row] for row in range(len(data[task]))])
    trainer.model.eval()
    with torch.no_grad():
        outputs = trainer.model(task=task, **batch)
    return SimpleNamespace(loss=outputs.loss.item(), logits=outputs.logits.numpy(), labels=batch["labels"].numpy())


def same_numbers(a: dict[str, float], b: dict[str, float]) -> bool:
    """Whether two results are the same, but for the time they took."""
    timed = ("runtime", "per_second", "preparation_time", "epoch")
    a, b = ({key: value for key, value in one.items() if not key.endswith(timed)} for one in (a, b))
    return a.keys() == b.keys() and all(math.isclose(a[key], b[key], rel_tol=1e-12) for key in a)


# ---- evaluate


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    events = Events()
    data = tiny_data(rows=ROWS, missing=0.3)
    trainer = make_trainer(tmp_path_factory.mktemp("evaluated"), data=data, callbacks=[events])
    metrics = trainer.evaluate()
    log = list(trainer.state.log_history)
    whole = {task: one_batch(trainer, data, task) for task in TASKS}
    return SimpleNamespace(trainer=trainer, data=data, metrics=metrics, log=log, events=events, whole=whole)


def test_one_event(evaluated: SimpleNamespace) -> None:
    assert len(evaluated.log) == len(evaluated.events.evaluated) == 1
    assert evaluated.log[0] == {**evaluated.metrics, "step": 0}
    assert evaluated.events.evaluated[0] == evaluated.metrics
    expected = {
        "topic": {"accuracy", "f1_macro", "matthews_correlation"},
        "score": {"r2", "mse", "mae", "pearson", "spearman"},
        "traits": {"f1_micro", "accuracy", "f1_macro", "roc_auc"},
        "tags": {"accuracy", "f1_macro"},
    }
    keys = {f"eval_{task}_{metric}" for task, names in expected.items() for metric in {*names, "loss"}}
    own = {"eval_loss", "eval_average", "epoch"}
    timed = {"model_preparation_time", "runtime", "samples_per_second", "steps_per_second"}
    assert evaluated.metrics.keys() == keys | own | {f"eval_{name}" for name in timed}
    rate = evaluated.metrics["eval_samples_per_second"] * evaluated.metrics["eval_runtime"]
    assert rate == pytest.approx(len(TASKS) * ROWS, rel=0.2)


def test_the_loss_is_exact(evaluated: SimpleNamespace) -> None:
    losses = {task: whole.loss for task, whole in evaluated.whole.items()}
    for task, loss in losses.items():
        assert evaluated.metrics[f"eval_{task}_loss"] == pytest.approx(loss, rel=1e-12), task
    assert evaluated.metrics["eval_loss"] == pytest.approx(fmean(losses.values()), rel=1e-12)


def test_a_mean_of_batches_would_show(evaluated: SimpleNamespace) -> None:
    """The control: batches weighted by their rows, as in the stock Trainer, whatever they hold of labels."""
    trainer, data = evaluated.trainer, evaluated.data
    for task in TASKS:
        starts = range(0, ROWS, BATCH)
        parts = [data[task].select(range(start, min(start + BATCH, ROWS))) for start in starts]
        means = [one_batch(trainer, {task: part}, task).loss for part in parts]
        mean = sum(mean * len(part) for mean, part in zip(means, parts)) / ROWS
        assert abs(mean / evaluated.metrics[f"eval_{task}_loss"] - 1) > 1e-3, task


def test_the_average_is_of_the_main_metrics(evaluated: SimpleNamespace) -> None:
    mains = [evaluated.metrics[f"eval_{task}_{main_metric(declared)}"] for task, declared in TASKS.items()]
    assert evaluated.metrics["eval_average"] == pytest.approx(fmean(mains), rel=1e-12)
    others = [evaluated.metrics["eval_topic_f1_macro"], *mains[1:]]
    assert abs(evaluated.metrics["eval_average"] - fmean(others)) > 1e-3


def test_another_main_metric(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    tasks = {**TASKS, "topic": Classification(num_labels=3, main_metric="f1_macro")}
    metrics = make_trainer(tmp_path, tasks, evaluated.data).evaluate()
    mains = [metrics[f"eval_{task}_{main_metric(declared)}"] for task, declared in tasks.items()]
    assert metrics["eval_average"] == pytest.approx(fmean(mains), rel=1e-12)
    assert metrics["eval_average"] != evaluated.metrics["eval_average"]


def test_a_main_metric_that_is_not_there(tmp_path: Path) -> None:
    tasks = {"topic": Classification(num_labels=3, main_metric="f1")}
    with pytest.raises(ValueError, match=r"Task 'topic': its main metric 'f1' is not among .*'accuracy'"):
        make_trainer(tmp_path, tasks).evaluate()


def test_names_that_begin_alike(tmp_path: Path) -> None:
    """The metrics of `mood_b` are not taken for some of `mood`, whichever comes first."""
    tasks = {"mood_b": Classification(num_labels=3), "mood": Classification(num_labels=3)}
    given = {"mood_b": lambda prediction: {"score": 0.25}, "mood": lambda prediction: {"score": 0.75}}
    assert make_trainer(tmp_path, tasks, compute_metrics=given).evaluate()["eval_average"] == 0.5


def test_a_task_without_any_label_here(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    unlabelled = evaluated.data["score"].remove_columns("labels")
    metrics = evaluated.trainer.evaluate({**evaluated.data, "score": unlabelled})
    assert not [key for key in metrics if key.startswith("eval_score")]
    others = [task for task in TASKS if task != "score"]
    assert metrics["eval_loss"] == pytest.approx(fmean(evaluated.whole[task].loss for task in others), rel=1e-12)


def test_another_prefix(evaluated: SimpleNamespace) -> None:
    metrics = evaluated.trainer.evaluate(metric_key_prefix="held_out")
    renamed = {
        f"held_out{key.removeprefix('eval')}": value for key, value in evaluated.metrics.items() if key != "epoch"
    }
    assert same_numbers(metrics, renamed)


def test_one_event_at_a_time_in_training(tmp_path: Path) -> None:
    events = Events()
    options = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "callbacks": [events]}
    trainer = make_trainer(tmp_path, train_dataset=tiny_data(rows=16), **options)
    trainer.train()
    records = [record for record in trainer.state.log_history if "eval_loss" in record]
    assert [record["step"] for record in records] == [0, 1, 2]
    assert [{**metrics, "step": step} for step, metrics in enumerate(events.evaluated)] == records
    assert len({record["eval_loss"] for record in records}) == 3
    assert not [key for record in records for key in record if key.startswith(("loss/", "weight/"))]


def test_other_datasets(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    other = tiny_data(rows=6, seed=5)
    overridden = evaluated.trainer.evaluate({"tags": other["tags"], "score": other["score"]})
    assert {key.split("_")[1] for key in overridden if key.endswith("_loss")} == {"tags", "score", "loss"}
    expected = [one_batch(evaluated.trainer, other, task).loss for task in ("tags", "score")]
    assert overridden["eval_loss"] == pytest.approx(fmean(expected), rel=1e-12)
    assert same_numbers(evaluated.trainer.evaluate(), evaluated.metrics)


@pytest.mark.parametrize("how", ["evaluated", "trained", "its conflicts measured", "held by itself"])
def test_a_trainer_that_is_dropped_is_gone(how: str, tmp_path: Path) -> None:
    """With its model's memory and its workers, as the stock one is, and not when the garbage is next collected."""
    trainer = make_trainer(tmp_path, data=tiny_data(rows=8), train_dataset=tiny_data(rows=8), max_steps=1)
    if how == "its conflicts measured":
        trainer.add_callback(ConflictCallback(trainer, every=1))
    if how in ("trained", "its conflicts measured"):
        trainer.train()
    trainer.evaluate()
    if how == "held by itself":  # the control
        trainer.own = trainer
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert (gone() is None) == (how != "held by itself")
    finally:
        gc.enable()


def test_other_datasets_with_workers_that_persist(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    """Loaders are kept by task; another dataset of the same task is not read through one."""
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(tmp_path, data=evaluated.data, **options)
    own = trainer.evaluate()
    assert same_numbers(own, evaluated.metrics)
    assert len({id(loader) for loader in trainer._eval_dataloaders.values()}) == len(TASKS)
    other = {"score": tiny_data(rows=6, seed=5)["score"]}
    overridden = trainer.evaluate(other)
    assert overridden["eval_loss"] == pytest.approx(one_batch(trainer, other, "score").loss, rel=1e-12)
    assert overridden["eval_loss"] != own["eval_score_loss"]
    assert same_numbers(trainer.evaluate(), own)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (None, ValueError, "Evaluation needs an `eval_dataset`"),
        ("topic", TypeError, "must be a dictionary of one dataset per task, .* and is str"),
        ({"topics": tiny_data(rows=4)["topic"]}, ValueError, "a task 'topics', .* did you mean 'topic'"),
        ({"topic": tiny_data(rows=4)["topic"].select([])}, ValueError, "Task 'topic': its eval dataset is empty"),
        ({"topic": tiny_data(rows=4)["score"]}, TypeError, "Task 'topic': .*"),
    ],
)
def test_what_cannot_be_evaluated(given, error: type, message: str, tmp_path: Path) -> None:
    trainer = MultiTaskTrainer(model=tiny_model(), args=arguments(tmp_path))
    with pytest.raises(error, match=message):
        trainer.evaluate(given)


# ---- predict


def test_predictions_by_task(evaluated: SimpleNamespace) -> None:
    evaluated.events.predicted.clear()
    results = evaluated.trainer.predict(evaluated.data)
    assert list(results) == list(TASKS)
    for task, result in results.items():
        whole = evaluated.whole[task]
        np.testing.assert_allclose(result.predictions, whole.logits, rtol=1e-12)
        np.testing.assert_array_equal(result.label_ids, whole.labels)
        assert result.metrics[f"test_{task}_loss"] == pytest.approx(whole.loss, rel=1e-12)
        key = main_metric(TASKS[task])
        assert result.metrics[f"test_{task}_{key}"] == evaluated.metrics[f"eval_{task}_{key}"]
        assert not [name for name in result.metrics if not name.startswith(f"test_{task}_")]
    (event,) = evaluated.events.predicted
    assert event["test_average"] == pytest.approx(evaluated.metrics["eval_average"], rel=1e-12)


def test_predictions_without_labels(evaluated: SimpleNamespace) -> None:
    inputs = {"tags": evaluated.data["tags"].remove_columns("labels")}
    result = evaluated.trainer.predict(inputs)["tags"]
    np.testing.assert_allclose(result.predictions, evaluated.whole["tags"].logits, rtol=1e-12)
    assert result.label_ids is None and result.metrics == {}


def test_preprocessed_logits(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    given = {"preprocess_logits_for_metrics": lambda logits, labels: -logits}
    result = make_trainer(tmp_path, data=evaluated.data, **given).predict({"score": evaluated.data["score"]})["score"]
    np.testing.assert_allclose(result.predictions, -evaluated.whole["score"].logits, rtol=1e-12)


# ---- metrics


def spread(prediction: EvalPrediction) -> dict[str, float]:
    return {"spread": float(np.std(prediction.predictions)), "labels": float(np.size(prediction.label_ids))}


def test_one_metric_for_all(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    metrics = make_trainer(tmp_path, data=evaluated.data, compute_metrics=spread).evaluate()
    for task, whole in evaluated.whole.items():
        assert metrics[f"eval_{task}_spread"] == pytest.approx(whole.logits.std(), rel=1e-12)
    spreads = [metrics[f"eval_{task}_spread"] for task in TASKS]
    assert metrics["eval_average"] == pytest.approx(fmean(spreads), rel=1e-12)  # the first that the function gives
    assert "eval_topic_accuracy" not in metrics


def test_a_metric_by_task(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    metrics = make_trainer(tmp_path, data=evaluated.data, compute_metrics={"score": spread}).evaluate()
    assert metrics["eval_score_spread"] == pytest.approx(evaluated.whole["score"].logits.std(), rel=1e-12)
    assert "eval_score_r2" not in metrics
    assert metrics["eval_topic_accuracy"] == evaluated.metrics["eval_topic_accuracy"]  # the others keep their defaults


MODULE = """
import datasets
import evaluate


class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"share": sum(a == b for a, b in zip(predictions, references)) / len(references)}
"""


def test_an_evaluate_module_and_its_name(evaluated: SimpleNamespace, tmp_path: Path) -> None:
    evaluate = pytest.importorskip("evaluate")
    folder = tmp_path / "share"
    folder.mkdir()
    (folder / "share.py").write_text(MODULE)
    given = {"topic": evaluate.load(str(folder)), "tags": str(folder)}
    metrics = make_trainer(tmp_path, data=evaluated.data, compute_metrics=given).evaluate()
    for task in given:  # labelled items alone are judged
        assert metrics[f"eval_{task}_share"] == pytest.approx(evaluated.metrics[f"eval_{task}_accuracy"], rel=1e-12)
    assert metrics["eval_average"] == pytest.approx(evaluated.metrics["eval_average"], rel=1e-12)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"topics": spread}, ValueError, "`compute_metrics` names a task 'topics', .* did you mean 'topic'"),
        ({"topic": 3}, TypeError, "A metric is a callable .* not 3"),
    ],
)
def test_metrics_that_are_none(given: dict, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, compute_metrics=given)


# ---- a module of a user's own


class ObjectModule(nn.Module):
    """Returns an object, has a column of its own name for labels, and more tensors than logits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({"height": nn.Linear(4, 1), "weight": nn.Linear(4, 1)})

    def forward(self, task: str, features: Tensor, target: Tensor | None = None) -> SimpleNamespace:
        hidden = self.trunk(features)
        logits = self.heads[task](hidden).squeeze(-1)
        loss = None if target is None else (logits - target).square().mean()
        return SimpleNamespace(loss=loss, logits=logits, hidden=hidden, note="not a tensor")


def object_data(rows: int) -> dict[str, Dataset]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, rows, 3, generator=generator)
    return {
        task: Dataset.from_dict({"features": x.tolist(), "target": x.sum(-1).tolist(), "note": ["text"] * rows})
        for task, x in zip(("height", "weight"), features)
    }


def test_a_module_that_returns_an_object(tmp_path: Path) -> None:
    data = object_data(ROWS)

    def off(prediction: EvalPrediction) -> dict[str, float]:
        logits, hidden = prediction.predictions
        assert hidden.shape == (ROWS, 4)
        return {"off": float(np.abs(logits - prediction.label_ids).mean())}

    args = arguments(tmp_path, balancer="ew", label_names=["target"], per_device_eval_batch_size=BATCH)
    trainer = MultiTaskTrainer(ObjectModule(), args, train_dataset=data, eval_dataset=data, compute_metrics=off)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for task, dataset in data.items():
        features, target = torch.tensor(dataset["features"][:]), torch.tensor(dataset["target"][:])
        with torch.no_grad():
            outputs = trainer.model(task, features, target)
        assert after[f"eval_{task}_loss"] == pytest.approx(outputs.loss.item(), rel=1e-6) != before[f"eval_{task}_loss"]
        assert after[f"eval_{task}_off"] == pytest.approx((outputs.logits - target).abs().mean().item(), rel=1e-6)
        logits, hidden = trainer.predict({task: dataset})[task].predictions
        np.testing.assert_allclose(logits, outputs.logits, rtol=1e-6)
        np.testing.assert_allclose(hidden, outputs.hidden, rtol=1e-6)
        inputs = {task: dataset.remove_columns("target")}
        np.testing.assert_array_equal(trainer.predict(inputs, ignore_keys=["hidden"])[task].predictions, logits)
    assert after["eval_average"] == pytest.approx(fmean(after[f"eval_{task}_off"] for task in data))


# ---- the search


def search_trainer(folder: Path, seen: list, **options) -> MultiTaskTrainer:
    class Watched(MultiTaskTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            seen.append((self.balancer, self.balancer.steps, self.args.balancer))
            return loss

    data = tiny_data(rows=16)
    args = arguments(folder, optim="adamw_torch", **options)
    return Watched(model_init=lambda: tiny_model(), args=args, train_dataset=data, eval_dataset=data)


@pytest.fixture
def optuna():
    module = pytest.importorskip("optuna")
    module.logging.set_verbosity(module.logging.ERROR)
    return module


def test_the_search_maximises_the_average(optuna, tmp_path: Path) -> None:
    seen: list = []
    trainer = search_trainer(tmp_path, seen)
    rates = [1e-1, 1e-6]
    space = {"learning_rate": rates, "balancer": ["db_mtl", "ew"]}
    events = Events()
    trainer.add_callback(events)
    best = trainer.hyperparameter_search(
        lambda trial: {key: trial.suggest_categorical(key, values) for key, values in space.items()},
        n_trials=4,
        backend="optuna",
        sampler=optuna.samplers.GridSampler(space),
    )
    averages = [metrics["eval_average"] for metrics in events.evaluated]
    assert len(averages) == 4 and len(set(averages)) > 1
    assert best.objective == max(averages) > min(averages)
    # a balancer of its own for every trial, and its memory and counter from the beginning
    trials = [seen[i : i + 2] for i in range(0, len(seen), 2)]
    assert len(trials) == 4 and len({id(trial[0][0]) for trial in trials}) == 4
    assert all([step for _, step, _ in trial] == [1, 2] for trial in trials)
    assert sorted(trial[0][2] for trial in trials) == ["db_mtl", "db_mtl", "ew", "ew"]
    for balancer, _, name in seen:
        assert (balancer.memory is None) == (name == "ew")


def test_a_search_with_another_objective(optuna, tmp_path: Path) -> None:
    """It is minimised where no direction is given, as in transformers."""
    trainer = search_trainer(tmp_path, [])
    events = Events()
    trainer.add_callback(events)
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", [1e-2, 1e-6])},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=2,
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": [1e-2, 1e-6]}),
    )
    losses = [metrics["eval_loss"] for metrics in events.evaluated]
    assert best.objective == min(losses) < max(losses)


def test_a_search_without_metrics(optuna, tmp_path: Path) -> None:
    data = object_data(ROWS)
    args = arguments(tmp_path, label_names=["target"])
    trainer = MultiTaskTrainer(args=args, model_init=ObjectModule, train_dataset=data, eval_dataset=data)
    with pytest.raises(ValueError, match="no `eval_average` to maximise"):
        trainer.hyperparameter_search(lambda trial: {}, n_trials=1, backend="optuna")
