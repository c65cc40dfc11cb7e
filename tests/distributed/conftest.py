"""One group of two processes runs what the files of this folder look at: to start one takes longer than most of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from filelock import FileLock


sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from launching import Group, started  # noqa: E402
from parts import PARTS  # noqa: E402


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """What two processes have come to. The first of pytest's workers starts them, and the others wait."""
    collected = {Path(item.fspath).stem for item in request.session.items}
    names = [name for part, names in PARTS.items() if part in collected for name in names]
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(shared / "pair.lock"):
        return started(2, shared / "pair", names)
