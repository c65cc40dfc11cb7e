"""The callbacks inside a stock Trainer that logs what a multi-task one does."""

import pytest
import torch
from PIL import Image
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_dbmtl.callbacks import MultiTaskProgressCallback, PlotCallback


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, labels):
        return {"loss": (self.weight * x - labels).square().mean(), "logits": self.weight * x}


class Logging(Trainer):
    """A Trainer whose training records hold the losses of two tasks."""

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {"loss/mrpc": 0.51234, "loss/a_b": 12.3, "weight/mrpc": 1.0, "weight/a_b": 2.0}
        super().log(logs, start_time)


def make_trainer(folder, **kwargs):
    options = {"max_steps": 4, "logging_steps": 2, "eval_steps": 4, "eval_strategy": "steps", "save_strategy": "no"}
    arguments = {name: kwargs.pop(name) for name in list(kwargs) if name != "callbacks"}
    rows = [{"x": torch.tensor(float(i)), "labels": torch.tensor(1.0)} for i in range(4)]
    args = TrainingArguments(str(folder), use_cpu=True, per_device_train_batch_size=2, **(options | arguments))
    return Logging(Line(), args, train_dataset=rows, eval_dataset=rows, **kwargs)


def bars(trainer):
    return [type(c) for c in trainer.callback_handler.callbacks if isinstance(c, (ProgressCallback, PrinterCallback))]


# ---- the picture


def test_the_picture_is_in_the_output_folder(tmp_path):
    make_trainer(tmp_path, callbacks=[PlotCallback()], disable_tqdm=True).train()
    with Image.open(tmp_path / "training.png") as image:
        assert image.format == "PNG"


def test_the_picture_goes_where_it_is_told(tmp_path):
    picture = tmp_path / "elsewhere" / "run.png"
    make_trainer(tmp_path / "out", callbacks=[PlotCallback(picture)], disable_tqdm=True).train()
    assert picture.is_file() and not (tmp_path / "out" / "training.png").exists()


@pytest.mark.parametrize(
    ("zero", "log", "written"),
    [
        (True, [{"loss/a": 1.0, "step": 1}], True),
        (False, [{"loss/a": 1.0, "step": 1}], False),
        (True, [], False),
        (True, [{"loss": 1.0, "eval_loss": 2.0, "step": 1}], False),
        (True, [{"loss/a": float("nan"), "step": 1}], False),
    ],
)
def test_one_process_writes_and_only_what_was_logged(tmp_path, zero, log, written):
    state = TrainerState(log_history=log, is_world_process_zero=zero)
    PlotCallback().on_train_end(TrainingArguments(str(tmp_path), use_cpu=True), state, TrainerControl())
    assert (tmp_path / "training.png").is_file() == written


# ---- the progress bar


def test_the_bar_shows_the_loss_of_every_task(tmp_path, capfd):
    trainer = make_trainer(tmp_path)
    MultiTaskProgressCallback.replace(trainer)
    assert bars(trainer) == [MultiTaskProgressCallback]
    trainer.train()
    out, err = capfd.readouterr()
    assert "mrpc 0.512, a_b 12.3" in err and "4/4" in err
    assert "loss/mrpc" not in out  # the record is on the bar and not printed as well
    assert "eval_loss" in out and "train_runtime" in out  # these still are


def test_the_stock_bar_prints_records_instead(tmp_path, capfd):
    trainer = make_trainer(tmp_path)
    assert bars(trainer) == [ProgressCallback]
    trainer.train()
    out, err = capfd.readouterr()
    assert "loss/mrpc" in out and "mrpc 0.512" not in err


def test_replace_leaves_one_bar_wherever_it_was_given(tmp_path):
    trainer = make_trainer(tmp_path, callbacks=[MultiTaskProgressCallback])
    assert len(bars(trainer)) == 2
    MultiTaskProgressCallback.replace(trainer)
    assert bars(trainer) == [MultiTaskProgressCallback]


def test_disable_tqdm_is_respected(tmp_path, capfd):
    trainer = make_trainer(tmp_path, disable_tqdm=True)
    MultiTaskProgressCallback.replace(trainer)
    assert bars(trainer) == [PrinterCallback]  # there was no bar to replace
    trainer.add_callback(MultiTaskProgressCallback)
    trainer.train()
    trainer.predict(trainer.eval_dataset)
    out, err = capfd.readouterr()
    assert "it/s" not in err and "mrpc 0.512" not in err
    assert out.count("loss/mrpc") == 2  # by the printer


def test_only_the_main_process_has_a_bar(tmp_path, capfd):
    args, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerControl()
    for zero in (False, True):
        state, callback = TrainerState(is_world_process_zero=zero, max_steps=2), MultiTaskProgressCallback()
        callback.on_train_begin(args, state, control)
        state.global_step = 1
        callback.on_step_end(args, state, control)
        callback.on_log(args, state, control, logs={"loss/a": 1.0})
        callback.on_train_end(args, state, control)
        assert ("a 1" in capfd.readouterr().err) == zero


def test_the_bar_of_an_evaluation_counts_every_task(tmp_path):
    args, state, control = TrainingArguments(str(tmp_path), use_cpu=True), TrainerState(), TrainerControl()
    loaders = [range(3), range(4), (batch for batch in "no length")]
    totals = {}
    for kind in (MultiTaskProgressCallback, ProgressCallback):
        callback = kind()
        for evaluation in range(2):
            for loader in loaders[:2] if evaluation else loaders:
                for _ in range(3):
                    callback.on_prediction_step(args, state, control, eval_dataloader=loader)
            totals[kind, evaluation] = callback.prediction_bar.total
            callback.on_evaluate(args, state, control)
    assert [totals[MultiTaskProgressCallback, evaluation] for evaluation in (0, 1)] == [7, 7]
    assert totals[ProgressCallback, 0] == 3
