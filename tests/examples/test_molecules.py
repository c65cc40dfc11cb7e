"""The molecules of the example: its properties are true, and it trains on a shared input with missing labels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoTokenizer

import hf_dbmtl  # noqa: F401  (registers the model with AutoModel)


EXAMPLE = Path(__file__).parents[2] / "examples" / "molecules"
sys.path.insert(0, str(EXAMPLE))

import smiles  # noqa: E402


@pytest.mark.parametrize(
    ("molecule", "expected"),
    [
        # acetic acid without its hydrogens, chlorobenzoate, an ammonium with a saturated ring, thioether
        ("CC(=O)O", {"weight": 2 * 12.011 + 2 * 15.999, "rings": 0, "multiple_bonds": 1, "carbonyl": 1, "charge": 1}),
        ("Clc1ccc(cc1)C(=O)[O-]", {"atoms": 10, "rings": 1, "halogens": 1, "aromatic": 1, "charge": 0, "branches": 2}),
        ("[NH3+]C1CCC(CC1)C#CBr", {"atoms": 10, "rings": 1, "aromatic": 0, "charge": 2, "hetero_atoms": 1}),
        ("CSC", {"carbon_share": 2 / 3, "sulfur": 1, "hetero_atoms": 1, "aromatic": 0, "multiple_bonds": 0}),
    ],
)
def test_properties_are_true(molecule: str, expected: dict[str, float]) -> None:
    found = smiles.properties(molecule)
    assert list(found) == smiles.PROPERTIES and len(found) == 12
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "".join(smiles.tokens(molecule)) == molecule


def test_the_table_is_the_same_every_time_and_has_gaps() -> None:
    one, other = smiles.build(200), smiles.build(200)
    assert one["train"][:] == other["train"][:] and len(one["train"]) == 160
    assert not set(one["train"]["smiles"]) & set(one["test"]["smiles"])
    for name in smiles.PROPERTIES:
        known = [label for label in one["train"][name] if label is not None]
        assert 60 < len(known) < 130
        assert len(set(known)) > 1


@pytest.mark.slow
def test_it_trains(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "train.py"), "--tiny", "--output_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLE.parents[1])},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "rings           R² " in done.stdout and "charge          accuracy " in done.stdout
    folder = tmp_path / "model"
    card = ModelCard.load(folder / "README.md")
    assert {result.task_name for result in card.data.eval_results} == set(smiles.PROPERTIES)
    assert (folder / "training.png").stat().st_size > 1000 and str(tmp_path) not in card.content
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer("Clc1ccc(cc1)C(=O)[O-]", return_tensors="pt")
    assert batch["input_ids"].shape[1] == 2 + len(smiles.tokens("Clc1ccc(cc1)C(=O)[O-]"))
    assert model(**batch).logits["charge"].shape == (1, 3)
