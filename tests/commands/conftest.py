"""The real commands, run in a home of their own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.pipe.room import Room
from modelpipes.values.deadline import Deadline
from tests.shell import Ended, Home

LIMIT_S = 30.0
QUICK_ENGINE = ("--engine-arg=--threads", "--engine-arg=1", "--ctx-size=1024")  # spinning threads share our two cores


class Commands(Home):
    """Commands in one room; what was started in the background is ended with the test."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.room = Room(str(base / "room"))
        self.env |= {"PIPE_DIR": self.room.path, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._started: list[subprocess.Popen[bytes]] = []

    def command(self, verb: str, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "modelpipes", verb, *arguments]

    def __call__(self, verb: str, *arguments: str, typed: str = "", **env: str) -> Ended:
        """Run a command to its end."""
        return self.run(self.command(verb, *arguments), typed=typed, env=env, limit_s=LIMIT_S)

    def start(self, verb: str, *arguments: str, stdin: int = subprocess.DEVNULL, **env: str) -> subprocess.Popen[bytes]:
        """Run a command in the background, its output in pipes."""
        process = subprocess.Popen(
            self.command(verb, *arguments),
            cwd=self.cwd,
            env=self.env | env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def attach(self, seat: str, *options: str, **env: str) -> subprocess.Popen[bytes]:
        """Seat a member in the background; returns when it is ready."""
        if not os.path.isdir(self.room.path) or seat not in self.room.seats():
            assert self("setup", seat).code == 0
        process = self.start("attach", seat, *options, stdin=subprocess.DEVNULL, **env)
        self.room.wait_for([seat], Deadline.after(LIMIT_S))
        return process

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(LIMIT_S)
            finally:
                with contextlib.suppress(OSError):
                    process.kill()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream:
                        with contextlib.suppress(BrokenPipeError):
                            stream.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path)
    yield commands
    commands.close()
    assert commands.left_processes() == []
