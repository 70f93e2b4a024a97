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

from modelpipes.engine.client import Client, figure_of
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import Binary, EngineChoice
from modelpipes.engine.logs import RotatedFile
from modelpipes.errors import Cause, DeadlineError, EngineError, EngineFailure, FileError
from modelpipes.values.deadline import Deadline

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
    with pytest.raises(EngineFailure, match=r"exit code 1: .*corrupted or incomplete.* \(bad file\)$") as failed:
        engine.be_ready(Deadline.after(LIMIT_S))
    assert failed.value.cause is Cause.FILE
    assert state_of(engine) == "failed"
    engine.stop()


def test_a_bad_option_is_known_at_once(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind, engine_args=["--no-such-option"])
    with pytest.raises(EngineFailure, match="invalid argument: --no-such-option") as failed:
        engine.be_ready(Deadline.after(LIMIT_S))
    assert failed.value.cause is Cause.FLAG
    engine.stop()


def test_a_taken_port_is_told(kind: EngineChoice, hello: str, hello_engine: Engine) -> None:
    # A healthy stranger on the port must not pass for ours.
    port = hello_engine.base_url.rpartition(":")[2]
    engine = Engine(hello, engine=kind, engine_args=["--port", port])
    with pytest.raises(EngineFailure, match=f"port {port} is taken") as failed:
        engine.be_ready(Deadline.after(LIMIT_S))
    assert failed.value.cause is Cause.PORT
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


def test_a_start_that_fails_late_is_not_blamed_on_the_port(hello: str) -> None:
    """Our own questions whether it is ready leave connections there that have ended."""
    with Engine(hello, engine="embedded", engine_args=["--parallel", "1000"]) as engine:
        with pytest.raises(EngineFailure) as failed:
            engine.be_ready(Deadline.after(LIMIT_S))
        assert failed.value.cause is not Cause.PORT


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
    with client.stream([{"role": "user", "content": "x"}], silence_s=5) as stream:
        next(stream)
        engine.stop()
    assert engine.status().exit_code != -signal.SIGKILL  # which comes after three seconds


@pytest.mark.parametrize("how", ["cancelled", "closed"])
def test_answers_that_were_just_ended_do_not_keep_it_from_stopping(kind: EngineChoice, folder: Path, how: str) -> None:
    # A llama-server that got TERM while such an answer ended waited for it until it was killed, 3 s later.
    for _ in range(4):
        engine = Engine(str(folder / "endless.gguf"), engine=kind)
        engine.be_ready(Deadline.after(LIMIT_S))
        stream = Client(engine.base_url).stream([{"role": "user", "content": "x"}], silence_s=5)
        next(stream)
        if how == "cancelled":
            stream.cancel()
        else:
            stream.close()
        engine.stop()
        assert engine.status().exit_code != -signal.SIGKILL
        stream.close()


def test_a_suspended_engine_is_stopped_too(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind)
    engine.be_ready(Deadline.after(LIMIT_S))
    os.kill(engine.pid, signal.SIGSTOP)
    engine.stop()
    assert engine.status().exit_code is not None


def test_a_model_that_vanishes_before_the_start_is_told(kind: EngineChoice, hello: str, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(Path(hello).read_bytes())
    engine = Engine(str(model), engine=kind)
    model.unlink()
    with pytest.raises(EngineFailure, match=r"cannot be started: .*No such file") as failed:
        engine.be_ready(Deadline.after(LIMIT_S))
    assert failed.value.cause is Cause.FILE
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


def test_its_status_follows_its_life(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind)
    begun = time.time()
    before = engine.status()
    assert (before.state.value, before.cause, before.pid, before.starts, before.exit_code) == (
        "stopped", None, None, 0, None
    )  # fmt: skip
    engine.be_ready(Deadline.after(LIMIT_S))
    ready = engine.status()
    assert (ready.state.value, ready.cause, ready.failure, ready.pid, ready.starts) == (
        "ready", None, "", engine.pid, 1
    )  # fmt: skip
    assert engine.base_url.endswith(f":{ready.port}")
    assert begun <= ready.since <= time.time()
    assert ready.resident_bytes > 4 * 1024 * 1024
    os.kill(engine.pid, signal.SIGTERM)  # not by us
    poll = select.poll()
    poll.register(engine.pidfd, select.POLLIN)
    assert poll.poll(LIMIT_S * 1000)
    ended = engine.status()
    assert (ended.state.value, ended.cause, ended.exit_code, ended.pid) == ("failed", Cause.ENDED, 0, None)
    engine.stop()
    assert (engine.status().cause, engine.status().failure) == (Cause.STOPPED, "stopped by us")


def test_a_kill_by_somebody_is_told_with_its_signal(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        os.kill(engine.pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(engine.pidfd, select.POLLIN)
        assert poll.poll(LIMIT_S * 1000)
        status = engine.status()
        assert (status.cause, status.exit_code, status.resident_bytes) == (Cause.KILLED, -9, 0)
        assert status.failure in engine.logs()[-1]


def test_a_context_that_no_memory_holds_is_told(kind: EngineChoice, hello: str) -> None:
    # Under a limit of the address space: nothing is taken from the machine before it is refused.
    args = ["--ctx-size", str(2**31 - 256), "--parallel", "1", "--fit", "off", "--cache-type-k", "f32"]
    limit = ["prlimit", f"--as={4 << 30}"]
    engine = Engine(hello, engine=kind, engine_args=args)
    engine.binary = Binary(engine.binary.kind, (*limit, *engine.binary.argv))
    with pytest.raises(EngineFailure, match=r"out of memory") as failed:
        engine.be_ready(Deadline.after(LIMIT_S))
    assert failed.value.cause is Cause.MEMORY
    engine.stop()


def test_a_restart_is_another_process_and_keeps_the_log(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        first = engine.pid
        engine.restart(Deadline.after(LIMIT_S))
        assert engine.pid != first
        assert engine.status().starts == 2
        notes = [line for line in engine.logs(1000) if line.startswith("modelpipes: ")]
        assert [note.partition(", pid")[0] for note in notes] == [
            "modelpipes: engine hello started",
            "modelpipes: engine hello: stopped by us",
            "modelpipes: engine hello started",
        ]


def test_health_metrics_and_a_probe_are_of_the_running_one(kind: EngineChoice, hello: str) -> None:
    engine = Engine(hello, engine=kind)
    assert not engine.health(Deadline.after(LIMIT_S))
    with pytest.raises(EngineError):
        engine.metrics()
    engine.be_ready(Deadline.after(LIMIT_S))
    assert engine.health(Deadline.after(LIMIT_S))
    before = figure_of(engine.metrics(), "n_decode_total")
    engine.probe(Deadline.after(LIMIT_S))
    after = figure_of(engine.metrics(), "n_decode_total")
    assert before is not None and after is not None and after > before
    os.kill(engine.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, engine.pid, os.WSTOPPED | os.WNOWAIT)  # some threads run on for a moment
    assert not engine.health(Deadline.after(0.1))
    with pytest.raises(DeadlineError):
        engine.probe(Deadline.after(0.1))
    with pytest.raises(DeadlineError):
        engine.metrics(0.1)
    engine.stop()


def test_its_own_key_is_demanded_and_shown_to_nobody(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, with_key=True) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        key = engine.api_key or ""
        assert len(key) >= 32
        assert httpx.get(engine.base_url + "/slots").status_code == 401
        assert httpx.get(engine.base_url + "/slots", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert key.encode() not in Path(f"/proc/{engine.pid}/cmdline").read_bytes()
        assert key not in "\n".join(engine.logs(1000))
        assert Engine(hello, engine=kind, with_key=True).api_key != key


def test_a_key_of_our_environment_is_the_engines_too(
    kind: EngineChoice, hello: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "of-the-shell")
    with Engine(hello, engine=kind) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        assert Client(engine.base_url, api_key="of-the-shell").get("/slots")


def test_a_log_that_cannot_be_written_hurts_no_engine(kind: EngineChoice, hello: str, tmp_path: Path) -> None:
    file = RotatedFile(str(tmp_path / "no" / "log"))
    with Engine(hello, engine=kind, log=file) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        assert engine.logs()
        assert file.dropped_bytes > 0
        (tmp_path / "no").mkdir()
        engine.restart(Deadline.after(LIMIT_S))
        assert "engine hello started" in (tmp_path / "no" / "log").read_text()


def test_an_engine_that_only_embeds_is_ready_too(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, ctx_size=512, engine_args=["--embedding", "--pooling", "mean"]) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        engine.probe(Deadline.after(LIMIT_S))
        answer = Client(engine.base_url).post("/v1/embeddings", {"input": "Hello."}, LIMIT_S)
        assert len(answer["data"][0]["embedding"]) == 64


def test_its_cache_may_be_of_another_type(kind: EngineChoice) -> None:
    args = ["--cache-type-k", "q8_0", "--cache-type-v", "f32"]
    with Engine("tiny-chat", engine=kind, ctx_size=512, engine_args=args) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
    engine = Engine("tiny-chat", engine=kind, engine_args=["--cache-type-k", "q9"])
    with pytest.raises(EngineFailure) as failed:
        engine.be_ready(Deadline.after(LIMIT_S))
    assert failed.value.cause is Cause.FLAG
    engine.stop()
