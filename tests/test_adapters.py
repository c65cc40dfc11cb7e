"""Adapters: of the encoder they alone are trained and balanced; they are saved with the heads, resumed and merged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers import LENGTH, VOCAB, arguments, tiny_data, tiny_encoder, tiny_model, train

from hf_dbmtl import MultiTaskModel, MultiTaskTrainer, adapters, checks


peft = pytest.importorskip("peft")

IDS = torch.arange(4 * LENGTH).reshape(4, LENGTH) % VOCAB
CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=2, lora_alpha=8, target_modules=["query", "value"]),
    "dora": lambda: peft.LoraConfig(r=2, use_dora=True),  # at the modules that PEFT chooses for a BERT
    "ia3": lambda: peft.IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
}


def adapted(name: str, folder: Path, seed: int = 0, resume: str | None = None, **options):
    model = tiny_model(dtype=torch.float32, seed=seed)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(0)
    options = {"learning_rate": 0.1, "save_strategy": "steps", "save_steps": 1, **options}
    trainer, steps = train(model, arguments(folder, **options), tiny_data(), resume, peft_config=CONFIGS[name]())
    return trainer, steps, before


@pytest.mark.parametrize("name", CONFIGS)
def test_the_adapters_alone_are_trained_and_balanced(name: str, tmp_path: Path) -> None:
    trainer, steps, before = adapted(name, tmp_path)
    assert all("lora" in parameter or "ia3" in parameter for parameter in trainer.gradients.shared)
    assert steps[-1]["update"].norm() > 0
    after = trainer.model.state_dict()
    for key, value in before.items():
        here = (
            key if key in after else key.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
        )
        assert torch.equal(after[here], value) != key.startswith("heads."), key


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_model_loads_and_merges(name: str, tmp_path: Path) -> None:
    trainer, _, _ = adapted(name, tmp_path, num_train_epochs=2)
    model = trainer.model.eval()
    logits = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "saved")
    again = MultiTaskModel.from_pretrained(tmp_path / "saved").eval()
    assert all(torch.equal(again(input_ids=IDS).logits[task], logits[task]) for task in logits)
    again.merge_adapter()
    assert again.config.adapter is None and set(again.state_dict()) == set(tiny_model().state_dict())
    assert all(parameter.requires_grad for parameter in again.parameters())
    merged = again(input_ids=IDS).logits
    assert all(torch.allclose(merged[task], logits[task], atol=1e-5) for task in logits)
    again.save_pretrained(tmp_path / "merged")
    plain = MultiTaskModel.from_pretrained(tmp_path / "merged").eval()(input_ids=IDS).logits
    assert all(torch.equal(plain[task], merged[task]) for task in logits)
    bare = tiny_model(dtype=torch.float32).eval()  # the same encoder without what the adapters learned
    bare.heads.load_state_dict(model.heads.state_dict())
    assert not torch.allclose(bare(input_ids=IDS).logits["topic"], logits["topic"], atol=1e-4)


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole, _, _ = adapted("lora", tmp_path / "whole")
    resumed, _, _ = adapted("lora", tmp_path / "resumed", seed=1, resume=str(tmp_path / "whole" / "checkpoint-2"))
    ours, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    other, _, _ = adapted("lora", tmp_path / "other", seed=1)
    assert not torch.equal(other.model.state_dict()["heads.score.linear.weight"], theirs["heads.score.linear.weight"])


def test_new_adapters_change_nothing(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32).eval()
    logits = model(input_ids=IDS).logits
    model.add_adapter(CONFIGS["lora"]())
    assert all(torch.equal(model(input_ids=IDS).logits[task], logits[task]) for task in logits)
    fresh = MultiTaskModel(model.config).eval()  # of the configuration alone: the encoder is new, the adapters are none
    adapted = fresh(input_ids=IDS).logits["topic"]
    fresh.encoder.disable_adapters()
    assert torch.equal(fresh(input_ids=IDS).logits["topic"], adapted)
    model.encoder.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / "model.safetensors").exists()
    base = tiny_encoder()
    base.load_adapter(str(tmp_path))  # as any encoder takes them


def test_models_made_by_model_init_are_adapted(tmp_path: Path) -> None:
    trainer = MultiTaskTrainer(
        model_init=lambda: tiny_model(dtype=torch.float32),
        args=arguments(tmp_path, max_steps=1),
        train_dataset=tiny_data(),
        peft_config=CONFIGS["lora"](),
    )
    trainer.train()
    assert trainer.model.config.adapter["r"] == 2
    assert all("lora" in name for name in trainer.gradients.shared)


def test_where_peft_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without adapters trains there, and one with them says what to install."""
    model = tiny_model(dtype=torch.float32)
    model.add_adapter(CONFIGS["lora"]())
    model.save_pretrained(tmp_path / "adapted")
    monkeypatch.setitem(sys.modules, "peft", None)
    for module in (adapters, checks):
        monkeypatch.setattr(module, "is_peft_available", lambda: False)
    with pytest.raises(
        ImportError, match=r"adapters in its encoder: pip install 'hf-dbmtl\[peft\]'.*merge_adapter\(\)"
    ):
        MultiTaskModel.from_pretrained(tmp_path / "adapted")
    trainer, _ = train(tiny_model(), arguments(tmp_path, max_steps=1), tiny_data())
    assert trainer.state.global_step == 1


# PEFT's own wrapping, which is refused here, still reads the attribute that transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_hides_the_tasks_is_refused(tmp_path: Path) -> None:
    def trainer(model, **options) -> None:
        MultiTaskTrainer(model=model, args=arguments(tmp_path), train_dataset=tiny_data(), **options)

    wrapped = peft.get_peft_model(tiny_model(dtype=torch.float32), CONFIGS["lora"]())
    with pytest.raises(TypeError, match=r"The model is a PeftModel.*`peft_config=\.\.\.`"):
        trainer(wrapped)
    inside = tiny_model(dtype=torch.float32)
    inside.encoder = peft.get_peft_model(inside.encoder, CONFIGS["lora"]())
    with pytest.raises(TypeError, match=r"The encoder is a PeftModel.*model\.add_adapter\(config\)"):
        trainer(inside)
    with pytest.raises(TypeError, match="`peft_config` is for a MultiTaskModel, and not for Linear"):
        trainer(torch.nn.Linear(2, 2), peft_config=CONFIGS["lora"]())
    model = tiny_model(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"modules_to_save=\['heads'\]: the heads are trained and saved anyway"):
        model.add_adapter(peft.LoraConfig(modules_to_save=["heads"]))
    model.add_adapter(CONFIGS["lora"]())
    with pytest.raises(ValueError, match=r"adapters already: call merge_adapter\(\) first"):
        trainer(model, peft_config=CONFIGS["lora"]())
    with pytest.raises(ValueError, match="no adapters to merge"):
        tiny_model().merge_adapter()
