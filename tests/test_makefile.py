"""The Makefile: each word forwards to what does it. "Their word, ours" types `make demo` and its like."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell import BIN, CHECKOUT, RUN_LIMIT_S, Ended, Home

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

WORDS = ["install", "demo", "test", "check-system", "lint", "format", "coverage", "bench", "clean"]
MAKEFILE = (CHECKOUT / "Makefile").read_text("utf-8")


class Copy:
    """A folder with the Makefile, and programs that only say how they were called."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.root = home.cwd
        self.tools = home.cwd.parent / "tools"
        self.tools.mkdir()
        for name in ("sh", "rm", "find"):
            (self.tools / name).symlink_to(shutil.which(name) or name)
        shutil.copy(CHECKOUT / "Makefile", self.root)

    def provide(self, *names: str) -> None:
        for name in names:
            path = self.tools / name
            path.write_text('#!/bin/sh\necho "${0##*/} $*"\n')
            path.chmod(0o755)

    def make(self, *words: str, **variables: str) -> Ended:
        environment = {"PATH": str(self.tools), "MAKEFLAGS": "", "VIRTUAL_ENV": "", "CONDA_PREFIX": ""} | variables
        return self.home.run([shutil.which("make") or "make", *words], env=environment)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(Home(tmp_path))


def made(*words: str) -> list[str]:
    """What make would run in the checkout, or does run."""
    environment = {**os.environ, "MAKEFLAGS": ""}
    done = subprocess.run(
        ["make", *words],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_alone_it_lists_every_word_and_what_it_does() -> None:
    lines = [re.fullmatch(r"make (\S+) +(\S.*)", line) for line in made()]
    assert [line[1] for line in lines if line] == ["help", *WORDS]
    assert max(map(len, made())) <= 120


def test_every_word_is_one_whatever_file_has_its_name() -> None:
    targets = re.findall(r"(?m)^([a-z-]+):", MAKEFILE)
    assert set(re.findall(r"(?m)^\.PHONY: (.*)", MAKEFILE)[0].split()) == set(targets) >= set(WORDS)


@pytest.mark.parametrize("word", ["demo", "test", "check-system", "bench"])
def test_a_word_forwards_with_its_arguments(word: str) -> None:
    assert made("-n", word, 'ARGS=-k "one or two"') == [f'bin/{word} -k "one or two"']
    assert os.access(BIN / word, os.X_OK)


def test_lint_is_what_the_tests_begin_with() -> None:
    first = (BIN / "test").read_text().partition("set -e\n")[2].partition("exec ")[0].splitlines()
    assert [line.removeprefix(".venv/bin/") for line in made("-n", "lint")[1:]] == first
    assert len(first) == 4


class TestInstall:
    def test_goes_into_the_venv_that_is_active(self, copy: Copy) -> None:
        copy.provide("python", "pipx")
        for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
            ended = copy.make("install", **{variable: "/somewhere"})
            assert ended == Ended(0, "python -m pip install --only-binary xllamacpp .[check,embedded,serve]\n", "")

    def test_else_pipx_does_it_and_what_is_left_out_can_be_said(self, copy: Copy) -> None:
        copy.provide("python", "pipx")
        ended = copy.make("install", "EXTRAS=serve")
        assert ended == Ended(0, "pipx install --force --pip-args=--only-binary xllamacpp .[serve]\n", "")

    def test_without_either_a_line_says_what_to_do(self, copy: Copy) -> None:
        ended = copy.make("install")
        assert (ended.code, ended.stdout) == (2, "")  # make's own
        assert ended.stderr.startswith("make install: needs pipx")

    def test_leaves_the_checkouts_own_venv_as_it_is(self, copy: Copy) -> None:
        copy.provide("python")
        (copy.root / ".venv").mkdir()
        ended = copy.make("install", VIRTUAL_ENV=str(copy.root / ".venv"))
        assert (ended.code, ended.stdout) == (0, "")
        assert ".venv has the commands" in ended.stderr


def test_clean_removes_what_was_made_here_and_nothing_else(copy: Copy) -> None:
    ignored = [line.strip("/") for line in (CHECKOUT / ".gitignore").read_text().splitlines()]
    made_here = [name.replace("*", "vm.1") for name in ignored if name not in ("__pycache__", "*.egg-info")]
    kept = ["models.toml", "talk.jsonl", "dist.txt", "pipes/modelpipes/a.py", "tests/b.py", "notes/__pycache__/mine"]
    for name in [*(f"{name}/something" for name in made_here), *kept, "pipes/modelpipes/__pycache__/a.pyc"]:
        (copy.root / name).parent.mkdir(parents=True, exist_ok=True)
        (copy.root / name).touch()
    (copy.root / "tests" / "__pycache__").mkdir()
    elsewhere = copy.home.cwd.parent / "elsewhere"
    (elsewhere / "bin").mkdir(parents=True)
    (copy.root / "build" / "link").symlink_to(elsewhere)
    assert copy.make("clean") == Ended(0, "", "")
    left = {str(path.relative_to(copy.root)) for path in copy.root.rglob("*") if not path.is_dir()}
    assert left == {"Makefile", *kept}
    assert list(copy.root.rglob("__pycache__")) == [copy.root / "notes" / "__pycache__"]
    assert (elsewhere / "bin").is_dir()
    assert copy.make("clean") == Ended(0, "", "")


def test_what_a_process_of_a_test_runs_is_measured(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["COVERAGE_FILE"] = str(tmp_path / ".coverage")

    def coverage(*words: str) -> str:
        command = [sys.executable, "-m", "coverage", *words]
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    one_test = "tests/commands/test_setup.py::test_the_ancestors_options_mean_the_same"
    coverage("run", "-m", "pytest", "-q", "-p", "no:cacheprovider", one_test)
    coverage("combine", "--quiet")
    report = coverage("report", "--include=pipes/modelpipes/commands/setup.py").splitlines()[-1]
    assert float(report.split()[-1].rstrip("%")) > 70
