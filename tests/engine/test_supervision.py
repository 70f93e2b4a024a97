"""Keeping an engine up: real engines that are killed, suspended and broken, under a clock of the test's own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.deadline import Deadline
from modelpipes.engine.causes import Cause, EngineFailure
from modelpipes.engine.client import figure_of
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice, engines
from modelpipes.engine.supervision import HELD_S, IDLE_PROOF_S, LONGEST_BACKOFF_S, BackingOff, Supervisor, backoff_s

LIMIT_S = 30.0
PROBE_S = 0.3  # tiny models have a token in 3 ms; a wedged engine has none ever
QUIET_S = 1.0


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def within() -> Deadline:
    return Deadline.after(LIMIT_S)


def wait_for_death(engine: Engine) -> None:
    poll = select.poll()
    poll.register(engine.pidfd, select.POLLIN)
    assert poll.poll(LIMIT_S * 1000)


def kill(engine: Engine) -> None:
    os.kill(engine.pid, signal.SIGKILL)
    wait_for_death(engine)


def suspend(engine: Engine) -> None:
    os.kill(engine.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, engine.pid, os.WSTOPPED | os.WNOWAIT)


def decoded(engine: Engine) -> float:
    return figure_of(engine.metrics(), "n_decode_total") or 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(kind: EngineChoice, hello: str) -> Iterator[Engine]:
    with Engine(hello, engine=kind, ctx_size=512) as engine:
        yield engine


def broken_file(kind: EngineChoice, hello: str, tmp_path: Path) -> Engine:
    path = tmp_path / "broken.gguf"
    path.write_bytes(Path(hello).read_bytes()[:100_000])
    return Engine(str(path), engine=kind)


def test_the_back_off_doubles_from_ten_seconds_to_five_minutes() -> None:
    assert [backoff_s(failures) for failures in range(9)] == [0, 0, 10, 20, 40, 80, 160, 300, 300]


@given(st.integers(0, 10**9))
def test_the_back_off_never_falls_nor_passes_its_limit(failures: int) -> None:
    assert backoff_s(failures) <= backoff_s(failures + 1) <= LONGEST_BACKOFF_S


def test_an_engine_that_should_be_up_is_started_again_when_it_dies(engine: Engine, clock: Clock) -> None:
    keeper = Supervisor(engine, clock=clock)
    assert keeper.look(within()).state.value == "stopped"  # nobody asked for it
    keeper.be_ready(within())
    kill(engine)
    status = keeper.look(within())
    assert (status.state.value, status.starts, status.failures) == ("ready", 2, 1)
    keeper.stop()
    assert keeper.look(within()).state.value == "stopped"
    assert engine.status().cause is Cause.STOPPED


def test_deaths_in_a_row_are_waited_out_longer_each_time(engine: Engine, clock: Clock) -> None:
    keeper = Supervisor(engine, clock=clock)
    keeper.be_ready(within())
    for failures, wait_s in ((1, 0), (2, 10), (3, 20)):
        kill(engine)
        if wait_s:
            status = keeper.look(within())
            assert (status.state.value, status.cause, status.failures, status.retry_in_s) == (
                "failed", Cause.KILLED, failures, wait_s
            )  # fmt: skip
            clock.now_s += wait_s - 1
            assert keeper.look(within()).state.value == "failed"
            with pytest.raises(BackingOff, match=r"killed by SIGKILL; tried again in 1 s") as refused:
                keeper.be_ready(within())
            assert (refused.value.cause, refused.value.retry_in_s) == (Cause.KILLED, 1)
            clock.now_s += 1
        assert keeper.look(within()).state.value == "ready"
    assert any("failure 3 in a row (killed): tried again, in 20 s" in line for line in engine.logs(1000))


def test_health_that_held_makes_failures_forgotten(engine: Engine, clock: Clock) -> None:
    keeper = Supervisor(engine, clock=clock)
    keeper.be_ready(within())
    kill(engine)
    assert keeper.look(within()).failures == 1
    clock.now_s += HELD_S - 1
    assert keeper.look(within()).failures == 1
    clock.now_s += 1
    status = keeper.look(within())
    assert (status.failures, status.retry_in_s) == (0, None)


def test_a_bad_file_is_tried_again_only_when_asked(
    kind: EngineChoice, hello: str, tmp_path: Path, clock: Clock
) -> None:
    with broken_file(kind, hello, tmp_path) as engine:
        keeper = Supervisor(engine, clock=clock)
        for _ in range(2):
            with pytest.raises(EngineFailure) as failed:
                keeper.be_ready(within())
            assert failed.value.cause is Cause.FILE
        clock.now_s += 1000
        status = keeper.look(within())
        assert (status.starts, status.failures, status.retry_in_s) == (2, 2, 0)
        Path(engine.model).write_bytes(Path(hello).read_bytes())
        keeper.be_ready(within())
        assert engine.status().starts == 3


def test_what_was_changed_is_tried_at_once(kind: EngineChoice, hello: str, tmp_path: Path, clock: Clock) -> None:
    with broken_file(kind, hello, tmp_path) as engine:
        keeper = Supervisor(engine, clock=clock)
        for _ in range(2):
            with pytest.raises(EngineFailure):
                keeper.be_ready(within())
        with pytest.raises(BackingOff):
            keeper.be_ready(within())
        Path(engine.model).write_bytes(Path(hello).read_bytes())
        keeper.forgive()
        assert keeper.look(within()).state.value == "ready"


def test_an_engine_that_hangs_is_found_and_replaced(engine: Engine, clock: Clock) -> None:
    cancelled: list[str] = []
    keeper = Supervisor(
        engine, clock=clock, cancel=lambda: cancelled.append(engine.state.value), quiet_s=QUIET_S, probe_s=PROBE_S
    )
    keeper.be_ready(within())
    hung = engine.pid
    suspend(engine)
    clock.now_s += 2
    status = keeper.look(within())
    assert (status.state.value, status.cause, status.failures) == ("stopped", Cause.WEDGED, 1)
    assert "hangs" in status.failure
    assert cancelled == ["ready"]
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)
    assert keeper.look(within()).state.value == "ready"


# In a process of its own: who traces is told of each stop by wait, as a parent is of an end. The first stop is
# the one asked for; then it waits for the end, for a tracer hides it from the parent until it has seen it.
FREEZE = """
import ctypes, os, sys
pid, libc = int(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE, INTERRUPT = 0x4206, 0x4207
if libc.ptrace(SEIZE, pid, None, None) or libc.ptrace(INTERRUPT, pid, None, None):
    sys.exit(os.strerror(ctypes.get_errno()))
while os.WIFSTOPPED(os.waitpid(pid, 0x40000000)[1]):
    print("frozen", flush=True)
"""


@contextmanager
def frozen_main_thread(pid: int) -> Iterator[bool]:
    """Only the main thread of a process stands still, the others answer HTTP; False where ptrace is forbidden."""
    tracer = subprocess.Popen([sys.executable, "-c", FREEZE, str(pid)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with tracer:
        assert tracer.stdout is not None
        try:
            yield tracer.stdout.readline() == b"frozen\n"
        finally:
            tracer.kill()


def test_an_engine_that_answers_health_and_computes_nothing_is_killed(hello: str, clock: Clock) -> None:
    if not any(engines("llama-server")):
        pytest.skip("no llama-server on this machine; its main thread is the one that computes")
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(hello, engine="llama-server", ctx_size=512))
        keeper = Supervisor(engine, clock=clock, quiet_s=QUIET_S, probe_s=PROBE_S)
        keeper.be_ready(within())
        if not stack.enter_context(frozen_main_thread(engine.pid)):
            pytest.skip("ptrace is forbidden here: no single thread can be made to hang")
        assert engine.health(within())
        clock.now_s += 2
        status = keeper.look(within())
        assert (status.state.value, status.cause, status.failures) == ("stopped", Cause.WEDGED, 1)
        assert status.exit_code == -signal.SIGKILL  # TERM is handled by the thread that hangs
        assert keeper.look(within()).state.value == "ready"


def test_tokens_that_flow_are_proof_enough(engine: Engine, clock: Clock) -> None:
    keeper = Supervisor(engine, clock=clock, quiet_s=QUIET_S, probe_s=PROBE_S)
    keeper.be_ready(within())
    suspend(engine)  # asked anything, it would be found
    clock.now_s += 2
    keeper.saw_life()
    assert keeper.look(within()).state.value == "ready"
    os.kill(engine.pid, signal.SIGCONT)


def test_an_idle_engine_is_proved_now_and_then_only(engine: Engine, clock: Clock) -> None:
    keeper = Supervisor(engine, clock=clock, quiet_s=QUIET_S, probe_s=PROBE_S)
    keeper.be_ready(within())
    keeper.look(within())
    before = decoded(engine)
    clock.now_s += 2
    assert keeper.look(within()).state.value == "ready"
    clock.now_s += 2
    assert keeper.look(within()).state.value == "ready"
    assert decoded(engine) == before  # nothing was computed
    clock.now_s += IDLE_PROOF_S
    assert keeper.look(within()).state.value == "ready"
    assert decoded(engine) > before


def test_a_long_answer_in_the_only_slot_is_no_hanging(kind: EngineChoice, folder: Path, clock: Clock) -> None:
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(str(folder / "endless.gguf"), engine=kind, ctx_size=16384))
        keeper = Supervisor(engine, clock=clock, quiet_s=QUIET_S, probe_s=PROBE_S)
        keeper.be_ready(within())
        stream = stack.enter_context(engine.client().chat([{"role": "user", "content": "x"}], silence_s=LIMIT_S))
        next(stream)
        for _ in range(3):
            clock.now_s += 2
            assert keeper.look(within()).state.value == "ready"
        assert engine.status().starts == 1


def test_a_start_that_never_ends_is_ended(engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = Supervisor(engine, clock=clock, start_s=60)
    started = threading.Event()
    real_spawn = engine._spawn

    def spawn_suspended() -> object:
        child = real_spawn()
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        started.set()
        return child

    monkeypatch.setattr(engine, "_spawn", spawn_suspended)
    causes: list[Cause] = []

    def wait() -> None:
        try:
            keeper.be_ready(within())
        except EngineFailure as failure:
            causes.append(failure.cause)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert started.wait(LIMIT_S)
    monkeypatch.undo()
    assert keeper.look(within()).state.value == "starting"
    clock.now_s += 60
    status = keeper.look(within())
    waiting.join(LIMIT_S)
    assert (status.state.value, status.cause) == ("stopped", Cause.WEDGED)
    assert causes == [Cause.WEDGED]
    assert keeper.look(within()).state.value == "ready"


def test_a_death_amid_looks_from_several_threads_counts_once(engine: Engine, clock: Clock) -> None:
    keeper = Supervisor(engine, clock=clock)
    keeper.be_ready(within())
    kill(engine)
    threads = [threading.Thread(target=keeper.be_ready, args=(within(),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    status = keeper.look(within())
    assert (status.state.value, status.starts, status.failures) == ("ready", 2, 1)


def test_whoever_looks_while_it_is_stopped_leaves_it_down(engine: Engine, clock: Clock) -> None:
    keeper = Supervisor(engine, clock=clock)
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            keeper.look(within())

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(5):
        keeper.be_ready(within())
        keeper.stop()
        assert engine.state.value == "stopped"
    end.set()
    watcher.join(LIMIT_S)
    assert (engine.state.value, engine.status().starts) == ("stopped", 5)
