"""A checkpoint gives every family of encoders its weights back, under whatever names they lie in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import IMAGE, TEXT, encoder_of, in_turn
from helpers import arguments
from peft import LoraConfig
from test_encoder_families import data_of, model_of
from transformers import Trainer

from hf_dbmtl import MultiTaskTrainer
from hf_dbmtl.renamed_weights import has_other_names, load_by_other_names


FAMILIES = (*TEXT, *IMAGE)


def trainer_of(family: str, folder: Path, kind: type = MultiTaskTrainer, seed: int = 0, **options: Any) -> Any:
    peft_config = options.pop("peft_config", None)
    args = arguments(
        folder, max_steps=3, save_strategy="steps", save_steps=1, optim="adamw_torch", learning_rate=0.01, **options
    )
    data = data_of(family)
    return kind(model=model_of(family, seed), args=args, train_dataset=data, eval_dataset=data, peft_config=peft_config)


def differing(a: Any, b: Any) -> list[str]:
    other = b.model.state_dict()
    assert other.keys() == a.model.state_dict().keys()
    return [name for name, value in a.model.state_dict().items() if not torch.equal(value, other[name])]


@pytest.mark.parametrize("family", in_turn(FAMILIES))
def test_a_resumed_run_has_all_weights(family: str, tmp_path: Path) -> None:
    whole = trainer_of(family, tmp_path / "whole")
    whole.train()
    again = trainer_of(family, tmp_path / "again", seed=1)  # whose weights of its own would show
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert differing(whole, again) == []


def test_weights_that_are_passed_over_would_show(tmp_path: Path) -> None:
    """The control: the stock Trainer's way to load."""

    class Stock(MultiTaskTrainer):
        def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            Trainer._load_from_checkpoint(self, *args, **kwargs)

    whole = trainer_of("vit", tmp_path / "whole")
    whole.train()
    folder = str(tmp_path / "whole" / "checkpoint-2")
    assert has_other_names(folder, whole.model) and not has_other_names(folder, torch.nn.Linear(1, 1))
    again = trainer_of("vit", tmp_path / "again", Stock, seed=1)
    again.train(resume_from_checkpoint=folder)
    assert len(differing(whole, again)) > 10


def test_weights_in_several_files(tmp_path: Path) -> None:
    """Their index tells the names; a folder without weights has none."""
    model, other = model_of("vit"), model_of("bert")
    for one, name in ((model, "vit"), (other, "bert")):
        one.save_pretrained(tmp_path / name, max_shard_size="2KB")
        assert not (tmp_path / name / "model.safetensors").exists()
    assert has_other_names(str(tmp_path / "vit"), model) and not has_other_names(str(tmp_path / "bert"), other)
    assert not has_other_names(str(tmp_path), model)
    fresh = model_of("vit", 1)
    load_by_other_names(str(tmp_path / "vit"), fresh)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_best_model(dtype: torch.dtype, tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    # the larger the worse: the first checkpoint is the best
    trainer = trainer_of("vit", tmp_path, metric_for_best_model="growing", greater_is_better=False, **options)
    trainer.model.to(dtype)
    seen: list[dict[str, torch.Tensor]] = []

    def evaluated(*args: Any, **kwargs: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return {"eval_growing": float(len(seen))}

    trainer.evaluate = evaluated
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    found = trainer.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in seen[0].items())
    assert any(not torch.equal(value, found[name]) for name, value in seen[-1].items())


def test_adapters(tmp_path: Path) -> None:
    names = [name for name, _ in encoder_of("vit").named_modules() if name.endswith("q_proj")]
    assert names
    config = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    whole = trainer_of("vit", tmp_path / "whole", **config)
    whole.train()
    again = trainer_of("vit", tmp_path / "again", **config)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert differing(whole, again) == []
