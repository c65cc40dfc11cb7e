"""Where the rows of a task, or of a group of them, come from: the Hub, a file, a folder."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk

from hf_dbmtl_cli import CommandError

from .columns import as_list
from .settings import DataFiles, DatasetSettings, GroupSettings, Splits, TaskSettings
from .values import nearest


__all__ = ["SEED", "Rows", "load_rows", "sample"]

BUILDERS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".arrow": "arrow",
}
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
EVAL_SPLITS = ("eval", "validation", "test")
SEED = 0  # of what is held out or drawn: the same rows whatever the seed of the run, so that runs can be compared


class Rows(NamedTuple):
    """The rows of a task or a group: to train on, to evaluate on and to tune weights on, the latter two where there are any."""

    train: Dataset
    eval: Dataset | None = None
    validation: Dataset | None = None


def load_rows(name: str, settings: TaskSettings | GroupSettings, labels: Sequence[str] | None = None) -> Rows:
    """
    The rows of a task or a group, with the columns that its settings name.

    Args:
        name (`str`):
            The name of the task or the group, for errors.
        settings ([`TaskSettings`] or [`GroupSettings`]):
            Its settings.
        labels (`list[str]`, *optional*):
            The columns of the labels; by default those of the task's settings.

    Raises:
        [`CommandError`]: data that are not there, cannot be read, or lack a split or a column.
    """
    task = f"{'Group' if isinstance(settings, GroupSettings) else 'Task'} '{name}'"
    labels = settings.labels if labels is None and isinstance(settings, TaskSettings) else labels or []
    source = settings.dataset
    assert source is not None  # a task without one of its own has the rows of its group
    _check_shares(task, source)
    load = _loader(task, source)
    try:
        train, evaluation = _splits(task, source, load)
        if evaluation is None and source.eval_fraction:
            train, evaluation = train.train_test_split(test_size=source.eval_fraction, seed=SEED).values()
        validation = load(source.split.validation) if source.split and source.split.validation else None
        if source.validation_fraction:
            train, validation = train.train_test_split(test_size=source.validation_fraction, seed=SEED).values()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _error(task, f"{_describe(source)} could not be loaded: {_cause(error)}") from error
    choices = settings.choice_columns if isinstance(settings, TaskSettings) else []
    columns = [*([settings.image] if settings.image else settings.texts), *choices, *labels]
    return Rows(*(None if rows is None else _select(task, rows, columns) for rows in (train, evaluation, validation)))


def _check_shares(task: str, source: DatasetSettings) -> None:
    for name in ("eval_fraction", "validation_fraction"):
        share = getattr(source, name)
        if share is not None and not 0 <= share < 1:
            raise _error(task, f"{name} must be in [0, 1), and is {share}.")
    named = source.split.validation if source.split else None
    if named and source.validation_fraction:
        raise _error(task, "both `validation_fraction` and split.validation are given: leave one out.")
    if source.split and named and named in (source.split.train, source.split.eval):
        raise _error(
            task, f"split.validation is '{named}', and must hold rows that are neither trained nor evaluated on."
        )


def sample(rows: Dataset, count: int | None) -> Dataset:
    """`count` rows drawn at random, always the same: files are often sorted, and the first rows then of one class."""
    if count is None or count >= len(rows):
        return rows
    return rows.shuffle(seed=SEED).select(range(count))


# What loads a split by its name, or with `None` all of them, by name.
Loader = Callable[[str | None], Any]


def _loader(task: str, source: DatasetSettings) -> Loader:
    if source.path is None and source.data_files is None:
        raise _error(task, "its dataset has neither `path` nor `data_files`: one of them says where the data are.")
    files = None
    if isinstance(source.data_files, DataFiles):
        files = {name: as_list(value) for name, value in vars(source.data_files).items() if value is not None}
    elif source.data_files is not None:
        files = {"train": as_list(source.data_files)}
    folder = Path(source.path or "")
    if source.path is None or folder.is_file():
        if source.path is not None and files is not None:
            raise _error(task, f"its path {source.path} is a file: give `path` or `data_files`, not both.")
        return _files_loader(task, source, files or {"train": [source.path or ""]})
    if folder.is_dir() and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        if source.streaming:
            raise _error(task, f"{source.path} lies on this disk and is not copied: leave `streaming` out.")
        return partial(_saved_split, source.path)
    if not folder.is_dir() and (folder.suffix in BUILDERS or source.path.startswith((".", "/", "~"))):
        raise _error(task, f"there is no file or folder {source.path} (seen from {Path.cwd()}).")
    options: dict[str, Any] = {"data_files": files, "revision": source.revision, "streaming": source.streaming}
    if folder.is_dir() and files is None and any(file.suffix.lower() in IMAGES for file in folder.rglob("*")):
        if source.delimiter is not None:
            raise _error(task, "`delimiter` is for csv files, and this is a folder of images: leave it out.")
        # labels are the names of the folders, or columns of a metadata.csv beside the images
        return lambda split: load_dataset(
            "imagefolder", source.name, data_dir=source.path, split=split, streaming=source.streaming
        )
    if folder.is_dir():
        options |= _options(task, source, {file.suffix.lower() for file in folder.rglob("*")} & BUILDERS.keys())
    elif source.delimiter is not None:
        raise _error(task, "`delimiter` is for local csv files: name them in `data_files`, or leave it out.")
    return lambda split: load_dataset(source.path, source.name, split=split, **options)


def _files_loader(task: str, source: DatasetSettings, files: Mapping[str, list[str]]) -> Loader:
    for name in ("name", "revision"):
        if getattr(source, name) is not None:
            raise _error(task, f"`{name}` belongs to a dataset of the Hub, and has no meaning for files: leave it out.")
    patterns = [pattern for group in files.values() for pattern in group]
    for pattern in patterns:
        if "://" not in pattern and not glob.glob(pattern, recursive=True):
            raise _error(task, f"there is no file {pattern} (seen from {Path.cwd()}).")
    suffixes = {Path(pattern).suffix.lower() for pattern in patterns}
    builders = {BUILDERS.get(suffix) for suffix in suffixes}
    if None in builders or len(builders) > 1:
        found = ", ".join(sorted(suffix or "nothing" for suffix in suffixes))
        raise _error(task, f"its files end in {found}: give files of one kind, {', '.join(BUILDERS)}.")
    options = _options(task, source, suffixes)
    (builder,) = builders
    return lambda split: load_dataset(
        builder, data_files=dict(files), split=split, streaming=source.streaming, **options
    )


def _options(task: str, source: DatasetSettings, suffixes: set[str]) -> dict[str, Any]:
    """How files are read that end so."""
    if not suffixes or {BUILDERS[suffix] for suffix in suffixes} != {"csv"}:
        if source.delimiter is not None:
            raise _error(task, f"`delimiter` is for csv files, and these end in {', '.join(suffixes)}: leave it out.")
        return {}
    if len(suffixes) > 1 and source.delimiter is None:
        raise _error(task, "its files are csv and tsv: give one kind, or the `delimiter` that both have.")
    return {
        "delimiter": source.delimiter or ("\t" if suffixes == {".tsv"} else ","),
        "keep_default_na": False,  # else the words None, NA and null are taken for gaps, be they a class or a text
        "na_values": ["", "NaN", "nan"],
    }


def _saved_split(path: str, split: str | None) -> Any:
    """Of what `save_to_disk` wrote."""
    saved = load_from_disk(path)
    saved = saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    if split is not None and split not in saved:
        raise ValueError(f"it has no split '{split}', only {', '.join(saved)}")
    return saved if split is None else saved[split]


def _splits(task: str, source: DatasetSettings, load: Loader) -> tuple[Dataset, Dataset | None]:
    wanted = source.split or Splits()
    named = wanted.eval or (isinstance(source.data_files, DataFiles) and source.data_files.eval)
    if named and source.eval_fraction is not None:
        raise _error(task, "both `eval_fraction` and what to evaluate on are given: leave one out.")
    every = load(None) if wanted.train is None or wanted.eval is None else {}
    if wanted.train is None and "train" not in every:
        known = ", ".join(every)
        raise _error(
            task, f"{_describe(source)} has no split 'train', only {known}: name the one meant in split.train."
        )
    train = every["train"] if wanted.train is None else load(wanted.train)
    if wanted.eval is not None:
        return train, load(wanted.eval)
    if source.eval_fraction is not None:
        return train, None
    found = next((name for name in EVAL_SPLITS if name in every and name != wanted.validation), None)
    if found is None:
        raise _error(
            task,
            f"{_describe(source)} has nothing to evaluate on (its splits: {', '.join(every)}). Name what has "
            "(split.eval or data_files.eval), hold out a share of the training rows (eval_fraction: 0.1), or do "
            "without (eval_fraction: 0).",
        )
    return train, every[found]


def _select(task: str, rows: Dataset, columns: Sequence[str]) -> Dataset:
    if (
        isinstance(rows, IterableDataset) and rows.features is None
    ):  # of csv and json files nobody has said what they hold
        rows = rows._resolve_features()
    for column in columns:
        if column not in rows.column_names:
            hint, known = nearest(column, rows.column_names) or ".", ", ".join(rows.column_names)
            raise _error(task, f"its data have no column '{column}'{hint} Their columns are {known}.")
    return rows.select_columns(list(dict.fromkeys(columns)))


def _describe(source: DatasetSettings) -> str:
    files = source.data_files.train if isinstance(source.data_files, DataFiles) else source.data_files
    return (
        "its dataset " + (source.path or ", ".join(as_list(files or ()))) + (f" ({source.name})" if source.name else "")
    )


def _cause(error: BaseException) -> str:
    """What went wrong at the bottom: `datasets` says no more than that a dataset could not be generated."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def _error(task: str, message: str) -> CommandError:
    return CommandError(f"{task}: {message}")
