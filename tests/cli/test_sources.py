"""Where rows come from, and which are for what."""

from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hf_dbmtl.cli.settings import DataFiles, DatasetSettings, Splits, TaskSettings
from hf_dbmtl.cli.sources import load_rows, sample
from hf_dbmtl_cli import CommandError


ROWS = {"text": [f"row {i}" for i in range(10)], "label": [i % 2 for i in range(10)], "other": list(range(10))}


@pytest.fixture(scope="module")
def formats(folder: Path) -> dict[str, DatasetSettings]:
    """The same ten rows in every form there is."""
    rows = Dataset.from_dict(ROWS)
    rows.to_csv("rows.csv", index=False)
    rows.to_csv("rows.tsv", index=False, sep="\t")
    rows.to_csv("semicolon.csv", index=False, sep=";")
    rows.to_json("rows.jsonl")
    rows.to_json("rows.json", lines=False)
    rows.to_parquet("rows.parquet")
    rows.save_to_disk("saved")
    Path("saved", next(Path("saved").glob("*.arrow")).name).rename("rows.arrow")
    rows.save_to_disk("saved")
    DatasetDict(train=rows, validation=rows.select(range(3))).save_to_disk("saved_dict")
    DatasetDict(validation=rows).save_to_disk("held_out_alone")
    Path("many").mkdir()
    rows.to_csv("many/train.csv", index=False)
    rows.select(range(4)).to_csv("many/validation.csv", index=False)
    found = {name: DatasetSettings(path=f"rows.{name}") for name in ("csv", "tsv", "jsonl", "json", "parquet", "arrow")}
    found["delimiter"] = DatasetSettings(path="semicolon.csv", delimiter=";")
    found |= {name: DatasetSettings(path=name) for name in ("saved", "saved_dict", "many")}
    return found


def load(source: DatasetSettings, **options):
    return load_rows("t", TaskSettings(kind="classification", dataset=source, **options))[:2]


@pytest.mark.parametrize(
    ("form", "held_out"),
    [(form, 0) for form in ("csv", "tsv", "jsonl", "json", "parquet", "arrow", "delimiter", "saved")]
    + [("saved_dict", 3), ("many", 4)],
)
def test_formats(formats, form, held_out):
    source = formats[form]
    source.eval_fraction = 0 if held_out == 0 else None
    train, evaluation = load(source)
    assert train.column_names == ["text", "label"]
    assert train["text"][:] == ROWS["text"]
    assert train["label"][:] == ROWS["label"]
    assert (len(evaluation) if evaluation is not None else 0) == held_out


def test_splits(formats):
    train, evaluation = load(DatasetSettings(path="rows.csv", split=Splits(train="train[:70%]", eval="train[70%:]")))
    assert train["text"][:] + evaluation["text"][:] == ROWS["text"]
    assert len(train) == 7
    train, evaluation = load(DatasetSettings(path="many", split=Splits(train="validation", eval="train")))
    assert (len(train), len(evaluation)) == (4, 10)
    train, evaluation = load(DatasetSettings(path="many", split=Splits(train="train[:5]")))
    assert (len(train), len(evaluation)) == (5, 4)
    files = DataFiles(train=["rows.jsonl", "rows.json"], eval="rows.jsonl")
    train, evaluation = load(DatasetSettings(data_files=files))
    assert (len(train), len(evaluation)) == (20, 10)
    assert len(load(DatasetSettings(data_files="row*.parquet", eval_fraction=0))[0]) == 10


@pytest.mark.parametrize("path", ["words.csv", "words"])
def test_words_are_no_gaps(folder, path):
    """`None` and `NA` in a csv file are what stands there, a class for example; an empty cell is missing."""
    Path("words").mkdir(exist_ok=True)
    for file in ("words.csv", "words/train.csv"):
        Path(file).write_text("text,label,score\nnull,None,1.5\ngood,NA,NaN\nbad,,2\n")
    for label, expected in (("label", ["None", "NA", None]), ("score", [1.5, None, 2.0])):
        train, _ = load(DatasetSettings(path=path, eval_fraction=0), label=label)
        assert (train["text"][:], train[label][:]) == (["null", "good", "bad"], expected)


def test_held_out(formats):
    source = DatasetSettings(path="rows.csv", eval_fraction=0.3)
    train, evaluation = load(source)
    assert len(evaluation) == 3
    assert sorted(train["text"][:] + evaluation["text"][:]) == ROWS["text"]  # each row on one side
    again = load(source)
    assert again[1]["text"][:] == evaluation["text"][:]


def test_sample(formats):
    """Rows drawn from all over the file: the first ones may all be of one class."""
    rows = Dataset.from_dict({"label": [0] * 500 + [1] * 500})
    drawn = sample(rows, 100)["label"][:]
    assert len(drawn) == 100
    assert 30 < sum(drawn) < 70 and sum(rows["label"][:100]) == 0
    assert drawn == sample(rows, 100)["label"][:]
    assert sample(rows, 2000) is rows is sample(rows, None)


WRONG = [
    ({}, {}, ["neither `path` nor `data_files`"]),
    ({"path": "rows.csv"}, {}, ["its dataset rows.csv has nothing to evaluate on", "eval_fraction: 0.1"]),
    ({"path": "missing.csv"}, {}, ["there is no file or folder missing.csv", "seen from"]),
    ({"path": "./missing"}, {}, ["there is no file or folder ./missing"]),
    ({"data_files": "missing*.csv"}, {}, ["there is no file missing*.csv"]),
    ({"data_files": ["rows.csv", "rows.parquet"]}, {}, ["its files end in .csv, .parquet: give files of one kind"]),
    ({"data_files": ["rows.csv", "rows.tsv"]}, {}, ["its files are csv and tsv"]),
    ({"path": "run.xlsx"}, {}, ["its files end in .xlsx", ".parquet, .csv"]),
    ({"path": "rows.csv", "data_files": "rows.csv"}, {}, ["give `path` or `data_files`, not both"]),
    ({"path": "rows.csv", "name": "mrpc"}, {}, ["`name` belongs to a dataset of the Hub"]),
    ({"path": "rows.parquet", "delimiter": ";"}, {}, ["`delimiter` is for csv files"]),
    ({"path": "nobody/nothing", "delimiter": ";"}, {}, ["`delimiter` is for local csv files", "`data_files`"]),
    ({"path": "held_out_alone"}, {}, ["has no split 'train', only validation: name the one meant in split.train"]),
    ({"path": "rows.csv", "eval_fraction": 1.5}, {}, ["eval_fraction must be in [0, 1), and is 1.5"]),
    ({"path": "many", "eval_fraction": 0.1, "split": Splits(eval="train")}, {}, ["both `eval_fraction` and"]),
    ({"path": "saved_dict", "split": Splits(eval="dev")}, {}, ["has no split 'dev', only train, validation"]),
    ({"path": "many", "split": Splits(eval="dev")}, {}, ["its dataset many could not be loaded", "dev"]),
    ({"path": "rows.csv", "eval_fraction": 0}, {"text": "txt"}, ["no column 'txt'", "'text'", "text, label, other"]),
    ({"path": "rows.csv", "eval_fraction": 0}, {"label": ["label", "othr"]}, ["no column 'othr'", "'other'"]),
    ({"path": "broken.jsonl", "eval_fraction": 0}, {}, ["its dataset broken.jsonl could not be loaded"]),
    ({"path": "nobody/nothing"}, {}, ["its dataset nobody/nothing could not be loaded", "nobody/nothing"]),
]


@pytest.mark.parametrize(("source", "options", "said"), WRONG, ids=lambda x: str(x)[:50])
def test_refused(formats, source, options, said):
    Path("run.xlsx").touch()
    Path("broken.jsonl").write_text('{"text": "a", "label": \n')
    with pytest.raises(CommandError, match="^Task 't': ") as error:
        load(DatasetSettings(**source), **options)
    for part in said:
        assert part in str(error.value)


def test_validation(formats):
    """Rows to tune weights on are in no other part."""
    source = DatasetSettings(path="rows.csv", eval_fraction=0.2, validation_fraction=0.25)
    found = load_rows("t", TaskSettings(kind="classification", dataset=source))
    parts = [set(rows["text"][:]) for rows in found]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert set.union(*parts) == set(ROWS["text"])
    source = DatasetSettings(path="saved_dict", split=Splits(validation="validation"), eval_fraction=0)
    found = load_rows("t", TaskSettings(kind="classification", dataset=source))
    assert (len(found.train), found.eval, len(found.validation)) == (10, None, 3)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (DatasetSettings(path="rows.csv", validation_fraction=1.5), r"validation_fraction must be in \[0, 1\)"),
        (
            DatasetSettings(path="rows.csv", validation_fraction=0.1, split=Splits(validation="train")),
            "both `validation_fraction` and split.validation",
        ),
        (
            DatasetSettings(path="saved_dict", split=Splits(eval="validation", validation="validation")),
            "neither trained nor evaluated on",
        ),
        (DatasetSettings(path="saved_dict", split=Splits(validation="validation")), "nothing to evaluate on"),
        (DatasetSettings(path="saved", streaming=True), "lies on this disk and is not copied"),
    ],
)
def test_validation_and_streaming_refused(formats, source, said):
    with pytest.raises(CommandError, match=said):
        load(source)
