"""What the tests of hostile circumstances share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.every_command import Workspace, make_workspace


@pytest.fixture(scope="session")
def workspace(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What every command needs to run. Read only."""
    return make_workspace(tmp_path_factory.mktemp("workspace"), tiny_base)
