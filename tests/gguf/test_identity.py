"""What tells whether model files are still those that something was learnt of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpipes.engine.locate import PACKAGED_MODELS
from modelpipes.gguf.identity import identify, numbers_of, stamp_of
from modelpipes.gguf.modelfile import Candidate, model_of
from tests.models import shuffled_model

TINY_CHAT = PACKAGED_MODELS / "tiny-chat.gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return shuffled_model(tmp_path / "a.gguf", TINY_CHAT, 1)


def keep_times(file: Path, change: Callable[[], object]) -> None:
    found = file.stat()
    change()
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_a_file_that_stays_has_one_identity_and_one_stamp(file: Path) -> None:
    before = identify(str(file))
    file.read_bytes()
    assert identify(str(file)) == before
    assert before.stamp == stamp_of(str(file)) == (numbers_of(file.stat()),)


def test_another_file_of_the_same_size_header_and_time_under_the_name_is_another(file: Path, tmp_path: Path) -> None:
    before = identify(str(file))
    other = shuffled_model(tmp_path / "b.gguf", TINY_CHAT, 2)
    keep_times(file, lambda: other.rename(file))
    after = identify(str(file))
    assert after.headers == before.headers and after.stamp != before.stamp


def test_a_file_written_over_with_its_time_put_back_is_another(file: Path, tmp_path: Path) -> None:
    before = identify(str(file))
    other = shuffled_model(tmp_path / "b.gguf", TINY_CHAT, 2).read_bytes()

    def write_over() -> None:
        with open(file, "r+b") as target:
            target.write(other)

    keep_times(file, write_over)
    after = identify(str(file))
    assert file.stat().st_ino == before.stamp[0][1] and file.stat().st_mtime_ns == before.stamp[0][3]
    assert after != before and stamp_of(str(file)) != before.stamp


def test_another_header_is_seen_where_the_file_system_says_nothing(file: Path) -> None:
    before = identify(str(file))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"general.name", b"general.nane", 1))
    after = identify(str(file))
    assert after.headers != before.headers
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert identify(str(file)).headers == before.headers  # its weights alone are another's


def test_each_shard_counts_and_one_that_is_missing_is_a_state_too(tmp_path: Path) -> None:
    first, second = (tmp_path / f"a-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"no header")
    without = identify(str(first))
    assert without.stamp == (numbers_of(first.stat()), ()) and without.headers[1] == b""
    second.write_bytes(b"no header")
    both = identify(str(first))
    assert both.stamp == (numbers_of(first.stat()), numbers_of(second.stat()))
    second.write_bytes(b"another one")
    assert identify(str(first)) != both


def test_what_is_no_file_has_a_state_and_waits_for_nobody(tmp_path: Path) -> None:
    pipe = tmp_path / "a.gguf"
    os.mkfifo(pipe)
    assert identify(str(pipe)).headers == (b"",)
    assert identify(str(tmp_path), "\0").headers == (b"", b"")
    assert identify("/nonexistent/a.gguf").stamp == stamp_of("/nonexistent/a.gguf") == ((),)


def test_a_listed_file_is_stamped_by_the_same_numbers(file: Path) -> None:
    status = file.stat()
    listed = model_of("a", [Candidate(str(file), status)])
    assert listed.stamp == stamp_of(str(file))[0]
    assert (listed.size_bytes, listed.modified_ns) == (status.st_size, status.st_mtime_ns)
