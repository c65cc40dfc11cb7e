"""
Tasks on images that share their input, with a label per image, per pixel or both: one dataset with the labels of all of them
makes the same steps as a dataset per task, and the same evaluations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import arguments, distance, train
from scenes import GROUPS, IMAGES, MAPS, model_of, scenes, separate

from hf_dbmtl import MultiTaskTrainer


def steps_of(folder: Path, data: Any, tasks: dict[str, Any], **options: Any):
    trainer, family = options.pop("trainer", MultiTaskTrainer), options.pop("family", "vit")
    # in order: rows are drawn anew for every dataset, and would differ
    args = arguments(folder, train_sampling_strategy="sequential", per_device_train_batch_size=4, **options)
    return train(model_of(tasks, family), args, data, trainer=trainer)


class PerImage(MultiTaskTrainer):
    """A mistake to be caught: an item is an image, whatever of it has a label."""

    @staticmethod
    def _num_items(outputs: Any, batch: Any, task: str) -> Any:
        return len(batch["pixel_values"])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("balancer", ["db_mtl", "ew"])
@pytest.mark.parametrize("name", GROUPS)
def test_the_same_steps_as_separate_datasets(name: str, balancer: str, accumulation: int, tmp_path: Path) -> None:
    tasks = GROUPS[name]
    options = {"balancer": balancer, "gradient_accumulation_steps": accumulation, "max_steps": 2}
    group = scenes(tasks)
    trainer, one = steps_of(tmp_path, {"scenes": group}, tasks, **options)
    _, many = steps_of(tmp_path, separate(group, tasks), tasks, **options)
    assert [unit.tasks for unit in trainer.units.values()] == [tuple(tasks)]
    assert distance(one, many) < 1e-10
    if accumulation == 2:
        _, wrong = steps_of(tmp_path, {"scenes": group}, tasks, trainer=PerImage, **options)
        assert distance(wrong, many) > 1e-3


@pytest.mark.parametrize("family", ["beit", "dinov2", "swin", "convnext", "resnet"])
def test_other_encoders(family: str, tmp_path: Path) -> None:
    tasks = GROUPS["mixed"]
    group = scenes(tasks, rows=8)
    _, one = steps_of(tmp_path, {"scenes": group}, tasks, max_steps=1, family=family)
    _, many = steps_of(tmp_path, separate(group, tasks), tasks, max_steps=1, family=family)
    assert distance(one, many) < 1e-10
    other = group.select(range(7, -1, -1)).select_columns("depth").to_dict()["depth"]
    _, wrong = steps_of(
        tmp_path, group.remove_columns("depth").add_column("depth", other), tasks, max_steps=1, family=family
    )
    assert distance(wrong, many) > 1e-3


def test_a_map_that_a_step_lacks_is_absent_from_it(tmp_path: Path) -> None:
    group = scenes(MAPS, missing=0.0)
    maps = group["depth"][:]
    blank = [None if 4 <= row < 8 else label for row, label in enumerate(maps)]  # of the second step
    group = group.remove_columns("depth").add_column("depth", blank)
    _, one = steps_of(tmp_path, {"scenes": group}, MAPS, max_steps=3)
    _, many = steps_of(tmp_path, separate(group, MAPS), MAPS, max_steps=3)
    assert distance(one, many) < 1e-10
    assert "loss/depth" in one[0] and "loss/depth" not in one[1] and "loss/depth" in one[2]
    assert one[1]["head heads.depth.linear.weight"].numel() == 0 < one[0]["head heads.depth.linear.weight"].numel()


def test_maps_beside_tasks_with_images_of_their_own(tmp_path: Path) -> None:
    tasks = GROUPS["mixed"]
    maps, rooms = scenes(MAPS), scenes({"room": IMAGES["room"], "light": IMAGES["light"]}, rows=12)
    things = separate(scenes(IMAGES), ["things"])
    options = {"max_steps": 2, "gradient_accumulation_steps": 2}
    _, one = steps_of(tmp_path, {"scenes": maps, "rooms": rooms, **things}, tasks, **options)
    alone = {**separate(rooms, ["room", "light"]), **things, **separate(maps, MAPS)}
    _, many = steps_of(tmp_path, alone, tasks, **options)
    assert distance(one, many) < 1e-10
    _, wrong = steps_of(tmp_path, {**alone, **separate(scenes(MAPS, missing=0.0), MAPS)}, tasks, **options)
    assert distance(wrong, many) > 1e-3


@pytest.mark.parametrize("name", GROUPS)
def test_evaluation_and_prediction_are_those_of_separate_datasets(name: str, tmp_path: Path) -> None:
    tasks, group = GROUPS[name], scenes(GROUPS[name], rows=9)
    args = arguments(tmp_path, per_device_eval_batch_size=4)
    one = MultiTaskTrainer(model=model_of(tasks), args=args, eval_dataset={"scenes": group})
    many = MultiTaskTrainer(model=model_of(tasks), args=args, eval_dataset=separate(group, tasks))
    seen: list[int] = []
    one.model.encoder.register_forward_hook(lambda *_: seen.append(1))
    speed = ("runtime", "per_second", "preparation_time")
    found, expected = (
        {key: value for key, value in trainer.evaluate().items() if not key.endswith(speed)} for trainer in (one, many)
    )
    assert len(seen) == 3
    assert found == pytest.approx(expected, rel=1e-12) and "eval_average" in found
    other = MultiTaskTrainer(model=model_of(tasks), args=args, eval_dataset={"scenes": scenes(tasks, rows=8)})
    assert other.evaluate()["eval_loss"] != pytest.approx(expected["eval_loss"], rel=1e-3)

    unlabelled = {"scenes": group.select_columns(["pixel_values"])}
    kept = MultiTaskTrainer(model=model_of(tasks), args=args, train_dataset={"scenes": group})
    outputs, alone, blind = (
        one.predict({"scenes": group}),
        many.predict(separate(group, tasks)),
        kept.predict(unlabelled),
    )
    assert list(outputs) == list(alone) == list(blind) == list(tasks)
    for task in tasks:
        assert outputs[task].predictions.shape[0] == outputs[task].label_ids.shape[0] == 9
        np.testing.assert_array_equal(outputs[task].label_ids, alone[task].label_ids)
        np.testing.assert_allclose(outputs[task].predictions, alone[task].predictions, rtol=1e-12)
        assert blind[task].label_ids is None and blind[task].metrics == {} and len(blind[task].predictions) == 9
        if task in IMAGES:  # of maps, predictions without labels have the size of the logits
            np.testing.assert_allclose(blind[task].predictions, alone[task].predictions, rtol=1e-12)
