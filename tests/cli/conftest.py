"""A tiny encoder with its tokenizer, and the data of four tasks in as many formats, in a folder of the test session."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import datasets
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer


WORDS = "good bad film ##s ##ing act plot the a is was paris rome he she likes".split()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of the tests here; `datasets` caches in it."""
    path = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", path / "cache")
        patch.chdir(path)
        yield path


@pytest.fixture(scope="session")
def encoder(folder: Path) -> str:
    """A BERT of two narrow layers with a WordPiece tokenizer, saved as a pretrained one would be."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder / "encoder")
    BertTokenizer(vocab=vocabulary).save_pretrained(folder / "encoder")
    return "encoder"


@pytest.fixture(scope="session")
def files(folder: Path) -> dict[str, str]:
    """
    `sst.csv` with string labels, `pairs.parquet` with integers, `scores.jsonl` with numbers, `words.jsonl` with a label
    per word. The label follows from the text.
    """
    draw = random.Random(0)
    rows: dict[str, list[dict]] = {"sst": [], "pairs": [], "scores": [], "words": []}
    for _ in range(40):
        good = draw.random() < 0.5
        text = f"the {draw.choice(['film', 'plot', 'acting'])} was {'good' if good else 'bad'}"
        rows["sst"].append({"sentence": text, "feeling": "positive" if good else "negative"})
        rows["pairs"].append({"first": text, "second": "a good film" if good else "films", "same": int(good)})
        rows["scores"].append({"text": text, "score": 3.5 if good else -1.0})
        words = [draw.choice(["he", "she"]), "likes", draw.choice(["paris", "rome", "acting"])]
        tags = ["O", "O", "B-PLACE" if words[2] != "acting" else "O"]
        rows["words"].append({"tokens": words, "tags": tags})
    with open("sst.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["sentence", "feeling"])
        writer.writeheader()
        writer.writerows(rows["sst"])
    datasets.Dataset.from_list(rows["pairs"]).to_parquet("pairs.parquet")
    for name in ("scores", "words"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
    return {"sst": "sst.csv", "pairs": "pairs.parquet", "scores": "scores.jsonl", "words": "words.jsonl"}
