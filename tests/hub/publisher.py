"""Trains a tiny model, pushes it to whatever Hub the environment names, in every way there is, and notes its answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from pictures import SIDE, picture, plain
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTImageProcessor, ViTModel, pipeline

from hf_dbmtl import (
    Classification,
    MultiTaskModel,
    MultiTaskTrainer,
    MultiTaskTrainingArguments,
    Regression,
    SemanticSegmentation,
)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "night"]
TEXTS = ["good day", "bad night bad day"]


def main(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, model_max_length=16)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    tasks = {"topic": Classification(label_names=["sport", "trade"]), "stars": Regression()}
    model = MultiTaskModel.from_encoder(BertModel(config), tasks, pooling="mean")
    texts = ["good day", "bad day", "good night", "bad night"] * 2
    rows = dict(tokenizer(texts))
    sets = {
        "topic": Dataset.from_dict({**rows, "labels": [int("bad" in text) for text in texts]}),
        "stars": Dataset.from_dict({**rows, "labels": [float("day" in text) for text in texts]}),
    }
    args = MultiTaskTrainingArguments(
        output_dir=str(folder / "output"),
        push_to_hub=True,
        hub_model_id="me/tiny",
        hub_strategy="every_save",
        hub_always_push=True,
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        logging_steps=1,
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = MultiTaskTrainer(model, args, train_dataset=sets, eval_dataset=sets, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub(license="apache-2.0")
    model.push_to_hub("me/alone", max_shard_size="5KB")
    model.add_task("more", Classification(3))
    model.push_to_hub("me/alone", max_shard_size="5KB", commit_message="One task more")
    weights = {name: value.flatten().tolist() for name, value in model.state_dict().items()}
    (folder / "weights.json").write_text(json.dumps(weights))
    with torch.no_grad():
        logits = model.eval()(task="stars", **tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    (folder / "stars.json").write_text(json.dumps(logits.flatten().tolist()))
    publish_images(folder)


def publish_images(folder: Path) -> None:
    """A ViT, a label and a map of labels for an image, by the push of the Trainer; its answers to two images."""
    torch.manual_seed(0)
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    config = ViTConfig(
        image_size=SIDE,
        patch_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    tasks = {
        "animal": Classification(label_names=["cat", "dog"]),
        "ground": SemanticSegmentation(label_names=["sky", "sand", "sea"]),
    }
    model = MultiTaskModel.from_encoder(ViTModel(config, add_pooling_layer=False), tasks, pooling="mean")
    images = [picture(seed) for seed in range(4)]
    pixels = processor(images, return_tensors="np")["pixel_values"].tolist()
    maps = np.random.default_rng(0).integers(0, 3, (4, SIDE, SIDE)).tolist()
    sets = {
        "animal": Dataset.from_dict({"pixel_values": pixels, "labels": [0, 1, 0, 1]}),
        "ground": Dataset.from_dict({"pixel_values": pixels, "labels": maps}),
    }
    args = MultiTaskTrainingArguments(
        output_dir=str(folder / "images"),
        hub_model_id="me/images",
        save_strategy="no",
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = MultiTaskTrainer(model, args, train_dataset=sets, eval_dataset=sets, processing_class=processor)
    trainer.train()
    trainer.push_to_hub()
    ask = pipeline("multi-task", model=model, image_processor=processor, device="cpu")
    (folder / "images.json").write_text(json.dumps([plain(answer) for answer in ask([picture(8), picture(9)])]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
