"""Own one llama-server: start it, know when it is ready, know that it died, stop it."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import secrets
import select
import socket
import threading
import time
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from modelpipes.child import Child
from modelpipes.engine.arguments import HOST, make_arguments, value_of
from modelpipes.engine.causes import cause_of, explain, port_taken
from modelpipes.engine.client import Client
from modelpipes.engine.confinement import Confinement, check_machine
from modelpipes.engine.locate import Binary, EngineChoice, find_engine, found
from modelpipes.engine.logs import Log, RotatedFile
from modelpipes.errors import (
    Cause,
    DeadlineError,
    EngineError,
    EngineFailure,
    FileError,
    PipesError,
    ProgramError,
    Refused,
)
from modelpipes.fit.spec import EngineSpec, Given, spec_of
from modelpipes.gguf.shards import shard_names
from modelpipes.machine.intake import Intake, read_intake
from modelpipes.machine.kernel import count_oom_kills
from modelpipes.machine.processes import resident_bytes
from modelpipes.values.deadline import Deadline
from modelpipes.values.paths import make_private
from modelpipes.values.units import format_seconds

if TYPE_CHECKING:
    from typing import Unpack

HEALTH_INTERVAL_S = 0.005  # tiny models are ready in 25 ms; a refused connection costs 0.1 ms
HEALTH_LIMIT_S = 0.25  # one look; a server that loads answers 503 at once, and a stranger on its port may not
PROBE_LIMIT_S = 600.0  # of an engine that runs: a token may wait for a long prompt on a CPU
LEAST_LIMIT_S = 0.001  # of a socket, for which 0 is no limit
PORT_ATTEMPTS = 3  # a port found free can be taken before the server binds it; three in a row is no accident
# A cancelled answer ends with its batch. A llama-server that gets TERM in between waits for it for ever
# (measured: every second time; nobody tells the waiting HTTP thread that the queue has ended).
SETTLE_S = 0.5
SETTLE_INTERVAL_S = 0.005  # between two looks

METRICS_LIMIT_S = 5.0  # they are told between two batches, one of which may take seconds on a CPU
KEY_VARIABLE = "LLAMA_API_KEY"  # llama-server's (common/arg.cpp); a command line is shown to everybody by ps
KEY_BYTES = 32


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


class Status(msgspec.Struct, frozen=True):
    """How an engine stands; `cause` and `failure` tell why it does not run."""

    name: str
    state: State
    cause: Cause | None
    failure: str
    pid: int | None
    port: int
    since: float  # of the state; seconds since 1970
    starts: int
    exit_code: int | None  # minus the signal that killed it
    resident_bytes: int  # memory of the process, mapped pages of the model file among it


class Engine:
    """One llama-server of ours with one model; safe to use from several threads.

        with Engine("tiny-chat", parallel=2) as engine:
            engine.be_ready(Deadline.after(60))
            print(engine.base_url)

    At `base_url` it speaks OpenAI's API; `attach-model --server` gives it a seat. The end of `with` stops it, and
    so does our own death.
    """

    def __init__(
        self,
        spec: EngineSpec | str,
        *,
        engine: EngineChoice | Binary = "auto",
        name: str = "",
        alias: str = "",
        log: str | RotatedFile | None = None,
        with_key: bool = False,
        slot_folder: str | None = None,
        **given: Unpack[Given],
    ) -> None:
        """Nothing starts yet. `spec` says all; or it is the model, a path or `tiny-chat`, and `given` the rest:
        `ctx_size` is what each of `parallel` conversations may have, in tokens (llama.cpp rounds up to 256),
        `kv_type` the type of its cache; `gpu_layers` None: as many as fit; `threads` and `batch_size` None: as many
        as serve on this machine; `cpu_affinity` as 0-3,8; `draft` is a model that drafts; `engine_args` are passed on
        as they are.
        `alias` is what its answers call the model: the file's name where none is given.
        `log` is a file to append to, or two that stay small; `with_key`: it answers only who has `api_key`,
        made at random; `slot_folder` is where it may keep conversations (see `slots`).

        Raises FileError or EngineError where there is no such file, or no engine, UsageError for what the machine
        does not have.
        """
        spec = spec_of(spec, **given) if isinstance(spec, str) else spec
        self.spec = found(spec)
        check_machine(self.spec)
        self.binary: Binary = engine if isinstance(engine, Binary) else find_engine(engine)
        self.name = name or Path(self.model).stem
        self._alias = alias or Path(self.model).stem
        given_key = value_of(self.spec.arguments, "--api-key")
        self._has_own_key = with_key and given_key is None
        # A key in our environment is the server's as well.
        made_key = secrets.token_urlsafe(KEY_BYTES) if self._has_own_key else None
        self.api_key = made_key or given_key or os.environ.get(KEY_VARIABLE)
        self.slot_folder = slot_folder
        self.log = Log(log if isinstance(log, RotatedFile) else None)
        self._log_path = log if isinstance(log, str) else None
        self._changed = threading.Condition(threading.RLock())
        self._state = State.STOPPED
        self._starts = 0
        self._failure = ""
        self._cause: Cause | None = None
        self._since = time.time()
        self._oom_kills = 0  # when it was last seen alive
        self._child: Child | None = None
        self._confinement: Confinement | None = None
        self._starter: threading.Thread | None = None
        self._port = 0
        self._paths: tuple[str, ...] = ()  # of the files that it reads, once somebody asks how far it is

    # -- what it is

    @property
    def state(self) -> State:
        """Where it stands now; a ready engine that has died is found failed."""
        with self._changed:
            self._notice_death()
            return self._state

    @property
    def ctx_size(self) -> int:
        """The context that each conversation may have, in tokens."""
        return self.spec.n_ctx_seq

    @property
    def parallel(self) -> int:
        """Conversations at a time."""
        return self.spec.n_parallel

    @property
    def model(self) -> str:
        """The path of its model file."""
        return self.spec.model

    @property
    def base_url(self) -> str:
        """Its address, of the last start."""
        return f"http://{value_of(self.spec.arguments, '--host') or HOST}:{self._port}"

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
            return self._failure or None

    def status(self) -> Status:
        """How it stands now."""
        with self._changed:
            self._notice_death()
            pid = self.pid if self._state in (State.STARTING, State.READY, State.STOPPING) else -1
            return Status(
                name=self.name,
                state=self._state,
                cause=self._cause,
                failure=self._failure,
                pid=pid if pid > 0 else None,
                port=self._port,
                since=self._since,
                starts=self._starts,
                exit_code=None if self._child is None else self._child.exit_code(),
                resident_bytes=resident_bytes(pid),
            )

    def loading(self) -> Intake | None:
        """How much of its files it has read by now; None unless it starts."""
        if self._state is not State.STARTING or self.pid < 0:
            return None
        from modelpipes.engine.cachekey import files_read

        if not self._paths:
            self._paths = tuple(path for first in files_read(self.spec) for path in shard_names(first))
        return read_intake(self.pid, self._paths)

    def last_lines(self, count: int = 20) -> list[str]:
        """The end of what the server wrote since its last start."""
        return [] if self._child is None else self._child.last_lines(count)

    def logs(self, count: int = 20) -> list[str]:
        """The newest lines of all its starts, with a line of ours for each start and end."""
        self.last_lines(0)  # takes in what has been written by now
        return self.log.last(count)

    def client(self) -> Client:
        """To speak to it, as it was started last."""
        return Client(self.base_url, api_key=self.api_key)

    def keeps_slots(self) -> bool:
        """Whether it was told where to keep conversations, and knows how."""
        return self.slot_folder is not None and "--slot-save-path" in self.binary.flags

    # -- how it fares

    def health(self, deadline: Deadline) -> bool:
        """Whether it is ready and /health answers 200 before the deadline; says nothing about inference."""
        if self.state is not State.READY:
            return False
        is_healthy = self.client().is_healthy(_limit_s(deadline))
        with self._changed:
            if self.state is State.READY:
                # What the kernel kills while it lives is not it.
                self._oom_kills = count_oom_kills()
        return is_healthy

    def probe(self, deadline: Deadline) -> None:
        """Have it compute one token, or one embedding. DeadlineError where none comes, EngineError if it is gone.

        The token takes a slot: one that was kept for a conversation goes into the server's prompt cache.
        """
        prove(self.client(), _limit_s(deadline))

    def metrics(self, limit_s: float = METRICS_LIMIT_S) -> str:
        """Its figures in Prometheus' text format; EngineError where it has none or is not there, DeadlineError."""
        if "--metrics" not in self.binary.flags:
            raise EngineError(f"engine {self.name} has no metrics: its --help does not list --metrics")
        return self.client().metrics(limit_s)

    # -- what it does

    def be_ready(self, deadline: Deadline) -> None:
        """Return once it is ready, started if need be; a start in flight is joined, a failed one repeated.

        Raises EngineFailure if the start fails, DeadlineError if it takes too long (it then goes on).
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
            text = f"engine {self.name} was stopped while it started"
            raise EngineFailure((self._state is State.FAILED and self._failure) or text, self._cause or Cause.STOPPED)

    def restart(self, deadline: Deadline) -> None:
        """Stop it and return once it is ready again; fails as `be_ready` does."""
        self.stop()
        self.be_ready(deadline)

    def stop(self, term_s: float | None = None, *, cause: Cause = Cause.STOPPED, why: str = "stopped by us") -> None:
        """End it: wait a moment for cancelled answers, TERM, KILL. Close the streams first, or it waits for them.

        `term_s` is the time between TERM and KILL (None: the spec's); `cause` and `why` are what its status tells from
        then on.
        """
        with self._changed:
            while self._state is State.STOPPING:
                self._changed.wait()
            if self._state is State.STOPPED:
                return
            was_ready = self._state is State.READY
            self._move(State.STOPPING)
            self._cause, self._failure = cause, why
            child, starter = self._child, self._starter
        try:
            if child is not None:
                if was_ready:
                    self._settle(child)
                child.stop(term_s=self.spec.stop_timeout_s if term_s is None else term_s)
            if starter is not None:
                starter.join()
        finally:
            self._release()
            with self._changed:
                self._move(State.STOPPED)
            self.log.note(f"modelpipes: engine {self.name}: {why}")
            self.log.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _settle(self, child: Child) -> None:
        """Wait a moment for answers that were cancelled just now to end."""
        deadline = Deadline.after(SETTLE_S)
        client = self.client()
        with contextlib.suppress(_Died):
            while not deadline.has_passed() and client.is_busy(deadline.remaining_s()):
                _pause_while_alive(child, SETTLE_INTERVAL_S)

    # -- states

    def _move(self, to: State) -> None:
        """The one place where the state changes; under the lock."""
        if to not in MOVES[self._state]:
            raise AssertionError(f"engine {self.name} cannot go from {self._state.value} to {to.value}")
        self._state = to
        self._since = time.time()
        self._changed.notify_all()

    def _wait(self, deadline: Deadline) -> None:
        remaining_s = deadline.remaining_s()
        if not self._changed.wait(None if remaining_s == float("inf") else remaining_s):
            deadline.check(f"engine ready for {self.name} (it is still {self._state.value})")

    def _notice_death(self) -> None:
        if self._state is State.READY and self._child is not None and self._child.exit_code() is not None:
            self._fail(self._death(self._child))

    def _fail(self, failure: EngineFailure) -> None:
        self._failure, self._cause = str(failure), failure.cause
        self._move(State.FAILED)
        self.log.note(f"modelpipes: {failure}")

    def _begin_start(self) -> None:
        self._move(State.STARTING)
        self._starts += 1
        self._failure = ""
        self._cause = None
        # A thread of its own: the start outlives a caller whose deadline passes.
        self._starter = threading.Thread(target=self._run_start, name=f"start {self.name}", daemon=True)
        self._starter.start()

    def _run_start(self) -> None:
        # Whatever else ends this thread: nobody waits for it in vain.
        failure: EngineFailure | None = EngineFailure(f"engine {self.name}: its start broke off", Cause.CRASHED)
        try:
            self._start()
            failure = None
        except EngineFailure as error:
            failure = error
        except DeadlineError as error:
            failure = EngineFailure(f"engine {self.name} is loaded and computes nothing: {error}", Cause.WEDGED)
        except FileError as error:
            failure = EngineFailure(str(error), Cause.NO_START)
        except PipesError as error:
            failure = EngineFailure(str(error), Cause.CRASHED)
        except OSError as error:  # of the machine: no descriptor to be had, the model file just removed
            cause = Cause.FILE if error.filename == self.model else Cause.NO_START
            failure = EngineFailure(f"engine {self.name} cannot be started: {error}", cause)
        finally:
            self._end_start(failure)

    def _end_start(self, failure: EngineFailure | None) -> None:
        with self._changed:
            # Stopped meanwhile: `stop` moves on.
            if self._state is State.STARTING:
                if failure is None:
                    self._move(State.READY)
                else:
                    self._fail(failure)
        if failure is not None:
            if self._child is not None:
                self._child.stop(term_s=self.spec.stop_timeout_s)
            self._release()

    def _release(self) -> None:
        """Give back what the system keeps for a process that has ended."""
        confinement, self._confinement = self._confinement, None
        if confinement is not None:
            confinement.close()

    # -- starting

    def _start(self) -> None:
        deadline = Deadline.after(self.spec.load_timeout_s)
        port_given = value_of(self.spec.arguments, "--port")
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self._port = self._check_port(port_given) if port_given is not None else _find_free_port()
            child = self._spawn()
            try:
                self._await_health(child, deadline)
                self._prove(child, deadline)
                return
            except _Died:
                if self._state is not State.STARTING:
                    raise self._stopped_early() from None
                death = self._death(child)
                if death.cause is Cause.PORT and port_given is None and attempt < PORT_ATTEMPTS:
                    child.stop()
                    self._release()
                    continue
                raise death from None

    def _check_port(self, text: str) -> int:
        """The user's own port, if it is free: a stranger there would answer in our server's place."""
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise EngineFailure(f"--port {text} is no port: choose one from 1 to 65535", Cause.FLAG)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as llama-server binds
            try:
                probe.bind((value_of(self.spec.arguments, "--host") or HOST, int(text)))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise EngineFailure(port_taken(self.name, int(text)), Cause.PORT) from None
                # Another address family, or forbidden: the server will say.
        return int(text)

    def _spawn(self) -> Child:
        with self._changed:
            if self._state is not State.STARTING:
                raise self._stopped_early()
            if self._child is not None:
                self._child.stop()
                self._release()
            command = [*self.binary.argv, *self._arguments()]
            self._confinement = confinement = Confinement(self.spec)
            env = os.environ | {KEY_VARIABLE: self.api_key or ""} if self._has_own_key else None
            if self.slot_folder is not None and self.keeps_slots():
                make_private(self.slot_folder)  # what was said stands in these files
            self._oom_kills = count_oom_kills()
            try:
                self._child = Child(
                    [*confinement.prefix, *command],
                    name=f"engine {self.name}",
                    env=env,
                    log=self._log_path,
                    sink=self.log.take,
                    cpus=confinement.cpus,
                    data_limit_bytes=confinement.data_limit_bytes,
                )
            except ProgramError as error:
                raise EngineFailure(str(error), Cause.NO_START) from None
            self.log.note(f"modelpipes: engine {self.name} started, pid {self._child.pid}, port {self._port}")
            if confinement.words:
                self.log.note(f"modelpipes: engine {self.name}: {confinement.words}")
            return self._child

    def _stopped_early(self) -> EngineFailure:
        return EngineFailure(f"engine {self.name} was stopped while it started", Cause.STOPPED)

    def _arguments(self) -> list[str]:
        return make_arguments(self.binary, self.spec, self._port, self.slot_folder, self._alias)

    def _await_health(self, child: Child, deadline: Deadline) -> None:
        client = self.client()
        while not client.is_healthy(HEALTH_LIMIT_S):
            if deadline.has_passed():
                limit = format_seconds(self.spec.load_timeout_s)
                text = f"engine {self.name} (pid {child.pid}) is not loaded after {limit}, its load_timeout_s"
                raise EngineFailure(text, Cause.WEDGED)
            _pause_while_alive(child, HEALTH_INTERVAL_S)
        _pause_while_alive(child, 0)

    def _prove(self, child: Child, deadline: Deadline) -> None:
        """One token: /health stays 200 in a server whose inference is broken. And the key, if it has one."""
        try:
            prove(self.client(), max(deadline.remaining_s(), LEAST_LIMIT_S))
            if self._has_own_key:
                self._prove_key()
        except EngineFailure:
            raise
        except (EngineError, DeadlineError):
            # A dying server closes the connection a moment before it can be waited for.
            with contextlib.suppress(DeadlineError):
                child.wait(Deadline.after(1.0))
                raise _Died from None
            raise
        _pause_while_alive(child, 0)

    def _prove_key(self) -> None:
        try:
            Client(self.base_url).get("/props")
        except Refused as error:
            if error.kind == "auth":
                return
        text = f"engine {self.name} answers without its key: it does not know {KEY_VARIABLE}, use a newer one"
        raise EngineFailure(text, Cause.FLAG)

    def _death(self, child: Child) -> EngineFailure:
        """How the server ended, by itself or by somebody else."""
        code, lines = child.exit_code(), child.last_lines(200)
        assert code is not None
        confinement = self._confinement
        cause = cause_of(
            code,
            lines,
            is_oom_killed=count_oom_kills() > self._oom_kills,
            has_data_limit=confinement is not None and confinement.data_limit_bytes is not None,
            is_over_limit=confinement is not None and confinement.has_killed(),
        )
        limit = confinement.limit if confinement else ""
        return EngineFailure(explain(self.name, cause, code, lines, pid=child.pid, port=self._port, limit=limit), cause)


class _Died(Exception):
    """The server's process has ended."""


def prove(client: Client, limit_s: float) -> None:
    """Have a server compute: a token, or an embedding if that is all it does; DeadlineError, EngineError."""
    question = [{"role": "user", "content": "Hello."}]
    try:
        # Whole, not as a stream: the limit is for the whole, and nothing else is asked first.
        client.post("/v1/chat/completions", {"messages": question, "max_tokens": 1, "temperature": 0}, limit_s)
    except Refused as error:
        if error.status == HTTPStatus.NOT_IMPLEMENTED:
            client.post("/embedding", {"content": "Hello."}, limit_s)
        elif error.kind != "template":
            raise
        # A template that wants another beginning is not a broken engine: the server has answered.


def _limit_s(deadline: Deadline) -> float:
    """The time left as a socket takes it: at least a moment, and at most what a probe may take."""
    return min(max(deadline.remaining_s(), LEAST_LIMIT_S), PROBE_LIMIT_S)


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
