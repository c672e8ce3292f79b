"""What the tests of hostile circumstances share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.every_command import Workspace, make_workspace
from tests.llava_pose.demo_server import Server, Stranger, start


@pytest.fixture(scope="session")
def workspace(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What every command needs to run. Read only."""
    return make_workspace(tmp_path_factory.mktemp("workspace"), tiny_base)


@pytest.fixture(scope="module")
def server(taught, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo of a taught checkpoint."""
    running = start(taught, tmp_path_factory.mktemp("demo"))
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def stranger(server: Server) -> Stranger:
    """Somebody who asks the demo what no page of it asks."""
    return Stranger(server)


@pytest.fixture(scope="module")
def good(taught) -> bytes:
    """A picture that the demo takes."""
    return taught.picture.read_bytes()
