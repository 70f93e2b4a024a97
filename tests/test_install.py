"""Installed as a stranger does it: a wheel of a clean copy, in a clean venv of every Python that there is.

Nothing here can see the checkout. Each Python first gets the package alone, then `[embedded,serve]` into the same
venv, which the later tests of a class want: they are in that order.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from modelpipes.commands import VERBS
from tests.shell import CHECKOUT, Ended, Home
from tests.test_api import STRANGER, checked
from tests.test_startup import HEAVY

MINORS = (11, 12, 13, 14)
# Where Pythons lie that are not on PATH: pyenv's, uv's, and those built by hand.
PLACES = ("~/.pyenv/versions/*/bin", "~/.local/share/uv/python/*/bin", "/opt/python*/bin", "/usr/local/bin", "/usr/bin")
MAKES_VENVS = "import sys, venv, ensurepip; print(*sys.version_info[:2], sys.implementation.name)"
PIP_LIMIT_S = 300.0  # 34 MB over a slow line
LOOK_LIMIT_S = 20.0
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]
COMMANDS = sorted(PROJECT["scripts"])
TWO_MODELS = ["--model", "alice=tiny-chat", "--model", "bob=tiny-chat"]


@cache
def pythons() -> Mapping[int, Path]:
    """A CPython 3.N that can make venvs for every N that is here; pyenv's shims are there and do not run."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(":") if folder]
    for place in PLACES:
        root, _, pattern = os.path.expanduser(place).partition("*")
        base = Path(root if not pattern else os.path.dirname(root))
        folders += [base] if not pattern else sorted(base.glob(os.path.expanduser(place)[len(str(base)) + 1 :]))
    found: dict[int, Path] = {}
    for minor in MINORS:
        for path in [folder / f"python3.{minor}" for folder in folders]:
            if path.exists() and _says(path) == f"3 {minor} cpython":
                found[minor] = path
                break
    return found


def _says(python: Path) -> str:
    try:
        done = subprocess.run(
            [python, "-I", "-c", MAKES_VENVS], capture_output=True, text=True, timeout=LOOK_LIMIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def pip(*args: str | Path, python: Path | str = sys.executable, cwd: Path) -> None:
    """Run pip to its end; it finds nothing but what is installed or to be had."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [python, "-m", "pip", "--no-input", "--disable-pip-version-check", *args]
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PIP_LIMIT_S, check=False
    )
    assert done.returncode == 0, f"pip {' '.join(map(str, args))}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def clean_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git would have of the working tree, new files included."""
    if not (CHECKOUT / ".git").exists() or not shutil.which("git"):
        pytest.skip("no git, which knows the files that belong to the project")
    folder = tmp_path_factory.mktemp("copy")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=LOOK_LIMIT_S,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if os.path.lexists(CHECKOUT / name):  # one that was removed is listed until that is committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def wheel(clean_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, clean_copy, cwd=folder)
    (wheel,) = folder.iterdir()
    return wheel


class Installed:
    """A venv with the package, and a home in which its commands run."""

    def __init__(self, python: Path, base: Path) -> None:
        self.home = Home(base)
        self.prefix = base / "venv"
        self.python = self.prefix / "bin" / "python"
        for name in ("LLAMA_SERVER", "PYTHONPATH", "VIRTUAL_ENV"):
            self.home.env.pop(name, None)
        self.home.env["PATH"] = f"{self.prefix}/bin:/usr/bin:/bin"
        subprocess.run([python, "-m", "venv", self.prefix], cwd=base, timeout=PIP_LIMIT_S, check=True)

    def install(self, what: str) -> None:
        pip("install", what, python=self.python, cwd=self.home.cwd)

    def sh(self, script: str) -> Ended:
        """Type it into a shell that stops at the first command that fails."""
        return self.home.run(["sh", "-euc", script])

    def lines(self, script: str) -> list[str]:
        """What a script says that succeeds, without a traceback, and leaves nothing behind."""
        ended = self.sh(script)
        assert ended.code == 0, f"{ended.stdout}\n{ended.stderr}"
        assert "Traceback" not in ended.stderr
        assert (self.home.left_processes(), self.home.left_files()) == ([], [])
        return ended.lines


@pytest.fixture(scope="module", params=MINORS, ids=lambda minor: f"python3.{minor}")
def alone(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The package in a clean venv, with what it cannot do without."""
    minor: int = request.param
    if minor not in pythons():
        there = ", ".join(f"3.{each}" for each in pythons())
        pytest.skip(f"no python3.{minor} here that runs and makes venvs; there are {there}")
    installed = Installed(pythons()[minor], tmp_path_factory.mktemp(f"python3.{minor}"))
    installed.install(str(wheel))
    return installed


@pytest.fixture(scope="module")
def whole(alone: Installed, wheel: Path) -> Installed:
    """The same with the embedded engine and the gateway."""
    alone.install(f"{wheel}[embedded,serve]")
    return alone


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


class TestWheel:
    def test_it_holds_every_file_of_the_package_and_no_other(self, wheel: Path, clean_copy: Path) -> None:
        names = names_in(wheel)
        source = clean_copy / "pipes"
        files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
        assert {name for name in names if name.startswith("modelpipes/")} == files
        assert {"modelpipes/py.typed", "modelpipes/models/tiny-chat.gguf", "modelpipes/engine/embedded.py"} <= files

    def test_beside_it_there_are_its_papers_and_nothing_of_the_checkout(self, wheel: Path) -> None:
        names = names_in(wheel)
        about = f"modelpipes-{PROJECT['version']}"
        assert f"{about}.dist-info/licenses/LICENSE" in names
        tops = {name.split("/")[0] for name in names}
        assert tops <= {"modelpipes", f"{about}.dist-info", f"{about}.data"}

    def test_its_description_is_the_readme(self, wheel: Path, clean_copy: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            metadata = archive.read(f"modelpipes-{PROJECT['version']}.dist-info/METADATA").decode()
        assert metadata.endswith((clean_copy / "README.md").read_text("utf-8"))
        assert f"Requires-Python: {PROJECT['requires-python']}\n" in metadata


class TestAlone:
    """Without an extra, pipes and programs work, and what needs more says what."""

    def test_it_is_not_the_checkout_that_runs(self, alone: Installed) -> None:
        (place,) = alone.lines("python -P -c 'import modelpipes; print(modelpipes.__file__)'")
        assert place.startswith(str(alone.prefix))

    def test_every_command_tells_its_version(self, alone: Installed) -> None:
        said = alone.lines(f"for command in {' '.join(COMMANDS)}; do $command --version; done")
        assert said == [f"{command} {PROJECT['version']}" for command in COMMANDS]

    def test_the_overview_names_every_command(self, alone: Installed) -> None:
        said = "\n".join(alone.lines("modelpipes --help"))
        assert [command for command in COMMANDS if command not in said] == []

    def test_it_brings_what_the_program_is_made_of_and_no_more(self, alone: Installed) -> None:
        listed = {each["name"] for each in json.loads("".join(alone.lines("python -m pip list --format json")))}
        named = {re.split(r"[<>=]", each)[0] for each in PROJECT["dependencies"]}
        assert {"click", "msgspec", "nvidia-ml-py", "tabulate", "psutil", "wcwidth"} <= named
        brought = {"mdurl"}  # by what is named: markdown-it-py's
        assert named | brought | {"modelpipes"} == listed - {"pip", "setuptools"}
        alone.lines("python -P -c 'import click, msgspec, pynvml, tabulate, psutil, wcwidth'")

    def test_commands_that_only_touch_fifos_load_no_more_than_in_the_checkout(self, alone: Installed) -> None:
        said = alone.sh(
            """
            export PYTHONPROFILEIMPORTTIME=1
            setup-pipes bob
            list-seats
            ask-model bob --timeout 50ms Hello || [ $? = 124 ]
            ping-pipes bob --timeout 50ms || [ $? = 124 ]
            cleanup-pipes
            """
        )
        assert said.code == 0, said.stderr
        loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in said.stderr.splitlines()}
        assert {"click", "msgspec"} <= loaded
        assert not loaded & HEAVY

    def test_messages_go_round(self, alone: Installed) -> None:
        assert any("10" in line for line in alone.lines("ping-pipes --self --count 10"))

    def test_a_program_in_a_seat_is_asked(self, alone: Installed) -> None:
        said = alone.lines(
            """
            setup-pipes bob >pipes.txt
            attach-model bob --filter cat &
            list-seats --wait bob
            ask-model bob "Hello from a venv."
            cleanup-pipes -f
            wait
            """
        )
        assert said == ["Hello from a venv."]

    def test_what_needs_an_extra_names_it(self, alone: Installed) -> None:
        asked = alone.sh(f"chat-models {' '.join(TWO_MODELS)} --rounds 1")
        assert (asked.code, asked.stdout) == (1, "")
        assert "[embedded]" in asked.stderr
        (alone.home.cwd / "models.toml").write_text('[models.one]\nfile = "tiny-chat"\n')
        served = alone.sh("serve-models models.toml")
        assert (served.code, served.stdout) == (1, "")
        assert "[serve]" in served.stderr
        checked = alone.sh("find-gguf --check-data .")
        assert (checked.code, checked.stdout) == (1, "")
        assert "modelpipes[check]" in checked.stderr

    def test_a_strangers_program_is_checked_with_the_types_of_the_wheel(self, alone: Installed, tmp_path: Path) -> None:
        said = checked(tmp_path, STRANGER, "--python-executable", str(alone.python))
        assert said == ["Success: no issues found in 1 source file"]

    def test_manuals_and_completions_are_where_they_are_looked_for(self, alone: Installed) -> None:
        verbs = [f"modelpipes-{verb}" for verb, (command, _) in VERBS.items() if not command]
        for path in (
            *(f"man/man1/{page}.1" for page in (*COMMANDS, *verbs)),
            *(f"bash-completion/completions/{command}" for command in COMMANDS),
            *(f"fish/vendor_completions.d/{command}.fish" for command in COMMANDS),
            "zsh/site-functions/_modelpipes",
        ):
            assert (alone.prefix / "share" / path).is_file(), path

    def test_bash_completes_a_command_with_what_was_installed(self, alone: Installed) -> None:
        place = alone.prefix / "share" / "bash-completion" / "completions" / "ask-model"
        (told,) = alone.lines(f"bash --norc -c 'source {place}; complete -p ask-model'")
        assert told.startswith("complete ") and told.endswith(" ask-model")


class TestWhole:
    def test_two_models_talk(self, whole: Installed) -> None:
        said = whole.lines(f"chat-models {' '.join(TWO_MODELS)} --rounds 1")
        assert [line.partition(": ")[0] for line in said] == ["hub", "alice", "bob"]

    def test_model_files_are_listed(self, whole: Installed) -> None:
        (folder,) = whole.prefix.glob("lib/python3.*/site-packages/modelpipes/models")
        assert any("tiny-chat" in line for line in whole.lines(f"find-gguf {folder}"))

    def test_the_system_is_found_fit_for_talk(self, whole: Installed) -> None:
        said = whole.lines("check-system --json")
        assert "embedded" in "\n".join(said)

    def test_models_are_served(self, whole: Installed) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        (whole.home.cwd / "models.toml").write_text(
            f'[server]\nlisten = "127.0.0.1:{port}"\n[models.one]\nfile = "tiny-chat"\nctx_size = 512\n'
        )
        (whole.home.cwd / "post.py").write_text(
            "import sys, urllib.request\n"
            "print(urllib.request.urlopen(sys.argv[1], sys.argv[2].encode(), timeout=60).read().decode())\n"
        )
        said = whole.lines(
            f"""
            serve-models models.toml &
            serve-models status --wait 30s
            python post.py http://127.0.0.1:{port}/v1/chat/completions \\
                '{{"model": "one", "messages": [{{"role": "user", "content": "Hi"}}], "max_tokens": 5}}'
            kill $!
            wait $! || echo "ended with $?"
            """
        )
        assert any('"choices"' in line for line in said)
        assert said[-1] == "ended with 143"


@pytest.mark.drill
def test_pipx_installs_it(clean_copy: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], timeout=PIP_LIMIT_S, check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip("install", "pipx", python=python, cwd=tmp_path)
    folders = {f"PIPX_{name}": str(tmp_path / name) for name in ("HOME", "BIN_DIR", "MAN_DIR", "COMPLETION_DIR")}
    installed = home.run([python, "-m", "pipx", "install", clean_copy], env=folders, limit_s=PIP_LIMIT_S)
    assert installed.code == 0, installed.stderr
    assert {path.name for path in (tmp_path / "BIN_DIR").iterdir()} == set(COMMANDS)
    assert (tmp_path / "MAN_DIR" / "man1" / "ask-model.1").exists()
    assert home.run([tmp_path / "BIN_DIR" / "ask-model", "--version"]).lines == [f"ask-model {PROJECT['version']}"]
