"""Which checkpoints are whole: a list of their files, with sizes and checksums, that is written last of all."""

from __future__ import annotations

import json
import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


__all__ = ["MANIFEST_NAME", "checkpoints", "last_whole_checkpoint", "what_is_wrong", "write_manifest"]

MANIFEST_NAME = "checkpoint_files.json"
LARGEST_MANIFEST = 1 << 24  # bytes; a real one has a line per file
CHUNK = 1 << 22
THREADS = 4  # zlib lets go of the interpreter's lock
UNLISTED = f"it has no {MANIFEST_NAME}, which is written last"


def write_manifest(folder: str | os.PathLike) -> None:
    """
    Declares a checkpoint whole: brings its files to the disk and then, in one move, the list of them.

    Args:
        folder (`str` or `os.PathLike`):
            The folder of the checkpoint, in which all processes have written what they had to.
    """
    folder = Path(folder)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if name not in (MANIFEST_NAME, f"{MANIFEST_NAME}.tmp")]
    with ThreadPoolExecutor(THREADS) as threads:
        files = dict(zip(names, threads.map(lambda name: _measure(folder / name, sync=True), names)))
    temporary = folder / f"{MANIFEST_NAME}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / MANIFEST_NAME)
    for directory in (folder, folder.parent):
        _sync_directory(directory)


def what_is_wrong(folder: str | os.PathLike) -> str | None:
    """Why a checkpoint is not whole, or `None` where it is."""
    folder = Path(folder)
    try:
        files = _read_manifest(folder / MANIFEST_NAME)
    except FileNotFoundError:
        return UNLISTED
    except (OSError, ValueError) as error:
        return f"its {MANIFEST_NAME} cannot be read ({error})"
    for name, (size, _) in files.items():  # sizes are at hand: a short file shows before any is read
        try:
            found = (folder / name).stat().st_size
        except (OSError, ValueError):  # names that no file can have
            return f"{name!r} is missing"
        if found != size:
            return f"{name!r} has {found} bytes of {size}"
    with ThreadPoolExecutor(THREADS) as threads:
        try:
            measured = threads.map(lambda name: _measure(folder / name), files)
            for (name, (_, checksum)), (_, found) in zip(files.items(), measured):
                if found != checksum:
                    return f"{name!r} has other contents than were written"
        except OSError as error:
            return f"a file cannot be read ({error})"
    return None


def checkpoints(output_dir: str | os.PathLike) -> list[str]:
    """The folders of the checkpoints in an output folder, whole or not, the newest first."""
    numbered = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)\Z")
    found = [(int(match[1]), path) for path in Path(output_dir).iterdir() if (match := numbered.match(path.name))]
    return [str(path) for _, path in sorted(found, reverse=True) if path.is_dir()]


def last_whole_checkpoint(output_dir: str | os.PathLike) -> tuple[str | None, dict[str, str]]:
    """
    The newest checkpoint that is whole.

    Args:
        output_dir (`str` or `os.PathLike`):
            The output folder of a run.

    Returns:
        `tuple[str | None, dict[str, str]]`: its folder, `None` where there is none, and what is wrong with each that is
        newer.
    """
    broken: dict[str, str] = {}
    for folder in checkpoints(output_dir) if os.path.isdir(output_dir) else ():
        reason = what_is_wrong(folder)
        if reason is None:
            return folder, broken
        broken[folder] = reason
    return None, broken


def _measure(path: Path, sync: bool = False) -> list[int]:
    """The size and the CRC-32 of a file, which is brought to the disk first if wanted."""
    size = checksum = 0
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while chunk := file.read(CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return [size, checksum]


def _sync_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no directories
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(path: Path) -> dict[str, tuple[int, int]]:
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ValueError("it is too large to be one")
    content = json.loads(path.read_text(encoding="utf-8"))
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("it lists no files")
    for name, entry in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} lies outside the checkpoint")
        if not (isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry)):
            raise ValueError(f"{name!r} has no size and checksum")
    return {name: (size, checksum) for name, (size, checksum) in files.items()}
