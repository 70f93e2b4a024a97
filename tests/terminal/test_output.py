from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import modelpipes
from tests.shell import UNMEASURED

PREAMBLE = "from modelpipes.terminal.output import *\nfrom modelpipes.errors import FileError\n"
PACKAGE_DIR = str(Path(modelpipes.__file__).parent.parent)


def in_a_process(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    environment = {
        **os.environ,
        **UNMEASURED,
        "PYTHONPATH": PACKAGE_DIR,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", PREAMBLE + code],
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
    done = in_a_process(
        r"write_table(Table(['seat', 'answers', 'note'], [['007', 5, None], ['a\x1b[2J', 12.5, 'x\ny']]))"
    )
    assert done.stderr == b""
    assert done.stdout.decode() == "seat  answers  note\n007         5\na        12.5  x y\n"


def test_a_table_without_rows_is_its_headers() -> None:
    assert in_a_process("write_table(Table(['seat', 'pid'], []))").stdout == b"seat  pid\n"


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
