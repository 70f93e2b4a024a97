"""Shell scripts run as a person would run them, in a home of their own, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelpipes.values.deadline import Deadline

CHECKOUT = Path(__file__).parent.parent
BIN = CHECKOUT / "bin"
TINY_CHAT = CHECKOUT / "pipes" / "modelpipes" / "models" / "tiny-chat.gguf"
RUN_LIMIT_S = 240.0  # a busy machine starts twenty engines in this time; a hang is found all the same
# For a process that must run as it is, also under `make coverage`: one whose imports count, or that may write no file.
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": ""}
LEAVING_S = 20.0  # for what a script started to be gone after it; clean-up takes milliseconds, on an idle machine


@dataclass(frozen=True)
class Ended:
    """How a run ended, and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


class Home:
    """A home, a runtime folder and a working directory for one script and all that it starts."""

    def __init__(self, base: Path) -> None:
        self.cwd, self.runtime, self.temporary, home = (base / name for name in ("work", "run", "tmp", "home"))
        for folder in (self.cwd, self.runtime, self.temporary, home):
            folder.mkdir(mode=0o700, parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIPE_", "OPENAI_", "XDG_"))}
        self.env = kept | {"HOME": str(home), "XDG_RUNTIME_DIR": str(self.runtime), "TMPDIR": str(self.temporary)}

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        typed: str = "",
        env: Mapping[str, str] | None = None,
        limit_s: float = RUN_LIMIT_S,
    ) -> Ended:
        """Run a program to its end, `typed` on its stdin; TimeoutExpired, and all of it killed, at the limit.

        Its output goes to files: what it leaves running must not keep us waiting for a pipe's end.
        """
        files = [self.temporary.parent / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(typed)
        with open(files[0]) as stdin, open(files[1], "w") as stdout, open(files[2], "w") as stderr:
            process = subprocess.Popen(
                [str(word) for word in argv],
                cwd=self.cwd,
                env={**self.env, **(env or {})},
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                code = process.wait(limit_s)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        return Ended(code, files[1].read_text(), files[2].read_text())

    def left_processes(self) -> list[str]:
        """The command lines of what was started here and does not end by itself, which is killed."""
        deadline = Deadline.after(LEAVING_S)
        left: list[str] = []
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError), _pidfd(pid) as descriptor:
                if not _has_ended(descriptor, deadline):
                    left.append(_command_line(pid))
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return left

    def left_files(self) -> list[str]:
        """Every file, FIFO and socket in the runtime and temporary folders."""
        folders = (self.runtime, self.temporary)
        return [str(path) for folder in folders for path in folder.rglob("*") if not path.is_dir()]

    def _pids(self) -> list[int]:
        mark = f"XDG_RUNTIME_DIR={self.runtime}".encode()
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                # A zombie has no environment, and another user's process shows none.
                with contextlib.suppress(OSError):
                    if mark in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                        found.append(int(entry))
        return found


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _has_ended(descriptor: int, deadline: Deadline) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(deadline.poll_ms()))


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path("/proc", str(pid), "cmdline").read_text("utf-8", "replace").replace("\0", " ").strip()
    return f"process {pid}"


class HeldEngine:
    """An engine that loads a model only when it is let: `engine` is its program, for $LLAMA_SERVER."""

    def __init__(self, folder: Path) -> None:
        self.engine = folder / "llama-server"
        self._gate = folder / "gate"
        os.mkfifo(self._gate)
        self.engine.write_text(
            '#!/bin/sh\ncase "$*" in *--model*) read -r _ < "${0%/*}/gate" ;; esac\n'
            f'exec "{sys.executable}" -P -m modelpipes.engine.embedded "$@"\n'
        )
        self.engine.chmod(0o755)

    def let_load(self) -> None:
        """Let the one that waits go on; returns once it does."""
        with open(self._gate, "w") as gate:
            gate.write("go\n")
