"""What a person typed, from one time to the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.terminal import typed as module
from modelpipes.terminal.typed import ENTRY_BYTES, KEPT_ENTRIES, Typed, typed_file


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def typed(tmp_path: Path, said: list[str]) -> Typed:
    return Typed(str(tmp_path / "state" / "modelpipes" / "typed.jsonl"), said.append)


def path_of(typed: Typed) -> Path:
    return Path(typed._path)


def test_it_is_kept_in_the_folder_of_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert typed_file() == "/somewhere/modelpipes/typed.jsonl"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert typed_file() == "/home/me/.local/state/modelpipes/typed.jsonl"


def test_entries_come_back_in_their_order_and_are_for_us_alone(typed: Typed, said: list[str]) -> None:
    entries = ["one", "two\nlines", 'grüße "日本"', "half \ud83d"]
    for entry in entries:
        typed.add(entry)
    assert typed.load() == entries
    assert path_of(typed).stat().st_mode & 0o777 == 0o600
    assert path_of(typed).parent.stat().st_mode & 0o777 == 0o700
    assert said == []


def test_a_mode_that_others_may_read_is_taken_back(typed: Typed) -> None:
    typed.add("one")
    path_of(typed).chmod(0o644)
    typed.add("two")
    assert path_of(typed).stat().st_mode & 0o777 == 0o600


def test_the_file_stays_small(typed: Typed) -> None:
    for number in range(KEPT_ENTRIES + 1):
        typed.add(str(number))
    kept = typed.load()
    assert kept[-1] == str(KEPT_ENTRIES)
    assert len(kept) == KEPT_ENTRIES // 2
    assert typed.load() == kept
    assert os.listdir(path_of(typed).parent) == [path_of(typed).name]


def test_the_file_stays_small_in_bytes_too(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 1000)
    for number in range(20):
        typed.add(f"{number} {'x' * 100}")
    kept = typed.load()
    assert 0 < path_of(typed).stat().st_size <= 500
    assert kept[-1].startswith("19 ")


def test_a_large_entry_is_not_kept(typed: Typed) -> None:
    typed.add("x" * ENTRY_BYTES)
    assert typed.load() == []


def test_damaged_lines_are_passed_over(typed: Typed) -> None:
    typed.add("one")
    with path_of(typed).open("ab") as file:
        file.write(b'"half\n\xff\n7\n"two"\n"cut o')
    assert typed.load() == ["one", "two"]


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "state").write_text("no folder")
    typed = Typed(str(tmp_path / "state" / "typed.jsonl"), said.append)
    typed.load()
    typed.add("one")
    typed.add("two")
    assert len(said) == 1 and "typed.jsonl: what you type cannot be" in said[0]
