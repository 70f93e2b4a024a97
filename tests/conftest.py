"""What the tests of the pipe side share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.pipe.room import HUB, Room, star
from tests.peers import open_descriptors

# What whoever runs the tests has configured is not what they are about.
os.environ["XDG_CONFIG_HOME"] = "/nonexistent/config"
for name in ("MODELPIPES_CONFIG", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(name, None)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A room with a hub and two seats."""
    room = Room.make(str(tmp_path / "room"))
    room.make_pipes(star(HUB, ["alice", "bob"]))
    return room


@pytest.fixture
def no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() == before
