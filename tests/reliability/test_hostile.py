"""Models and checkpoints from strangers: nothing runs, nothing unpickles, and what is wrong is told in bounded memory."""

from __future__ import annotations

import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TASKS, arguments, flat, tiny_data, tiny_model
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from hf_dbmtl import Classification, MultiTaskConfig, MultiTaskModel, MultiTaskTrainer
from hf_dbmtl.checkpoint import BALANCER_NAME
from hf_dbmtl.limits import limited_modules
from hf_dbmtl.manifest import write_manifest


MEBIBYTE = 1 << 20


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_model(dtype=torch.float32).save_pretrained(folder)
    return folder


def change(folder: Path, **encoder: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["encoder"] |= encoder
    path.write_text(json.dumps(config))


def change_task(folder: Path, name: str, **values: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["tasks"][name] = values
    path.write_text(json.dumps(config))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- weights


def test_untouched_it_loads(saved: Path) -> None:
    loaded = AutoModel.from_pretrained(saved)
    assert torch.equal(flat(loaded.parameters()), flat(tiny_model(dtype=torch.float32).parameters()))


@pytest.mark.parametrize("length", [0, 4, 7, 8, 100, 5000, -1])
def test_truncated_weights(length: int, saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="cannot be loaded: its weights are damaged"):
        AutoModel.from_pretrained(saved)


@pytest.mark.parametrize("length", [0, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_that_is_none(length: int, saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    before = peak()
    with pytest.raises(ValueError, match="cannot be loaded: its weights are damaged"):
        MultiTaskModel.from_pretrained(saved)
    assert peak() - before < 64 * MEBIBYTE


def test_any_flipped_bit_of_the_header(saved: Path) -> None:
    """It loads to the same weights, or the error is ours. (In a number nothing can tell; in a checkpoint its sum does.)"""
    path = saved / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    generator, refused = torch.Generator().manual_seed(0), 0
    whole = flat(tiny_model(dtype=torch.float32).parameters())
    for bit in torch.randint(8 * (8 + length), (60,), generator=generator).tolist():
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        try:
            loaded = MultiTaskModel.from_pretrained(saved)
        except ValueError as error:
            refused += 1
            assert "cannot be loaded" in str(error)
        else:
            assert torch.equal(flat(loaded.parameters()), whole)
    assert refused > 30


def test_a_changed_name_is_no_reason_to_make_weights_up(saved: Path) -> None:
    path = saved / "model.safetensors"
    weights = load_file(path)
    weights["heads.tropic.linear.bias"] = weights.pop("heads.topic.linear.bias")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ValueError, match="lack 'heads.topic.linear.bias', and hold 'heads.tropic.linear.bias'"):
        AutoModel.from_pretrained(saved)


def test_weights_too_many_or_too_few_alone_load(saved: Path) -> None:
    """As with any model of transformers, which reports them: another task in config.json, or one that was taken out of it."""
    path = saved / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "more": torch.ones(1)}, path, {"format": "pt"})
    loaded, info = MultiTaskModel.from_pretrained(saved, output_loading_info=True)
    assert torch.equal(flat(loaded.parameters()), flat(tiny_model(dtype=torch.float32).parameters()))
    assert set(info["unexpected_keys"]) == {"more"} and not info["missing_keys"]
    del weights["heads.topic.linear.bias"]
    save_file(weights, path, {"format": "pt"})
    _, info = MultiTaskModel.from_pretrained(saved, output_loading_info=True)
    assert set(info["missing_keys"]) == {"heads.topic.linear.bias"}


# ---- the configuration


SIZES: dict[str, list[Any]] = {
    "hidden_size": [-8, 0, 10**6, 10**12, 8.0, "8", None, [8], True],
    "vocab_size": [-1, 10**8, 10**10],
    "num_hidden_layers": [-1, 10**5, 10**9],
    "num_attention_heads": [-2, 0, 3],
    "intermediate_size": [-1, 2**31],
    "max_position_embeddings": [2**31 - 1, 10**15],
    "num_labels": [10**9, -1],
    "id2label": [{"a": "b"}],
    "hidden_act": ["os.system", 5],
    "hidden_dropout_prob": [-3, "x"],
    "initializer_range": ["x"],
    "pad_token_id": [10**9],
    "dtype": ["x"],
    "model_type": ["nope", 5, None, "multi_task"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in SIZES.items() for value in values])
def test_sizes_that_no_model_has(name: str, value: Any, saved: Path) -> None:
    change(saved, **{name: value})
    before = peak()
    with pytest.raises((ValueError, TypeError)) as error:
        AutoModel.from_pretrained(saved)
    assert len(str(error.value)) < 1500
    assert peak() - before < 256 * MEBIBYTE


def test_a_model_that_goes_on_and_on() -> None:
    with pytest.raises(ValueError, match="more than 50000 modules"), limited_modules():
        layers = torch.nn.ModuleList()
        while True:
            layers.append(torch.nn.Identity())
    torch.nn.ModuleList([torch.nn.Identity()])  # the limit is gone with its block


def test_much_that_is_not_in_the_checkpoint(saved: Path) -> None:
    """A head as large as one may be, on an encoder as wide as one may be, is not made up."""
    for i in range(40):
        change_task(saved, f"new_{i}", kind="classification", num_labels=10**6)
    before = peak()
    with pytest.raises(ValueError, match="numbers are not among the weights"):
        AutoModel.from_pretrained(saved)
    assert peak() - before < 256 * MEBIBYTE
    change_task(saved, "new_0", kind="classification", num_labels=10)  # the control: one head of usual size is
    config = json.loads((saved / "config.json").read_text())
    config["tasks"] = {name: task for name, task in config["tasks"].items() if task.get("num_labels") != 10**6}
    (saved / "config.json").write_text(json.dumps(config))
    assert list(AutoModel.from_pretrained(saved).tasks) == [*TASKS, "new_0"]


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "a.b", "", " ", "a\nb", "a\x00b", "\x1b[31m", "keys", "__class__"]
)
def test_names_of_tasks(name: str, saved: Path) -> None:
    change_task(saved, name, kind="regression")
    with pytest.raises(ValueError, match="Task name"):
        AutoConfig.from_pretrained(saved)


TASKS_WRONG: dict[str, dict[str, Any]] = {
    "negative": {"kind": "classification", "num_labels": -2},
    "enormous": {"kind": "classification", "num_labels": 10**12},
    "a fraction": {"kind": "classification", "num_labels": 2.5},
    "an unknown kind": {"kind": "os.system"},
    "an unknown field": {"kind": "regression", "__class__": "x"},
    "a control character": {"kind": "classification", "label_names": ["a", "b\x1b]0;title\x07"]},
    "a line break": {"kind": "classification", "label_names": ["a", "b\nc"]},
    "half a character": {"kind": "classification", "label_names": ["a", "\ud800"]},
    "the same twice": {"kind": "classification", "label_names": ["a", "a"]},
    "no strings": {"kind": "classification", "label_names": [1, 2]},
    "a dropout beyond": {"kind": "regression", "dropout": 1.5},
}


@pytest.mark.parametrize("case", TASKS_WRONG)
def test_descriptions_of_tasks(case: str, saved: Path) -> None:
    change_task(saved, "score", **TASKS_WRONG[case])
    with pytest.raises((ValueError, TypeError), match="Task 'score'"):
        AutoConfig.from_pretrained(saved)


def test_a_million_label_names_take_no_hours() -> None:
    assert Classification(label_names=[f"label {i}" for i in range(10**5)]).num_labels == 10**5
    with pytest.raises(ValueError, match="'twice' more than once"):
        Classification(label_names=["twice", *(f"label {i}" for i in range(10**5)), "twice"])


# ---- nothing runs


def test_pickled_weights_are_not_read(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(Evil(tmp_path / "trace"), saved / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        AutoModel.from_pretrained(saved)
    assert not (tmp_path / "trace").exists()
    torch.load(saved / "pytorch_model.bin", weights_only=False)  # the control: it would have run
    assert (tmp_path / "trace").exists()


def test_code_beside_a_model_does_not_run(saved: Path, tmp_path: Path) -> None:
    for name in ("configuration", "modeling", "tasks", "heads", "limits"):
        (saved / f"{name}.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'trace')!r})\n")
    path = saved / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoConfig": "configuration.MultiTaskConfig", "AutoModel": "modeling.MultiTaskModel"}
    config["encoder"]["auto_map"] = {"AutoConfig": "configuration.C", "AutoModel": "modeling.M"}
    path.write_text(json.dumps(config))
    assert isinstance(AutoConfig.from_pretrained(saved), MultiTaskConfig)
    assert isinstance(AutoModel.from_pretrained(saved), MultiTaskModel)
    assert not (tmp_path / "trace").exists()


def test_a_card_with_objects(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text(f"---\ntags: !!python/object/apply:os.mkdir ['{tmp_path / 'trace'}']\n---\n# Model\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        ModelCard.load(card)
    assert not (tmp_path / "trace").exists()


# ---- checkpoints


def run(folder: Path, resume: Path | None = None) -> MultiTaskTrainer:
    args = arguments(folder, max_steps=3, save_strategy="steps", save_steps=2, optim="adamw_torch")
    trainer = MultiTaskTrainer(tiny_model(dtype=torch.float32), args, train_dataset=tiny_data())
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    run(tmp_path / "run")
    return tmp_path / "run" / "checkpoint-2"


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_pickles_in_a_checkpoint_do_not_run(name: str, checkpoint: Path, tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "trace"), checkpoint / name)
    write_manifest(checkpoint)  # a stranger can write one too
    if name == "training_args.bin":  # never read
        run(tmp_path / "again", checkpoint)
    else:
        with pytest.raises(Exception, match="[Ww]eights.only"):
            run(tmp_path / "again", checkpoint)
    assert not (tmp_path / "trace").exists()


def wrong_metadata(path: Path, metadata: dict | None) -> None:
    save_file(load_file(path), path, metadata)


def with_tensor(path: Path, name: str, tensor: torch.Tensor) -> None:
    save_file(load_file(path) | {name: tensor}, path, {"steps": "2"})


EMBEDDING = "encoder.embeddings.LayerNorm.weight"
BALANCERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-3]), "is damaged"),
    "no safetensors": (lambda path: path.write_bytes(b"\x80\x04K\x01."), "is damaged"),
    "no metadata": (lambda path: wrong_metadata(path, None), "does not tell the number of `steps`"),
    "negative steps": (lambda path: wrong_metadata(path, {"steps": "-2"}), "does not tell the number of `steps`"),
    "no number": (lambda path: wrong_metadata(path, {"steps": "1e3"}), "does not tell the number of `steps`"),
    "no place": (lambda path: with_tensor(path, "vectors/x", torch.ones(1)), "no entry of a balancer's state"),
    "a path": (lambda path: with_tensor(path, "../../x", torch.ones(1)), "no entry of a balancer's state"),
    "too long": (
        lambda path: with_tensor(path, f"vectors/memory/ema/score/{EMBEDDING}/0", torch.ones(9)),
        "too large for the parameter, or not finite",
    ),
    "too far": (
        lambda path: with_tensor(path, f"vectors/memory/ema/score/{EMBEDDING}/999999999", torch.ones(8)),
        "too large for the parameter, or not finite",
    ),
    "not finite": (
        lambda path: with_tensor(path, f"vectors/memory/ema/score/{EMBEDDING}/0", torch.full((8,), torch.nan)),
        "too large for the parameter, or not finite",
    ),
}


@pytest.mark.parametrize("case", BALANCERS)
def test_the_state_of_a_balancer(case: str, checkpoint: Path, tmp_path: Path) -> None:
    change, message = BALANCERS[case]
    change(checkpoint / BALANCER_NAME)
    write_manifest(checkpoint)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "again", checkpoint)
