"""Pages and files from other machines: redirects, proxies and certificates as usual, gone on from where it broke.

Over urllib, which follows the redirects of a file's mirrors and the proxies that the environment names.
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from modelpipes.errors import EngineError, Refused
from modelpipes.terminal.safetext import make_line
from modelpipes.values.deadline import Deadline

SILENCE_S = 30.0  # a server that sends nothing for so long is gone; the deadline is seen no later than this
REPORT_S = 1.0  # between two reports
READ_BYTES = 256 * 1024

_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", re.ASCII)


@dataclass(frozen=True)
class Page:
    """A whole page, and where it was found in the end."""

    url: str
    content_type: str
    body: bytes


class Downloads:
    """What is fetched under one deadline. Everything raises Refused, EngineError or DeadlineError."""

    def __init__(
        self, what: str, instead: str, deadline: Deadline, *, tls: ssl.SSLContext, login: tuple[str, str] | None = None
    ) -> None:
        """`what` is fetched, in words; `instead`: what else the user can do. `login`: a host, and `user:password` for
        it and no other.
        """
        self._what = what
        self._instead = instead
        self._deadline = deadline
        self._login = login
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls))

    def page(self, url: str, headers: Mapping[str, str], most_bytes: int) -> Page | None:
        """A page; None where it is longer than that."""
        with self._open(url, headers) as response:
            body = bytearray()
            while (piece := self._read(response)) and len(body) <= most_bytes:
                body += piece
            if len(body) > most_bytes:
                return None
            return Page(response.url, response.headers.get_content_type(), bytes(body))

    def to_file(self, url: str, part: str, doing: str, report: Callable[[str], None]) -> None:
        """Download to the file `part`, going on from what is there; `report` that we are `doing` it now and then."""
        response, done, total = self._open_at(url, os.path.getsize(part) if os.path.exists(part) else 0)
        reported_s = -REPORT_S
        of_total = "" if total is None else f" of {_megabytes(total)}"
        with response, open(part, "ab" if done else "wb") as file:
            while piece := self._read(response):
                file.write(piece)
                done += len(piece)
                if done != total and time.monotonic() - reported_s >= REPORT_S:
                    reported_s = time.monotonic()
                    report(f"{doing}: {_megabytes(done)}{of_total} MB")
        if total is not None and done != total:
            broken = f"the connection to {shown(url)} broke at {_megabytes(done)}{of_total} MB"
            raise EngineError(f"{broken}: run it again, it goes on from there")
        report(f"{doing}: {_megabytes(done)}{of_total} MB")

    def _open_at(self, url: str, at: int) -> tuple[http.client.HTTPResponse, int, int | None]:
        """The answer, the byte of the file that it begins at, and the bytes of the whole file where they are known."""
        if at:
            try:
                response = self._open(url, {"Range": f"bytes={at}-"})
            except Refused as refused:
                if refused.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise
            else:
                match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if response.status == HTTPStatus.PARTIAL_CONTENT and match and int(match[1]) == at:
                    return response, at, None if match[2] == "*" else int(match[2])
                if response.status == HTTPStatus.OK:
                    return response, 0, response.length
                response.close()
        response = self._open(url, {})
        return response, 0, response.length

    def _open(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Ask for a page or a file; Refused for any answer but success."""
        self._deadline.check(self._what)
        address = urlsplit(url)
        _, _, host = address.netloc.rpartition("@")
        try:
            request = urllib.request.Request(address._replace(netloc=host).geturl(), headers=dict(headers))
            request.add_header("User-Agent", "modelpipes")
            if self._login and host == self._login[0]:
                token = base64.b64encode(self._login[1].encode()).decode("ascii")
                request.add_unredirected_header("Authorization", f"Basic {token}")  # for no other host
            response: http.client.HTTPResponse = self._opener.open(
                request, timeout=min(SILENCE_S, max(self._deadline.remaining_s(), 0.001))
            )
        except urllib.error.HTTPError as error:
            error.close()
            said = f"{error.code} {make_line(str(error.reason))}".strip()
            raise Refused(f"{shown(url)} answered {said}: {self._instead}", error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(url, error) from None
        return response

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        """The next bytes, b"" at the end or where the connection broke."""
        self._deadline.check(self._what)
        try:
            return response.read1(READ_BYTES)  # what has come: read() would wait for all of them
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(response.url, error) from None

    def _failed(self, url: str, error: Exception) -> EngineError:
        self._deadline.check(self._what)
        return EngineError(f"{shown(url)} cannot be reached, {reason_of(error)}: check the network, or {self._instead}")


def reason_of(error: BaseException) -> str:
    """What went wrong, as one line without addresses."""
    inner = getattr(error, "reason", error)
    said = getattr(inner, "verify_message", None) or getattr(inner, "strerror", None) or inner
    return make_line(str(said)) or type(inner).__name__


def shown(url: str) -> str:
    """A URL without credentials and without what a redirect signed it with."""
    address = urlsplit(url)
    return make_line(address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl())


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f}"
