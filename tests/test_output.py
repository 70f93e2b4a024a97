from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import modelpipes
from modelpipes.output import MAX_SEQUENCE_CHARS, SafeText, make_line, make_safe

PACKAGE_DIR = str(Path(modelpipes.__file__).parent.parent)
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
RISKY = st.text(
    st.sampled_from(
        "\x1b\x1b\x1b[]P_^Xk\\;:0123m@~?# \x07\x18\x1a\x00\r\n\t\x7f\x85\x90\x9b\x9c\x9d\u202e\u200faé🙂\ud800"
    )
)
HARMLESS = st.text(st.characters(blacklist_categories=("Cc", "Cs", "Cf")) | st.sampled_from("\n\t"))


def feed_cut(text: str, cuts: list[int]) -> str:
    safe = SafeText()
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return "".join(safe.feed(text[a:b]) for a, b in itertools.pairwise(bounds)) + safe.flush()


@given(RISKY | st.text(), st.lists(st.integers(min_value=0)))
@example("\x1b]0;title\x1b\\after", [12])
@example("\r\n", [1])
def test_nothing_that_commands_a_terminal_comes_out_however_the_text_is_cut(text: str, cuts: list[int]) -> None:
    assert not CONTROLS.search(feed_cut(text, cuts))


@given(RISKY | st.text(), st.lists(st.integers(min_value=0)))
@example("\x1b]" + "x" * (MAX_SEQUENCE_CHARS * 2), [MAX_SEQUENCE_CHARS - 1, MAX_SEQUENCE_CHARS, MAX_SEQUENCE_CHARS + 1])
@example("\x1b[" + "1" * (MAX_SEQUENCE_CHARS * 2), [MAX_SEQUENCE_CHARS - 1, MAX_SEQUENCE_CHARS, MAX_SEQUENCE_CHARS + 1])
@example("\x1b]" + "x" * (MAX_SEQUENCE_CHARS - 3) + "\x1b\\y", [MAX_SEQUENCE_CHARS - 1, MAX_SEQUENCE_CHARS])
def test_the_cuts_do_not_matter(text: str, cuts: list[int]) -> None:
    assert feed_cut(text, cuts) == make_safe(text)


@given(HARMLESS)
def test_harmless_text_stays_as_it_is_and_is_never_held_back(text: str) -> None:
    assert SafeText().feed(text) == text


@given(RISKY)
def test_safe_text_is_as_safe_the_second_time(text: str) -> None:
    assert make_safe(make_safe(text)) == make_safe(text)


@pytest.mark.parametrize(
    "sequence",
    [
        "\x1b[31m",
        "\x1b[2J",
        "\x1b[?25l",
        "\x1b[0 q",
        "\x1b]0;title\x07",
        "\x1b]52;c;aGk=\x1b\\",
        "\x1b]8;;http://example.org\x9c",
        "\x1bP+q\x1b\\",
        "\x1b_hidden\x1b\\",
        "\x1bc",
        "\x1b(0",
        "\x1b#8",
        "\x9b31m",
        "\x9d0;title\x9c",
        "\u202e",
        "\u2066",
    ],
)
def test_a_whole_sequence_is_dropped(sequence: str) -> None:
    assert make_safe(f"be{sequence}fore") == "before"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x07b", "a␇b"),
        ("a\x00b", "a␀b"),
        ("a\x7fb", "a␡b"),
        ("a\x85b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("a\r\nb", "a\nb"),
        ("a\r\r\nb", "a␍\nb"),
        ("a\rb", "a␍b"),
        ("a\r", "a␍"),
        ("a\x1b", "a␛"),
        ("a\x1b[31", "a␛[31"),
        ("a\x1b[31\nb", "a␛[31\nb"),
        ("a\x1b]0;ti\nb", "a␛]0;ti\nb"),
        ("a\x1b]0;ti\x1b[31mb", "a␛]0;tib"),
    ],
)
def test_what_is_no_whole_sequence_is_made_visible(text: str, shown: str) -> None:
    assert make_safe(text) == shown


@pytest.mark.parametrize("introducer", ["\x1b]", "\x1bP", "\x9d", "\x1b[", "\x1b "])
def test_a_sequence_that_never_ends_does_not_swallow_the_answer(introducer: str) -> None:
    inside = " " if introducer == "\x1b " else "1"
    out = SafeText().feed(introducer + inside * MAX_SEQUENCE_CHARS + "the answer")
    assert out.endswith("the answer")


def test_a_line_is_one_line() -> None:
    assert make_line("one\ntwo\tthree\r\nfour\x1b[2J") == "one two three four"


def in_a_process(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ,
        "PYTHONPATH": PACKAGE_DIR,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", "from modelpipes.output import *\nfrom modelpipes.errors import FileError\n" + code],
        env=environment, timeout=30, check=False, **{"capture_output": True, **options},
    )  # fmt: skip


def test_text_leaves_as_utf8_in_any_locale() -> None:
    assert in_a_process(f"write_text({'Grüße 🙂'!a})").stdout == "Grüße 🙂".encode()


def test_json_is_exact_and_one_line() -> None:
    done = in_a_process(r"write_json({'content': 'a\n\x1b[31m\u202e\U0001f642'})")
    assert done.stdout.count(b"\n") == 1
    assert json.loads(done.stdout) == {"content": "a\n\x1b[31m\u202e🙂"}


def test_json_can_say_half_a_surrogate_pair() -> None:
    assert in_a_process(r"write_json({'content': '\ud83d'})").stdout == b'{"content":"\\ud83d"}\n'


def test_a_table_aligns_numbers_to_the_right_and_leaves_names_as_they_are() -> None:
    done = in_a_process(r"write_table([['007', 5, None], ['a\x1b[2J', 12.5, 'x\ny']], ['seat', 'answers', 'note'])")
    assert done.stderr == b""
    assert done.stdout.decode() == "seat      answers  note\n007             5\na            12.5  x y\n"


def test_a_table_without_rows_is_its_headers() -> None:
    assert in_a_process("write_table([], ['seat', 'pid'])").stdout == b"seat    pid\n"


def test_what_is_said_goes_to_stderr_as_one_safe_line() -> None:
    done = in_a_process(r"say('no\nsuch \x1b[31mseat')")
    assert (done.stdout, done.stderr) == (b"", b"no such seat\n")


def test_a_prompt_stays_on_its_line() -> None:
    assert in_a_process(r"prompt('me\x1b[2J> ')").stderr == b"me> "


def test_saying_something_without_a_stderr_fails_nothing() -> None:
    assert in_a_process("import os; os.close(2); say('hello'); write_text('done')").stdout == b"done"


def test_a_closed_reader_is_a_broken_pipe() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = in_a_process(
            "try:\n    write_text('x')\nexcept BrokenPipeError:\n    say('nobody reads')",
            capture_output=False, stdout=write_end, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(write_end)
    assert done.stderr == b"nobody reads\n"


def test_a_full_disk_is_one_clear_line() -> None:
    with open("/dev/full", "wb") as full:
        done = in_a_process(
            "try:\n    write_text('x')\nexcept FileError as error:\n    say(str(error))",
            capture_output=False, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.stderr == b"cannot write to stdout: No space left on device\n"


def test_a_full_stdout_that_does_not_block_is_waited_for_and_keeps_its_mode() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    text = "x" * 1_000_000
    got: list[bytes] = []

    def read_all() -> None:
        while chunk := os.read(read_end, 65536):
            got.append(chunk)

    reader = threading.Thread(target=read_all)
    reader.start()
    done = in_a_process(f"write_text('x' * {len(text)})", capture_output=False, stdout=write_end)
    assert done.returncode == 0
    assert not os.get_blocking(write_end)
    os.close(write_end)
    reader.join(10)
    os.close(read_end)
    assert b"".join(got) == text.encode()


def test_the_module_starts_without_heavy_imports() -> None:
    code = (
        "import sys; print(*sorted({'tabulate', 'logging', 'pathlib', 'tempfile', 'json', 'httpx'} & set(sys.modules)))"
    )
    assert in_a_process(code).stdout == b"\n"
