"""
Molecules (SMILES strings) to twelve properties, four in ten labels missing: all tasks share their rows, so that the encoder, a
small BERT that starts at random, reads every batch once for all of them. Leaves the model with its card and picture.

    python examples/molecules/train.py            # minutes on two cores
    python examples/molecules/train.py --tiny     # seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smiles import CLASSES, REGRESSIONS, TOKEN, build, tokens
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from hf_dbmtl import Classification, MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments, Regression
from hf_dbmtl.metrics import baseline_metrics


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def make_tokenizer(molecules: list[str]) -> PreTrainedTokenizerFast:
    """One token per atom, bond, branch and ring mark."""
    words = sorted({token for smiles in molecules for token in tokens(smiles)})
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN.pattern), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(one, vocabulary[one]) for one in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few molecules and steps, to see that it runs")
    parser.add_argument("--balancer", default="db_mtl", help="the balancer (default: db_mtl)")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/molecules"), help="where results go")
    options = parser.parse_args()
    count, epochs, width = (100, 1, 16) if options.tiny else (4000, 12, 96)

    set_seed(0)
    splits = build(count)
    tokenizer = make_tokenizer(splits["train"]["smiles"][:])
    data = {
        name: rows.map(lambda batch: tokenizer(batch["smiles"]), batched=True, remove_columns="smiles")
        for name, rows in splits.items()
    }
    tasks = {name: Regression() for name in REGRESSIONS}
    tasks |= {name: Classification(label_names=labels) for name, labels in CLASSES.items()}
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=128,
    )
    model = MultiTaskModel.from_encoder(BertModel(config), tasks, pooling="mean")
    trainer = MultiTaskTrainer(
        model=model,
        args=MultiTaskTrainingArguments(
            output_dir=str(options.output_dir / "model"),
            balancer=options.balancer,
            num_train_epochs=epochs,
            per_device_train_batch_size=64,
            learning_rate=1e-3,
            logging_steps=0.05,
            save_strategy="no",
        ),
        train_dataset={"molecules": data["train"]},  # no task's name: a group, of the tasks that are columns of it
        eval_dataset={"molecules": data["test"]},
        processing_class=tokenizer,
    )
    trainer.train()
    metrics = trainer.evaluate()
    for name in REGRESSIONS:
        print(f"{name:15} R² {metrics[f'eval_{name}_r2']:.3f}")
    for name in CLASSES:
        print(f"{name:15} accuracy {metrics[f'eval_{name}_accuracy']:.3f}")
    trainer.save_model()
    trainer.create_model_card(
        model_name="Twelve properties of molecules",
        baselines={
            name: baseline_metrics(task, *(splits[part][name][:] for part in ("train", "test")))
            for name, task in tasks.items()
        },
    )
    print(f"The model with its card: {trainer.args.output_dir}")


if __name__ == "__main__":
    main()
