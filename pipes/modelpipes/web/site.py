"""Where a server is, and how one connects to it: http, https, or a Unix socket of this machine."""

from __future__ import annotations

import http.client
import socket
import ssl
from urllib.parse import urljoin, urlsplit

from modelpipes.errors import EngineError

UNIX = "unix:"


class Site:
    """A server by its address, `http://HOST:PORT/PATH`, https, or `unix:PATH`; safe to use from several threads."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._socket_path = root.removeprefix(UNIX) if root.startswith(UNIX) else ""
        parts = urlsplit("" if self._socket_path else root)
        self._host, self._port, self._path = parts.hostname or "localhost", parts.port, parts.path
        # Reading the certificates takes 20 ms: only where they are used.
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None

    def connection(self, limit_s: float | None) -> http.client.HTTPConnection:
        """A connection to be made: servers close kept ones unannounced, and one to this machine costs 0.2 ms."""
        if self._socket_path:
            return _UnixConnection(self._socket_path, limit_s)
        if self._tls:
            return http.client.HTTPSConnection(self._host, self._port, timeout=limit_s, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=limit_s)

    def path(self, page: str) -> str:
        """What is asked for to get a page, `/v1/models`, of this server."""
        return self._path + page

    def follow(self, page: str, location: str) -> bool:
        """Whether a page has moved to another path of the same server; all pages are then asked for there."""
        here = f"{self.root.removesuffix(self._path)}{self._path}{page}"
        there, asked = urlsplit(urljoin(here, location)), urlsplit(here)
        same = (there.scheme, there.hostname, there.port) == (asked.scheme, asked.hostname, asked.port)
        if self._socket_path or not same or there.path == asked.path or not there.path.endswith(page):
            return False
        self._path = there.path.removesuffix(page)
        return True


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, limit_s: float | None) -> None:
        super().__init__("localhost", timeout=limit_s)
        self._socket_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)


def root_of(base_url: str) -> str:
    """The address of a server without `/v1`; EngineError if it is none."""
    root = base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(root)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EngineError(f"{base_url!r} is no server address: it looks like http://127.0.0.1:8080")
    return root
