"""Commands that only touch FIFOs start fast: they import nothing that takes longer than their work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelpipes.pipe.room import Room
from tests.peers import LIMIT_S, modelpipes, peer
from tests.shell import TINY_CHAT, UNMEASURED

HEAVY = {"httpx", "httpx_sse", "http", "numpy", "gguf", "psutil", "asyncio", "subprocess", "concurrent", "email", "ssl",
         "tabulate", "prompt_toolkit", "pynvml", "starlette", "uvicorn", "wcwidth", "markdown_it"}  # fmt: skip


def modules_of(*args: str, code: int | None = 0) -> set[str]:
    """The modules that a run of a command imports, which ends with `code`, None: however."""
    command = [sys.executable, "-X", "importtime", "-P", "-m", "modelpipes", *args]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False,
        env=os.environ | UNMEASURED,
    )  # fmt: skip
    assert code is None or done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def imported(*args: str, code: int | None = 0) -> set[str]:
    """The top-level modules that a run of a command imports."""
    return {name.partition(".")[0] for name in modules_of(*args, code=code)}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    modelpipes("setup", "bob", "-d", str(tmp_path / "room"))
    return Room(str(tmp_path / "room"))


@pytest.mark.parametrize("args", [["setup", "alice", "--print-env"], ["seats"], ["seats", "--json"], ["cleanup"]])
def test_what_makes_lists_and_removes_pipes_imports_nothing_heavy(room: Room, args: list[str]) -> None:
    modules = imported(*args, "-d", room.path)
    assert "click" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("args", [[], ["--json"], ["-v", "--whole"], ["--log", "/dev/null"]])
def test_what_asks_imports_nothing_heavy(room: Room, args: list[str]) -> None:
    with peer("echo", room):
        modules = imported("ask", "bob", "Hello", *args, "-d", room.path)
    assert "click" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("verb", ["setup", "cleanup", "seats", "ask", "hold"])
def test_help_imports_nothing_heavy(verb: str) -> None:
    assert not imported(verb, "--help") & HEAVY


def test_nothing_imports_tabulate_before_a_table_is_drawn() -> None:
    code = (
        "import pkgutil, sys, modelpipes;"
        "names = [each.name for each in pkgutil.walk_packages(modelpipes.__path__, 'modelpipes.')];"
        "[__import__(name) for name in names if not name.endswith('__main__')];"
        "assert 'modelpipes.commands.find' in sys.modules and 'tabulate' not in sys.modules;"
        "from modelpipes.terminal.table import Table; from modelpipes.terminal.output import write_table;"
        "write_table(Table(['a'], []));"
        "assert 'tabulate' in sys.modules"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("args", "is_drawn"),
    [
        (["seats"], False),
        (["seats", "--json"], False),
        (["seats", "--format", "github"], True),
        (["ping", "bob", "--count", "1"], False),
        (["ping", "bob", "--count", "1", "--format", "tsv"], True),
    ],
)
def test_commands_for_fifos_import_tabulate_only_for_a_document(room: Room, args: list[str], is_drawn: bool) -> None:
    with peer("echo", room):
        assert ("tabulate" in imported(*args, "-d", room.path)) is is_drawn


@pytest.mark.parametrize(("form", "is_drawn"), [("table", True), ("json", False), ("csv", False)])
def test_a_report_imports_tabulate_only_for_a_table(tmp_path: Path, form: str, is_drawn: bool) -> None:
    modules = imported("find", str(tmp_path), "--no-gpu-fit", "--no-cache", "--format", form)
    assert ("tabulate" in modules) is is_drawn


def test_who_seats_a_model_of_another_server_imports_nothing_to_predict_memory_with(room: Room) -> None:
    modules = modules_of("attach", "bob", "--server", "http://127.0.0.1:1", "-d", room.path, code=1)
    assert "modelpipes.web.site" in modules
    assert "modelpipes.engine.admission" not in modules


@pytest.mark.parametrize(
    ("form", "is_rendered"), [("text", False), ("markdown", False), ("json", False), ("html", True)]
)
def test_a_conversation_imports_markdown_it_only_for_a_page(tmp_path: Path, form: str, is_rendered: bool) -> None:
    (tmp_path / "talk.jsonl").write_text('{"turn":0,"from":"hub","content":"Hello."}\n')
    assert ("markdown_it" in imported("show", str(tmp_path / "talk.jsonl"), "--format", form)) is is_rendered


def test_who_lists_models_does_not_import_psutil() -> None:
    assert not imported("find", str(TINY_CHAT.parent)) & {"psutil", "numpy", "gguf"}
    assert "psutil" in imported("check", code=None), "or this looks for nothing"
