"""The scripts of bin/: the demo, and how they come by their .venv.

The latter on a copy of the checkout whose Python notes what it is asked to do, and installs nothing.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell import BIN, CHECKOUT, RUN_LIMIT_S, TINY_CHAT, Ended, Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def speakers(ended: Ended) -> list[str]:
    return [line.split(": ")[0] for line in ended.lines]


class TestDemo:
    def test_alice_and_bob_talk_under_their_names(self, home: Home) -> None:
        ended = home.run([BIN / "demo"])
        assert ended.code == 0, ended.stderr
        assert speakers(ended) == ["hub", *["alice", "bob"] * 4]
        assert all(line.split(": ", 1)[1].strip() for line in ended.lines)

    def test_its_summary_and_the_way_to_ones_own_models_go_to_stderr(self, home: Home) -> None:
        summary, own = home.run([BIN / "demo"]).stderr.splitlines()[-2:]
        assert summary.startswith("8 turns, ")
        assert summary.endswith("; ended by: rounds")
        assert own == f"Your own models: {BIN}/demo --model A.gguf --model B.gguf"

    def test_leaves_nothing(self, home: Home) -> None:
        home.run([BIN / "demo", "--rounds", "1"])
        assert (home.left_processes(), home.left_files()) == ([], [])

    def test_takes_ones_own_models(self, home: Home) -> None:
        for name in ("a.gguf", "b with a space.gguf"):
            shutil.copy(TINY_CHAT, home.cwd / name)
        ended = home.run(
            [BIN / "demo", "--model", "a.gguf", "--model=b with a space.gguf", "--rounds=2", "--transcript", "t.jsonl"]
        )
        assert ended.code == 0, ended.stderr
        assert speakers(ended) == ["hub", *["alice", "bob"] * 2]
        header = (home.cwd / "t.jsonl").read_text().splitlines()[0]
        assert '"alice":"model a.gguf","bob":"model b with a space.gguf"' in header

    def test_options_go_to_chat_models(self, home: Home) -> None:
        ended = home.run([BIN / "demo", "--rounds", "1", "--opening", "Do you like $trains?", "--json"])
        assert ended.lines[0].startswith('{"turn":0,"from":"hub","content":"Do you like $trains?","at":')
        assert len(ended.lines) == 3

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--model"], "demo: --model needs a GGUF file"),
            (["--model", "a.gguf"], "demo: name a second model"),
            (["--model", "a.gguf"] * 9, "demo: no more than eight models"),
        ],
    )
    def test_wrong_usage_is_said_in_a_line(self, home: Home, arguments: list[str], said: str) -> None:
        ended = home.run([BIN / "demo", *arguments])
        assert (ended.code, len(ended.stderr.splitlines())) == (2, 1)
        assert ended.stderr.startswith(said)

    def test_what_fails_gives_its_exit_code(self, home: Home) -> None:
        ended = home.run([BIN / "demo", "--model", "missing.gguf", "--model", "missing.gguf"])
        assert ended.code == 1
        assert "missing.gguf" in ended.stderr
        assert "Your own models" not in ended.stderr

    def test_runs_through_a_link_from_elsewhere(self, home: Home) -> None:
        (home.cwd / "talk").symlink_to(BIN / "demo")
        ended = home.run(["./talk", "--rounds", "1"])
        assert (ended.code, speakers(ended)) == (0, ["hub", "alice", "bob"]), ended.stderr


class TestCommandsFromTheCheckout:
    def test_every_command_that_is_installed_is_in_bin(self) -> None:
        installed = (CHECKOUT / "pyproject.toml").read_text().split("[project.scripts]\n")[1].split("\n\n")[0]
        names = {line.split(" = ")[0] for line in installed.splitlines()}
        assert names == {path.name for path in BIN.iterdir() if path.resolve() == BIN / "modelpipes"}

    @pytest.mark.parametrize("name", ["setup-pipes", "chat-models", "modelpipes"])
    def test_a_command_knows_itself_by_its_name(self, home: Home, name: str) -> None:
        assert home.run([BIN / name, "--version"]).stdout.startswith(f"{name} ")

    def test_a_command_runs_through_links_of_links(self, home: Home) -> None:
        (home.cwd / "elsewhere").mkdir()
        (home.cwd / "elsewhere" / "setup-pipes").symlink_to(BIN / "setup-pipes")
        (home.cwd / "setup-pipes").symlink_to("elsewhere/setup-pipes")
        ended = home.run(["./setup-pipes", "--version"])
        assert (ended.code, ended.stdout.split()[0]) == (0, "setup-pipes")

    def test_a_command_runs_from_path(self, home: Home) -> None:
        ended = home.run(["sh", "-c", "setup-pipes bob && cleanup-pipes"], env={"PATH": f"{BIN}:{home.env['PATH']}"})
        assert (ended.code, len(ended.lines), home.left_files()) == (0, 2, [])


FAKE_PYTHON = """#!/bin/sh
# Stands for a Python: looks are real, `-m venv` and `-m pip` are only noted.
case $1 in
-c) exec {python} "$@" ;;
esac
echo "$@" >>{log}
case $2 in
venv)
    mkdir -p "$4/bin"
    cp "$0" "$4/bin/python"
    printf '#!/bin/sh\\necho "chat-models $*"\\n' >"$4/bin/chat-models"
    chmod +x "$4/bin/chat-models"
    ;;
pip)
    case "$*" in *{failing}*) echo "ERROR: no wheel" >&2; exit 1 ;; esac
    ;;
esac
"""


class Checkout:
    """A copy of bin/ and pyproject.toml, with a Python that notes what it is asked to do."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.root = home.cwd / "a checkout"
        self.log = home.cwd / "log"
        self.tools = home.cwd / "tools"
        self.root.mkdir()
        self.tools.mkdir()
        shutil.copytree(BIN, self.root / "bin", symlinks=True)
        shutil.copy(CHECKOUT / "pyproject.toml", self.root)
        self.make_python()

    def make_python(self, failing: str = "nothing-fails") -> None:
        path = self.tools / "python3"
        path.write_text(FAKE_PYTHON.format(python=sys.executable, log=self.log, failing=failing))
        path.chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": f"{self.tools}:/usr/bin:/bin"}

    def run(self, name: str = "chat-models") -> Ended:
        return self.home.run([self.root / "bin" / name, "hello"], env=self.env)

    def asked(self) -> list[str]:
        """What the Python was asked since the last look: `venv`, or what pip was to install."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [line.split()[1] if " venv " in line else line.split("a checkout", 1)[1] for line in lines]


@pytest.fixture
def checkout(home: Home) -> Checkout:
    return Checkout(home)


class TestVenv:
    def test_is_made_at_the_first_start_which_says_so_on_stderr(self, checkout: Checkout) -> None:
        ended = checkout.run()
        assert (ended.code, ended.stdout) == (0, "chat-models hello\n"), ended.stderr
        assert ended.stderr.splitlines() == [
            f"chat-models: making {checkout.root}/.venv, once; this takes a minute ...",
            "chat-models: ready",
        ]
        assert checkout.asked() == ["venv", "[check,embedded,serve]"]

    def test_the_second_start_runs_neither_pip_nor_python(self, checkout: Checkout) -> None:
        checkout.run()
        (checkout.tools / "python3").write_text("#!/bin/sh\necho unwanted >&2\nexit 1\n")
        (checkout.root / ".venv" / "bin" / "python").write_text("#!/bin/sh\necho unwanted >&2\nexit 1\n")
        assert checkout.run() == Ended(0, "chat-models hello\n", "")

    def test_follows_pyproject(self, checkout: Checkout) -> None:
        checkout.run()
        checkout.asked()
        with (checkout.root / "pyproject.toml").open("a") as file:
            file.write("# changed\n")
        assert "bringing" in checkout.run().stderr
        assert checkout.asked() == ["[check,embedded,serve]"]
        assert checkout.run().stderr == ""

    def test_is_left_alone_where_pyproject_is_only_newer(self, checkout: Checkout) -> None:
        checkout.run()
        checkout.asked()
        os.utime(checkout.root / "pyproject.toml")
        assert checkout.run().stderr == ""
        assert checkout.asked() == []

    def test_is_made_again_where_its_making_was_broken_off(self, checkout: Checkout) -> None:
        checkout.run()
        checkout.asked()
        (checkout.root / ".venv" / ".complete").unlink()
        assert checkout.run().code == 0
        assert checkout.asked() == ["venv", "[check,embedded,serve]"]

    def test_is_made_again_where_the_checkout_was_moved(self, checkout: Checkout) -> None:
        checkout.run()
        checkout.asked()
        old = checkout.root
        checkout.root = old.with_name("moved a checkout")
        old.rename(checkout.root)
        assert checkout.run().code == 0
        assert checkout.asked() == ["venv", "[check,embedded,serve]"]

    def test_does_without_the_embedded_engine_where_it_cannot_be_had(self, checkout: Checkout) -> None:
        checkout.make_python(failing=r"\[check,embedded,serve\]")
        ended = checkout.run()
        assert (ended.code, ended.stdout) == (0, "chat-models hello\n")
        assert "set LLAMA_SERVER or put llama-server on PATH" in ended.stderr
        assert checkout.asked() == ["venv", "[check,embedded,serve]", "[check,serve]"]

    def test_says_so_where_nothing_can_be_installed(self, checkout: Checkout) -> None:
        checkout.make_python(failing="pip")
        ended = checkout.run()
        assert ended.code == 1
        assert ended.stderr.splitlines()[-1].endswith("see above; is there a network?")
        assert not (checkout.root / ".venv" / ".complete").exists()

    def test_needs_a_python_that_is_new_enough(self, checkout: Checkout) -> None:
        for name in ("python3", "python3.11", "python3.12", "python3.13"):
            (checkout.tools / name).write_text("#!/bin/sh\nexit 1\n")
            (checkout.tools / name).chmod(0o755)
        ended = checkout.run()
        assert (ended.code, len(ended.stderr.splitlines())) == (1, 1)
        assert "needs Python 3.11 or newer" in ended.stderr

    def test_a_start_that_waits_for_another_says_so(self, checkout: Checkout) -> None:
        with (checkout.root / ".venv.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with subprocess.Popen(
                [checkout.root / "bin" / "chat-models", "hello"],
                env={**checkout.home.env, **checkout.env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                assert process.stderr
                assert select.select([process.stderr], [], [], RUN_LIMIT_S)[0], "it waits and does not say so"
                assert "another start is making" in process.stderr.readline()
                fcntl.flock(lock, fcntl.LOCK_UN)
                assert process.communicate(timeout=RUN_LIMIT_S)[0] == "chat-models hello\n"

    def test_is_made_once_where_two_start_together(self, checkout: Checkout) -> None:
        both = [
            subprocess.Popen(
                [checkout.root / "bin" / "chat-models", "hello"],
                env={**checkout.home.env, **checkout.env},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for process in both:
            stdout, stderr = process.communicate(timeout=RUN_LIMIT_S)
            assert (process.returncode, stdout) == (0, "chat-models hello\n"), stderr
        assert checkout.asked() == ["venv", "[check,embedded,serve]"]
