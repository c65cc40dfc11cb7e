"""The public names and the command line are those that were frozen: a change is made on purpose, by `make snapshot`."""

from __future__ import annotations

import surface

import hf_dbmtl


def test_the_surface_is_as_frozen() -> None:
    found = surface.difference()
    assert not found, (
        f"The public surface has changed:\n{found}\nIf that is meant: `make snapshot`, and name it in CHANGELOG.md."
    )


def test_a_change_would_show(monkeypatch) -> None:
    """The control: a name that is gone, and an argument that is called differently."""
    monkeypatch.setattr(hf_dbmtl, "__all__", [name for name in hf_dbmtl.__all__ if name != "Regression"])
    assert "\n-Regression(" in surface.difference()
    monkeypatch.undo()

    def make_balancer(method: str = "db_mtl") -> None: ...

    monkeypatch.setattr("hf_dbmtl.balancing.make_balancer", make_balancer)
    assert "\n+make_balancer(method='db_mtl')" in surface.difference()


def test_every_public_name_can_be_had() -> None:
    for name in hf_dbmtl.__all__:
        assert getattr(hf_dbmtl, name) is not None
    assert sorted(hf_dbmtl.__all__) == list(hf_dbmtl.__all__)
