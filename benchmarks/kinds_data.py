"""Data for every kind of task: from a folder of Parquet files that the user gives, and rendered scenes for pixels."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset
from transformers import BertTokenizer, PreTrainedTokenizerBase

from hf_dbmtl import (
    Classification,
    DepthEstimation,
    MaskedLanguageModeling,
    MultiLabelClassification,
    MultipleChoice,
    QuestionAnswering,
    Regression,
    SemanticSegmentation,
    SurfaceNormals,
    TokenClassification,
    encode_choices,
    encode_questions,
    encode_words,
)


QM9 = "mu alpha homo lumo gap r2 zpve u0 u298 h298 g298 cv".split()
TOX21 = "NR-AR NR-AR-LBD NR-AhR NR-Aromatase NR-ER NR-ER-LBD NR-PPAR-gamma SR-ARE SR-ATAD5 SR-HSE SR-MMP SR-p53".split()
SIDE = 32  # of a rendered scene, in pixels


@dataclass
class Group:
    """Tasks that one model learns together."""

    tasks: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Dataset] = field(default_factory=dict)
    validation: dict[str, Dataset] = field(default_factory=dict)

    def add(self, name: str, task: Any, train: Dataset, validation: Dataset) -> None:
        self.tasks[name], self.train[name], self.validation[name] = task, train, validation


def read(folder: Path, name: str, rows: int) -> tuple[Dataset, Dataset]:
    """The training set, and the first `rows` of the validation set in a fixed random order."""
    files = {split: str(folder / name / f"{split}.parquet") for split in ("train", "validation")}
    both = load_dataset("parquet", data_files=files)
    validation = both["validation"].shuffle(seed=0)
    return both["train"], validation.select(range(min(rows, len(validation))))


def texts(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> Group:
    """Every kind of text task, each on a data set of its own."""
    group = Group()
    add = partial(_add, group, folder, tokenizer, rows)
    add("sst2", Classification(label_names=["negative", "positive"]), "sst2", encode_texts, columns=["sentence"])
    add("qnli", Classification(2), "qnli", encode_texts, columns=["question", "sentence"])
    add("stsb", Regression(main_metric="spearman"), "stsb", encode_texts, columns=["sentence1", "sentence2"])
    add(
        "goemotions",
        MultiLabelClassification(28),
        "goemotions",
        encode_texts,
        columns=["text"],
        labels="labels",
        hot=28,
    )
    add("ewt_pos", TokenClassification(18), "ewt_pos", encode_words, labels="upos", max_length=64)
    add("xquad", QuestionAnswering(), "xquad_en", encode_questions, max_length=160, stride=64)
    add("choice", MultipleChoice(4), "qnli", encode_four_sentences)
    add("words", MaskedLanguageModeling(), "sst2", encode_texts, columns=["sentence"], labels=None)
    return group


def short_texts(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> Group:
    """Emotions, of which there may be several in a text and most are rare, beside the types of questions."""
    group = Group()
    add = partial(_add, group, folder, tokenizer, rows)
    add("emotions", MultiLabelClassification(28), "goemotions", encode_texts, columns=["text"], labels="labels", hot=28)
    add("questions", Classification(6), "trec", encode_texts, columns=["text"], labels="coarse_label")
    return group


def masked_words(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int) -> Group:
    """Masked words, twice as many as is usual since the steps are few, beside the sentiment of the same sentences."""
    group = Group()
    add = partial(_add, group, folder, tokenizer, rows, columns=["sentence"], max_length=32)
    add("words", MaskedLanguageModeling(mlm_probability=0.3), "sst2", encode_texts, labels=None)
    add("feeling", Classification(label_names=["negative", "positive"]), "sst2", encode_texts)
    return group


def _add(
    group: Group,
    folder: Path,
    tokenizer: Any,
    rows: int,
    name: str,
    task: Any,
    source: str,
    function: Any,
    **options: Any,
) -> None:
    splits = read(folder, source, rows)
    encoded = [
        split.map(
            function, batched=True, remove_columns=split.column_names, fn_kwargs={"tokenizer": tokenizer, **options}
        )
        for split in splits
    ]
    group.add(name, task, *encoded)


def encode_texts(
    rows: dict[str, list],
    tokenizer: Any,
    columns: list[str],
    labels: str | None = "label",
    hot: int | None = None,
    max_length: int = 64,
) -> dict[str, list]:
    batch = dict(tokenizer(*(rows[column] for column in columns), truncation=True, max_length=max_length))
    if labels is None:
        return batch
    given = rows[labels]
    return batch | {"labels": given if hot is None else [[float(k in row) for k in range(hot)] for row in given]}


def encode_four_sentences(rows: dict[str, list], tokenizer: Any) -> dict[str, list]:
    """A question with the sentence that answers it and three others, in a random order, from pairs that are right."""
    right = [(q, s) for q, s, label in zip(rows["question"], rows["sentence"], rows["label"]) if label == 0]
    draw = random.Random(0)
    choices, labels = [], []
    for _, sentence in right:
        wrong = draw.sample([other for _, other in right if other != sentence], 3)
        labels.append(draw.randrange(4))
        choices.append([*wrong[: labels[-1]], sentence, *wrong[labels[-1] :]])
    columns = {"question": [question for question, _ in right], "choices": choices, "label": labels}
    return encode_choices(columns, tokenizer, choices="choices", text="question", max_length=64)


def molecules(folder: Path, rows: int) -> tuple[Group, BertTokenizer]:
    """
    Twelve properties of QM9, each in standard deviations from the training mean, twelve assays with gaps (Tox21), and
    masked letters.
    """
    qm9, tox21 = read(folder, "qm9_small", rows), read(folder, "tox21", rows)
    letters = sorted({letter for train, _ in (qm9, tox21) for smiles in train["smiles"] for letter in smiles})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    ids = {letter: i for i, letter in enumerate(vocabulary)}

    def encode(smiles: list[str]) -> list[list[int]]:
        return [[2, *(ids.get(letter, 1) for letter in text[:100]), 3] for text in smiles]

    group = Group()
    values = [np.stack([np.array(split[name]) for name in QM9], 1) for split in qm9]
    scaled = [(value - values[0].mean(0)) / values[0].std(0) for value in values]
    splits = [Dataset.from_dict({"input_ids": encode(s["smiles"]), "labels": v}) for s, v in zip(qm9, scaled)]
    group.add("qm9", Regression(label_names=QM9), *splits)
    splits = [
        Dataset.from_dict({"input_ids": encode(s["smiles"]), "labels": list(zip(*(s[name] for name in TOX21)))})
        for s in tox21
    ]
    group.add("tox21", MultiLabelClassification(label_names=TOX21, main_metric="roc_auc"), *splits)
    # as an auxiliary task, on the molecules of QM9 without their properties
    group.add("smiles", MaskedLanguageModeling(), *(Dataset.from_dict({"input_ids": encode(s["smiles"])}) for s in qm9))
    return group, BertTokenizer(vocab=ids)


def images(folder: Path, rows: int) -> Group:
    """Two digits in one image, and drawn letters: which alphabet, and how many strokes; and both digits as labels that hold."""
    group = Group()
    digits = read(folder, "multi_mnist", rows)
    pixels = [np.stack([np.asarray(image) for image in split["image"]])[:, None] / 127.5 - 1 for split in digits]
    for side in ("left", "right"):
        group.add(side, Classification(10), *(_with_pixels(p, s[side]) for p, s in zip(pixels, digits)))
    held = [[[float(k in pair) for k in range(10)] for pair in zip(s["left"], s["right"])] for s in digits]
    group.add("digits", MultiLabelClassification(10), *(_with_pixels(p, h) for p, h in zip(pixels, held)))
    drawn = read(folder, "omniglot_small", rows)
    small = [np.stack([np.asarray(image.resize((36, 36))) for image in split["image"]]) for split in drawn]
    pixels = [image.astype(np.float32)[:, None] / image.max() * 2 - 1 for image in small]
    group.add("alphabet", Classification(5), *(_with_pixels(p, s["alphabet"]) for p, s in zip(pixels, drawn)))
    strokes = [[float(count) for count in split["num_strokes"]] for split in drawn]
    group.add("strokes", Regression(), *(_with_pixels(p, s) for p, s in zip(pixels, strokes)))
    return group


def _with_pixels(pixels: np.ndarray, labels: Any) -> Dataset:
    dataset = Dataset.from_dict({"pixel_values": pixels.astype(np.float32), "labels": labels})
    return dataset.with_format("numpy", columns=["pixel_values"], output_all_columns=True)


def scenes(train: int, rows: int) -> Group:
    """Rendered scenes: domes, cones and pyramids on a plane, lit from one side; what, how far, and facing where."""
    group = Group()
    splits = [[_scene(np.random.default_rng([seed, i])) for i in range(n)] for seed, n in ((0, train), (1, rows))]
    width = {"hidden_sizes": [64]}
    tasks = {"shapes": SemanticSegmentation(4, **width), "depth": DepthEstimation(**width)}
    tasks["normals"] = SurfaceNormals(**width)
    for part, (name, task) in enumerate(tasks.items(), 1):
        made = []
        for split in splits:
            columns = {"pixel_values": np.stack([s[0] for s in split]), "labels": np.stack([s[part] for s in split])}
            made.append(Dataset.from_dict(columns).with_format("numpy"))
        group.add(name, task, *made)
    return group


def _scene(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The image, and for every pixel the class, the distance from the camera, and the direction its surface faces."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    height, shape = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.int64)
    for _ in range(3):
        kind, radius = draw.integers(1, 4), draw.uniform(5, 10)
        dy, dx = y - draw.uniform(4, SIDE - 4), x - draw.uniform(4, SIDE - 4)
        distance = np.maximum(abs(dy), abs(dx)) if kind == 3 else np.hypot(dy, dx)
        rise = np.sqrt(np.clip(radius**2 - distance**2, 0, None)) if kind == 1 else np.clip(radius - distance, 0, None)
        shape = np.where(rise > height, kind, shape)
        height = np.maximum(height, rise)
    slope_y, slope_x = np.gradient(height)
    normals = np.stack([-slope_x, -slope_y, np.ones_like(height)])
    normals /= np.linalg.norm(normals, axis=0)
    light = np.tensordot(np.array([0.5, 0.3, 0.81], np.float32), normals, 1).clip(0)
    image = light[None] * 2 - 1 + draw.normal(0, 0.03, (3, SIDE, SIDE))
    return image.astype(np.float32), shape, (12 - height) / 6, normals.astype(np.float32)
