"""
Five tasks on the functions of Python's own standard library: text that every machine has, labels that are true.

    package  classification      which package the function comes from; sees code and docstring, the answer blanked
    returns  classification      what it returns; sees the code without docstring and without its own name
    traits   multi-label         whether it loops, raises, branches, tries, assigns
    size     regression          its number of statements, unscaled (line breaks are lost on the tokenizer)
    roles    token               keyword, parameter, variable, call, attribute ... of every token but operators

Training, validation and test functions come from different modules, the same for all tasks, and no body occurs twice.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from datasets import Dataset, Features, List, Value
from roles import ROLES
from source_code import KINDS_OF_RETURN, TRAITS, Function, functions_of, standard_library
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from hf_dbmtl import Classification, MultiLabelClassification, Regression, TokenClassification
from hf_dbmtl.tasks import Task


__all__ = [
    "LABELLED_ROLES",
    "PACKAGES",
    "TASKS",
    "PythonFunctions",
    "build",
    "encode",
    "read_functions",
    "split_by_module",
    "visible_text",
]

# Every package with ten modules or more, so that a part of them can be held out, that all of Python 3.10 to 3.14 have.
PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")
# Operators, half of all tokens, say nothing about understanding: they carry no label.
LABELLED_ROLES = tuple(role for role in ROLES if role != "operator")
HELD_OUT = {"test": 0.15, "validation": 0.15}

TASKS: dict[str, Task] = {
    "package": Classification(label_names=list(PACKAGES)),
    "returns": Classification(label_names=list(KINDS_OF_RETURN)),
    "traits": MultiLabelClassification(label_names=list(TRAITS)),
    "size": Regression(),
    "roles": TokenClassification(label_names=list(LABELLED_ROLES)),
}


@dataclass(frozen=True)
class PythonFunctions:
    """
    The data sets by task, each with `input_ids`, `attention_mask` and `labels`.

    Args:
        train, validation, test (`dict[str, Dataset]`): One data set for each of `TASKS`.
        functions (`dict[str, list[Function]]`): What the splits are made of, to look at and to predict.
    """

    train: dict[str, Dataset]
    validation: dict[str, Dataset]
    test: dict[str, Dataset]
    functions: dict[str, list[Function]]


def build(
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | dict[str, int] = 128,
    max_rows: dict[str, int] | None = None,
    modules: Iterable[str] | None = None,
) -> PythonFunctions:
    """
    Reads the standard library and makes the data sets; the same ones on every run with the same Python.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast one; it has to know the characters that a token comes from.
        max_length (`int` or `dict[str, int]`, *optional*, defaults to 128):
            Longest input in tokens, for all tasks or by task. The text of `package` is cut there, the other tasks take
            only what fits whole.
        max_rows (`dict[str, int]`, *optional*): The most rows of each task in a split, such as `{"test": 300}`.
        modules (`Iterable[str]`, *optional*): Names of the modules to read, when in a hurry; all by default.
    """
    functions = split_by_module(read_functions(modules))
    lengths = max_length if isinstance(max_length, dict) else dict.fromkeys(TASKS, max_length)
    limits = max_rows or {}
    sets = {
        split: {task: encode(task, rows, tokenizer, lengths[task], limits.get(split)) for task in TASKS}
        for split, rows in functions.items()
    }
    return PythonFunctions(**sets, functions=functions)


def read_functions(modules: Iterable[str] | None = None) -> list[Function]:
    """All functions with three statements or more, each body once, in an order that only their text decides."""
    chosen = None if modules is None else set(modules)
    files = [(name, path) for name, path in standard_library() if chosen is None or name in chosen]
    functions: list[Function] = []
    for name, path in tqdm(files, desc="Reading the standard library", unit=" modules"):
        functions += functions_of(name, path)
    functions.sort(key=lambda function: _digest(f"{function.module}.{function.name} {function.code}"))
    by_body = {function.body: function for function in reversed(functions)}
    return [function for function in functions if by_body[function.body] is function]


def split_by_module(functions: list[Function]) -> dict[str, list[Function]]:
    """
    Training, validation and test functions from different modules.

    Within each of `PACKAGES`, and within all the rest, whole modules are held out (in the order of a hash of their
    names) until a split has its share; a module that would far overshoot it stays in the training set.
    """
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for function in functions:
        sizes[_package(function) or ""][function.module] += 1
    split_of: dict[str, str] = {}
    for modules in sizes.values():
        for split, share in HELD_OUT.items():
            taken, wanted = 0, share * modules.total()
            for module in sorted(modules.keys() - split_of.keys(), key=_digest):
                if taken < wanted and taken + modules[module] <= 1.5 * wanted:
                    split_of[module] = split
                    taken += modules[module]
    splits: dict[str, list[Function]] = {"train": [], "validation": [], "test": []}
    for function in functions:
        splits[split_of.get(function.module, "train")].append(function)
    return splits


def visible_text(task: str, function: Function) -> str:
    """What a model sees of a function in a task: nothing that merely gives the answer away."""
    if task == "package":
        return re.sub("|".join(PACKAGES), "_", function.documented_code, flags=re.IGNORECASE)
    if task == "returns":
        start, end = next((start, end) for start, end, role in function.roles if role == "definition")
        return function.code[:start] + "f" + function.code[end:]
    return function.code


def encode(
    task: str,
    functions: Iterable[Function],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 128,
    max_rows: int | None = None,
) -> Dataset:
    """
    The data set of a task.

    Args:
        task (`str`): One of `TASKS`.
        functions (`Iterable[Function]`): Those that the task does not apply to are left out.
        tokenizer (`PreTrainedTokenizerBase`): A fast one.
        max_length (`int`, *optional*, defaults to 128): Longest input in tokens, see `build`.
        max_rows (`int`, *optional*): The first so many rows.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not say where its tokens come from: use a fast tokenizer.")
    whole = task != "package"
    chosen = [function for function in functions if _applies(task, function)]
    if whole:  # spares the tokenizer what cannot fit: no tokenizer joins so many tokens of Python
        chosen = [function for function in chosen if len(function.roles) <= 1.5 * max_length]
    texts = [visible_text(task, function) for function in chosen]
    encoded = tokenizer(
        texts or [""],  # a tokenizer fails on no text at all
        truncation=not whole,
        max_length=max_length,
        return_offsets_mapping=True,
        verbose=False,
    )
    rows = [row for row in range(len(texts)) if len(encoded["input_ids"][row]) <= max_length][:max_rows]
    columns = {name: [encoded[name][row] for row in rows] for name in ("input_ids", "attention_mask")}
    columns["labels"] = [_label(task, chosen[row], encoded["offset_mapping"][row]) for row in rows]
    kinds = {"traits": List(Value("float32")), "size": Value("float32"), "roles": List(Value("int64"))}
    features = {"input_ids": List(Value("int32")), "attention_mask": List(Value("int8"))}
    return Dataset.from_dict(columns, features=Features(features, labels=kinds.get(task, Value("int64"))))


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()  # not hash(), which differs between runs


def _package(function: Function) -> str | None:
    package = function.module.partition(".")[0]
    return package if package in PACKAGES else None


def _applies(task: str, function: Function) -> bool:
    return {"package": _package(function), "returns": function.returns}.get(task, task) is not None


def _label(task: str, function: Function, offsets: list[tuple[int, int]]) -> int | float | list[int] | list[float]:
    match task:
        case "package":
            return PACKAGES.index(_package(function))
        case "returns":
            return KINDS_OF_RETURN.index(function.returns)
        case "traits":
            return [float(trait in function.traits) for trait in TRAITS]
        case "size":
            return float(function.num_statements)
        case "roles":
            return _token_labels(function.roles, offsets)
    raise ValueError(f"Unknown task {task!r}: it is one of {', '.join(TASKS)}.")


def _token_labels(roles: tuple[tuple[int, int, str], ...], offsets: list[tuple[int, int]]) -> list[int]:
    """Each token of Python labels the sub-token that it starts in; -100 for all others, operators and specials."""
    starts = [start for start, _, _ in roles]
    labels = []
    for begin, end in offsets:
        index = bisect_left(starts, begin)
        role = roles[index][2] if begin < end and index < len(roles) and starts[index] < end else "operator"
        labels.append(-100 if role == "operator" else LABELLED_ROLES.index(role))
    return labels
