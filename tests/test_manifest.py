"""What is said of a checkpoint whose files cannot be read, beside those that are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_dbmtl import manifest
from hf_dbmtl.manifest import MANIFEST_NAME, last_whole_checkpoint, what_is_wrong, write_manifest


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "weights").write_bytes(b"numbers")
    write_manifest(folder)
    return folder


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint counts as damaged, and the one before it is taken."""
    older, newer = checkpoint(tmp_path / "checkpoint-1"), checkpoint(tmp_path / "checkpoint-2")
    assert last_whole_checkpoint(tmp_path) == (str(newer), {})

    def fails(path: Path, mode: str) -> Any:
        if path.parent == newer:
            raise OSError(5, "Input/output error", str(path))
        return open(path, mode)

    monkeypatch.setattr(manifest, "open", fails, raising=False)
    found, broken = last_whole_checkpoint(tmp_path)
    assert found == str(older) and broken.keys() == {str(newer)}
    assert "a file cannot be read ([Errno 5] Input/output error" in broken[str(newer)]


def test_a_list_of_files_that_is_too_large(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint-1")
    with open(folder / MANIFEST_NAME, "r+b") as file:
        file.truncate(manifest.LARGEST_MANIFEST + 1)
    assert what_is_wrong(folder) == f"its {MANIFEST_NAME} cannot be read (it is too large to be one)"
