"""YAML that is meant to hang or to run something: refused, in little time and memory."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hf_dbmtl.cli.yaml_file import MAX_BYTES, load_yaml
from hf_dbmtl_cli import CommandError


LAUGHS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))])
CHAIN = "\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 3000))])

HOSTILE = {
    "a billion laughs": (LAUGHS, "it holds more than 100000 values, aliases written out"),
    "merges that multiply": (
        "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 40))]),
        "it holds more than 100000 values",
    ),
    "an alias in itself": ("a: &a [*a]", "an alias stands within what it stands for"),
    "a chain of aliases": (CHAIN, "nested more than 50 deep"),
    "deep lists": ("[" * 100_000, "nested more than 50 deep"),
    "deep mappings": ("a: " + "{a: " * 50_000, "nested more than 50 deep"),
    "an object": ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    "a name": ("a: !!python/name:os.system", "could not determine a constructor"),
    "a number without end": ("a: " + "9" * 10_000, "a value cannot be read"),
    "a wrong number": ("a: !!int x", "a value cannot be read"),
    "a wrong date": ("a: !!timestamp x", "a value cannot be read"),
    "a list for a key": ("? [a]\n: b", "a key must be a word or a number"),
    "a NUL": ("a: \x00", "special characters are not allowed"),
    "too much": ("a: b # " + "x" * MAX_BYTES, "larger than 1 MiB"),
    "no text": (b"\xff\xfe\x00", "this is not YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml(case: str, tmp_path: Path) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    start = time.process_time()
    with pytest.raises(CommandError, match=message) as error:
        load_yaml(str(path))
    assert time.process_time() - start < 10 and len(str(error.value)) < 2000


def test_aliases_of_usual_size_are_welcome(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("base: &base {kind: regression, text: a}\ntasks: {x: {<<: *base, label: l}, y: *base}\n")
    assert load_yaml(str(path))["tasks"] == {
        "x": {"kind": "regression", "text": "a", "label": "l"},
        "y": {"kind": "regression", "text": "a"},
    }


def test_a_path_that_is_none() -> None:
    with pytest.raises(CommandError):
        load_yaml("a\x00b")
