"""Tasks with a label per pixel from files: masks, distances and directions as images, arrays and paths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import AutoImageProcessor, ConvNextImageProcessor, ViTConfig, ViTImageProcessor, ViTModel

from hf_dbmtl import DepthEstimation, SemanticSegmentation, SurfaceNormals
from hf_dbmtl.cli.images import show_whole_images
from hf_dbmtl.cli.maps import MapReader
from hf_dbmtl_cli import CommandError, main


RUN = """
model_name_or_path: patches
output_dir: scenes
use_cpu: true
num_train_epochs: 15
learning_rate: 0.01
balancer: ew
per_device_train_batch_size: 8
disable_tqdm: true
groups:
  scenes:
    dataset: {path: scenes, eval_fraction: 0.25}
    image: picture
tasks:
  parts: {group: scenes, kind: semantic_segmentation, label: mask, label_names: [left, right], ignore_index: 255}
  bright: {group: scenes, kind: classification, label: bright}
  depth: {group: scenes, kind: depth_estimation, label: depth}
  normals:
    kind: surface_normals
    dataset: {path: normals, eval_fraction: 0.25}
    image: picture
    label: facing
"""


@pytest.fixture(scope="module")
def config(folder: Path) -> str:
    torch.manual_seed(0)
    size = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **size)).save_pretrained("patches")
    cuts = {"do_center_crop": True, "crop_size": {"height": 8, "width": 8}}
    ViTImageProcessor(size={"height": 10, "width": 10}, **cuts).save_pretrained("patches")
    draw = np.random.default_rng(0)
    columns: dict[str, list] = {name: [] for name in ("picture", "mask", "bright", "depth", "facing")}
    for number in range(24):  # the right is lighter than the left
        pixels = np.zeros((16, 12, 3), dtype=np.uint8)
        shade = 100 + 100 * (number % 2)
        pixels[:, 6:] = shade
        columns["picture"].append(PIL.Image.fromarray(pixels))
        mask = (pixels[..., 0] > 0).astype(np.uint8)
        mask[:2, :2] = 255
        columns["mask"].append(PIL.Image.fromarray(mask))
        columns["bright"].append(number % 2)
        path = f"depth{number}.npy"
        np.save(path, np.where(mask == 1, 2.0, 1.0) + draw.normal(size=mask.shape) / 100)
        columns["depth"].append(path)
        columns["facing"].append(np.stack([mask == 1, mask != 1, 0 * mask], -1).astype(float).tolist())
    features = {"picture": Image(), "mask": Image(), "bright": Value("int64"), "depth": Value("string")}
    features["facing"] = List(List(List(Value("float32"))))
    for name, kept in (("scenes", ["picture", "mask", "bright", "depth"]), ("normals", ["picture", "facing"])):
        rows = {one: columns[one] for one in kept}
        Dataset.from_dict(rows, features=Features({one: features[one] for one in kept})).save_to_disk(name)
    columns["picture"][1].save("light.png")
    Path("scenes.yaml").write_text(RUN)
    return "scenes.yaml"


def test_train_evaluate_inspect_predict(config, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["inspect", config])
    shown = capsys.readouterr().out
    assert "parts: map (8, 8), bright: " in shown and "map (3, 8, 8)" in shown
    main(["train", config])
    before = json.loads(Path("scenes/eval_results.json").read_text())
    assert before["eval_parts_mean_iou"] > 0.8 and before["eval_bright_accuracy"] == 1.0
    assert before["eval_depth_delta_1"] > 0.7 and before["eval_normals_within_30"] > 0.7
    main(["evaluate", config, "--model", "scenes", "--output_dir", "scenes_again"])
    after = json.loads(Path("scenes_again/eval_results.json").read_text())
    assert after["eval_average"] == pytest.approx(before["eval_average"])
    saved = AutoImageProcessor.from_pretrained("scenes")
    assert not saved.do_center_crop and saved.size["height"] == 8  # whole images, also when it predicts

    capsys.readouterr()
    main(["predict", "scenes", "light.png", "--device", "cpu", "--arrays", "maps"])
    (row,) = (json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines())
    classes = np.load(row["parts"]["segmentation"])
    assert classes.shape == (16, 12) and row["parts"]["labels"] == {"0": "left", "1": "right"}
    assert (classes == (np.arange(12) >= 6)).mean() > 0.8
    assert np.load(row["depth"]["predicted_depth"]).shape == (16, 12)
    assert np.load(row["normals"]["normals"]).shape == (3, 16, 12)
    main(["predict", "scenes", "light.png", "--device", "cpu", "--tasks", "parts"])
    (row,) = (json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines())
    assert row["parts"]["segmentation"] == classes.tolist()  # without a folder the numbers themselves


def test_maps_are_resized_to_the_nearest_pixel(tmp_path):
    reader = MapReader("t", SemanticSegmentation(4), "mask")
    wide = np.repeat(np.repeat([[0, 1], [2, 3]], 3, 0), 5, 1)
    assert reader(wide.tolist(), (2, 2)).tolist() == [[0, 1], [2, 3]]
    assert reader([[0, 1], [2, 3]], (6, 10)).tolist() == wide.tolist()
    assert set(np.unique(reader(wide, (7, 3)))) == {0, 1, 2, 3}  # classes are not averaged
    PIL.Image.fromarray(wide.astype(np.uint8)).save(tmp_path / "mask.png")
    assert reader(str(tmp_path / "mask.png"), (2, 2)).tolist() == [[0, 1], [2, 3]]
    palette = PIL.Image.fromarray(wide.astype(np.uint8))
    palette.putpalette([9, 9, 9] * 4)
    assert reader(palette, (2, 2)).tolist() == [[0, 1], [2, 3]]  # the indices, not the colours
    assert reader(None, (2, 2)) is None
    normals = MapReader("t", SurfaceNormals(), "facing")
    up = np.zeros((4, 5, 3))
    up[..., 2] = 1
    assert (
        normals(up, (2, 2))[:, 0, 0].tolist() == normals(np.moveaxis(up, -1, 0), (2, 2))[:, 0, 0].tolist() == [0, 0, 1]
    )


@pytest.mark.parametrize(
    ("task", "value", "said"),
    [
        (
            SurfaceNormals(),
            PIL.Image.new("RGB", (2, 2)),
            "holds images of colours .RGB., and surface_normals takes direct",
        ),
        (DepthEstimation(), PIL.Image.new("RGB", (2, 2)), "depth_estimation takes one number per pixel"),
        (DepthEstimation(), "nowhere.npy", "nowhere.npy, in the column 'maps', cannot be read as a map"),
        (DepthEstimation(), [[1.0], [1.0, 2.0]], "a value in the column 'maps' is no map"),
        (DepthEstimation(), [1.0, 2.0], r"a label has the shape \(2,\)"),
        (SemanticSegmentation(3), [[0, 3]], r"label 3 is outside \[0, 3\): set num_labels, set ignore_index"),
    ],
)
def test_maps_that_are_none(task, value, said):
    reader = MapReader("t", task, "maps")
    with pytest.raises(CommandError, match=f"Task 't': .*{said}"):
        reader.check(reader(value, (2, 2)))


def test_processors_that_cut():
    processor = ViTImageProcessor(size={"shortest_edge": 9}, do_resize=True)
    show_whole_images(processor)
    assert (processor.size["height"], processor.size["width"]) == (9, 9)
    with pytest.raises(CommandError, match="ConvNextImageProcessor.* cuts the borders"):
        show_whole_images(ConvNextImageProcessor())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tasks.normals.image null", "scenes.yaml: tasks.normals.image is missing: surface_normals is for images"),
        ("--tasks.parts.label_names null", "scenes.yaml: tasks.parts.num_labels is missing: the number of classes"),
        (
            "--tasks.parts.ignore_index null",
            "Task 'parts': label 255 is outside [0, 2): set num_labels, set ignore_index",
        ),
        ("--tasks.depth.ignore_index 0", "tasks.depth.ignore_index: it is a setting of semantic_segmentation"),
        ("--tasks.depth.label deth", "Group 'scenes': its data have no column 'deth': did you mean 'depth'"),
        ("--tasks.depth.num_labels 3", "Task 'depth': DepthEstimation takes no num_labels=3"),
        (
            "--tasks.depth.main_metric delta",
            "Task 'depth': main_metric 'delta' is not computed: did you mean 'delta_1'",
        ),
    ],
)
def test_refused(config, words, said, capsys):
    with pytest.raises(SystemExit):
        main(["train", config, *words.split()])
    assert said in capsys.readouterr().err
