"""Pushed over HTTP during and after training, and pulled in a fresh process that has never heard of this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import publisher
import pytest
from huggingface_hub import ModelCard
from stand_in import Hub, running_hub


HERE = Path(__file__).parent
CODE = {"configuration.py", "modeling.py", "heads.py", "tasks.py", "pipeline.py", "pipeline_answers.py"}
WEIGHTS = {"config.json", "model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}


def run(script: str, hub: Hub, home: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=home,
        env={**os.environ, **hub.environment(home)},
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}\n{hub.unknown}"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path]]:
    folder = tmp_path_factory.mktemp("published")
    with running_hub() as hub:
        run("publisher.py", hub, folder, str(folder))
        yield hub, folder


@pytest.fixture(scope="module")
def pulled(published: tuple[Hub, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    hub, _ = published
    home = tmp_path_factory.mktemp("elsewhere")
    first = hub.repositories["me/tiny"].commits[1][0]
    run("reader.py", hub, home, str(home / "found.json"), first, *publisher.TEXTS)
    return json.loads((home / "found.json").read_text())


def commits(hub: Hub, name: str) -> list[tuple[str, dict[str, bytes]]]:
    return [(message, files) for _, message, files in hub.repositories[name].commits[1:]]


def test_every_push_is_complete(published: tuple[Hub, Path]) -> None:
    hub, _ = published
    pushed = commits(hub, "me/tiny")
    assert [message for message, _ in pushed] == [
        "Training in progress, step 2",
        "Training in progress, step 4",
        "End of training",
    ]
    for message, files in pushed:
        missing = CODE | WEIGHTS | TOKENIZER | {"README.md", "training.png"}
        assert not missing - files.keys(), message
        assert files["training.png"].startswith(b"\x89PNG")
    assert pushed[0][1]["model.safetensors"] != pushed[-1][1]["model.safetensors"]


def test_the_card_names_the_repository_and_its_results(published: tuple[Hub, Path]) -> None:
    hub, _ = published
    early, final = (ModelCard(commits(hub, "me/tiny")[at][1]["README.md"].decode()) for at in (0, -1))
    assert "Optimizer steps: 2 " in early.text and "Optimizer steps: 4 " in final.text
    assert "from_pretrained('me/tiny'" in final.text and "![Loss" in final.text and "(training.png)" in final.text
    assert final.data.license == "apache-2.0"
    assert {result.task_name for result in final.data.eval_results} == {"topic", "stars"}


def test_a_model_pushed_alone_and_again_with_a_task_more(published: tuple[Hub, Path], pulled: dict[str, Any]) -> None:
    hub, folder = published
    (_, before), (message, after) = commits(hub, "me/alone")
    assert message == "One task more" and not CODE - before.keys() and not CODE - after.keys()
    assert sum(path.endswith(".safetensors") for path in after) > 2
    weights = json.loads((folder / "weights.json").read_text())
    assert pulled["alone"] == weights  # with the new head, in shards
    assert "heads.more.linear.weight" in weights and "heads.more.linear.weight" not in pulled["weights"]


def test_what_is_pulled_without_the_package_is_what_was_pushed(
    published: tuple[Hub, Path], pulled: dict[str, Any]
) -> None:
    _, folder = published
    weights = json.loads((folder / "weights.json").read_text())
    assert pulled["class"].startswith("transformers_modules.") and pulled["class"].endswith(".MultiTaskModel")
    assert pulled["weights"] == {name: value for name, value in weights.items() if "more" not in name}
    expected = json.loads((folder / "stars.json").read_text())
    assert pulled["stars"] == pytest.approx(expected, abs=1e-6)
    assert [one["stars"] for one in pulled["answers"]] == pytest.approx(expected, abs=1e-6)
    assert {one["topic"]["label"] for one in pulled["answers"]} <= {"sport", "trade"}


def test_a_model_of_images_answers_as_it_did(published: tuple[Hub, Path], pulled: dict[str, Any]) -> None:
    hub, folder = published
    ((_, files),) = commits(hub, "me/images")
    assert not (CODE | WEIGHTS | {"preprocessor_config.json", "README.md"}) - files.keys()
    assert "AutoImageProcessor" in files["README.md"].decode()
    expected = json.loads((folder / "images.json").read_text())
    assert pulled["image processor"].startswith("ViTImageProcessor")
    for answer, wanted in zip(pulled["image answers"], expected, strict=True):
        assert answer["animal"]["label"] == wanted["animal"]["label"]
        assert answer["animal"]["score"] == pytest.approx(wanted["animal"]["score"], abs=1e-6)
        assert answer["ground"] == wanted["ground"] and answer["labels"] == wanted["labels"]
    assert expected[0]["animal"]["score"] != expected[1]["animal"]["score"]  # it looks at the image


def test_the_first_push_loads_too(pulled: dict[str, Any]) -> None:
    """In the middle of the training: with the weights of that time."""
    assert pulled["early tasks"] == ["topic", "stars"]
    assert pulled["early bias"] != pulled["weights"]["heads.stars.linear.bias"]


def test_nobody_pushes_without_a_token(published: tuple[Hub, Path], tmp_path: Path) -> None:
    """The stand-in is no dummy: it tells who may write, and what is not there."""
    hub, _ = published
    script = "from huggingface_hub import HfApi; HfApi().create_repo('me/other')"
    environment = {**os.environ, **hub.environment(tmp_path), "HF_TOKEN": "hf_wrong"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and "401" in done.stderr and "me/other" not in hub.repositories
    script = "from huggingface_hub import hf_hub_download; hf_hub_download('me/tiny', 'nothing.txt')"
    environment = {**os.environ, **hub.environment(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and "EntryNotFound" in done.stderr
