"""Tokens, and the labels that words lend to them; the cache."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, CanineTokenizer

from hf_dbmtl.cli.encoding import encode
from hf_dbmtl.cli.labels import LabelReader, declare_task
from hf_dbmtl.cli.settings import DatasetSettings, TaskSettings
from hf_dbmtl_cli import CommandError


@pytest.fixture(scope="module")
def tokenizer(encoder):
    return AutoTokenizer.from_pretrained(encoder)


def run(tokenizer, rows: Dataset, kind: str, text: list[str], max_length: int | None = None) -> Dataset:
    task = declare_task("t", TaskSettings(kind, DatasetSettings(), label_names=["O", "X"]), rows)
    return encode(rows, tokenizer, text, {"labels": LabelReader.of("t", task, ["label"], rows)}, max_length)


SENTENCES = [["the", "films", "acting"], ["Paris", "plots"], ["a"]]
TAGS = [["O", "X", "X"], ["X", "O"], ["X"]]


@pytest.mark.parametrize("max_length", [None, 5])
def test_words(tokenizer, max_length):
    """The first token of a word has its label; checked against the tokenizer's own `word_ids`."""
    rows = Dataset.from_dict({"words": SENTENCES, "label": TAGS})
    encoded = run(tokenizer, rows, "token_classification", ["words"], max_length)
    assert sorted(encoded.column_names) == ["attention_mask", "input_ids", "labels", "token_type_ids"]
    reference = tokenizer(SENTENCES, is_split_into_words=True, truncation=max_length is not None, max_length=max_length)
    assert encoded["input_ids"][:] == reference["input_ids"]
    split = 0
    for i, labels in enumerate(encoded["labels"]):
        expected, last = [], None
        for word in reference.word_ids(i):
            expected.append(-100 if word is None or word == last else ["O", "X"].index(TAGS[i][word]))
            split += word is not None and word == last
            last = word
        assert labels == expected
    assert split >= 1  # words of several tokens were there
    text = Dataset.from_dict({"words": [" ".join(one) for one in SENTENCES], "label": [" ".join(one) for one in TAGS]})
    assert run(tokenizer, text, "token_classification", ["words"], max_length)[:] == encoded[:]


def test_words_need_a_fast_tokenizer():
    rows = Dataset.from_dict({"words": SENTENCES, "label": TAGS})
    with pytest.raises(
        CommandError, match="^Task 't': CanineTokenizer does not tell .*: choose an encoder with a fast"
    ):
        run(CanineTokenizer(), rows, "token_classification", ["words"])


def test_pairs(tokenizer):
    rows = Dataset.from_dict({"a": ["good film", "bad"], "b": ["a plot", "the film"], "label": ["X", "O"]})
    encoded = run(tokenizer, rows, "classification", ["a", "b"])
    reference = tokenizer(rows["a"][:], rows["b"][:])
    assert encoded["input_ids"][:] == reference["input_ids"] != tokenizer(rows["a"][:])["input_ids"]
    assert encoded["token_type_ids"][0] == reference["token_type_ids"][0]
    assert encoded["labels"][:] == [1, 0]
    assert max(map(len, run(tokenizer, rows, "classification", ["a", "b"], 5)["input_ids"])) == 5


def test_cache(tokenizer, folder):
    """A second run reads what the first one wrote, and another setting is another entry."""
    Dataset.from_dict({"a": ["good film", "bad"], "label": ["X", "O"]}).to_parquet("cached.parquet")

    def cached(max_length: int) -> str:
        rows = Dataset.from_parquet("cached.parquet")
        (file,) = run(tokenizer, rows, "classification", ["a"], max_length).cache_files
        return file["filename"]

    first = cached(8)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("cache-*.arrow")}
    assert cached(8) == first
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("cache-*.arrow")} == written
    assert cached(9) != first


WRONG = [
    ("token_classification", {"x": [["a", "b"]], "label": [["O"]]}, ["2 words and 1 labels", "'a b'"]),
    ("token_classification", {"x": [[1]], "label": [["O"]]}, ["column 'x' must hold a list of words"]),
    ("token_classification", {"x": [None, "a"], "label": ["O", "O"]}, ["column 'x' must hold a list of words"]),
    ("classification", {"x": ["a", None], "label": ["O", "X"]}, ["text column 'x' is empty in one row"]),
    ("classification", {"x": [1, 2], "label": ["O", "X"]}, ["text column 'x' holds 1 of type int"]),
]


@pytest.mark.parametrize(("kind", "columns", "said"), WRONG, ids=lambda x: str(x)[:40])
def test_refused(tokenizer, kind, columns, said):
    with pytest.raises(CommandError, match="^Task 't': ") as error:
        run(tokenizer, Dataset.from_dict(columns), kind, ["x"])
    for part in said:
        assert part in str(error.value)
