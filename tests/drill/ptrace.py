"""Run a process system call by system call, and kill it before its n-th: ptrace(2) by ctypes, no strace needed.

    with Tracer(pid, kill_at=17) as tracer:
        …  # let it work
        tracer.wait(Deadline.after(5))
    assert tracer.has_killed

All threads are followed, processes that it starts are not. Who traces must be an ancestor where Yama
(/proc/sys/kernel/yama/ptrace_scope) says 1; `why_not()` says whether tracing works here at all.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType

from modelpipes.values.deadline import Deadline

PTRACE_SYSCALL = 24
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_LISTEN = 0x4208
PTRACE_GET_SYSCALL_INFO = 0x420E
TRACESYSGOOD, TRACECLONE = 1, 8  # PTRACE_O_…
EVENT_STOP = 128  # PTRACE_EVENT_STOP
SYSCALL_STOP = signal.SIGTRAP | 0x80
STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
WALL, WNOTHREAD = 0x40000000, 0x20000000  # __WALL, __WNOTHREAD of wait(2)
ENTRY = 1  # PTRACE_SYSCALL_INFO_ENTRY
INFO = struct.Struct("=BxxxIQQQ6Q")  # struct ptrace_syscall_info, as far as the arguments of an entry
PATH_BYTES = 256
POKE = signal.SIGWINCH  # ignored by default, yet a traced process stops for it: it wakes the tracer

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    result: int = _libc.ptrace(request, tid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {tid}: {os.strerror(ctypes.get_errno())}")
    return result


def why_not() -> str:
    """Why nothing can be traced here; empty where it can."""
    with subprocess.Popen(["/bin/sh", "-c", "read line"], stdin=subprocess.PIPE) as child:
        try:
            with Tracer(child.pid):
                pass
        except OSError as error:
            return str(error)
        finally:
            child.kill()
    return ""


class Tracer:
    """Counts the system calls of a process, and kills it before the one numbered `kill_at` (from 1)."""

    def __init__(
        self,
        pid: int,
        *,
        kill_at: int | None = None,
        begin_at_path: str | None = None,
        before_kill: Callable[[], None] = lambda: None,
        notify: Callable[[], None] = lambda: None,
    ) -> None:
        """`begin_at_path`: counting begins with the first call that names a path under it.

        `before_kill` is called while the process stands still, `notify` when the process has ended; both
        in the tracer's thread.
        """
        self.pid = pid
        self.count = 0
        self.has_killed = False
        self.status: int | None = None  # as wait(2) gave it, once the process has ended
        self._kill_at = kill_at
        self._begin_at = begin_at_path.encode() if begin_at_path else None
        self._before_kill = before_kill
        self._notify = notify
        self._seized = threading.Event()
        self._ended = threading.Event()
        self._leaves = False
        self._error: OSError | None = None
        self._threads: set[int] = set()
        # All of ptrace(2) belongs to the thread that seized; what it traces is let go when it ends.
        self._thread = threading.Thread(target=self._run, name=f"trace {pid}", daemon=True)

    def __enter__(self) -> Tracer:
        self._thread.start()
        self._seized.wait()
        if self._error:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.let_go()

    def has_ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, deadline: Deadline) -> bool:
        """Whether the process has ended, waiting for it."""
        left_s = deadline.remaining_s()
        return self._ended.wait(None if left_s == float("inf") else left_s)

    def let_go(self) -> None:
        """Leave the process to itself, if it lives."""
        self._leaves = True
        if not self._ended.is_set():
            try:
                os.kill(self.pid, POKE)
            except ProcessLookupError:
                pass
        self._thread.join()
        # The kernel lets go when the thread is gone for it too: until then a wait for the process would see its stops.
        while self._thread.native_id and os.path.exists(f"/proc/self/task/{self._thread.native_id}"):
            time.sleep(0.0005)

    def _run(self) -> None:
        try:
            self._seize()
        except OSError as error:
            self._error = error
            return
        finally:
            self._seized.set()
        while self._threads and not (self._leaves and not self.has_killed):
            try:
                tid, status = os.waitpid(-1, WALL | WNOTHREAD)
            except ChildProcessError:
                break
            if os.WIFSTOPPED(status):
                self._threads.add(tid)
                self._go_on(tid, status)
            else:
                self._threads.discard(tid)
                if tid == self.pid:
                    self.status = status
        if self.status is not None:
            self._ended.set()
            self._notify()

    def _seize(self) -> None:
        """Seize every thread, also those that begin while we do."""
        options = TRACESYSGOOD | TRACECLONE
        _ptrace(PTRACE_SEIZE, self.pid, 0, options)
        _ptrace(PTRACE_INTERRUPT, self.pid)
        self._threads.add(self.pid)
        while missing := {int(tid) for tid in os.listdir(f"/proc/{self.pid}/task")} - self._threads:
            for tid in missing:
                self._threads.add(tid)
                try:
                    _ptrace(PTRACE_SEIZE, tid, 0, options)
                    _ptrace(PTRACE_INTERRUPT, tid)
                except (ProcessLookupError, PermissionError):
                    pass  # it has ended; or it was followed from its birth, by one seized before

    def _go_on(self, tid: int, status: int) -> None:
        stop, event = os.WSTOPSIG(status), status >> 16
        resume, deliver = PTRACE_SYSCALL, 0
        if stop == SYSCALL_STOP:
            self._count(tid)
        elif event == EVENT_STOP and stop in STOPPING:
            resume = PTRACE_LISTEN  # stopped by job control: SIGCONT will tell
        elif not event:
            deliver = stop
        try:
            _ptrace(resume, tid, 0, deliver)
        except ProcessLookupError:
            pass  # killed meanwhile: waitpid tells

    def _count(self, tid: int) -> None:
        if self.has_killed:
            return
        info = ctypes.create_string_buffer(INFO.size)
        try:
            _ptrace(PTRACE_GET_SYSCALL_INFO, tid, INFO.size, ctypes.addressof(info))
        except ProcessLookupError:
            return
        what, _, _, _, _, *arguments = INFO.unpack(info.raw)
        if what != ENTRY:
            return
        if self._begin_at is not None:
            # openat(2) and its like have the path second.
            if not _text_at(self.pid, arguments[1]).startswith(self._begin_at):
                return
            self._begin_at = None
        self.count += 1
        if self.count == self._kill_at and not self._leaves:
            self.has_killed = True
            self._before_kill()
            os.kill(self.pid, signal.SIGKILL)


def _text_at(pid: int, address: int) -> bytes:
    """What stands in a process's memory; empty where nothing does."""
    if not 0 < address < 1 << 63:
        return b""
    try:
        memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(memory, PATH_BYTES, address).split(b"\0")[0]
    except OSError:
        return b""
    finally:
        os.close(memory)
