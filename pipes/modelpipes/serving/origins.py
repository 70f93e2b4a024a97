"""Which pages of a browser may speak to the gateway, and how it is told so: CORS, as the Fetch standard has it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from modelpipes.serving.exchange import Headers

SHARED = ("/v1/", "/api/")  # paths for clients of any page that is let in; all else is for pages of this gateway
MAX_AGE_S = 600  # for which a browser need not ask again
ANY = "*"


class Origins:
    """Pages of this machine, and those that the configuration names, by their origin; "*" is any."""

    def __init__(self, named: Collection[str] = ()) -> None:
        self._named = frozenset(origin.rstrip("/").encode() for origin in named)

    def lets_in(self, origin: bytes, host: bytes, path: str) -> bool:
        """Whether a page of this origin may use a page of ours, at this Host."""
        if origin.partition(b"://")[2] == host:
            return True
        if not path.startswith(SHARED):
            return False
        return is_loopback(host_of(origin.partition(b"://")[2])) or origin in self._named or ANY.encode() in self._named

    def headers(self, origin: bytes) -> Headers:
        """What an answer tells the browser of a page that is let in."""
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"*"),
            (b"vary", b"Origin"),
        ]

    def preflight(self, origin: bytes, asked: dict[bytes, bytes]) -> Headers:
        """What a browser is told that asks, before the request, whether it may."""
        wanted = asked.get(b"access-control-request-headers", b"authorization, content-type")
        told = [
            *self.headers(origin),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"%d" % MAX_AGE_S),
        ]
        if asked.get(b"access-control-request-private-network") == b"true":
            told.append((b"access-control-allow-private-network", b"true"))
        return told


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(authority: bytes) -> str:
    """The host of `host:port`; a Host header or what follows an Origin's scheme."""
    text = authority.decode("latin-1")
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
