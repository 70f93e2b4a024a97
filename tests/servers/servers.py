"""Servers of others, each in an environment of its own that stays between runs: what is installed, and how it starts.

python -m tests.servers.servers NAME    install one, and say where it lies
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.shell import CHECKOUT

# Before the tests put their own in its place: a server is installed once, not in every run.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelpipes-tests" / "servers"
HERE = Path(__file__).parent
TINY_CHAT = CHECKOUT / "pipes" / "modelpipes" / "models" / "tiny-chat.gguf"
INSTALL_S, BUILD_S = 300.0, 3600.0
START_S = 120.0  # LiteLLM's proxy imports for 9 s of processor time, and compiles what it imports the first time
KEY = "sk-of-the-tests-and-of-nobody-else-0123456789"


@dataclass(frozen=True)
class Server:
    """A server of others. In `commands` and `files`, `{python}`, `{engine}` and ports stand for what a run has."""

    name: str
    packages: Sequence[str]  # the first is whose version the docs tell
    commands: Sequence[Sequence[str]]  # the last one is asked, at {port}
    model: str = "tiny"
    files: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str = "/v1/models"
    key: str = ""
    knows_models: bool = True  # refuses a name of none
    counts: bool = True  # tells tokens in a stream
    on_demand: bool = False  # takes long to install

    @property
    def folder(self) -> Path:
        return (
            CACHE / f"{self.name}-{self.packages[0].rpartition('==')[2]}-py{sys.version_info[0]}{sys.version_info[1]}"
        )


LITELLM_FILE = """
model_list:
  - model_name: tiny
    litellm_params: {model: openai/tiny-chat, api_base: "{engine}/v1", api_key: none}
"""
SERVERS = {
    server.name: server
    for server in (
        Server(
            "litellm",
            ["litellm[proxy]==1.108.7"],
            [("{bin}/litellm", "--config", "litellm.yaml", "--host", "127.0.0.1", "--port", "{port}")],
            files={"litellm.yaml": LITELLM_FILE},
            env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY},
            key=KEY,
        ),
        Server(
            "fastchat",
            # Its server gives pydantic 2 arguments that only pydantic 1 takes, amid each answer.
            ["fschat==0.2.36", "pydantic<2", "fastapi<0.112"],
            [
                ("{bin}/python", "-m", "fastchat.serve.controller", "--host", "127.0.0.1", "--port", "{port1}"),
                ("{bin}/python", f"{HERE}/fastchat_worker.py", "{engine}", "{port2}", "http://127.0.0.1:{port1}"),
                (
                    *("{bin}/python", "-m", "fastchat.serve.openai_api_server", "--host", "127.0.0.1"),
                    *("--port", "{port}", "--controller-address", "http://127.0.0.1:{port1}"),
                ),
            ],
            counts=False,
        ),
        Server(
            "litserve",
            ["litserve==0.2.19"],
            [("{bin}/python", f"{HERE}/litserve_server.py", "{engine}", "{port}")],
            ready="/health",
            knows_models=False,
            counts=False,
        ),
        Server(
            "llama-cpp-python",
            ["llama-cpp-python[server]==0.3.36"],
            [
                (
                    *("{bin}/python", "-m", "llama_cpp.server", "--model", str(TINY_CHAT), "--model_alias", "tiny"),
                    *("--n_ctx", "1024", "--n_threads", "1", "--host", "127.0.0.1", "--port", "{port}"),
                )
            ],
            knows_models=False,
            counts=False,
            on_demand=True,
        ),
    )
}


class NotInstalled(Exception):
    """Says why."""


def install(server: Server) -> Path:
    """The programs of a server, installed where they are not yet; NotInstalled."""
    programs = server.folder / "bin"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{server.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other runs may want the same
        if (server.folder / "whole").exists():
            return programs
        made = [sys.executable, "-m", "venv", "--clear", str(server.folder)]
        pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", *server.packages]
        env = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "COVERAGE_PROCESS_START")
        }
        for command in (made, pip):
            try:
                limit_s = BUILD_S if server.on_demand else INSTALL_S
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit_s, env=env)
            except subprocess.CalledProcessError as error:
                raise NotInstalled((error.stderr.strip().splitlines() or ["pip failed"])[-1]) from None
            except subprocess.TimeoutExpired as error:
                raise NotInstalled(f"it took longer than {error.timeout:g} s") from None
        (server.folder / "whole").touch()
        return programs


@contextlib.contextmanager
def running(server: Server, engine: str, folder: Path) -> Iterator[str]:
    """Its address while it runs, with the model of the engine at that address; its files and logs are in `folder`."""
    programs = install(server)
    given = {"bin": str(programs), "engine": engine, "port": _free_port(), "port1": _free_port(), "port2": _free_port()}
    for name, text in server.files.items():
        (folder / name).write_text(text.replace("{engine}", engine))
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "LOGDIR": str(folder), **server.env}
    url = f"http://127.0.0.1:{given['port']}"
    started: list[subprocess.Popen[bytes]] = []
    log = (folder / "log").open("wb")
    try:
        for number, command in enumerate(server.commands):
            words = [word.format(**given) for word in command]
            started.append(subprocess.Popen(words, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True))
            is_last = number == len(server.commands) - 1
            port = given["port"] if is_last else given[f"port{number + 1}"]
            await_answer(f"http://127.0.0.1:{port}{server.ready if is_last else '/'}", server, started[-1], folder)
        yield url
    finally:
        for process in reversed(started):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)  # some start others, and leave them behind
            process.wait()
        log.close()


def await_answer(url: str, server: Server, process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait until something is said there."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {server.key}"} if server.key else {})
    end_s = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=START_S):
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                return  # it is there, and has no such page
        except OSError:
            pass
        assert process.poll() is None, f"{server.name} ended: {(folder / 'log').read_text()[-2000:]}"
        assert time.monotonic() < end_s, f"{server.name} does not answer: {(folder / 'log').read_text()[-2000:]}"
        time.sleep(0.1)


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


if __name__ == "__main__":
    print(install(SERVERS[sys.argv[1]]).parent)
