"""`hf-dbmtl balancers`: every name of the table is listed with what its parts declare."""

from __future__ import annotations

import json

import pytest

from hf_dbmtl.balancing import balancer_names, make_balancer
from hf_dbmtl.balancing.properties import needs
from hf_dbmtl.balancing.table import WEIGHTINGS
from hf_dbmtl.balancing.weightings import Equal
from hf_dbmtl.cli.balancers import balancer_rows
from hf_dbmtl_cli import main


def test_rows_say_what_the_balancers_are():
    rows = {row.name: row for row in balancer_rows()}
    assert list(rows) == balancer_names()
    for name in ("db_mtl", "imtl", "famo", "pcgrad", "graddrop", "auto_lambda", "ew"):
        assert rows[name].needs[-1] == needs(make_balancer(name)), name
    db_mtl = rows["db_mtl"]
    assert (db_mtl.parts, db_mtl.needs) == (["log", "ema", "max_norm"], ["losses", "norms"])
    assert (db_mtl.memory, db_mtl.kind) == ("a gradient per task", "composed")
    assert db_mtl.options["ema"] == {"beta": 0.9, "decay": 0.5, "ema_dtype": None}
    assert "2308.12029" in db_mtl.paper


def test_a_new_method_is_listed(monkeypatch):
    class Toy(Equal):
        paper = "made up for this test"

    monkeypatch.setitem(WEIGHTINGS, "toy", Toy)
    assert balancer_rows()[-1].paper == "made up for this test"


def test_json(capsys):
    main(["balancers", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == balancer_names()
    assert rows[0]["properties"]["max_norm"] == ["permutation_equivariant", "rotation_invariant", "scale_invariant"]


@pytest.mark.parametrize("width", ["160", "60"])
def test_table(capsys, monkeypatch, width):
    """On a narrow screen as well every name can be read."""
    monkeypatch.setenv("COLUMNS", width)
    main(["balancers"])
    shown = capsys.readouterr().out
    for name in balancer_names():
        assert f" {name} " in shown
