from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.values import paths


def test_the_runtime_folder_is_inside_the_one_the_system_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.runtime_dir() == str(tmp_path / "modelpipes")


def test_no_runtime_folder_where_the_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert paths.runtime_dir() is None


@pytest.mark.parametrize("value", ["", "relative/path", "/no/such/folder"])
def test_no_runtime_folder_where_the_variable_names_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    assert paths.runtime_dir() is None


def test_no_runtime_folder_where_others_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert paths.runtime_dir() is None


def test_no_runtime_folder_where_it_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch(0o600)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    assert paths.runtime_dir() is None


def test_no_runtime_folder_where_it_belongs_to_someone_else(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.stat("/").st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/")
    assert paths.runtime_dir() is None


@pytest.mark.parametrize(
    ("folder", "variable", "below_home"),
    [
        (paths.cache_dir, "XDG_CACHE_HOME", ".cache"),
        (paths.data_dir, "XDG_DATA_HOME", ".local/share"),
        (paths.config_dir, "XDG_CONFIG_HOME", ".config"),
    ],
)
def test_other_folders_follow_their_variable_or_the_home_folder(
    folder: object, variable: str, below_home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(folder)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv(variable, "/else/where")
    assert folder() == "/else/where/modelpipes"
    for ignored in ("", "relative"):
        monkeypatch.setenv(variable, ignored)
        assert folder() == f"/home/someone/{below_home}/modelpipes"
