"""What reaches TensorBoard, under which tags."""

from __future__ import annotations

from collections import defaultdict

import pytest
from helpers import TASKS, arguments, tiny_data, tiny_model, train
from transformers import TrainerControl, TrainerState

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.conflicts import ConflictCallback


pytest.importorskip("tensorboard")

from hf_dbmtl.tensorboard import MultiTaskTensorBoardCallback  # noqa: E402


class Reporting(MultiTaskTrainer):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        MultiTaskTensorBoardCallback.replace(self)
        self.add_callback(ConflictCallback(self, every=1))


def events(folder) -> dict[str, set[str]]:
    """The tags in a folder of events, by kind."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = defaultdict(set)
    for path in folder.rglob("events.*"):
        read = EventAccumulator(str(path)).Reload().Tags()
        for kind in ("scalars", "images"):
            found[kind] |= set(read[kind])
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own
def test_tags(tmp_path):
    args = arguments(tmp_path / "ours", max_steps=2, report_to="tensorboard", eval_strategy="steps", eval_steps=2)
    trainer, _ = train(tiny_model(), args, tiny_data(), trainer=Reporting, eval_dataset=tiny_data(rows=8, seed=9))
    found = events(tmp_path / "ours")
    for task in TASKS:
        assert {f"loss/{task}", f"weight/{task}", f"grad_norm/{task}", f"eval_{task}/loss"} <= found["scalars"]
    assert {"cosine/topic/score", "eval_topic/accuracy", "eval/average", "train/loss"} <= found["scalars"]
    assert found["images"] == {"conflicts"}
    assert not any(tag.startswith("train/loss/") for tag in found["scalars"])

    args = arguments(tmp_path / "stock", max_steps=2, report_to="tensorboard")
    train(tiny_model(), args, tiny_data())  # the control
    assert "train/loss/topic" in events(tmp_path / "stock")["scalars"]


def test_one_process_writes(tmp_path):
    """The others have no writer, and make none of what is logged."""
    callback = MultiTaskTensorBoardCallback(["topic"])
    state, logs = TrainerState(is_world_process_zero=False), {"loss/topic": 1.0, "loss": 1.0}
    callback.on_log(arguments(tmp_path), state, TrainerControl(), logs=logs)
    assert callback.tb_writer is None and not list(tmp_path.rglob("events.*"))


def test_nothing_to_replace(tmp_path):
    trainer, _ = train(tiny_model(), arguments(tmp_path, max_steps=1), tiny_data(), trainer=Reporting)
    assert trainer.pop_callback(MultiTaskTensorBoardCallback) is None
