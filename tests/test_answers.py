"""Long texts cut into windows, answers found in logits over these, and words aligned with tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from helpers import arguments
from transformers import BertConfig, BertModel, BertTokenizer, CanineTokenizer

from hf_dbmtl import (
    MultiTaskModel,
    MultiTaskTrainer,
    QuestionAnswering,
    encode_choices,
    encode_questions,
    encode_words,
)
from hf_dbmtl.answers import answer_scores, extract_answers


WORDS = "where when the red blue green cat dog sat on a mat in garden may june ##s , .".split()
CONTEXT = "The red cat sat on a mat in may. The blue dogs sat in the green garden in june."


def tokenizer(**options: str) -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, **options)


def examples() -> Dataset:
    def answer(text: str) -> dict:
        return {"text": [text], "answer_start": [CONTEXT.index(text)]}

    return Dataset.from_dict(
        {
            "id": ["one", "two", "none"],
            "question": ["where sat the red cat", "where sat the blue dogs", "when sat the green cat"],
            "context": [CONTEXT] * 3,
            "answers": [answer("on a mat"), answer("in the green garden"), {"text": [], "answer_start": []}],
        }
    )


def windows(rows: Dataset | None = None, max_length: int = 20, stride: int = 5) -> Dataset:
    rows = examples() if rows is None else rows
    options = {"tokenizer": tokenizer(), "max_length": max_length, "stride": stride}
    return rows.map(encode_questions, batched=True, remove_columns=rows.column_names, fn_kwargs=options)


def perfect_logits(rows: Dataset) -> np.ndarray:
    logits = np.zeros((len(rows), max(map(len, rows["input_ids"])), 2))
    for window, labels in enumerate(rows["labels"]):
        logits[window, labels, [0, 1]] = 9.0
    return logits


def test_a_long_text_becomes_windows_that_overlap() -> None:
    rows = windows()
    assert len(rows) > 3 and max(map(len, rows["input_ids"])) <= 20
    assert len(windows(max_length=60)) == 3
    found = {}
    for row in rows:
        start, end = row["labels"]
        if row["offsets"][start] != [-1, -1]:
            span = row["context"][row["offsets"][start][0] : row["offsets"][end][1]]
            found.setdefault(row["example"], set()).add(span)
        else:
            assert (start, end) == (0, 0)  # the CLS token
    assert found == {"one": {"on a mat"}, "two": {"in the green garden"}}


def test_answers_are_found_again_in_logits() -> None:
    rows = windows()
    logits = perfect_logits(rows)
    answers = extract_answers(logits, rows)
    assert answers == {"one": "on a mat", "two": "in the green garden", "none": ""}
    right = dict(zip(rows["example"], rows["answers"]))
    assert answer_scores(answers, right) == {"exact_match": 1.0, "f1": 1.0}
    moved = np.roll(logits, 1, axis=1)
    moved[:, 0] = 0
    assert answer_scores(extract_answers(moved, rows), right)["exact_match"] < 1.0
    assert extract_answers(logits, rows, max_answer_length=2)["two"] != "in the green garden"
    with pytest.raises(ValueError, match="predictions are not those of"):
        extract_answers(logits[:-1], rows)


def test_a_question_about_an_empty_text_has_an_empty_answer() -> None:
    given = {"id": ["one", "two"], "question": ["where sat the cat"] * 2, "context": ["in may", ""]}
    rows = windows(Dataset.from_dict(given))
    logits = np.zeros((2, max(map(len, rows["input_ids"])), 2))
    assert extract_answers(logits, rows, max_answer_length=1) == {"one": "may", "two": ""}


def test_scores_are_those_of_squad() -> None:
    right = {1: ["The cat."], 2: ["red garden", "the blue garden"], 3: []}
    assert answer_scores({1: "cat", 2: "a blue garden", 3: ""}, right) == {"exact_match": 1.0, "f1": 1.0}
    scores = answer_scores({1: "the cat sat", 2: "garden", 3: "mat"}, right)
    assert scores["exact_match"] == 0.0
    assert scores["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_the_trainer_scores_texts(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=24, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    model = MultiTaskModel.from_encoder(BertModel(config), {"qa": QuestionAnswering()}, pooling="cls")
    rows = windows(examples().select([0, 1]), max_length=60)
    args = arguments(tmp_path, optim="adamw_torch", learning_rate=0.02, max_steps=60, logging_steps=20, balancer="ew")
    trainer = MultiTaskTrainer(
        model=model, args=args, train_dataset={"qa": rows}, eval_dataset={"qa": rows}, processing_class=tokenizer()
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_qa_exact_match"] < 1.0 == after["eval_qa_exact_match"] == after["eval_average"]
    predictions = trainer.predict({"qa": rows.remove_columns("labels")})["qa"].predictions
    assert extract_answers(predictions, rows) == {"one": "on a mat", "two": "in the green garden"}


def test_what_cannot_be_encoded_is_named() -> None:
    rows = examples()
    with pytest.raises(ValueError, match="no column 'id' that tells the examples apart.*add_column"):
        encode_questions(rows.remove_columns("id")[:], tokenizer())
    with pytest.raises(ValueError, match="padding_side = 'right'"):
        encode_questions(rows[:], tokenizer(padding_side="left"))
    for encode, given in ((encode_questions, rows[:]), (encode_words, {"tokens": [["red"]]})):
        with pytest.raises(ValueError, match="CanineTokenizer does not tell which characters.* take a fast tokenizer"):
            encode(given, CanineTokenizer())
    with pytest.raises(ValueError, match="2 words and 1 labels"):
        encode_words({"tokens": [["red", "cat"]], "labels": [[1]]}, tokenizer())


def test_the_first_token_of_a_word_carries_its_label() -> None:
    rows = {"tokens": [["the", "dogs", "sat"], ["may", "june"], []], "tags": [[1, 2, 3], None, []]}
    batch = encode_words(rows, tokenizer(), labels="tags")
    assert batch["labels"] == [[-100, 1, 2, -100, 3, -100], [-100] * 4, [-100] * 2]
    assert "labels" not in encode_words({"tokens": [["may"]]}, tokenizer())
    assert encode_words(rows, tokenizer(), labels="tags", max_length=4)["labels"][0] == [-100, 1, 2, -100]


def test_choices_are_encoded_behind_their_text() -> None:
    rows = {
        "q": ["where sat the cat", "when"],
        "a": ["on a mat", "in may"],
        "b": ["in june", "in june"],
        "label": [0, 1],
    }
    batch = encode_choices(rows, tokenizer(), choices=["a", "b"], text="q")
    assert batch["labels"] == [0, 1]
    assert [len(row) for row in batch["input_ids"]] == [2, 2]
    alone = tokenizer()("where sat the cat", "in june")
    assert batch["input_ids"][0][1] == alone["input_ids"] != batch["input_ids"][0][0]
    assert batch["token_type_ids"][0][1] == alone["token_type_ids"]
    lists = {"q": rows["q"], "endings": [["on a mat", "in june"], ["in may", "in june"]]}
    assert encode_choices(lists, tokenizer(), choices="endings", text="q")["input_ids"] == batch["input_ids"]
