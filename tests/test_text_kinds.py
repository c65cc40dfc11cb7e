"""Question answering, multiple choice and masked language modelling: losses, labels, and training through the Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import LENGTH, VOCAB, arguments, tiny_dataset, tiny_encoder
from transformers import BertForMultipleChoice, BertForQuestionAnswering, BertModel, BertTokenizer, EvalPrediction

from hf_dbmtl import (
    Classification,
    MaskedLanguageModeling,
    MultipleChoice,
    MultiTaskModel,
    MultiTaskTrainer,
    QuestionAnswering,
)
from hf_dbmtl.gradients import split_parameters
from hf_dbmtl.masking import Masking
from hf_dbmtl.metrics import default_compute_metrics


IDS = torch.arange(4 * LENGTH).reshape(4, LENGTH) % VOCAB


def tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def model_of(**tasks: Any) -> MultiTaskModel:
    return MultiTaskModel.from_encoder(tiny_encoder(), tasks, pooling="pooler")


def test_question_answering_is_the_stock_model() -> None:
    model = model_of(answer=QuestionAnswering())
    stock = BertForQuestionAnswering(model.encoder.config).eval()
    stock.bert.load_state_dict(model.encoder.state_dict(), strict=False)  # all but the pooler
    stock.qa_outputs.load_state_dict(model.heads["answer"].linear.state_dict())
    labels = torch.tensor([[0, 2], [3, 3], [1, 6], [0, 0]])
    ours = model.eval()("answer", input_ids=IDS, labels=labels)
    theirs = stock(IDS, start_positions=labels[:, 0], end_positions=labels[:, 1])
    assert torch.allclose(ours.logits[..., 0], theirs.start_logits)
    assert torch.allclose(ours.loss, theirs.loss, atol=1e-6)
    assert ours.num_items == 4
    missing = model("answer", input_ids=IDS, labels=torch.tensor([[0, 2], [-100, -100], [1, 6], [0, 0]]))
    assert missing.num_items == 3
    assert not torch.allclose(missing.loss, theirs.loss, atol=1e-3)


def test_positions_are_scored_where_there_are_labels() -> None:
    labels = np.array([[1, 2], [-100, -100]])
    logits = np.zeros((2, 4, 2))
    logits[0, [1, 3], [0, 1]] = logits[1, [0, 0], [0, 1]] = 9.0  # from 1 to 3 instead of 2
    scores = default_compute_metrics(QuestionAnswering())
    assert scores(EvalPrediction(logits, labels)) == {"exact_match": 0.0, "f1": pytest.approx(2 * 2 / (3 + 2))}
    assert scores(EvalPrediction(logits, np.full_like(labels, -100))) == {}
    logits[0, 0, 0] = np.nan
    assert all(map(np.isnan, scores(EvalPrediction(logits, labels)).values()))


def test_multiple_choice_is_the_stock_model() -> None:
    model = model_of(right=MultipleChoice(2), topic=Classification(2))
    stock = BertForMultipleChoice(model.encoder.config).eval()
    stock.bert.load_state_dict(model.encoder.state_dict())
    stock.classifier.load_state_dict(model.heads["right"].linear.state_dict())
    inputs = IDS.reshape(2, 2, LENGTH)
    mask = torch.ones_like(inputs)
    mask[0, 1, 5:] = 0
    labels = torch.tensor([0, 1])
    ours = model.eval()("right", input_ids=inputs, attention_mask=mask, labels=labels)
    theirs = stock(inputs, mask, labels=labels)
    assert torch.allclose(ours.logits, theirs.logits) and ours.logits.shape == (2, 2)
    assert torch.allclose(ours.loss, theirs.loss)
    assert not torch.allclose(ours.loss, stock(inputs.flip(1), mask.flip(1), labels=labels).loss)
    assert model("right", input_ids=IDS).logits.shape == (4, 1)  # texts on their own, one choice each
    with pytest.raises(ValueError, match=r"shape \(2, 2, 7\).*for a MultipleChoice task alone"):
        model("topic", input_ids=inputs)


def test_the_decoder_is_the_input_embedding_and_shared() -> None:
    model = model_of(words=MaskedLanguageModeling(), topic=Classification(2))
    embedding = model.encoder.get_input_embeddings().weight
    shared, heads = split_parameters(model)
    assert any(parameter is embedding for parameter in shared.values())
    assert not any(name.startswith("heads.words") and p.shape == embedding.shape for name, p in heads.items())
    ids = torch.full((1, 3), 4)
    model("words", input_ids=ids, labels=torch.tensor([[9, -100, -100]])).loss.backward()
    assert embedding.grad[9].norm() > 0  # read by the decoder alone
    model.zero_grad()
    model("topic", input_ids=ids, labels=torch.tensor([1])).loss.backward()
    assert embedding.grad[9].norm() == 0


def test_a_decoder_survives_saving_and_a_larger_vocabulary(tmp_path: Path) -> None:
    model = model_of(words=MaskedLanguageModeling()).eval()
    model.heads["words"].bias.data.normal_()
    logits = model("words", input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert torch.equal(again("words", input_ids=IDS).logits, logits)
    again.heads["words"].bias.data.zero_()
    assert not torch.equal(again("words", input_ids=IDS).logits, logits)
    model.resize_token_embeddings(VOCAB + 3)
    grown = model("words", input_ids=IDS).logits
    assert grown.shape[-1] == VOCAB + 3 and torch.allclose(grown[..., :VOCAB], logits, atol=1e-6)


def test_a_new_masked_language_head_starts_without_bias(tmp_path: Path) -> None:
    tiny_encoder().save_pretrained(tmp_path)
    model = MultiTaskModel.from_encoder(str(tmp_path), {"words": MaskedLanguageModeling()}, pooling="cls")
    assert torch.equal(model.heads["words"].bias, torch.zeros(VOCAB))
    model.config.save_pretrained(tmp_path / "config")
    again = MultiTaskModel.from_pretrained(
        tmp_path, config=model.config
    )  # the head's weights are not in the checkpoint
    assert torch.equal(again.heads["words"].bias, torch.zeros(VOCAB))


def test_masks_follow_from_the_seed_and_the_tokens() -> None:
    ids = torch.cat([torch.full((4, 1), 2), IDS[:, 1:].clamp(min=5), torch.full((4, 1), 3)], 1)
    masking = Masking("words", tokenizer(), 0.4, seed=1)
    first, again = masking({"input_ids": ids}), masking({"input_ids": ids})
    assert torch.equal(first["input_ids"], again["input_ids"]) and torch.equal(first["labels"], again["labels"])
    chosen = first["labels"] != -100
    assert 0 < chosen.sum() < chosen.numel() and not chosen[:, [0, -1]].any()
    assert torch.equal(first["labels"][chosen], ids[chosen])
    for other in (
        Masking("words", tokenizer(), 0.4, seed=2)({"input_ids": ids}),
        masking({"input_ids": ids[[1, 0, 2, 3]]}),
    ):
        assert not torch.equal(other["labels"], first["labels"])
    with pytest.raises(ValueError, match="Task 'words': masking needs a tokenizer with a mask token"):
        Masking("words", None, 0.15)


@pytest.mark.parametrize(
    ("task", "labels", "error", "message"),
    [
        (QuestionAnswering(), [[1, 9]], ValueError, r"label \[1, 9\] lies outside its input, of 7 tokens"),
        (QuestionAnswering(), [[3, 1]], ValueError, r"label \[3, 1\] is not a first and a last position"),
        (QuestionAnswering(), [[-1, 1]], ValueError, r"label \[-1, 1\] is not a first"),
        (QuestionAnswering(), [[1, 2, 3]], ValueError, "has 3 entries"),
        (QuestionAnswering(), ["paris"], TypeError, "label 'paris' is of type str: give the positions"),
        (MultipleChoice(2), [2], ValueError, r"label 2 is outside \[0, 2\)"),
        (MultipleChoice(2), ["b"], TypeError, "index of the right choice"),
        (MaskedLanguageModeling(), [[1]], TypeError, "leave the labels out"),
    ],
)
def test_wrong_labels_are_named(task: Any, labels: list, error: type, message: str) -> None:
    with pytest.raises(error, match=rf"Task 't'.*{message}"):
        task.label_tensor("t", labels, LENGTH)


@pytest.mark.parametrize(
    ("declare", "error", "message"),
    [
        (lambda: QuestionAnswering(3), ValueError, "takes no num_labels=3"),
        (lambda: QuestionAnswering(max_answer_length=0), ValueError, "max_answer_length"),
        (lambda: MultipleChoice(1), ValueError, "outside"),
        (lambda: MaskedLanguageModeling(30522), ValueError, "leave num_labels out"),
        (lambda: MaskedLanguageModeling(mlm_probability=15.0), ValueError, "between 0 and 1, got 15.0"),
    ],
)
def test_wrong_declarations_are_named(declare: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        declare()


def data_of(rows: int = 16) -> dict[str, Dataset]:
    topic = tiny_dataset(Classification(3), rows)
    plain = topic.remove_columns("labels")
    spans = [[row % 3, row % 3 + 2] for row in range(rows)]
    choices = {key: [[row, row[::-1]] for row in plain[key]] for key in plain.column_names}
    return {
        "topic": topic,
        "answer": plain.add_column("labels", spans),
        "right": Dataset.from_dict({**choices, "labels": [row % 2 for row in range(rows)]}),
        "words": plain,
    }


def run(folder: Path, resume: Path | None = None, seed: int = 0, **options: Any) -> MultiTaskTrainer:
    model = MultiTaskModel.from_encoder(
        tiny_encoder(0.1, seed),
        {
            "topic": Classification(3),
            "answer": QuestionAnswering(),
            "right": MultipleChoice(2),
            "words": MaskedLanguageModeling(mlm_probability=0.4),
        },
        pooling="mean",
    )
    args = arguments(folder, per_device_train_batch_size=4, save_strategy="steps", save_steps=3, **options)
    data = data_of()
    trainer = MultiTaskTrainer(
        model=model, args=args, train_dataset=data, eval_dataset=data, processing_class=tokenizer()
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def losses_of(trainer: MultiTaskTrainer) -> list[float]:
    return [record["loss/words"] for record in trainer.state.log_history if "loss/words" in record]


def test_all_kinds_train_evaluate_and_resume_bit_for_bit(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    metrics = whole.evaluate()
    assert {"eval_answer_exact_match", "eval_answer_f1", "eval_right_accuracy", "eval_words_accuracy"} <= set(metrics)
    assert whole.predict({"words": data_of()["words"]})["words"].predictions.shape == (16, LENGTH)  # tokens, not logits
    for workers in (0, 1):
        resumed = run(
            tmp_path / f"resumed{workers}", tmp_path / "whole" / "checkpoint-3", seed=1, dataloader_num_workers=workers
        )
        assert losses_of(resumed) == losses_of(whole)
        ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = run(tmp_path / "other", data_seed=5)
    assert losses_of(other) != losses_of(whole)


def test_masking_needs_a_tokenizer(tmp_path: Path) -> None:
    model = model_of(words=MaskedLanguageModeling())
    with pytest.raises(ValueError, match="Task 'words': masking needs a tokenizer"):
        MultiTaskTrainer(model=model, args=arguments(tmp_path), train_dataset={"words": data_of()["words"]})


def test_choices_of_another_number_are_named(tmp_path: Path) -> None:
    model = model_of(right=MultipleChoice(3))
    trainer = MultiTaskTrainer(
        model=model, args=arguments(tmp_path), train_dataset={"right": data_of()["right"]}, processing_class=tokenizer()
    )
    with pytest.raises(ValueError, match=r"Task 'right': the column 'input_ids' .* its 3 choices"):
        trainer.train()


def test_images_have_no_words_to_mask() -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with pytest.raises(
        ValueError, match="Task 'words': .*decodes with the embeddings of tokens, and ViTModel has none"
    ):
        MultiTaskModel.from_encoder(ViTModel(config), {"words": MaskedLanguageModeling()})
    assert isinstance(model_of(words=MaskedLanguageModeling()).encoder, BertModel)
