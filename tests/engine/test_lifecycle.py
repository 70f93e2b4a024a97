"""One llama-server, owned: with every engine that this machine has."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from modelpipes.deadline import Deadline
from modelpipes.engine.client import Client
from modelpipes.engine.lifecycle import Engine, essence
from modelpipes.engine.locate import EngineChoice
from modelpipes.errors import DeadlineError, EngineError, FileError

LIMIT_S = 30.0


def state_of(engine: Engine) -> str:
    return engine.state.value


def test_it_goes_from_stopped_to_ready_to_stopped(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind)
    assert (state_of(engine), engine.pid, engine.pidfd, engine.exit_reason()) == ("stopped", -1, -1, None)
    engine.be_ready(Deadline.after(LIMIT_S))
    assert state_of(engine) == "ready"
    assert httpx.get(engine.base_url + "/health").status_code == 200
    pid = engine.pid
    engine.stop()
    assert state_of(engine) == "stopped"
    assert engine.exit_reason() == "stopped by us"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    engine.stop()


def test_it_can_be_started_again(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        first = engine.pid
        engine.stop()
        engine.be_ready(Deadline.after(LIMIT_S))
        assert engine.pid != first
        assert engine.exit_reason() is None


@pytest.mark.parametrize("parallel", [1, 3])
def test_each_conversation_has_the_whole_context(kind: EngineChoice, hello: str, parallel: int) -> None:
    with Engine(hello, engine=kind, ctx_size=1024, parallel=parallel) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        client = Client(engine.base_url)
        assert client.context_size() == 1024
        assert len(httpx.get(engine.base_url + "/slots").json()) == parallel


def test_a_start_in_flight_is_joined(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind) as engine:
        pids: list[int] = []

        def join() -> None:
            engine.be_ready(Deadline.after(LIMIT_S))
            pids.append(engine.pid)

        threads = [threading.Thread(target=join) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert len(pids) == 5
        assert len(set(pids)) == 1


def test_a_start_outlives_a_caller_that_waits_no_longer(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind) as engine:
        with pytest.raises(DeadlineError):
            engine.be_ready(Deadline.after(0))
        engine.be_ready(Deadline.after(LIMIT_S))


def test_stopping_amid_a_start_ends_both(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind)
    with pytest.raises(DeadlineError):
        engine.be_ready(Deadline.after(0))
    engine.stop()
    assert state_of(engine) == "stopped"


def test_a_death_is_seen_at_once_and_told(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        os.kill(engine.pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(engine.pidfd, select.POLLIN)
        assert poll.poll(LIMIT_S * 1000)
        assert state_of(engine) == "failed"
        assert "killed by SIGKILL" in str(engine.exit_reason())
        engine.be_ready(Deadline.after(LIMIT_S))  # a failed engine is started anew
        assert state_of(engine) == "ready"


def test_a_broken_model_file_is_known_at_once(kind: EngineChoice, hello: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(hello).read_bytes()[:100_000])
    engine = Engine(str(broken), engine=kind)
    with pytest.raises(EngineError, match=r"exit code 1: .*corrupted or incomplete"):
        engine.be_ready(Deadline.after(LIMIT_S))
    assert state_of(engine) == "failed"
    engine.stop()


def test_a_bad_option_is_known_at_once(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind, engine_args=["--no-such-option"])
    with pytest.raises(EngineError, match="invalid argument: --no-such-option"):
        engine.be_ready(Deadline.after(LIMIT_S))
    engine.stop()


def test_a_taken_port_is_told(kind: EngineChoice, hello: str, hello_engine: Engine) -> None:
    # A healthy stranger on the port must not pass for ours.
    port = hello_engine.base_url.rpartition(":")[2]
    engine = Engine(hello, engine=kind, engine_args=["--port", port])
    with pytest.raises(EngineError, match=f"port {port} is taken"):
        engine.be_ready(Deadline.after(LIMIT_S))
    engine.stop()


def test_a_port_taken_in_between_is_replaced(kind: EngineChoice, hello: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = [taken.getsockname()[1], free.getsockname()[1]]
        free.close()
        monkeypatch.setattr("modelpipes.engine.lifecycle._find_free_port", lambda: ports.pop(0))
        with Engine(hello, engine=kind) as engine:
            engine.be_ready(Deadline.after(LIMIT_S))
            assert ports == []


def test_the_users_own_options_come_last(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, engine_args=["--alias", "bob", "--api-key", "secret", "-c", "512"]) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        client = Client(engine.base_url, api_key=engine.api_key)
        assert client.models() == ["bob"]
        assert client.context_size() == 512


def test_an_open_stream_does_not_keep_it_from_stopping(kind: EngineChoice, folder: Path) -> None:
    engine = Engine(str(folder / "endless.gguf"), engine=kind)
    engine.be_ready(Deadline.after(LIMIT_S))
    client = Client(engine.base_url)
    with client.chat([{"role": "user", "content": "x"}], silence_s=5) as stream:
        next(stream)
        begun_s = time.monotonic()
        engine.stop()
        assert time.monotonic() - begun_s < 5


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_answers_that_were_just_ended_do_not_keep_it_from_stopping(kind: EngineChoice, folder: Path, how: str) -> None:
    # A llama-server that got TERM while such an answer ended waited for it until it was killed, 3 s later.
    for _ in range(4):
        engine = Engine(str(folder / "endless.gguf"), engine=kind)
        engine.be_ready(Deadline.after(LIMIT_S))
        stream = Client(engine.base_url).chat([{"role": "user", "content": "x"}], silence_s=5)
        next(stream)
        if how == "cancelled":
            stream.cancel()
        else:
            stream.close()
        begun_s = time.monotonic()
        engine.stop()
        assert time.monotonic() - begun_s < 2
        stream.close()


def test_a_suspended_engine_is_stopped_too(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind)
    engine.be_ready(Deadline.after(LIMIT_S))
    os.kill(engine.pid, signal.SIGSTOP)
    begun_s = time.monotonic()
    engine.stop()
    assert time.monotonic() - begun_s < 5


def test_a_model_that_vanishes_before_the_start_is_told(kind: EngineChoice, hello: str, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(Path(hello).read_bytes())
    engine = Engine(str(model), engine=kind)
    model.unlink()
    with pytest.raises(EngineError, match=r"cannot be started: .*No such file"):
        engine.be_ready(Deadline.after(LIMIT_S))
    engine.stop()


def test_an_option_of_ones_own_may_be_one_word(hello: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Engine(hello, engine="embedded", engine_args=[f"--port={port}"]) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        assert engine.base_url == f"http://127.0.0.1:{port}"


def test_a_missing_model_is_told_before_anything_starts(kind: EngineChoice) -> None:
    with pytest.raises(FileError):
        Engine("/no/model.gguf", engine=kind)


def test_the_first_error_of_a_log_is_its_essence() -> None:
    log = ["0.00.001 I srv  starting", "0.00.002 E llama:   out of  memory", "0.00.003 E srv  exiting"]
    assert essence(log) == "llama: out of memory"
    assert essence(["usage: x", "error: invalid argument: --x"]) == "invalid argument: --x"
    assert essence(["one", "two"]) == "two"
    assert essence([]) == ""
