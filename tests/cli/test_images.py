"""Tasks over images: a folder with a subfolder per class, and a csv file with paths."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_dbmtl.cli.images import encode_images
from hf_dbmtl.cli.labels import LabelReader, declare_task
from hf_dbmtl.cli.settings import DatasetSettings, TaskSettings
from hf_dbmtl_cli import CommandError, main


RUN = """
model_name_or_path: vit
output_dir: seen
use_cpu: true
num_train_epochs: 6
learning_rate: 0.01
per_device_train_batch_size: 6
disable_tqdm: true
tasks:
  color:
    kind: classification
    dataset: {path: pictures, eval_fraction: 0.25}
    image: image
  brightness:
    kind: regression
    dataset: {path: bright.csv, eval_fraction: 0.25}
    image: file
    label: value
"""


@pytest.fixture(scope="module")
def pictures(folder: Path) -> str:
    draw = random.Random(0)
    torch.manual_seed(0)
    size = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=8, patch_size=4, **size)).save_pretrained("vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained("vit")
    rows = []
    for number in range(24):
        red, value = number % 2, draw.randrange(60, 255)
        path = Path("pictures", "red" if red else "blue", f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 10), (value, 0, 0) if red else (0, 0, value)).save(path)
        rows.append({"file": str(path), "value": value / 100})
    with open("bright.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "value"])
        writer.writeheader()
        writer.writerows(rows)
    Path("images.yaml").write_text(RUN)
    return "images.yaml"


def test_train_evaluate_predict(pictures, capsys):
    main(["train", pictures])
    metrics = json.loads(Path("seen/eval_results.json").read_text())
    assert metrics["eval_color_accuracy"] == 1.0
    main(["evaluate", pictures, "--model", "seen", "--output_dir", "seen_again"])
    assert json.loads(Path("seen_again/eval_results.json").read_text())["eval_color_accuracy"] == 1.0
    main(["inspect", pictures])
    assert "pixels (3, 8, 8)" in capsys.readouterr().out
    main(["predict", "seen", "pictures/red/1.png", "pictures/blue/0.png", "--device", "cpu"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["predictions"]["color"]["label"] for row in found] == ["red", "blue"]
    assert found[0]["image"] == "pictures/red/1.png"
    with pytest.raises(SystemExit):
        main(["predict", "seen", "pictures/red/nowhere.png"])
    assert "there is no file pictures/red/nowhere.png." in capsys.readouterr().err


def test_streamed(pictures):
    """Pixels made as they are read: after a checkpoint those that come next, which the losses of a model at rest tell."""
    words = ["--max_steps", "6", "--save_steps", "3", "--learning_rate", "0"]
    for name, path in (("color", "pictures"), ("brightness", "bright.csv")):
        words += [f"--tasks.{name}.dataset", f"{{path: {path}, streaming: true, eval_fraction: 0, buffer_size: 5}}"]
    main(["train", pictures, *words, "--output_dir", "whole"])
    resumed = [*words, "--resume_from_checkpoint", "whole/checkpoint-3"]
    main(["train", pictures, *resumed, "--output_dir", "rest"])
    main(["train", pictures, *resumed, "--output_dir", "anew", "--ignore_data_skip"])
    whole, rest, anew = (
        [record["loss"] for record in json.loads(Path(one, "trainer_state.json").read_text())["log_history"][:6]]
        for one in ("whole", "rest", "anew")
    )
    assert len(whole) == 6 and rest == whole
    assert anew != whole  # the control: the images from the beginning


def test_labels_alone(pictures):
    """Asked for these, no image is opened: here there is none."""
    rows = Dataset.from_dict({"file": ["nowhere.png", "nowhere.png"], "value": [0.5, None]})
    settings = TaskSettings("regression", DatasetSettings(), image="file", label="value")
    task = declare_task("t", settings, rows)
    readers = {"labels": LabelReader.of("t", task, settings.labels, rows)}
    made = encode_images(rows, ViTImageProcessor(), "file", readers)
    one, other = made.select_columns("labels")["labels"]
    assert one == 0.5 and math.isnan(other)
    with pytest.raises(FileNotFoundError):
        made[0]


def test_row_without_an_image(pictures, capsys):
    text = Path("bright.csv").read_text().splitlines()
    Path("gap.csv").write_text("\n".join([*text[:5], ",1.0"]) + "\n")
    with pytest.raises(SystemExit):
        main(["train", pictures, "--tasks.brightness.dataset", "{path: gap.csv, eval_fraction: 0}"])
    assert "Task 'brightness': the image column 'file' is empty in one row." in capsys.readouterr().err
    Path("numbers.csv").write_text("file,value\n1.5,1.0\n2.5,0.5\n")
    with pytest.raises(SystemExit):
        main(["train", pictures, "--tasks.brightness.dataset", "{path: numbers.csv, eval_fraction: 0}"])
    assert "Task 'brightness': the column 'file' holds float64, and must hold images or" in capsys.readouterr().err
    with pytest.raises(
        CommandError, match=r"the column 'file' holds List\(Value\('string'\)\), and must hold images or"
    ):
        encode_images(Dataset.from_dict({"file": [["a", "b"]]}), ViTImageProcessor(), "file", {})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks.color.image", "null"], "have images and ['color'] have texts"),
        (["--tasks.color.image", "picture"], "no column 'picture'"),
        (["--tasks.color.dataset.delimiter", ";"], "this is a folder of images"),
        (["--tasks.brightness.kind", "token_classification"], "token_classification is for texts"),
    ],
)
def test_refused(pictures, words, said, capsys):
    with pytest.raises(SystemExit):
        main(["train", pictures, *words])
    assert said in capsys.readouterr().err
