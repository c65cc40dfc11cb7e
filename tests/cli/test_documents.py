"""What the pages show runs: their files, commands and Python, page by page, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hf_dbmtl.cli.balancers import balancer_rows
from hf_dbmtl.cli.config import read_config
from hf_dbmtl_cli import main


DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"(?:`(?P<file>[\w.]+)`:\n\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.S)
SMALL = {
    "train": "--max_steps 2 --use_cpu --disable_tqdm",
    "compare": "--seeds 1 --max_steps 2 --use_cpu --disable_tqdm",
    "inspect": "--use_cpu",
    "evaluate": "--use_cpu --disable_tqdm",
    "predict": "--device cpu",
}


def blocks(page: str) -> list[re.Match]:
    return list(BLOCK.finditer((DOCS / page).read_text(encoding="utf-8")))


PAGES = ["quickstart.md", "choosing_a_balancer.md", "your_data.md", "your_model.md"]


@pytest.mark.parametrize(
    ("page", "compares"), [*((page, False) for page in PAGES), pytest.param(PAGES[0], True, marks=pytest.mark.slow)]
)
def test_page(page, compares, encoder, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names: dict = {}
    ran = 0
    for block in blocks(page):
        text = block["text"].replace("google-bert/bert-base-uncased", str(folder / encoder))
        if block["file"]:
            Path(block["file"]).write_text(text)
        elif block["language"] == "python":
            exec(compile(text, page, "exec"), names)
            ran += 1
        elif block["language"] == "bash":
            for command in (line for line in text.splitlines() if line.startswith("hf-dbmtl")):
                words = shlex.split(command)[1:]
                if words[0] == "compare" and not compares:  # a process for every run: `test_compare.py` has it
                    continue
                main([*words, *SMALL[words[0]].split()])
                ran += 1
        else:
            raise AssertionError(f"{page}: a block of {block['language']} that nothing runs")
    assert ran
    if page == "quickstart.md":
        assert len(Path("predictions.jsonl").read_text().splitlines()) == 8
        assert ("Δp %" in capsys.readouterr().out) == compares


def test_settings_of_the_page_on_the_command_line(tmp_path):
    text, groups = [block["text"] for block in blocks("command_line.md") if block["language"] == "yaml"]
    path = tmp_path / "page.yaml"
    path.write_text(text)
    settings, args = read_config(str(path), ["--use_cpu"])
    assert list(settings.tasks) == ["stars", "places"] and args.learning_rate == 5e-5
    path.write_text(f"model_name_or_path: encoder\n{groups}")
    settings, _ = read_config(str(path), ["--use_cpu"])
    assert list(settings.members("molecules")) == list(settings.tasks) == ["weight", "toxic"]


def test_links():
    """Between the pages, and to the examples."""
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", prose):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_papers():
    """The page of the methods' papers is the table of `hf-dbmtl balancers`."""
    text = (DOCS / "papers.md").read_text(encoding="utf-8")
    for row in balancer_rows():
        kind = "+".join(row.parts) if row.kind == "composed" else row.kind
        assert f"| `{row.name}` | {kind} | {row.paper} |" in text
