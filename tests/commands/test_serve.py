"""serve-models: what it tells of a daemon that runs, and what it has it do."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.peers import eventually
from tests.serving.daemons import KEY, LIMIT_S, NAMES, Said, Served, write_models
from tests.shell import Ended


class Commands(Served):
    """Commands beside the daemon that they speak to."""

    def __call__(self, *words: str) -> Ended:
        return self.run(self.command("serve", *words), limit_s=LIMIT_S)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """One daemon, with a key, for all who only ask it."""
    with Commands(tmp_path_factory.mktemp("commands") / "place") as served:
        served.key = KEY
        served.write(write_models(served.cwd), server=f'key = "{KEY}"')
        served.start("--vram", "1GiB")
        yield served


@pytest.fixture
def serve(daemon: Commands) -> Commands:
    """It, with nothing in memory."""
    for name in daemon.states():
        daemon.post(f"/models/{name}/unpin")
        daemon.post(f"/models/{name}/unload")
    return daemon


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Commands]:
    """A home in which no daemon runs."""
    with Commands(tmp_path / "place") as served:
        yield served


def test_status_shows_every_model_what_it_takes_and_the_last_decisions_why(serve: Commands) -> None:
    serve.ask("beta")
    serve.post("/models/beta/pin")
    told = serve("status")
    assert told.code == 0
    rows = {line.split()[0]: line for line in told.lines}
    assert set(NAMES) <= rows.keys()
    assert "ready, pinned" in rows["beta"] and "ready" not in rows["alpha"]
    assert "card " in told.stderr and "of 1.0 GiB" in told.stderr and "load beta: beta: " in told.stderr


def test_status_as_json_is_what_residency_answers(serve: Commands) -> None:
    serve.ask("alpha")
    told = serve("status", "--json")
    assert told.code == 0 and not told.stderr
    now = json.loads(told.stdout)
    assert [(one["name"], one["state"], one["busy"]) for one in now["resident"]] == [("alpha", "ready", 0)]
    assert now["used_bytes"] == now["resident"][0]["bytes"] and now["budget_bytes"] == 2**30
    assert now.keys() == serve.residency().keys()


def test_a_model_is_loaded_pinned_unpinned_and_unloaded_by_name(serve: Commands) -> None:
    assert serve("load", "gamma").stderr == "serve-models: gamma is ready\n"
    assert serve("pin", "gamma").stderr == "serve-models: gamma is ready, pinned\n"
    refused = serve("unload", "gamma")
    assert (refused.code, refused.stdout) == (1, "")
    assert "gamma is pinned: unpin it first" in refused.stderr
    assert serve("unpin", "gamma").code == 0
    told = serve("unload", "gamma", "--json")
    assert json.loads(told.stdout) == {"name": "gamma", "state": "unloaded", "pinned": False}
    assert serve.states() == {}


def test_logs_shows_what_the_engine_says_and_follows_it_to_its_end(serve: Commands) -> None:
    serve.ask("alpha")
    told = serve("logs", "alpha")
    assert told.code == 0 and any("engine alpha started" in line for line in told.lines)
    process = subprocess.Popen(
        serve.command("serve", "logs", "alpha", "-f"), env=serve.env, stdout=subprocess.PIPE, text=True
    )
    said = Said(process.stdout)
    said.wait_for("engine alpha started")
    assert process.poll() is None
    serve.post("/models/alpha/unload")
    assert process.wait(LIMIT_S) == 0
    said.close()
    gone = serve("logs", "alpha")
    assert gone.code == 1 and "alpha is not loaded" in gone.stderr


def test_reload_has_the_daemon_read_its_configuration_again_and_tells_what_is_wrong_with_it(alone: Commands) -> None:
    files = write_models(alone.cwd, ("alpha", "beta"))
    alone.write({"alpha": files["alpha"]})
    alone.start("--vram", "1GB")
    alone.write(files)
    assert alone("reload").code == 0
    alone.said.wait_for("read again: 2 models")
    alone.config.write_text("[memmory]\n")
    told = alone("reload")
    assert told.code == 2
    assert len(told.stderr.splitlines()) == 1 and "memmory is no key: did you mean memory?" in told.stderr


def test_where_none_runs_an_action_says_so_and_how_to_start_one(alone: Commands) -> None:
    for words in (("status",), ("load", "x"), ("reload",)):
        told = alone(*words)
        assert (told.code, told.stdout) == (1, "")
        assert told.stderr.endswith("no serve-models runs: start one with serve-models CONFIG.toml\n")
    told = alone("status", "--listen", "127.0.0.1:1")
    assert told.code == 1 and "no serve-models runs on 127.0.0.1:1" in told.stderr


def test_an_action_waits_for_a_daemon_that_starts(alone: Commands) -> None:
    alone.write(write_models(alone.cwd, ("alpha",)))
    process, said = alone.spawn("serve", "load", "alpha", "--wait", "30s")
    alone.start("--vram", "1GB")
    assert process.wait(LIMIT_S) == 0
    assert said.wait_for("alpha is ready")
    eventually(lambda: alone.states() == {"alpha": "ready"}, "alpha in memory")


def test_of_two_daemons_the_address_says_which_is_meant(alone: Commands) -> None:
    alone.write(write_models(alone.cwd, ("alpha",)))
    first = alone.start("--vram", "1GB")
    second = alone.start("--vram", "2GiB", "--listen", "127.0.0.1:0")
    told = alone("status")
    assert told.code == 2
    assert "--listen is missing" in told.stderr and first in told.stderr and second in told.stderr
    assert "of 2.0 GiB" in alone("status", "--listen", second).stderr


def test_a_name_that_is_not_served_fails_with_the_ones_that_are(serve: Commands) -> None:
    told = serve("load", "nix")
    assert told.code == 1 and "nix" in told.stderr and len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("load",), "serve-models load takes one NAME"),
        (("status", "alpha"), "serve-models status takes no name"),
        (("status", "-f"), "--follow is for logs"),
        (("status", "--vram", "1GB"), "--vram is for a daemon that starts"),
        (("a.toml", "b.toml"), "'a.toml' is no action"),
        (("stat",), "'stat' is no action, nor a file: did you mean status?"),
        (("/dev/null", "--json"), "--wait, --follow, --since, --format and --json are for an action"),
        (("a.toml",), "a.toml: modelpipes config example prints one"),
        (("--listen", "nowhere"), "'nowhere' is no place to listen"),
        (("--listen", "0.0.0.0:0"), "set a key ([server] key_file), or listen on 127.0.0.1"),
    ],
)
def test_wrong_usage_is_told_in_one_line(alone: Commands, words: tuple[str, ...], said: str) -> None:
    told = alone(*words)
    assert (told.code, told.stdout) == (2, "")
    assert said in told.stderr and len(told.stderr.splitlines()) == 1


def test_a_home_without_models_says_what_to_do(alone: Commands) -> None:
    empty = alone.cwd / "empty"
    empty.mkdir()
    alone.config.write_text(f'[scan]\ndirectories = ["{empty}"]\n')
    told = alone(str(alone.config))
    assert told.code == 1
    assert "there is no model to serve: name some in a CONFIG.toml" in told.stderr


def test_help_shows_examples_on_lines_of_80(alone: Commands) -> None:
    told = alone("--help")
    assert told.code == 0 and max(map(len, told.lines)) <= 80
    for example in ("serve-models models.toml", "serve-models status", "serve-models logs qwen -f"):
        assert example in told.stdout


class Terminal:
    """A terminal of one's own, in which a command runs; what it shows is read on the side, as an emulator does."""

    def __init__(self, alone: Commands, command: Sequence[str]) -> None:
        self._is_closing = threading.Event()
        self._terminal, theirs = pty.openpty()
        words = ["setsid", "--ctty", *command]
        self._process = subprocess.Popen(
            words, cwd=alone.cwd, env=alone.env, stdin=theirs, stdout=theirs, stderr=theirs
        )
        self.pid = self._process.pid
        os.close(theirs)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert alone("status", "--wait", f"{LIMIT_S:g}").code == 0

    def _read(self) -> None:
        poll = select.poll()
        poll.register(self._terminal, select.POLLIN)
        with contextlib.suppress(OSError):  # how the end of a terminal reads
            while not self._is_closing.is_set():
                if poll.poll(50):
                    os.read(self._terminal, 65536)

    def close(self) -> None:
        """As who closes its window."""
        self._is_closing.set()
        self._reader.join(LIMIT_S)
        os.close(self._terminal)

    def code(self) -> int:
        """How the command ended."""
        return self._process.wait(LIMIT_S)


@pytest.fixture
def models(alone: Commands) -> Commands:
    alone.write(write_models(alone.cwd, ("alpha",)))
    return alone


def serving(models: Commands) -> list[str]:
    return models.command("serve", "--config", str(models.config), "--listen", "127.0.0.1:0", "--vram", "1GB")


def test_closing_the_terminal_ends_a_daemon_in_its_foreground_and_its_engines(models: Commands) -> None:
    terminal = Terminal(models, serving(models))
    assert models("load", "alpha").code == 0
    terminal.close()
    assert terminal.code() == 129
    eventually(lambda: not models.left_processes(), "end of the engines")


def test_closing_the_terminal_ends_a_daemon_that_a_shell_started(models: Commands) -> None:
    terminal = Terminal(models, ["bash", "-c", f"{shlex.join(serving(models))}; echo $? > code"])
    terminal.close()
    assert terminal.code() == -signal.SIGHUP
    eventually(lambda: not models.left_processes(), "end of the daemon")


def test_a_daemon_in_a_terminal_reads_its_configuration_again_all_the_same(models: Commands) -> None:
    terminal = Terminal(models, serving(models))
    models.write(write_models(models.cwd, ("alpha", "beta")))
    assert models("reload").code == 0
    eventually(lambda: "beta" in models("status").stdout, "new model")
    terminal.close()
    assert terminal.code() == 129


def test_nohup_keeps_a_daemon_whose_terminal_is_closed(models: Commands) -> None:
    terminal = Terminal(models, ["sh", "-c", f"trap '' HUP; exec {shlex.join(serving(models))} >/dev/null 2>&1"])
    terminal.close()
    os.kill(terminal.pid, signal.SIGHUP)
    assert models("status").code == 0
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.code() == 143
