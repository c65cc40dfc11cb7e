"""Heads with hidden layers, heads of one's own, and what of a model is trained at which rate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import LENGTH, VOCAB, arguments, tiny_data, tiny_encoder, tiny_model, train
from test_user_module import Net
from torch import nn
from transformers import TrainerCallback

from hf_dbmtl import (
    Classification,
    MultiTaskModel,
    MultiTaskTrainer,
    Regression,
    TokenClassification,
    register_head,
)
from hf_dbmtl.features import Seen, hidden_size


IDS = torch.arange(4 * LENGTH).reshape(4, LENGTH) % VOCAB


class Attention(nn.Module):
    """Pools the tokens by weights that it learns."""

    level = "output"

    def __init__(self, task, encoder):
        super().__init__()
        self.score = nn.Linear(hidden_size(encoder.config), 1)
        self.linear = nn.Linear(hidden_size(encoder.config), task.width)

    def forward(self, seen: Seen) -> torch.Tensor:
        tokens = seen.outputs.last_hidden_state
        hidden = (1 - seen.inputs["attention_mask"]).bool().unsqueeze(-1)
        return self.linear((self.score(tokens).masked_fill(hidden, -torch.inf).softmax(1) * tokens).sum(1))


class First(nn.Module):
    level = "token"

    def __init__(self, task, encoder):
        super().__init__()
        self.scale = nn.Parameter(torch.full((task.width,), 3.0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 0, : len(self.scale)] * self.scale


register_head("attention", Attention)
register_head("first", First)


def test_hidden_layers_stand_in_front_of_the_last(tmp_path: Path) -> None:
    tasks = {"topic": Classification(3, hidden_sizes=[6, 5]), "tags": TokenClassification(2, hidden_sizes=[4])}
    model = MultiTaskModel.from_encoder(tiny_encoder(), tasks, pooling="mean").eval()
    widths = [module.out_features for module in model.heads["topic"].modules() if isinstance(module, nn.Linear)]
    assert widths == [6, 5, 3]
    seen = torch.randn(2, 8)
    hidden, head = [m for m in model.heads["tags"].hidden if isinstance(m, nn.Linear)], model.heads["tags"].linear
    assert torch.allclose(model.heads["tags"](seen), head(nn.functional.gelu(hidden[0](seen))))
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.tasks == model.tasks
    assert torch.equal(again("topic", input_ids=IDS).logits, model("topic", input_ids=IDS).logits)


def test_heads_of_ones_own_train_and_survive_saving(tmp_path: Path) -> None:
    tasks = {"topic": Classification(3, head="attention"), "score": Regression(head="first")}
    model = MultiTaskModel.from_encoder(tiny_encoder(), tasks, pooling="mean")
    assert model.heads["score"].scale.tolist() == [3.0]
    trainer, _ = train(model, arguments(tmp_path), tiny_data({"topic": tasks["topic"], "score": tasks["score"]}))
    assert trainer.model.heads["score"].scale.item() != 3.0
    mask = torch.ones_like(IDS)
    logits = model.eval()("topic", input_ids=IDS, attention_mask=mask).logits
    mask[:, -2:] = 0
    assert not torch.allclose(model("topic", input_ids=IDS, attention_mask=mask).logits, logits)
    model.save_pretrained(tmp_path / "saved")
    again = MultiTaskModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again("score", input_ids=IDS).logits, model("score", input_ids=IDS).logits)


def test_what_is_no_head_is_named() -> None:
    with pytest.raises(ValueError, match=r"Task 'topic': unknown head 'atention': import .* \(known: attention, first"):
        tiny_model({"topic": Classification(3, head="atention")})
    with pytest.raises(TypeError, match="a class of torch modules"):
        register_head("wrong", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear.level must be one of sequence, token, choice, grid, output"):
        register_head("wrong", nn.Linear)
    with pytest.raises(TypeError, match=r"hidden_sizes must be a list of widths such as \[256\], got 256"):
        Classification(2, hidden_sizes=256)


class Rates(TrainerCallback):
    """Keeps the learning rate of every parameter."""

    def __init__(self, model: nn.Module):
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.rates: dict[str, float] = {}

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs) -> None:
        for group in optimizer.param_groups:
            self.rates |= {self.names[parameter]: group["lr"] for parameter in group["params"]}


def test_learning_rates_by_task(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    rates = Rates(model)
    options = {"learning_rate": 0.01, "heads_lr_multiplier": 2.0, "task_lr_multipliers": {"score": 5.0, "tags": 0.0}}
    tags = model.heads["tags"].linear.weight.clone()
    train(model, arguments(tmp_path, max_steps=1, **options), tiny_data(), callbacks=[rates])
    assert rates.rates["heads.score.linear.weight"] == pytest.approx(0.1)
    assert rates.rates["heads.topic.linear.bias"] == pytest.approx(0.02)
    assert rates.rates["encoder.embeddings.word_embeddings.weight"] == pytest.approx(0.01)
    assert torch.equal(model.heads["tags"].linear.weight, tags)
    with pytest.raises(ValueError, match="`task_lr_multipliers` names a task 'scores'.*did you mean 'score'"):
        args = arguments(tmp_path, task_lr_multipliers={"scores": 2.0})
        MultiTaskTrainer(model=model, args=args, train_dataset=tiny_data())


@pytest.mark.parametrize("balancer", ["db_mtl", "ew", "log+mgda", "uw", "graddrop"])
def test_a_frozen_encoder_leaves_the_heads_to_learn(balancer: str, tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    args = arguments(tmp_path, balancer=balancer, freeze_encoder=True, max_steps=2, save_strategy="steps", save_steps=1)
    trainer, steps = train(model, args, tiny_data())
    after = model.state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"heads"} and not trainer.gradients.shared
    _, resumed = train(tiny_model(dtype=torch.float32), args, tiny_data(), resume=str(tmp_path / "checkpoint-1"))
    assert all(torch.equal(resumed[-1][key], steps[-1][key]) for key in steps[-1])


def test_what_cannot_be_frozen_is_named(tmp_path: Path) -> None:
    def trainer(model: nn.Module, **options) -> None:
        MultiTaskTrainer(model=model, args=arguments(tmp_path, **options), train_dataset=tiny_data())

    with pytest.raises(ValueError, match=r"`freeze_layers` is 3, and the encoder \(BertModel\) has 2 layers"):
        trainer(tiny_model(dtype=torch.float32), freeze_layers=3)
    with pytest.raises(ValueError, match="`freeze_layers` must be a number of layers, and is -1"):
        arguments(tmp_path, freeze_layers=-1)
    for options in ({"freeze_encoder": True}, {"freeze_layers": 1}):
        with pytest.raises(
            ValueError, match=r"know the parts of a MultiTaskModel alone, and not of Net: call `\.requires_grad_"
        ):
            trainer(Net(), **options)
    with pytest.raises(ValueError, match="`freeze_encoder=True` trains the heads alone"):
        model = tiny_model(dtype=torch.float32)
        model.encoder.requires_grad_(False)
        trainer(model)
