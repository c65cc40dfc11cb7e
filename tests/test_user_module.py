"""A module of a user's own: what it may return, which of its parameters are balanced, and what they are moved by."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import arguments, distance, flat, train
from torch import Tensor, nn
from transformers import BertTokenizer, TrainerCallback
from transformers.utils import ModelOutput

from hf_dbmtl import MultiTaskTrainer, MultiTaskTrainingArguments


EPSILON = 1e-8
BATCH, LR = 4, 0.05


@dataclass
class Result:
    loss: Tensor
    logits: Tensor
    num_items: Any = None


@dataclass
class Output(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    num_items: Any = None


RETURNS: dict[str, Callable[..., Any]] = {
    "dict": dict,
    "dataclass": Result,
    "ModelOutput": Output,
    "object": SimpleNamespace,
}
ITEMS: dict[str, Callable[[Tensor], dict[str, Any]]] = {
    "tensor": lambda items: {"num_items": items},
    "int": lambda items: {"num_items": int(items)},
    "float": lambda items: {"num_items": float(items)},
}


class Net(nn.Module):
    """Two outputs of one trunk; a label that is NaN is missing."""

    def __init__(self, returns: Callable[..., Any] = dict, items: Callable[[Tensor], dict] = ITEMS["tensor"]):
        super().__init__()
        torch.manual_seed(0)
        self.returns, self.items = returns, items
        self.trunk = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        self.heads = nn.ModuleDict({"price": nn.Linear(5, 1), "size": nn.Linear(5, 1)})
        self.double()

    def head(self, task: str) -> nn.Module:
        return self.heads[task]

    def forward(self, task: str, features: Tensor, labels: Tensor) -> Any:
        return self.result(task, features, labels)

    def result(self, task: str, features: Tensor, labels: Tensor) -> Any:
        logits = self.head(task)(self.trunk(features.double())).squeeze(-1)
        labelled = ~labels.isnan()
        squares = (logits - labels.nan_to_num().double()).square().where(labelled, 0.0)
        loss = squares.sum() / labelled.sum().clamp(min=1)
        return self.returns(loss=loss, logits=logits, **self.items(labelled.sum()))


def rows(count: int, seed: int, missing: float = 0.0, column: str = "labels", scale: float = 1.0, **columns) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 3, generator=generator)
    labels = scale * (features @ torch.randn(3, generator=generator) + torch.randn(count, generator=generator))
    labels[torch.rand(count, generator=generator) < missing] = torch.nan
    return Dataset.from_dict({"features": features.tolist(), column: labels.tolist(), **columns})


def data_of(
    tasks: tuple[str, ...] = ("price", "size"), missing: float = 0.0, count: int = 12, **columns
) -> dict[str, Dataset]:
    return {task: rows(count, i, missing, scale=10.0**i, **columns) for i, task in enumerate(tasks)}


def options_of(folder: Path, **options: Any) -> MultiTaskTrainingArguments:
    defaults = {"per_device_train_batch_size": BATCH, "learning_rate": LR, "train_sampling_strategy": "sequential"}
    return arguments(folder, **{**defaults, **options})


def by_hand(
    model: nn.Module,
    data: dict[str, Dataset],
    shared: list[str],
    transform: Callable[[float], float] = lambda loss: 1 / (loss + EPSILON),
    beta: float | None = 0.9,
    max_norm: bool = True,
    task_weights: dict[str, float] | None = None,
    lr: dict[str, float] | None = None,
    steps: int = 3,
) -> tuple[list[dict[str, Tensor]], nn.Module]:
    """
    What every step comes to, written down once more with autograd alone, whole batches in sequence: the gradient that
    the optimizer gets for each parameter, by name; and the model that SGD makes of it.
    """
    model, weights = copy.deepcopy(model), task_weights or {}
    parameters = dict(model.named_parameters())
    averages: dict[str, Tensor] = {}
    found = []
    for step in range(steps):
        gradients: dict[str, Tensor] = {}
        of_shared, norms = {}, {}
        for task, dataset in data.items():
            batch = dataset.with_format("torch")[step * BATCH : (step + 1) * BATCH]
            loss = model(task=task, **{key: value for key, value in batch.items() if isinstance(value, Tensor)})["loss"]
            raw = torch.autograd.grad(transform(loss.item()) * loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, raw):
                if name not in shared and gradient is not None:
                    gradients[name] = gradients.get(name, 0) + weights.get(task, 1.0) * gradient
            one = torch.cat(
                [
                    (torch.zeros_like(parameters[name]) if gradient is None else gradient).reshape(-1)
                    for name, gradient in zip(parameters, raw)
                    if name in shared
                ]
            )
            if beta is not None:
                beta_k = beta / (step + 1) ** 0.5
                averages[task] = one = beta_k * averages.get(task, 0.0) + (1 - beta_k) * one
            of_shared[task], norms[task] = one, one.norm()
        largest = max(norms.values())
        update = sum(
            weights.get(task, 1.0) * (largest / (norms[task] + EPSILON) if max_norm else 1.0) * one
            for task, one in of_shared.items()
        )
        pieces = update.split([parameters[name].numel() for name in parameters if name in shared])
        names = [name for name in parameters if name in shared]
        gradients |= {name: piece.view_as(parameters[name]) for name, piece in zip(names, pieces)}
        for name, gradient in gradients.items():
            parameters[name].data -= (lr or {}).get(name, LR) * gradient
        found.append({name: gradient.clone() for name, gradient in gradients.items()})
    return found, model


class Gradients(TrainerCallback):
    """Keeps what the optimizer gets, by name; what is `None` is left out."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        named = model.named_parameters()
        self.steps.append({name: one.grad.clone() for name, one in named if one.grad is not None})


def run(model: nn.Module, args: MultiTaskTrainingArguments, data: dict[str, Dataset], kind=MultiTaskTrainer, **options):
    """Trains, and gives the trainer and the gradients that every step gave to the optimizer."""
    gradients = Gradients()
    trainer = kind(model=model, args=args, train_dataset=data, callbacks=[gradients], **options)
    trainer.train()
    return trainer, gradients.steps


TRUNK = ["trunk.0.weight", "trunk.0.bias"]


# ---- What a forward returns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("returns", RETURNS)
@pytest.mark.parametrize("items", ITEMS)
def test_what_a_forward_may_return(returns: str, items: str, tmp_path: Path) -> None:
    data = data_of(missing=0.3)
    expected, _ = by_hand(Net(), data, TRUNK)
    model = Net(RETURNS[returns], ITEMS[items])
    _, found = run(model, options_of(tmp_path), data)
    assert distance(found, expected) < 1e-12
    # the items count: two micro-batches of different numbers of labels
    args = options_of(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    _, found = run(Net(RETURNS[returns], ITEMS[items]), args, data)
    assert distance(found, expected) < 1e-12


@pytest.mark.parametrize("returns", RETURNS)
@pytest.mark.parametrize("silent", [lambda items: {}, lambda items: {"num_items": None}], ids=["absent", "None"])
def test_a_forward_that_is_silent_means_its_rows(returns: str, silent: Callable, tmp_path: Path) -> None:
    """Right where all are labelled; where they are not, the mean is another."""
    for missing, right in ((0.0, True), (0.3, False)):
        data = data_of(missing=missing)
        expected, _ = by_hand(Net(), data, TRUNK)
        args = options_of(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
        _, found = run(Net(RETURNS[returns], silent), args, data)
        assert (distance(found, expected) < 1e-12) == right
        assert right or distance(found, expected) > 1e-3


class Weighted(Net):
    """A weighted mean, whose denominator is a sum of weights and no count."""

    def forward(self, task: str, features: Tensor, labels: Tensor, weights: Tensor) -> dict[str, Any]:
        logits = self.heads[task](self.trunk(features.double())).squeeze(-1)
        loss = (weights * (logits - labels).square()).sum() / weights.sum()
        return {"loss": loss, **self.items(weights.sum())}


def test_num_items_may_be_a_sum_of_weights(tmp_path: Path) -> None:
    data = data_of(weights=[0.25, 3.0, 0.5, 1.0] * 3)
    expected, _ = by_hand(Weighted(), data, TRUNK)
    args = options_of(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    for items in (ITEMS["tensor"], ITEMS["float"]):
        _, found = run(Weighted(items=items), args, data)
        assert distance(found, expected) < 1e-6  # the weights come in float32
    _, found = run(Weighted(items=lambda weights: {"num_items": 1}), args, data)
    assert distance(found, expected) > 1e-3  # the control: all rows alike


# ---- What a forward is given -----------------------------------------------------------------------------------------


class Everything(Net):
    """Takes whatever columns there are."""

    def forward(self, task: str, **batch: Any) -> Any:
        self.given = {"task": task, **batch}
        return self.result(task, batch["features"], batch["labels"])


class Columns(Net):
    """Takes a column more than it needs."""

    def forward(self, task: str, features: Tensor, labels: Tensor, extra: Tensor | None = None) -> Any:
        self.given = {"features": features, "labels": labels, "extra": extra}
        return self.result(task, features, labels)


EXTRA = {"extra": list(range(12)), "other": [[i, i] for i in range(12)], "text": ["word"] * 12}


def test_columns_by_keyword_are_all_kept(tmp_path: Path) -> None:
    model = Everything()
    run(model, options_of(tmp_path), data_of(**EXTRA))
    assert model.given.keys() == {"task", "features", "labels", "extra", "other"}  # a text is no tensor
    assert model.given["task"] == "size" and model.given["other"].tolist() == [[8, 8], [9, 9], [10, 10], [11, 11]]


def test_columns_by_name_are_chosen(tmp_path: Path) -> None:
    data = data_of(**EXTRA)
    model = Columns()
    _, found = run(model, options_of(tmp_path), data)
    assert model.given["extra"].tolist() == [8, 9, 10, 11]
    reference, _ = by_hand(Net(), data_of(), TRUNK)
    assert distance(found, reference) < 1e-12
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):  # unless none is to be removed
        run(Columns(), options_of(tmp_path, remove_unused_columns=False), data)


@pytest.mark.parametrize("kind", [Net, Everything])
def test_a_column_called_task_does_not_choose_the_head(kind: type[Net], tmp_path: Path) -> None:
    expected, _ = by_hand(Net(), data_of(), TRUNK)
    _, found = run(kind(), options_of(tmp_path), data_of(task=[1] * 12))
    assert distance(found, expected) < 1e-12


def test_the_default_collator_of_transformers_serves(tmp_path: Path) -> None:
    """It stacks, and calls a column `label` by the name that a forward expects."""
    expected, _ = by_hand(Net(), data_of(), TRUNK)
    data = {task: dataset.rename_column("labels", "label") for task, dataset in data_of().items()}
    _, found = run(Net(), options_of(tmp_path), data)
    assert distance(found, expected) < 1e-12


class Words(nn.Module):
    """Sums of embeddings; remembers the shapes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.heads = nn.EmbeddingBag(10, 3, mode="sum"), nn.ModuleDict({"a": nn.Linear(3, 2)})
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, task: str, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.shapes.append(tuple(input_ids.shape))
        hidden = self.embed(input_ids, per_sample_weights=attention_mask.float())
        return {"loss": nn.functional.cross_entropy(self.heads[task](hidden), labels)}


def test_a_tokenizer_pads(tmp_path: Path) -> None:
    tokenizer = BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcde"])}
    )
    texts = ["a b", "c", "d e a b c", "a a a"]
    data = {"a": Dataset.from_dict({**tokenizer(texts, return_token_type_ids=False), "label": [0, 1, 1, 0]})}
    model = Words()
    run(model, options_of(tmp_path, per_device_train_batch_size=2), data, processing_class=tokenizer)
    assert model.shapes == [(2, 4), (2, 7)]
    collated: list[int] = []

    def collator(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        collated.append(len(examples))
        named = [{"labels" if key == "label" else key: value for key, value in one.items()} for one in examples]
        return tokenizer.pad(named, "max_length", 9, return_tensors="pt")

    model = Words()
    run(model, options_of(tmp_path), data, processing_class=tokenizer, data_collator={"a": collator})
    assert (model.shapes, collated) == ([(4, 9)], [4])


# ---- What is balanced ------------------------------------------------------------------------------------------------


class Named(Net):
    """The same under other names, with no `heads`."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs = self.heads
        del self.heads

    def head(self, task: str) -> nn.Module:
        return self.outputs[task]


SHARING: dict[str, Any] = {
    "regex": r"^trunk\.",
    "regex in the middle": r"unk\.\d",
    "prefix": ["trunk"],
    "names": TRUNK,
    "module": lambda model: model.trunk,
}


@pytest.mark.parametrize("how", SHARING)
@pytest.mark.parametrize("kind", [Net, Named])
def test_shared_parameters(kind: type[Net], how: str, tmp_path: Path) -> None:
    expected, _ = by_hand(kind(), data_of(), TRUNK)
    model = kind()
    chosen = SHARING[how](model) if how == "module" else SHARING[how]
    trainer, found = run(model, options_of(tmp_path), data_of(), shared_parameters=chosen)
    assert list(trainer.gradients.shared) == TRUNK
    assert distance(found, expected) < 1e-12
    other, _ = by_hand(kind(), data_of(), TRUNK[:1])
    _, found = run(kind(), options_of(tmp_path), data_of(), shared_parameters=TRUNK[:1])
    assert distance(found, other) < 1e-12
    assert distance(other, expected) > 1e-3  # the control: the bias goes its own way


class Tied(nn.Module):
    """Two tasks that read an embedding, one of them once more as its head."""

    def __init__(self, tied: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(6, 3)
        self.heads = nn.ModuleDict({"next": nn.Linear(3, 6), "kind": nn.Linear(3, 2)})
        if tied:
            self.heads["next"].weight = self.embed.weight
        self.double()

    def forward(self, task: str, words: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.heads[task](self.embed(words)), labels)}


def test_a_head_tied_to_the_encoder_is_balanced(tmp_path: Path) -> None:
    """It is the embedding's gradient, whichever way it came (G6)."""
    words = [i % 6 for i in range(12)]
    data = {
        "next": Dataset.from_dict({"words": words, "labels": [(word + 1) % 6 for word in words]}),
        "kind": Dataset.from_dict({"words": words, "labels": [word % 2 for word in words]}),
    }
    expected, _ = by_hand(Tied(), data, ["embed.weight"])
    trainer, found = run(Tied(), options_of(tmp_path), data)
    assert list(trainer.gradients.shared) == ["embed.weight"]
    assert list(trainer.gradients.heads) == ["heads.next.bias", "heads.kind.weight", "heads.kind.bias"]
    assert distance(found, expected) < 1e-12
    assert trainer.model.heads["next"].weight is trainer.model.embed.weight
    trainer, found = run(Tied(tied=False), options_of(tmp_path), data)  # the control: a head of its own
    assert len(trainer.gradients.heads) == 4
    assert (
        distance(
            [{"embed": step["embed.weight"]} for step in found], [{"embed": step["embed.weight"]} for step in expected]
        )
        > 1e-3
    )


class Spare(Net):
    """Holds what no task reaches, in the trunk and among the heads, and what only one of them does."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(5, 5).double()
        self.only = nn.Linear(3, 5).double()
        self.heads["spare"] = nn.Linear(5, 1).double()

    def forward(self, task: str, features: Tensor, labels: Tensor) -> Any:
        if task == "size":
            features = features + self.only(features.double())[:, :3]
        return self.result(task, features, labels)


class ZeroFilled(MultiTaskTrainer):
    """The mistake: what nobody reached is given a zero gradient."""

    def create_scheduler(self, *args: Any, **kwargs: Any):
        scheduler = super().create_scheduler(*args, **kwargs)
        write = self.gradients.write

        def write_zeros(*args: Any) -> None:
            write(*args)
            for parameter in self.model.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

        self.gradients.write = write_zeros
        return scheduler


@pytest.mark.parametrize("balancer", ["db_mtl", "ew", "max_norm"])
def test_what_nobody_reaches_does_not_move(balancer: str, tmp_path: Path) -> None:
    options = {"balancer": balancer, "optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 0.1}
    spare = ("spare.weight", "spare.bias", "heads.spare.weight", "heads.spare.bias")
    initial = dict(Spare().named_parameters())
    trainer, found = run(Spare(), options_of(tmp_path, **options), data_of())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, initial[name]) == (name in spare)
        assert all((name in step) == (name not in spare) for step in found)
    if balancer == "db_mtl":
        names = list(trainer.gradients.shared)
        for task, row in trainer.balancer.memory.rows.items():
            kept = {name for name, tensor in zip(names, trainer.gradients.full(row)) if tensor is not None}
            assert kept == {*TRUNK, *(("only.weight", "only.bias") if task == "size" else ())}
    trainer, _ = run(Spare(), options_of(tmp_path, **options), data_of(), kind=ZeroFilled)
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, initial[name])}
    assert {"spare.weight", "heads.spare.weight"} <= moved  # the control: by its decay


def test_what_is_frozen_does_not_move(tmp_path: Path) -> None:
    model = Net()
    model.trunk[0].bias.requires_grad_(False)
    model.heads["size"].requires_grad_(False)
    initial = copy.deepcopy(model.state_dict())
    trainer, found = run(model, options_of(tmp_path, optim="adamw_torch", weight_decay=0.1), data_of())
    frozen = {"trunk.0.bias", "heads.size.weight", "heads.size.bias"}
    assert set(trainer.gradients.shared) == {"trunk.0.weight"} and not frozen & set(trainer.gradients.heads)
    assert {name for name, value in model.state_dict().items() if torch.equal(value, initial[name])} == frozen
    assert all(not frozen & step.keys() for step in found)


class OneHead(Net):
    """Tasks `price` and `rent` share a head."""

    def head(self, task: str) -> nn.Module:
        return self.heads["size" if task == "size" else "price"]


@pytest.mark.parametrize("name", ["db_mtl", "ew"])
def test_a_head_of_two_tasks_gets_the_sum(name: str, tmp_path: Path) -> None:
    data, plain = data_of(("price", "size", "rent")), {"transform": lambda loss: 1.0, "beta": None, "max_norm": False}
    expected, _ = by_hand(OneHead(), data, TRUNK, **(plain if name == "ew" else {}))
    _, found = run(OneHead(), options_of(tmp_path, balancer=name), data)
    assert distance(found, expected) < 1e-12
    lone = {task: data[task] for task in ("price", "size")}
    without, _ = by_hand(OneHead(), lone, TRUNK, **(plain if name == "ew" else {}))
    heads = [[{"head": step["heads.price.weight"]} for step in steps] for steps in (found, without)]
    assert distance(*heads) > 1e-3  # the control: one of the two alone


# ---- With which weights and learning rates ---------------------------------------------------------------------------

BY_HAND: dict[str, dict[str, Any]] = {
    "db_mtl": {},
    "log": {"beta": None, "max_norm": False},
    "max_norm": {"transform": lambda loss: 1.0, "beta": None},
    "ew": {"transform": lambda loss: 1.0, "beta": None, "max_norm": False},
    "ema+max_norm": {"transform": lambda loss: 1.0},
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("task_weights", [{}, {"price": 0.2, "size": 3.0}, {"size": 0.0}], ids=str)
def test_task_weights_multiply_after_balancing(name: str, task_weights: dict[str, float], tmp_path: Path) -> None:
    """And the head's gradient; under a logarithm a factor on the loss would do nothing."""
    data = data_of(missing=0.2)
    expected, model = by_hand(Net(), data, TRUNK, task_weights=task_weights, **BY_HAND[name])
    args = options_of(tmp_path, balancer=name, task_weights=task_weights or None)
    trainer, found = run(Net(), args, data)
    assert distance(found, expected) < 1e-10
    assert distance(*([dict(one.named_parameters())] for one in (trainer.model, model))) < 1e-10
    records = [record for record in trainer.state.log_history if "loss" in record]
    for record in records:  # `loss/...` is the loss as it is, the weight carries the user's
        raw = {task: record[f"loss/{task}"] for task in data}
        assert record["loss"] == pytest.approx(
            sum(task_weights.get(task, 1.0) * loss for task, loss in raw.items()), rel=1e-6
        )
    if name in ("ew", "log"):
        for task in data:
            slope = 1.0 / (records[0][f"loss/{task}"] + 1e-8) if name == "log" else 1.0
            assert records[0][f"weight/{task}"] == pytest.approx(task_weights.get(task, 1.0) * slope, rel=1e-6)
    if task_weights:
        other, _ = by_hand(Net(), data, TRUNK, **BY_HAND[name])
        assert distance(found, other) > 1e-3


@pytest.mark.parametrize(("encoder", "heads"), [(0.1, 1.0), (1.0, 10.0), (0.5, 2.0), (0.0, 1.0)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_learning_rate_multipliers(encoder: float, heads: float, decay: float, tmp_path: Path) -> None:
    args = options_of(
        tmp_path, encoder_lr_multiplier=encoder, heads_lr_multiplier=heads, weight_decay=decay, balancer="ew"
    )
    model = Net()
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer, found = run(model, args, data_of(count=BATCH))
    assert len(found) == 1
    for name, parameter in model.named_parameters():
        rate = LR * (encoder if name in TRUNK else heads)
        decayed = 0.0 if name.endswith("bias") else decay
        torch.testing.assert_close(
            parameter.detach(),
            initial[name] - rate * (found[0][name] + decayed * initial[name]),
            rtol=1e-12,
            atol=1e-14,
        )
    groups = trainer.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(initial)
    assert {group["lr"] for group in groups} == {LR * encoder, LR * heads}


def test_learning_rate_multipliers_under_a_schedule(tmp_path: Path) -> None:
    options = {
        "encoder_lr_multiplier": 0.1,
        "heads_lr_multiplier": 2.0,
        "lr_scheduler_type": "linear",
        "warmup_steps": 1,
    }
    rates: list[set[float]] = []

    class Rates(TrainerCallback):
        def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
            rates.append({group["lr"] for group in optimizer.param_groups})

    args = options_of(tmp_path, num_train_epochs=2, **options)
    train(Net(), args, data_of(), callbacks=[Rates()])
    shape = [0.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert [sorted(one) for one in rates] == [
        pytest.approx(sorted({LR * factor * 0.1, LR * factor * 2.0})) for factor in shape
    ]


def test_resume_with_learning_rate_multipliers(tmp_path: Path) -> None:
    """The groups of the optimizer are those of the checkpoint."""
    options = {"encoder_lr_multiplier": 0.1, "optim": "adamw_torch", "save_strategy": "steps", "save_steps": 1}
    whole, _ = train(Net(), options_of(tmp_path / "a", **options), data_of())
    resumed, _ = train(
        Net(), options_of(tmp_path / "b", **options), data_of(), resume=str(tmp_path / "a" / "checkpoint-2")
    )
    assert torch.equal(flat(resumed.model.parameters()), flat(whole.model.parameters()))
    other, _ = train(Net(), options_of(tmp_path / "c", **{**options, "encoder_lr_multiplier": 1.0}), data_of())
    assert not torch.equal(flat(other.model.parameters()), flat(whole.model.parameters()))


# ---- A layout is a layout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balancer", ["db_mtl", "ew"])
def test_layouts_agree(balancer: str, tmp_path: Path) -> None:
    data = data_of(missing=0.3, count=20)
    runs = {}
    for size, accumulation in ((8, 1), (4, 2), (2, 4)):
        args = arguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, balancer=balancer
        )
        runs[size] = train(Net(), args, data)[1]
    assert distance(runs[8], runs[4]) < 1e-10 and distance(runs[8], runs[2]) < 1e-10
    silent = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, balancer=balancer)
    wrong = train(Net(items=lambda items: {}), silent, data)[1]
    assert distance([{"u": step["update"]} for step in runs[8]], [{"u": step["update"]} for step in wrong]) > 1e-3
