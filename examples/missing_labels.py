"""
Documents with several topics each, four in ten of these labels missing, and a score that every third row lacks.

The documents are generated: words drawn by their topics, as in a bag-of-words model (scikit-learn's
`make_multilabel_classification`), read by a small BERT that starts at random. A missing label is -100 or NaN (or `None`): it
counts neither in the loss nor in the metrics, and a step without any label of a task leaves that task out.

    python examples/missing_labels.py            # minutes on two cores
    python examples/missing_labels.py --tiny     # seconds
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from datasets import Dataset
from sklearn.datasets import make_multilabel_classification
from transformers import BertConfig, BertModel, BertTokenizer, set_seed

from hf_dbmtl import (
    MultiLabelClassification,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    Regression,
)


TOPICS = ["science", "sport", "politics", "music", "food"]
TASKS = {"topics": MultiLabelClassification(label_names=TOPICS), "rating": Regression()}


def make_rows(count: int, words: int = 60, seed: int = 0) -> dict[str, Dataset]:
    """The rows of both tasks: texts of words that their topics like, labels with gaps."""
    draw = np.random.default_rng(seed)
    counts, topics = make_multilabel_classification(
        n_samples=count, n_features=words, n_classes=len(TOPICS), n_labels=2, length=20, random_state=seed
    )
    # a document names its words in any order
    texts = [
        " ".join(f"w{word}" for word in draw.permutation(np.repeat(np.arange(words), row.astype(int))))
        for row in counts
    ]
    rating = topics @ np.linspace(-2, 2, len(TOPICS)) + 10 * counts[:, 0] / counts.sum(1).clip(min=1)

    known = draw.random(topics.shape) < 0.6
    topic_labels = np.where(known, topics, -100).tolist()
    rating_labels = [value if row % 3 else math.nan for row, value in enumerate(rating.tolist())]
    return {
        "topics": Dataset.from_dict({"text": texts, "labels": topic_labels}),
        "rating": Dataset.from_dict({"text": texts, "labels": rating_labels}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few rows and steps, to see that it runs")
    parser.add_argument("--output_dir", default="outputs/missing_labels")
    options = parser.parse_args()
    rows, epochs = (96, 1) if options.tiny else (1600, 10)

    set_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{word}" for word in range(60))]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)})
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    encoder = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=128, **size))
    model = MultiTaskModel.from_encoder(encoder, TASKS, pooling="mean")

    def tokenize(batch: dict) -> dict:
        return tokenizer(batch["text"], truncation=True, max_length=64)

    data = {task: dataset.map(tokenize, batched=True) for task, dataset in make_rows(rows).items()}
    split = {task: dataset.train_test_split(0.25, seed=0) for task, dataset in data.items()}
    trainer = MultiTaskTrainer(
        model=model,
        args=MultiTaskTrainingArguments(
            output_dir=options.output_dir,
            num_train_epochs=epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            logging_steps=20,
            save_strategy="no",
        ),
        train_dataset={task: one["train"] for task, one in split.items()},
        eval_dataset={task: one["test"] for task, one in split.items()},
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    print(f"topics: F1 {metrics['eval_topics_f1_micro']:.3f} over the labels that are known")
    print(f"rating: R² {metrics['eval_rating_r2']:.3f} over the rows that have one")


if __name__ == "__main__":
    main()
