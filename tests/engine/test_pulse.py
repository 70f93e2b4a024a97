"""Whether an engine hangs: real engines that are suspended, busy, idle and dead, under a clock of the test's own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from modelpipes.engine.client import figure_of
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice, engines
from modelpipes.engine.pulse import IDLE_PROOF_S, Pulse
from modelpipes.errors import Cause
from modelpipes.values.deadline import Deadline

LIMIT_S = 30.0
PROBE_S = 2.0  # tiny models have a token by then, on a busy machine too; a wedged engine has none ever
QUIET_S = 1.0


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def within() -> Deadline:
    return Deadline.after(LIMIT_S)


def suspend(engine: Engine) -> None:
    os.kill(engine.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, engine.pid, os.WSTOPPED | os.WNOWAIT)


def decoded(engine: Engine) -> float:
    return figure_of(engine.metrics(), "n_decode_total") or 0.0


def pulse_of(engine: Engine, clock: Clock) -> Pulse:
    """Of the engine, which is started."""
    engine.be_ready(within())
    return Pulse(engine, clock=clock, quiet_s=QUIET_S, probe_s=PROBE_S)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(kind: EngineChoice, hello: str) -> Iterator[Engine]:
    with Engine(hello, engine=kind, ctx_size=512) as engine:
        yield engine


def test_an_engine_that_is_suspended_hangs(engine: Engine, clock: Clock) -> None:
    pulse = pulse_of(engine, clock)
    suspend(engine)
    clock.now_s += QUIET_S + 1
    assert not pulse.is_alive(within())


def test_an_engine_that_has_died_does_not_hang(engine: Engine, clock: Clock) -> None:
    pulse = pulse_of(engine, clock)
    os.kill(engine.pid, signal.SIGKILL)
    poll = select.poll()
    poll.register(engine.pidfd, select.POLLIN)
    assert poll.poll(LIMIT_S * 1000)
    clock.now_s += QUIET_S + 1
    assert pulse.is_alive(within())


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


def test_an_engine_that_answers_health_and_computes_nothing_hangs_and_is_killed(hello: str, clock: Clock) -> None:
    if not any(engines("llama-server")):
        pytest.skip("no llama-server on this machine; its main thread is the one that computes")
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(hello, engine="llama-server", ctx_size=512))
        pulse = pulse_of(engine, clock)
        if not stack.enter_context(frozen_main_thread(engine.pid)):
            pytest.skip("ptrace is forbidden here: no single thread can be made to hang")
        assert engine.health(within())
        clock.now_s += QUIET_S + 1
        assert not pulse.is_alive(within())
        engine.stop(cause=Cause.WEDGED, why="it hung")
        status = engine.status()
        assert (status.state.value, status.cause, status.failure) == ("stopped", Cause.WEDGED, "it hung")
        assert status.exit_code == -signal.SIGKILL  # TERM is handled by the thread that hangs


def test_a_start_ends_with_a_token_which_is_proof_enough_for_a_while(engine: Engine, clock: Clock) -> None:
    pulse = pulse_of(engine, clock)
    suspend(engine)  # asked anything, it would be found
    clock.now_s += QUIET_S / 2
    assert pulse.is_alive(within())
    os.kill(engine.pid, signal.SIGCONT)


def test_an_idle_engine_is_proved_now_and_then_only(engine: Engine, clock: Clock) -> None:
    pulse = pulse_of(engine, clock)
    before = decoded(engine)
    for _ in range(3):
        clock.now_s += QUIET_S + 1
        assert pulse.is_alive(within())
    assert decoded(engine) == before  # nothing was computed
    clock.now_s += IDLE_PROOF_S
    assert pulse.is_alive(within())
    assert decoded(engine) > before


def test_a_long_answer_in_the_only_slot_is_no_hanging(kind: EngineChoice, folder: Path, clock: Clock) -> None:
    with ExitStack() as stack:
        engine = stack.enter_context(Engine(str(folder / "endless.gguf"), engine=kind, ctx_size=16384))
        pulse = pulse_of(engine, clock)
        stream = stack.enter_context(engine.client().stream([{"role": "user", "content": "x"}], silence_s=LIMIT_S))
        next(stream)
        for _ in range(3):
            clock.now_s += QUIET_S + 1
            assert pulse.is_alive(within())
