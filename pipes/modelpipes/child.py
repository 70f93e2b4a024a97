"""Own a process: start it, guard it, drain its output, stop it, and leave no orphan.

The child runs in a process group whose leader is its guard: a `sh` that ignores signals, reads a
pipe of which only we hold the write end, and kills the group when that pipe ends, which it does
however we end. The guard is the child's sibling, not its parent.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType

from modelpipes.errors import DeadlineError, FileError, ProgramError
from modelpipes.values.deadline import Deadline
from modelpipes.values.units import format_cpus

ASK_S = 1.0  # a program that was asked politely needs no longer than a second to begin its end
TERM_S = 3.0  # an engine with an open stream looks at its ping interval (1 s) before it goes
GUARD_RETRY_S = 0.1  # between two attempts to start a guard on a machine that is out of processes
KILL_S = 5.0  # SIGKILL acts at once, except on a process that waits inside the kernel for a disk

READ_BYTES = 64 * 1024  # the capacity of a pipe; a larger buffer is only allocated, never filled
KEPT_LINES = 200  # enough of the end to find the cause, small enough to forget about
KEPT_LINE_BYTES = 2000  # a line that never ends must not fill our memory

# Ignored dispositions survive exec (a script's `&` ignores SIGINT, nohup SIGHUP): the child gets defaults.
RESET_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})

# All names that POSIX `trap` knows and that could end or suspend the guard. `kill` is built into every sh.
GUARD_SCRIPT = (
    "trap '' HUP INT QUIT ABRT PIPE ALRM TERM TSTP TTIN TTOU USR1 USR2; while read -r line; do :; done; kill -KILL 0"
)

UNKNOWN_EXIT = 255  # somebody else reaped the child (SIGCHLD ignored): how it ended cannot be known


class Child:
    """One process of ours with everything that it starts, until `stop`; safe to use from any thread."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        pipe_stdin: bool = False,
        pipe_stdout: bool = False,
        is_attached: bool = False,
        log: str | None = None,
        sink: Callable[[bytes], object] | None = None,
        cpus: Collection[int] = (),
        data_limit_bytes: int | None = None,
    ) -> None:
        """Start `argv` (found on PATH); `name` is what errors call it.

        What it writes to stderr, and to stdout unless that is piped, is drained, its end kept, appended to
        the file `log` and handed to `sink`, in pieces, by whichever thread drains: it must not wait or call us,
        and is called no more once it failed. It has the CPUs that are named, else all of ours, and may have so much
        memory of its own (RLIMIT_DATA). `is_attached`: its stdin, stdout and stderr are ours, but for the stdin of a
        terminal, which only who is in the foreground may read; nothing is drained then. Raises ProgramError, or
        FileError for the log.
        """
        self.name = name
        self.pid = -1
        self.pidfd = -1
        self.stdin_fd = -1
        self.stdout_fd = -1
        self._output_fd = -1
        self._guard_pid = -1
        self._guard_pidfd = -1
        self._guard_pipe = -1  # the write end: its last close ends the group
        self._group = -1
        self._exit: int | None = None
        self._stopped = False
        self._lock = threading.RLock()  # exit status, guard
        self._output_lock = threading.Lock()
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._partial = bytearray()
        self._log_name = log or ""
        self._log_fd = -1 if log is None else open_log(log)
        self._sink = sink
        self._wake_read = self._wake_write = -1
        self._drain_thread = threading.Thread(target=self._drain, name=f"drain {name}", daemon=True)
        try:
            self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC)
            self._start_guard()
            self._start_child(list(argv), env, pipe_stdin, pipe_stdout, is_attached, cpus)
            if data_limit_bytes is not None:
                # What it took in the moment before counts as well (mm/mmap.c, may_expand_vm).
                with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody asks for its exit yet
                    resource.prlimit(self.pid, resource.RLIMIT_DATA, (data_limit_bytes, data_limit_bytes))
            self._drain_thread.start()
        except BaseException as error:
            with self._lock:
                self._stopped = True  # else the draining thread replaces the guard that we end
            self._end_group()
            self._wake_write = _close(self._wake_write)
            if self._drain_thread.is_alive():
                self._drain_thread.join()  # a signal's exception came amid its start
            self._close_descriptors()
            if isinstance(error, OSError):  # no descriptor to be had
                raise ProgramError(f"{name} cannot be started: {error.strerror}") from None
            raise

    def exit_code(self) -> int | None:
        """How the child ended (minus the signal that killed it), None while it runs; never blocks."""
        with self._lock:
            if self._exit is None and self.pid > 0:
                self._exit = _reap(self.pid)
            return self._exit

    def wait(self, deadline: Deadline) -> int:
        """How the child ended, once it has; DeadlineError if that takes too long."""
        while (code := self.exit_code()) is None:
            if not _wait_readable(self.pidfd, deadline) and self.exit_code() is None:
                raise DeadlineError(f"{self.name} (pid {self.pid}) has not ended before the deadline")
        return code

    def last_lines(self, count: int = 20) -> list[str]:
        """The end of what was drained, up to `count` lines; complete once the child has ended."""
        self._read_available()
        with self._output_lock:
            lines = list(self._lines)
            if self._partial:
                lines.append(_as_text(self._partial))
        return lines[-count:]

    def tend(self) -> None:
        """Replace a guard that has died; done by itself within milliseconds, and harmless to repeat."""
        with self._lock:
            if self._stopped or not _is_readable(self._guard_pidfd):
                return
            dead, dead_pidfd, dead_pipe = self._guard_pid, self._guard_pidfd, self._guard_pipe
            # The new guard joins the group before the old one is reaped: an empty group cannot be joined.
            self._start_guard()
            _reap(dead)
            os.close(dead_pidfd)
            os.close(dead_pipe)

    def stop(self, ask: Callable[[], object] | None = None, ask_s: float = ASK_S, term_s: float = TERM_S) -> None:
        """End the child and all that it started: `ask`, then TERM, then KILL, each with its time."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        try:
            if ask is not None and self.exit_code() is None:
                ask()
                self._wait_for_end(ask_s)
            if self.exit_code() is None:
                # To the whole group, as Ctrl-C at a terminal would be: a shell waits for what it started.
                self._signal_group(signal.SIGTERM)
                self._signal_group(signal.SIGCONT)  # a stopped process takes no TERM
                self._wait_for_end(term_s)
        finally:
            self._end_group()
            self._read_available()
            os.close(self._wake_write)
            self._wake_write = -1
            self._drain_thread.join()
            self._close_descriptors()
        if self._exit is None:
            raise ProgramError(f"{self.name} (pid {self.pid}) survives SIGKILL: it waits inside the kernel")

    def close_stdin(self) -> None:
        """Let the child see the end of its input."""
        self.stdin_fd = _close(self.stdin_fd)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- starting

    def _start_guard(self) -> None:
        """Start a guard, the first one as leader of a new group; ProgramError, and nothing changed, if it cannot."""
        pid = read_end = write_end = -1
        try:
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            pid = _spawn(
                ["/bin/sh", "-c", GUARD_SCRIPT],
                {"PATH": os.defpath},
                stdin=read_end,
                group=max(self._group, 0),
                name="guard",
                # Blocked from its first instruction, when its traps are not yet set.
                mask=RESET_SIGNALS,
            )
            pidfd = os.pidfd_open(pid)
        except BaseException as error:
            if pid > 0:  # before its pipe ends: it would kill the group
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            _close(write_end)
            if isinstance(error, OSError):
                raise ProgramError(f"the guard of {self.name} cannot be started: {error.strerror}") from None
            raise
        finally:
            _close(read_end)
        self._guard_pid, self._guard_pidfd, self._guard_pipe = pid, pidfd, write_end
        if self._group < 0:
            self._group = pid

    def _start_child(
        self,
        argv: list[str],
        env: Mapping[str, str] | None,
        pipe_stdin: bool,
        pipe_stdout: bool,
        is_attached: bool,
        cpus: Collection[int],
    ) -> None:
        with contextlib.ExitStack() as theirs:

            def pipe() -> tuple[int, int]:
                return os.pipe2(os.O_CLOEXEC)

            child_stdin = child_stdout = -1
            self._output_fd, child_stderr = pipe()
            theirs.callback(os.close, child_stderr)
            os.set_blocking(self._output_fd, False)
            if pipe_stdin:
                child_stdin, self.stdin_fd = pipe()
                theirs.callback(os.close, child_stdin)
                os.set_blocking(self.stdin_fd, False)
            if pipe_stdout:
                self.stdout_fd, child_stdout = pipe()
                theirs.callback(os.close, child_stdout)
                os.set_blocking(self.stdout_fd, False)
            with _on_cpus(cpus, self.name):
                self.pid = _spawn(
                    argv,
                    os.environ if env is None else env,
                    stdin=0 if is_attached and not os.isatty(0) else child_stdin,
                    stdout=1 if is_attached else child_stdout if pipe_stdout else child_stderr,
                    stderr=2 if is_attached else child_stderr,
                    group=self._group,
                    name=self.name,
                )
            self.pidfd = os.pidfd_open(self.pid)

    # -- draining

    def _drain(self) -> None:
        try:
            self._drain_until_stopped()
        except BaseException as error:  # noqa: BLE001  # the edge of this thread
            # A child that nobody drains hangs in its next write: its owner is to learn of an end instead.
            self._lines.append(f"its output cannot be read any more: {error!r}")
            with self._lock:
                if not self._stopped:
                    self._signal_group(signal.SIGKILL)

    def _drain_until_stopped(self) -> None:
        """Read the output and watch the guard until we are stopped."""
        output_open = True
        while True:
            poll = select.poll()
            poll.register(self._wake_read, select.POLLIN)
            with self._lock:
                guard_pidfd = -1 if self._stopped else self._guard_pidfd
            if guard_pidfd >= 0:
                poll.register(guard_pidfd, select.POLLIN)
            if output_open:
                poll.register(self._output_fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll()}
            if self._wake_read in ready:
                return
            if self._output_fd in ready:
                output_open = self._read_available()
            if guard_pidfd in ready:
                try:
                    self.tend()
                except ProgramError:
                    # No process or descriptor to be had just now: go on draining, and try again soon.
                    _wait_readable(self._wake_read, Deadline.after(GUARD_RETRY_S))

    def _read_available(self) -> bool:
        """Take what the output pipe holds now; False once it has ended."""
        with self._output_lock:
            # At most a few pipefuls a call: a child that floods must not keep us here.
            for _ in range(16):
                if self._output_fd < 0:
                    return False
                try:
                    data = os.read(self._output_fd, READ_BYTES)
                except BlockingIOError:
                    return True
                if not data:
                    return False
                self._keep(data)
            return True

    def _keep(self, data: bytes) -> None:
        self._write_log(data)
        self._hand_on(data)
        *whole, rest = data.split(b"\n")
        for line in whole[-KEPT_LINES - 1 :] if len(whole) > KEPT_LINES else whole:
            self._partial += line[:KEPT_LINE_BYTES]
            self._lines.append(_as_text(self._partial))
            self._partial.clear()
        self._partial += rest[: max(0, KEPT_LINE_BYTES - len(self._partial))]

    def _write_log(self, data: bytes) -> None:
        if self._log_fd < 0:
            return
        try:
            while data:
                data = data[os.write(self._log_fd, data) :]
        except OSError as error:
            # A full disk ends the log, not the child.
            self._lines.append(f"log file {self._log_name} ends here: {error.strerror}")
            self._log_fd = _close(self._log_fd)

    def _hand_on(self, data: bytes) -> None:
        if self._sink is None:
            return
        try:
            self._sink(data)
        except Exception as error:  # noqa: BLE001  # of our owner's making: it must not end the draining
            self._sink = None
            self._lines.append(f"what it writes is handed on no more: {error!r}")

    # -- ending

    def _wait_for_end(self, seconds: float) -> None:
        with contextlib.suppress(DeadlineError):
            self.wait(Deadline.after(seconds))

    def _signal_group(self, signum: int) -> None:
        # The group's number stays ours as long as the guard is not reaped.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._group, signum)

    def _end_group(self) -> None:
        """Kill the whole group and reap child and guard."""
        if self._group < 0:
            return
        self._signal_group(signal.SIGKILL)
        if self.pid > 0:
            self._wait_for_end(KILL_S)
        self._guard_pipe = _close(self._guard_pipe)
        if _wait_readable(self._guard_pidfd, Deadline.after(KILL_S)):
            _reap(self._guard_pid)
        self._group = -1

    def _close_descriptors(self) -> None:
        with self._output_lock:
            self._output_fd = _close(self._output_fd)
            self._log_fd = _close(self._log_fd)
        self.stdin_fd = _close(self.stdin_fd)
        self.stdout_fd = _close(self.stdout_fd)
        self.pidfd = _close(self.pidfd)
        self._guard_pidfd = _close(self._guard_pidfd)
        self._guard_pipe = _close(self._guard_pipe)
        self._wake_read = _close(self._wake_read)
        self._wake_write = _close(self._wake_write)


def _spawn(
    argv: list[str],
    env: Mapping[str, str],
    *,
    group: int,
    name: str,
    stdin: int = -1,
    stdout: int = -1,
    stderr: int = -1,
    mask: Iterable[int] = (),
) -> int:
    """The pid of a new process in process group `group` (0: its own); -1 stands for /dev/null."""
    actions: list[tuple[int, int] | tuple[int, int, int] | tuple[int, int, str, int, int]] = []
    for theirs, ours in ((0, stdin), (1, stdout), (2, stderr)):
        if ours < 0:
            actions.append((os.POSIX_SPAWN_OPEN, theirs, os.devnull, os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, ours, theirs))
    # Descriptors that we inherited (a shell's `3>fifo`) are not the child's business.
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inherited_descriptors()]
    try:
        if not argv[0]:
            raise FileNotFoundError  # as the kernel has it; Python makes a ValueError of it
        return os.posix_spawnp(
            argv[0],
            argv,
            env,
            file_actions=actions,
            setpgroup=group,
            setsigmask=mask,
            setsigdef=RESET_SIGNALS,
        )
    except FileNotFoundError:
        raise ProgramError(f"{name}: there is no program {argv[0]!r}: check its name and PATH") from None
    except PermissionError:
        raise ProgramError(f"{name}: {argv[0]!r} may not be executed: check its mode (chmod +x)") from None
    except OSError as error:
        raise ProgramError(f"{name}: {argv[0]!r} cannot be started: {error.strerror}") from None


@contextlib.contextmanager
def _on_cpus(cpus: Collection[int], name: str) -> Iterator[None]:
    """Within, this thread has these CPUs only, and what it starts inherits them (sched_setaffinity(2))."""
    if not cpus:
        yield
        return
    ours = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise ProgramError(f"{name} cannot have the CPUs {format_cpus(cpus)}: {error.strerror}") from None
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def _inherited_descriptors() -> list[int]:
    found = []
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        # The listing's own descriptor, and another thread's, may be gone by now.
        with contextlib.suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


def _reap(pid: int) -> int | None:
    """How the process ended, None while it runs."""
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return UNKNOWN_EXIT
    return os.waitstatus_to_exitcode(status) if reaped else None


def _is_readable(fd: int) -> bool:
    return _wait_readable(fd, Deadline.after(0))


def _wait_readable(fd: int, deadline: Deadline) -> bool:
    if fd < 0:
        return False
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(deadline.poll_ms()))


def open_log(path: str) -> int:
    """A descriptor that appends to a log file, made if new; FileError where that cannot be."""
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FileError(f"log file {path} cannot be written: {error.strerror}") from None


def _as_text(line: bytes | bytearray) -> str:
    return line[:KEPT_LINE_BYTES].decode("utf-8", "replace").rstrip("\r")


def _close(fd: int) -> int:
    """Close a descriptor if it is open; what to remember in its place."""
    if fd >= 0:
        os.close(fd)
    return -1
