"""Own one llama-server: start it, know when it is ready, know that it died, stop it."""

from __future__ import annotations

import contextlib
import enum
import errno
import itertools
import os
import re
import select
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from modelpipes.child import Child
from modelpipes.deadline import Deadline
from modelpipes.engine.client import Client, Refused
from modelpipes.engine.locate import Binary, EngineChoice, find_engine, find_model
from modelpipes.errors import DeadlineError, EngineError, PipesError, ProgramError

HOST = "127.0.0.1"
HEALTH_INTERVAL_S = 0.005  # tiny models are ready in 25 ms; a refused connection costs 0.1 ms
HEALTH_LIMIT_S = 0.25  # one look; a server that loads answers 503 at once, and a stranger on its port may not
PROOF_LIMIT_S = 600.0  # the first token may wait for tens of gigabytes from a slow disk
PORT_ATTEMPTS = 3  # a port found free can be taken before the server binds it; three in a row is no accident
TERM_S = 3.0  # with streams still open a llama-server ends at its next ping, 1 s apart, or never
# A cancelled answer ends with its batch. A llama-server that gets TERM in between waits for it for ever
# (measured: every second time; nobody tells the waiting HTTP thread that the queue has ended).
SETTLE_S = 0.5
SETTLE_INTERVAL_S = 0.005  # between two looks

# Prompts kept in host memory beside the slots. llama-server's own 8192 MiB a process are more than
# a machine with several engines has; a chat of 4096 tokens of an 8B model takes 512 MiB.
CACHE_RAM_MIB = 512

# llama.cpp obeys a cancel between two batches of a prompt, never inside one, and two may pass: it sees
# that we have gone when it reports the first, and has begun the second by then (tools/server,
# update_slots). So a batch must take less than 50 ms. Measured on two CPU cores with 34 million weights:
# 32 tokens read a prompt at 70 to 96 % of the speed of 128 and cancel four times as fast. For cards 128
# is an estimate, not measured: 2,600 tokens a second are enough to stay below 50 ms.
CPU_BATCH_TOKENS = 32
GPU_BATCH_TOKENS = 128
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")

# llama.cpp's threads spin while they wait for each other: with every core taken and anything else
# running, tiny-chat took 14.6 s for what one thread does in 0.2 s. So a model that one thread reads in a
# millisecond gets one, and on few cores one core stays free for those who talk.
ONE_THREAD_BYTES = 16 * 1024 * 1024
FEW_CORES = 4

PING_INTERVAL_S = 1  # llama-server's shortest; its 30 s also delay the end of a server with open streams


def batch_tokens(parallel: int, *, on_cpu: bool) -> int:
    """Tokens that our engines read at a time; a batch also takes one of every conversation."""
    return max(CPU_BATCH_TOKENS if on_cpu else GPU_BATCH_TOKENS, parallel)


class State(enum.Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


MOVES = {
    State.STOPPED: {State.STARTING},
    State.STARTING: {State.READY, State.FAILED, State.STOPPING},
    State.READY: {State.FAILED, State.STOPPING},
    State.STOPPING: {State.STOPPED},
    State.FAILED: {State.STARTING, State.STOPPING},
}


class Engine:
    """One llama-server of ours with one model; safe to use from several threads."""

    def __init__(
        self,
        model: str,
        *,
        ctx_size: int = 4096,
        gpu_layers: int | None = None,
        parallel: int = 1,
        engine: EngineChoice | Binary = "auto",
        engine_args: Sequence[str] = (),
        name: str = "",
        log: str | None = None,
    ) -> None:
        """Nothing starts yet. `model` is a path or `tiny-chat`; `ctx_size` is what each of `parallel`
        conversations may have, in tokens (llama.cpp rounds up to 256); `gpu_layers` None: as many as fit.

        Raises FileError or EngineError where there is no such file, or no engine.
        """
        self.model = find_model(model)
        self.binary: Binary = engine if isinstance(engine, Binary) else find_engine(engine)
        self.name = name or Path(self.model).stem
        self.ctx_size = ctx_size
        self.parallel = parallel
        self.api_key = _value_of(engine_args, "--api-key")
        self._gpu_layers = gpu_layers
        self._engine_args = tuple(engine_args)
        self._log = log
        self._changed = threading.Condition(threading.RLock())
        self._state = State.STOPPED
        self._starts = 0
        self._failure = ""
        self._stopped_by_us = False
        self._child: Child | None = None
        self._starter: threading.Thread | None = None
        self._port = 0

    # -- what it is

    @property
    def state(self) -> State:
        """Where it stands now; a ready engine that has died is found failed."""
        with self._changed:
            self._notice_death()
            return self._state

    @property
    def base_url(self) -> str:
        """Its address, of the last start."""
        return f"http://{_value_of(self._engine_args, '--host') or HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The server's own process; -1 while there is none."""
        return -1 if self._child is None else self._child.pid

    @property
    def pidfd(self) -> int:
        """Readable once the server has died; -1 while there is none."""
        return -1 if self._child is None else self._child.pidfd

    def exit_reason(self) -> str | None:
        """Why it no longer runs, in words; None before its first start and while it runs."""
        with self._changed:
            self._notice_death()
            if self._state is State.FAILED:
                return self._failure
            return "stopped by us" if self._stopped_by_us else None

    def last_lines(self, count: int = 20) -> list[str]:
        """The end of what the server wrote."""
        return [] if self._child is None else self._child.last_lines(count)

    # -- what it does

    def be_ready(self, deadline: Deadline) -> None:
        """Return once it is ready, started if need be; a start in flight is joined, a failed one repeated.

        Raises EngineError if the start fails, DeadlineError if it takes too long (it then goes on).
        """
        with self._changed:
            while self.state is State.STOPPING:
                self._wait(deadline)
            if self._state in (State.STOPPED, State.FAILED):
                self._begin_start()
            start = self._starts
            while self.state is State.STARTING and self._starts == start:
                self._wait(deadline)
            if self._state is State.READY:
                return
            raise EngineError(self._failure or f"engine {self.name} was stopped while it started")

    def stop(self, term_s: float = TERM_S) -> None:
        """End it: TERM, then KILL. Close the streams first, or it waits for them."""
        with self._changed:
            while self._state is State.STOPPING:
                self._changed.wait()
            if self._state is State.STOPPED:
                return
            was_ready = self._state is State.READY
            self._move(State.STOPPING)
            self._stopped_by_us = True
            child, starter = self._child, self._starter
        try:
            if child is not None:
                if was_ready:
                    self._settle(child)
                child.stop(term_s=term_s)
            if starter is not None:
                starter.join()
        finally:
            with self._changed:
                self._move(State.STOPPED)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _settle(self, child: Child) -> None:
        """Wait a moment for answers that were cancelled just now to end."""
        deadline = Deadline.after(SETTLE_S)
        client = Client(self.base_url, api_key=self.api_key)
        with contextlib.suppress(_Died):
            while not deadline.has_passed() and client.is_busy(deadline.remaining_s()):
                _pause_while_alive(child, SETTLE_INTERVAL_S)

    # -- states

    def _move(self, to: State) -> None:
        """The one place where the state changes; under the lock."""
        if to not in MOVES[self._state]:
            raise AssertionError(f"engine {self.name} cannot go from {self._state.value} to {to.value}")
        self._state = to
        self._changed.notify_all()

    def _wait(self, deadline: Deadline) -> None:
        remaining_s = deadline.remaining_s()
        if not self._changed.wait(None if remaining_s == float("inf") else remaining_s):
            deadline.check(f"engine ready for {self.name} (it is still {self._state.value})")

    def _notice_death(self) -> None:
        if self._state is State.READY and self._child is not None and self._child.exit_code() is not None:
            self._failure = self._explain_death(self._child)
            self._move(State.FAILED)

    def _begin_start(self) -> None:
        self._move(State.STARTING)
        self._starts += 1
        self._failure = ""
        self._stopped_by_us = False
        # A thread of its own: the start outlives a caller whose deadline passes.
        self._starter = threading.Thread(target=self._run_start, name=f"start {self.name}", daemon=True)
        self._starter.start()

    def _run_start(self) -> None:
        try:
            self._start()
        except PipesError as error:
            self._end_start(State.FAILED, str(error))
        except OSError as error:  # of the machine: no descriptor to be had, the model file just removed
            self._end_start(State.FAILED, f"engine {self.name} cannot be started: {error}")
        else:
            self._end_start(State.READY)

    def _end_start(self, to: State, failure: str = "") -> None:
        with self._changed:
            # Stopped meanwhile: `stop` moves on.
            if self._state is State.STARTING:
                self._failure = failure
                self._move(to)
        if to is State.FAILED and self._child is not None:
            self._child.stop(term_s=TERM_S)

    # -- starting

    def _start(self) -> None:
        port_given = _value_of(self._engine_args, "--port")
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._port = self._check_port(port_given) if port_given is not None else _find_free_port()
            child = self._spawn()
            try:
                self._await_health(child)
                self._prove(child)
                return
            except _Died:
                if self._state is not State.STARTING:
                    raise EngineError(f"engine {self.name} was stopped while it started") from None
                if _says_port_taken(child) and port_given is None and attempt < PORT_ATTEMPTS:
                    child.stop()
                    continue
                raise EngineError(self._explain_death(child)) from None

    def _check_port(self, text: str) -> int:
        """The user's own port, if it is free: a stranger there would answer in our server's place."""
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise EngineError(f"--port {text} is no port: choose one from 1 to 65535")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as llama-server binds
            try:
                probe.bind((_value_of(self._engine_args, "--host") or HOST, int(text)))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise EngineError(self._port_taken(int(text))) from None
                # Another address family, or forbidden: the server will say.
        return int(text)

    def _spawn(self) -> Child:
        with self._changed:
            if self._state is not State.STARTING:
                raise EngineError(f"engine {self.name} was stopped while it started")
            if self._child is not None:
                self._child.stop()
            command = [*self.binary.argv, *self._arguments()]
            try:
                self._child = Child(command, name=f"engine {self.name}", log=self._log)
            except ProgramError as error:
                raise EngineError(str(error)) from None
            return self._child

    def _arguments(self) -> list[str]:
        listed = self.binary.flags
        wanted: list[tuple[str, str | None]] = [
            ("--model", self.model),
            ("--host", HOST),
            ("--port", str(self._port)),
            # llama-server divides the context among its slots (src/llama-context.cpp, n_ctx_seq).
            ("--ctx-size", str(self.ctx_size * self.parallel)),
            ("--parallel", str(self.parallel)),
            ("--batch-size", str(self._batch_tokens())),
            ("--ubatch-size", str(self._batch_tokens())),
            ("--threads", self._threads()),
            ("--cache-ram", str(CACHE_RAM_MIB)),
            ("--sse-ping-interval", str(PING_INTERVAL_S)),
            ("--slots", None),
            ("--offline", None),
            ("--no-ui" if "--no-ui" in listed else "--no-webui", None),
        ]
        if self._gpu_layers is not None:
            # A plan was made: llama.cpp must not make another one.
            wanted += [("--n-gpu-layers", str(self._gpu_layers)), ("--fit", "off")]
        arguments: list[str] = []
        for flag, value in wanted:
            if flag in listed and value != "":
                arguments += [flag] if value is None else [flag, value]
        return [*arguments, *self._engine_args]  # llama.cpp takes the last of two

    def _threads(self) -> str:
        """How many threads compute; empty: as many as llama.cpp takes by itself."""
        cores = len(os.sched_getaffinity(0))
        if os.path.getsize(self.model) < ONE_THREAD_BYTES:
            return "1"
        return str(max(1, cores - 1)) if cores <= FEW_CORES else ""

    def _batch_tokens(self) -> int:
        # The embedded engine's wheel computes on the CPU.
        on_cpu = self._gpu_layers == 0 or self.binary.kind == "embedded" or not any(map(os.path.exists, GPU_DEVICES))
        return batch_tokens(self.parallel, on_cpu=on_cpu)

    def _await_health(self, child: Child) -> None:
        client = Client(self.base_url, api_key=self.api_key)
        while not client.is_healthy(HEALTH_LIMIT_S):
            _pause_while_alive(child, HEALTH_INTERVAL_S)
        _pause_while_alive(child, 0)

    def _prove(self, child: Child) -> None:
        """One token: /health stays 200 in a server whose inference is broken."""
        question = [{"role": "user", "content": "Hello."}]
        client = Client(self.base_url, api_key=self.api_key)
        try:
            with client.chat(question, max_tokens=1, temperature=0, silence_s=PROOF_LIMIT_S) as answer:
                for _ in answer:
                    pass
        except Refused as error:
            if error.kind != "template":
                raise
            # A template that wants another beginning is not a broken engine: the server has answered.
        except (EngineError, DeadlineError):
            # A dying server closes the connection a moment before it can be waited for.
            with contextlib.suppress(DeadlineError):
                child.wait(Deadline.after(1.0))
                raise _Died from None
            raise
        _pause_while_alive(child, 0)

    # -- words for how it ended

    def _explain_death(self, child: Child) -> str:
        code = child.exit_code()
        cause = essence(child.last_lines(200))
        if code is not None and code < 0:
            by = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
            hint = " (out of memory?)" if code == -signal.SIGKILL else ""
            return f"engine {self.name} (pid {child.pid}) was killed by {by}{hint}" + (f": {cause}" if cause else "")
        if _says_port_taken(child):
            return self._port_taken(self._port)
        return f"engine {self.name} ended with exit code {code}: {cause or 'it said nothing'}"

    def _port_taken(self, port: int) -> str:
        return f"engine {self.name}: port {port} is taken: stop its user or choose another --port"


class _Died(Exception):
    """The server's process has ended."""


def essence(lines: Sequence[str]) -> str:
    """The line that says why a llama-server died: the first that is logged as an error, else the last."""
    for line in lines:
        if line.startswith(("error: ", "error while")):
            return line.removeprefix("error: ").strip()
        # "0.00.002.386 E srv         start: couldn't bind …": time, level, where, what.
        if found := re.match(r"[\d.]+ E +(.*)", line):
            return " ".join(found[1].split())
    said = [line for line in lines if line.strip()]
    for line in said:
        if re.search(r"\b(error|failed|cannot|unable)\b", line, re.IGNORECASE):
            return line.strip()
    return said[-1].strip() if said else ""


def _says_port_taken(child: Child) -> bool:
    return any("couldn't bind" in line for line in child.last_lines(200))


def _pause_while_alive(child: Child, seconds: float) -> None:
    """Wait a moment, shorter if the server dies; _Died if it is dead."""
    poll = select.poll()
    if child.pidfd >= 0:
        poll.register(child.pidfd, select.POLLIN)
        poll.poll(seconds * 1000)
    if child.pidfd < 0 or child.exit_code() is not None:
        raise _Died


def _find_free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


def _value_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value of the last `flag` among a user's own arguments."""
    value = None
    for here, following in itertools.pairwise((*arguments, "")):
        if here == flag:
            value = following
        elif here.startswith(f"{flag}="):  # the embedded engine takes this form too
            value = here.partition("=")[2]
    return value
