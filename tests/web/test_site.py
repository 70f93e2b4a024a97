"""Addresses of servers, and connections to them."""

from __future__ import annotations

import pytest

from modelpipes.errors import EngineError
from modelpipes.web.site import root_of


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", " http://h:1/v1 "])
def test_an_address_may_end_as_it_likes(url: str) -> None:
    assert root_of(url) == "http://h:1"


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "http://h:x", "http://h:99999"])
def test_what_is_no_address_is_told(url: str) -> None:
    with pytest.raises(EngineError, match="is no server address"):
        root_of(url)
