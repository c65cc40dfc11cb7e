"""Whatever is put in: it works, or the package's own error says why. No other crash, no hang."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fuzzing import EXAMPLES, NUMBERS, SCALARS, WORDS, fuzz, json_like, nearly
from helpers import TASKS, tiny_model
from hypothesis import strategies as st

from hf_dbmtl import MultiTaskConfig, MultiTaskTrainingArguments, make_balancer
from hf_dbmtl.balancing.table import TRANSFORMS, WEIGHTINGS
from hf_dbmtl.cli.config import read_config, training_settings
from hf_dbmtl.cli.yaml_file import load_yaml
from hf_dbmtl.data import JointBatchSampler, rows_per_step
from hf_dbmtl.manifest import MANIFEST_NAME, what_is_wrong
from hf_dbmtl.tasks import Task, task_from_dict
from hf_dbmtl_cli import CommandError


OWN = (TypeError, ValueError)
KINDS = ["classification", "multi_label_classification", "regression", "token_classification"]

TASK = st.builds(
    lambda kind, others: {"kind": kind, **others},
    st.sampled_from(KINDS),
    nearly(
        {
            "num_labels": st.integers(1, 5),
            "label_names": st.lists(WORDS, max_size=4),
            "dropout": st.floats(0, 0.9),
            "main_metric": WORDS,
        }
    ),
)


def longest(error: BaseException) -> bool:
    return len(str(error)) < 5000


# ---- configurations and tasks


@EXAMPLES
def test_tasks(examples: int) -> None:
    seen = set()

    def check(values: Any) -> None:
        try:
            task = task_from_dict(values)
        except OWN as error:
            seen.add("refused")
            assert longest(error)
        else:
            seen.add("taken")
            assert task_from_dict(task.to_dict()) == task
            json.dumps(task.to_dict(), allow_nan=False)

    fuzz(examples, check, st.one_of(TASK, json_like()))
    assert seen == {"refused", "taken"}


@EXAMPLES
def test_configurations(examples: int) -> None:
    encoder = nearly(
        {
            "model_type": st.sampled_from(["bert", "distilbert", "t5", "multi_task"]),
            "hidden_size": st.integers(4, 16),
            "num_hidden_layers": st.integers(1, 2),
            "num_labels": st.integers(1, 9),
            "architectures": st.lists(WORDS, max_size=1),
            "auto_map": st.dictionaries(WORDS, WORDS, max_size=1),
        }
    )
    values = nearly(
        {
            "encoder": encoder,
            "tasks": st.dictionaries(st.one_of(WORDS, st.sampled_from("abc")), TASK, max_size=3),
            "pooling": st.sampled_from(["pooler", "cls", "mean", "last"]),
            "task_order": st.lists(WORDS, max_size=2),
            "num_labels": st.integers(1, 9),
        }
    )

    def check(values: dict) -> None:
        try:
            config = MultiTaskConfig(**values)
        except OWN as error:
            assert longest(error)
        else:
            assert config.task_objects.keys() == config.tasks.keys()

    fuzz(examples, check, values)


# ---- labels and batches


@EXAMPLES
def test_labels(examples: int) -> None:
    tasks = [*TASKS.values()]
    row = st.one_of(SCALARS, st.lists(st.one_of(st.integers(-1, 6), st.floats(0, 1), SCALARS), max_size=6))

    def check(task: Task, labels: list, length: int | None, side: str) -> None:
        try:
            tensor = task.label_tensor("a task", labels, length, side)
        except OWN as error:
            assert "Task 'a task'" in str(error) and longest(error)
            return
        assert len(tensor) == len(labels)
        logits = (
            torch.zeros(*tensor.shape, task.num_labels)
            if task.level == "token"
            else torch.zeros(len(labels), task.num_labels)
        )
        loss, items = task.loss(logits.requires_grad_(), tensor)
        assert torch.isfinite(loss) or task.kind == "regression" and tensor.abs().nan_to_num(0).max() > 1e18
        assert 0 <= items <= tensor.numel()

    fuzz(
        examples,
        check,
        task=st.sampled_from(tasks),
        labels=st.lists(row, max_size=4),
        length=st.one_of(st.none(), st.integers(0, 6)),
        side=st.sampled_from(["left", "right"]),
    )


@EXAMPLES
def test_shapes_of_batches(examples: int) -> None:
    """Labels of any shape against inputs of any: the error names the task."""
    model = tiny_model(dtype=torch.float32).eval()
    sizes = st.lists(st.integers(0, 7), max_size=3)

    def check(name: str, rows: int, length: int, shape: list[int], kind: torch.dtype) -> None:
        labels = torch.zeros(shape, dtype=kind)
        ids = torch.ones(rows, length, dtype=torch.long)
        try:
            output = model(task=name, input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
        except ValueError as error:
            assert f"Task {name!r}: labels of shape" in str(error)
        else:
            assert output.logits.shape[0] == rows and torch.isfinite(output.loss)

    fuzz(
        examples,
        check,
        name=st.sampled_from(list(TASKS)),
        rows=st.integers(1, 4),
        length=st.integers(1, 7),
        shape=sizes,
        kind=st.sampled_from([torch.long, torch.float32, torch.int32]),
    )


@EXAMPLES
def test_joint_batches(examples: int) -> None:
    def check(
        sizes: list[int], batch: int, parts: int, mixing: str, temperature: float, strategy: str, drop: bool
    ) -> None:
        named = {f"task{i}": size for i, size in enumerate(sizes)}
        rows = rows_per_step(named, batch, parts, mixing, temperature)
        sampler = JointBatchSampler(named, rows, parts, stopping_strategy=strategy, drop_last=drop)
        batches = list(sampler)
        assert len(batches) == len(sampler) and len(batches) % parts == 0
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        for step in range(0, len(batches), parts):
            dealt = [index for part in batches[step : step + parts] for index in part]
            for i, (task, size) in enumerate(named.items()):
                assert sum(ends[i] - size <= index < ends[i] for index in dealt) == rows[task]
        if strategy == "all_exhausted" and not drop:
            assert {index for part in batches for index in part} == set(range(sum(sizes)))
        assert list(sampler) == batches

    fuzz(
        examples,
        check,
        sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
        batch=st.integers(1, 9),
        parts=st.integers(1, 4),
        mixing=st.sampled_from(["equal", "proportional", "temperature"]),
        temperature=st.floats(0.2, 50),
        strategy=st.sampled_from(["all_exhausted", "first_exhausted"]),
        drop=st.booleans(),
    )


# ---- settings


ALIASES = st.builds(
    lambda width, depth, end: "\n".join(
        [f"a0: &a0 {end}", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, depth))]
    ),
    st.integers(1, 12),
    st.integers(1, 30),
    WORDS.filter(lambda word: word.isidentifier()),
)
PIECES = st.sampled_from(
    ["&a ", "*a ", "<<: ", "!!int ", "!!float x", "!!python/object:os.system ", "!!timestamp x", "!!binary =", "!!set ",
     "? ", ": ", "- ", "[", "]", "{", "}", "\n", "  ", "|", ">", "%YAML 1.1", "---", "...", "#", "'", '"', "a", "tasks",
     "1e9", "0x", "9" * 5000, ".inf", "\t", "\u2028", "~"]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=80),
    st.lists(PIECES, max_size=25).map("".join),
    ALIASES,
    json_like(size=25).map(lambda value: yaml.safe_dump(value, allow_unicode=True)),
    st.integers(1, 3000).map(lambda depth: "[" * depth),
    st.integers(1, 3000).map(lambda depth: "a: " + "{a: " * depth),
)


@EXAMPLES
def test_yaml(examples: int, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"

    def check(text: str) -> None:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            content = load_yaml(str(path))
        except CommandError as error:
            assert str(path) in str(error) and longest(error)
        else:
            assert isinstance(content, dict)
            assert len(repr(content)) < 10**7

    fuzz(examples, check, TEXTS)


SETTINGS = nearly(
    {
        "model_name_or_path": WORDS,
        "tasks": st.dictionaries(
            st.one_of(st.just("a"), WORDS),
            nearly(
                {
                    "kind": st.sampled_from(KINDS),
                    "dataset": nearly({"path": WORDS, "split": nearly({"train": WORDS})}),
                    "text": WORDS,
                    "label": WORDS,
                    "label_names": st.lists(WORDS, max_size=3),
                }
            ),
            max_size=2,
        ),
        "output_dir": st.just("out"),
        "balancer": st.sampled_from(["db_mtl", "ew", "log+pcgrad"]),
        "balancer_kwargs": nearly({"beta": st.floats(0, 1), "alpha": WORDS}),
        "task_weights": st.dictionaries(WORDS, NUMBERS, max_size=2),
        "learning_rate": st.floats(0, 1),
        "max_length": NUMBERS,
    }
)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # names that transformers is giving up are settings still
@EXAMPLES
def test_settings(examples: int, tmp_path: Path) -> None:
    """Any setting there is, with any value, in the file and on the command line."""
    path = tmp_path / "config.yaml"
    name = st.sampled_from(sorted(training_settings()))
    given = {"model_name_or_path": "m", "output_dir": "out", "use_cpu": True}
    given["tasks"] = {"a": {"kind": "regression", "dataset": {"path": "x"}, "text": "t", "label": "l"}}

    def check(settings: dict, extra: dict, words: list[str]) -> None:
        path.write_text(json.dumps({**given, **settings, **extra}), encoding="utf-8")
        try:
            _, args = read_config(str(path), words)
        except CommandError as error:
            assert longest(error)
        else:
            assert isinstance(args, MultiTaskTrainingArguments)

    word = st.one_of(
        WORDS, name.map(lambda one: f"--{one}"), st.just("--tasks.a.text"), name.map(lambda one: f"--{one}=1")
    )
    fuzz(
        examples,
        check,
        SETTINGS,
        st.dictionaries(name, json_like(size=4), max_size=2),
        st.lists(word, max_size=4),
    )


@EXAMPLES
def test_balancers(examples: int) -> None:
    part = st.sampled_from([*TRANSFORMS, *WEIGHTINGS, "ema", "db_mtl", "imtl"])
    option = st.sampled_from(
        ["beta", "alpha", "decay", "temperature", "learning_rate", "mu", "period", "optimizer", "ema"]
    )

    def check(name: Any, options: Any, weights: Any) -> None:
        try:
            balancer = make_balancer(name, options, weights)
        except (*OWN, ImportError) as error:
            assert longest(error)
        else:
            balancer.setup(["a", "b"])

    fuzz(
        examples,
        check,
        st.one_of(st.lists(part, min_size=1, max_size=3).map("+".join), WORDS),
        st.one_of(st.none(), st.dictionaries(option, json_like(size=4), max_size=2)),
        st.one_of(st.none(), st.dictionaries(st.sampled_from("ab"), st.floats(0, 2), max_size=2)),
    )


# ---- the list of a checkpoint's files


@EXAMPLES
def test_manifests(examples: int, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    entry = st.one_of(st.just([5, 3421846044]), st.lists(NUMBERS, max_size=3), json_like())
    content = st.one_of(
        json_like(),
        st.fixed_dictionaries(
            {"files": st.dictionaries(st.one_of(WORDS, st.just("model.safetensors")), entry, max_size=3)}
        ),
    )
    found = set()

    def check(content: Any) -> None:
        (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
        found.add(what_is_wrong(tmp_path) is None)

    fuzz(examples, check, content)
    check({"files": {"model.safetensors": [5, 3421846044]}})
    assert found == {True, False}


def test_a_check_that_crashes_would_show() -> None:
    """The control."""

    def check(value: int) -> None:
        assert 1 / value

    with pytest.raises(ZeroDivisionError):
        fuzz(60, check, st.integers(-3, 3))
