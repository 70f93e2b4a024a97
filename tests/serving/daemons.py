"""A real `serve-models` process in a home of its own, with tiny models that answer their own name."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from modelpipes.fit.spec import spec_of
from modelpipes.serving import budget
from modelpipes.values.deadline import Deadline
from tests.drill.processes import Id, command_line, descendants, living
from tests.models import scripted_model
from tests.peers import holds_in_time
from tests.shell import Home

LIMIT_S = 30.0  # far more than anything here takes; the deadline of every wait
ANSWER_S = 60.0  # of one request: its engine may hang, and the daemon looks twice before it ends that
NAMES = ("alpha", "beta", "gamma")
CTX_SIZE = 512
PAD_MIB = 4  # so that weights count in a prediction; one thread still computes them in a millisecond
KEY = "sesame"


def write_models(folder: Path, names: Sequence[str] = NAMES, words: str = "This is {}.") -> dict[str, Path]:
    """A model file for each name, which answers `words`."""
    return {
        name: scripted_model(folder / f"{name}.gguf", words.format(name), name=name, pad_mib=PAD_MIB) for name in names
    }


def predicted_bytes(file: Path) -> int:
    """What an engine of this model is charged with, of a card in name only."""
    place = budget.Place(n_devices=0, is_charged=True)
    return budget.Demand(spec_of(str(file), ctx_size=CTX_SIZE), place)().card


class Said:
    """The lines of a process as they come."""

    def __init__(self, stream: Any) -> None:
        self.lines: list[str] = []
        self._has_ended = False
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str, after: int = 0) -> re.Match[str]:
        """The first match in the lines from `after` on, once it is there."""

        def find() -> re.Match[str] | None:
            return next((found for line in self.lines[after:] if (found := re.search(pattern, line))), None)

        with self._came:
            self._came.wait_for(lambda: find() or self._has_ended, LIMIT_S)
            found = find()
        assert found, f"nobody said {pattern!r}: {self.lines}"
        return found

    def close(self) -> None:
        self._reader.join(LIMIT_S)

    def _read(self, stream: Any) -> None:
        with stream:
            for line in stream:
                with self._came:
                    self.lines.append(line.rstrip("\n"))
                    self._came.notify_all()
        with self._came:
            self._has_ended = True
            self._came.notify_all()


class Refusal(Exception):
    """An answer that is none: its status, the words and the code of the fault."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status} {body!r}")
        self.status = status
        self.headers = headers
        fault = json.loads(body)["error"]
        self.text: str = fault["message"]
        self.code: str = fault["code"]


class Served(Home):
    """A home in which daemons run; `with` ends them, and sees that nothing of them is left."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.env |= {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.config = self.cwd / "models.toml"
        self.listen = "127.0.0.1:0"
        self.key = ""
        self.process: subprocess.Popen[str]
        self.said: Said
        self._started: list[tuple[subprocess.Popen[str], Said]] = []

    # -- the daemon

    def write(self, files: Mapping[str, Path], more: Mapping[str, str] | None = None, **sections: str) -> None:
        """The configuration: lines for `server` and `memory`, and `more` lines for each model by name."""
        text = f'[server]\nlisten = "{self.listen}"\n{sections.get("server", "")}\n'
        text += f"[memory]\nmin_resident_s = 0\n{sections.get('memory', '')}\n"
        for name, file in files.items():
            text += f'[models.{name}]\nfile = "{file}"\nctx_size = {CTX_SIZE}\n{(more or {}).get(name, "")}\n'
        self.config.write_text(text)

    def start(self, *arguments: str) -> str:
        """Start a daemon; where it listens, once it does. The next one takes the same address."""
        self.process, self.said = self.begin(*arguments)
        self.listen = self.said.wait_for(r"models? on (\S+), with")[1]
        return self.listen

    def begin(self, *arguments: str) -> tuple[subprocess.Popen[str], Said]:
        """Start a daemon, and do not wait for it."""
        return self.spawn("serve", str(self.config), *arguments)

    def command(self, verb: str, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "modelpipes", verb, *arguments]

    def spawn(self, verb: str, *arguments: str) -> tuple[subprocess.Popen[str], Said]:
        """Start a command, and see that it ends with us."""
        argv = self.command(verb, *arguments)
        process = subprocess.Popen(
            argv, cwd=self.cwd, env=self.env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        said = Said(process.stderr)
        self._started.append((process, said))
        return process, said

    def restart(self, *arguments: str) -> None:
        """A new daemon on the address of the last one."""
        self.start("--listen", self.listen, *arguments)

    def reload(self, pattern: str = "read again") -> str:
        """Have the daemon read its configuration again; what it says of that."""
        before = len(self.said.lines)
        self.process.send_signal(signal.SIGHUP)
        return self.said.wait_for(pattern, before).string

    def end(self, signum: int = signal.SIGTERM) -> int:
        """How the daemon ends."""
        self.process.send_signal(signum)
        return self.process.wait(LIMIT_S)

    def family(self) -> set[Id]:
        """All that the daemon started, guards among them."""
        return descendants(self.process.pid)

    def engines(self) -> dict[str, int]:
        """The pid of the engine of each model in memory."""
        found = {}
        for one in living(self.family()):
            words = command_line(one.pid)
            if "--model" in words:
                found[Path(words[words.index("--model") + 1]).stem] = one.pid
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *given: object) -> None:
        for process, said in reversed(self._started):
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(LIMIT_S)
            finally:
                with contextlib.suppress(OSError):
                    process.kill()
                process.wait()
                said.close()
        assert self.left_processes() == []

    # -- its clients

    def connect(self) -> http.client.HTTPConnection:
        if not self.listen.startswith("unix:"):
            return http.client.HTTPConnection(self.listen, timeout=ANSWER_S)
        connection = http.client.HTTPConnection("localhost", timeout=ANSWER_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(ANSWER_S)
        connection.sock.connect(self.listen.removeprefix("unix:"))
        return connection

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, **body: Any) -> Any:
        return self._ask("POST", path, body or None)

    def _ask(self, method: str, path: str, body: Any) -> Any:
        with contextlib.closing(self.connect()) as connection:
            self._send(connection, method, path, body)
            response = connection.getresponse()
            text = response.read()
            if response.status != http.client.OK:
                raise Refusal(response.status, text, {name.lower(): value for name, value in response.getheaders()})
            return json.loads(text)

    def _send(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any) -> None:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)

    def ask(self, name: str, **more: Any) -> str:
        """A whole answer of a model."""
        answer = self.post("/v1/chat/completions", model=name, messages=QUESTION, **more)
        content: str = answer["choices"][0]["message"]["content"]
        return content

    def stream(self, name: str, **more: Any) -> Iterator[str]:
        """The events of an answer, as they come."""
        with contextlib.closing(self.connect()) as connection:
            body = {"model": name, "messages": QUESTION, "stream": True} | more
            self._send(connection, "POST", "/v1/chat/completions", body)
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise Refusal(response.status, response.read(), dict(response.getheaders()))
            event = ""
            for line in response:
                if line.startswith(b"data: "):
                    yield (event := line[6:].decode().rstrip("\n"))
            if event != "[DONE]" and '"error"' not in event:  # http.client takes a lost connection for an end
                raise http.client.IncompleteRead(event.encode())

    def residency(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/residency")
        return found

    def states(self) -> dict[str, str]:
        return {one["name"]: one["state"] for one in self.residency()["resident"]}

    def wait_for_states(self, **wanted: str) -> None:
        """Return once exactly these models are in memory, in these states."""
        deadline = Deadline.after(LIMIT_S)
        assert holds_in_time(lambda: self.states() == wanted, deadline), (self.states(), wanted, self.said.lines)


QUESTION = [{"role": "user", "content": "Hello."}]


def words_of(events: Sequence[str]) -> str:
    """What the events of a stream say together."""
    deltas = [json.loads(event)["choices"] for event in events if event != "[DONE]"]
    return "".join(choices[0]["delta"].get("content") or "" for choices in deltas if choices)
