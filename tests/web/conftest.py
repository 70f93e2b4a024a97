"""What tests of the web room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.servers import Server, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running
