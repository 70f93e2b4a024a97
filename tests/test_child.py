"""Own a process: nothing hangs, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.child import KEPT_LINE_BYTES, Child
from modelpipes.errors import DeadlineError, FileError, ProgramError
from modelpipes.values.deadline import Deadline
from tests.peers import LIMIT_S, eventually


def sh(script: str, **options: object) -> Child:
    return Child(["/bin/sh", "-c", script], name="shell", **options)  # type: ignore[arg-type]


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that only waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def line_of(child: Child) -> str:
    eventually(lambda: bool(child.last_lines()), "line")
    return child.last_lines()[-1]


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def children_of_ours() -> set[int]:
    return {int(pid) for path in Path("/proc/self/task").iterdir() for pid in (path / "children").read_text().split()}


def group_of(group: int) -> set[int]:
    """Every live process of a process group."""
    members = set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and not has_ended(int(entry)):
            try:
                if os.getpgid(int(entry)) == group:
                    members.add(int(entry))
            except ProcessLookupError:
                continue
    return members


def test_the_exit_code_is_the_programs_own() -> None:
    with sh("exit 7") as child:
        assert child.wait(Deadline.after(LIMIT_S)) == 7
        assert child.exit_code() == 7
    with sh("kill -KILL $$") as child:
        assert child.wait(Deadline.after(LIMIT_S)) == -signal.SIGKILL


def test_a_wait_ends_at_its_deadline() -> None:
    with sh("sleep 100") as child:
        assert child.exit_code() is None
        with pytest.raises(DeadlineError):
            child.wait(Deadline.after(0.01))


def test_a_death_is_seen_on_the_pidfd() -> None:
    with sh("read line; exit 3", pipe_stdin=True) as child:
        poll = select.poll()
        poll.register(child.pidfd, select.POLLIN)
        assert not poll.poll(0)
        child.close_stdin()
        assert poll.poll(LIMIT_S * 1000)
        assert child.exit_code() == 3


def test_the_last_words_are_complete_once_the_child_has_ended() -> None:
    with sh("echo out; echo err >&2; printf 'no newline'") as child:
        child.wait(Deadline.after(LIMIT_S))
        assert child.last_lines() == ["out", "err", "no newline"]
        assert child.last_lines(1) == ["no newline"]
    assert child.last_lines() == ["out", "err", "no newline"]


def test_what_cannot_be_decoded_is_replaced_and_endless_lines_are_cut() -> None:
    with sh(r"printf '\377bad\r\n'; head -c 1000000 /dev/zero | tr '\0' x; echo; echo end") as child:
        child.wait(Deadline.after(LIMIT_S))
        eventually(lambda: child.last_lines()[-1:] == ["end"], "last line")
        first, second, _ = child.last_lines()
        assert first == "\ufffdbad"
        assert second == "x" * KEPT_LINE_BYTES


def test_a_flood_of_output_does_not_block_the_child() -> None:
    with sh("head -c 50000000 /dev/zero | tr '\\0' '\\n'; seq 1000; exit 0") as child:
        assert child.wait(Deadline.after(LIMIT_S)) == 0
        eventually(lambda: child.last_lines(2) == ["999", "1000"], "last line")


def test_piped_ends_are_ours_and_do_not_block() -> None:
    with Child(["cat"], name="cat", pipe_stdin=True, pipe_stdout=True) as child:
        with pytest.raises(BlockingIOError):
            os.read(child.stdout_fd, 1)
        os.write(child.stdin_fd, b"hello")
        poll = select.poll()
        poll.register(child.stdout_fd, select.POLLIN)
        assert poll.poll(LIMIT_S * 1000)
        assert os.read(child.stdout_fd, 100) == b"hello"
        child.close_stdin()
        assert child.wait(Deadline.after(LIMIT_S)) == 0
    assert (child.stdin_fd, child.stdout_fd, child.pidfd) == (-1, -1, -1)


def test_the_log_gets_all_output_appended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with sh("seq 1000; echo err >&2", log=str(log)) as child:
        child.wait(Deadline.after(LIMIT_S))
    assert log.read_text() == "before\n" + "".join(f"{number}\n" for number in range(1, 1001)) + "err\n"


def test_a_full_disk_ends_the_log_and_not_the_child() -> None:
    with sh("echo one; read line; echo two", log="/dev/full", pipe_stdin=True) as child:
        eventually(lambda: "one" in child.last_lines(), "output")
        child.close_stdin()
        assert child.wait(Deadline.after(LIMIT_S)) == 0
        assert child.last_lines() == ["log file /dev/full ends here: No space left on device", "one", "two"]


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"log file .*No such file"):
        sh("exit 0", log=str(tmp_path / "no" / "log"))


@pytest.mark.parametrize("argv", [["/no/such/program"], ["no-such-program-anywhere"]])
def test_a_missing_program_is_one_line_and_leaves_nothing(argv: list[str]) -> None:
    before, processes = open_descriptors(), children_of_ours()
    with pytest.raises(ProgramError, match="there is no program"):
        Child(argv, name="it")
    assert open_descriptors() == before
    assert children_of_ours() == processes


def test_an_attached_child_has_our_streams_but_for_a_terminals_stdin() -> None:
    attached = "import os, sys; from modelpipes.child import Child; from modelpipes.values.deadline import Deadline; "
    attached += "child = Child(['sh', '-c', 'cat; echo aside >&2'], name='cat', is_attached=True); "
    attached += "code = child.wait(Deadline.never()); assert child.last_lines() == []; child.stop(); sys.exit(code)"
    command = [sys.executable, "-P", "-c", attached]
    done = subprocess.run(command, input=b"words\n", capture_output=True, timeout=LIMIT_S, check=True)
    assert (done.stdout, done.stderr) == (b"words\n", b"aside\n")
    ours, theirs = os.openpty()
    try:  # else the kernel would stop it (SIGTTIN), and it would never end
        done = subprocess.run(command, stdin=theirs, capture_output=True, timeout=LIMIT_S, check=True)
        assert (done.stdout, done.stderr) == (b"", b"aside\n")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_file_that_is_no_program_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    with pytest.raises(ProgramError, match="may not be executed"):
        Child([str(tmp_path / "data")], name="it")


def test_nothing_is_left_open_or_unreaped_after_the_end() -> None:
    with sh("exit 0", pipe_stdin=True, pipe_stdout=True):
        pass  # whatever Python itself opens the first time is open now
    before, processes = open_descriptors(), children_of_ours()
    for script in ("exit 0", "sleep 100", "sleep 100 & sleep 100 | cat", "kill -KILL $$"):
        with sh(script, pipe_stdin=True, pipe_stdout=True):
            pass
    assert open_descriptors() == before
    assert children_of_ours() == processes


def test_the_child_gets_no_descriptor_but_its_three() -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        with sh("ls /proc/self/fd", pipe_stdin=True) as child:
            child.wait(Deadline.after(LIMIT_S))
            # The fourth is the one by which ls reads the directory.
            assert child.last_lines() == ["0", "1", "2", "3"]
    finally:
        os.close(read_end)
        os.close(write_end)


def test_the_child_starts_with_default_signals_whatever_we_ignore() -> None:
    show = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, end=' ');"
    show += "print(signal.getsignal(signal.SIGHUP) is signal.SIG_DFL, signal.pthread_sigmask(0, []))"
    old = [(number, signal.signal(number, signal.SIG_IGN)) for number in (signal.SIGINT, signal.SIGHUP)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with Child([sys.executable, "-c", show], name="python") as child:
            child.wait(Deadline.after(LIMIT_S))
            assert child.last_lines() == ["True True set()"]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in old:
            signal.signal(number, handler)


def test_stop_asks_before_it_forces() -> None:
    with sh("read line; exit 5", pipe_stdin=True) as child:
        child.stop(ask=child.close_stdin)
        assert child.exit_code() == 5
        child.stop()  # again changes nothing
        assert child.exit_code() == 5


def test_term_comes_before_kill() -> None:
    with sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.01; done") as child:
        assert line_of(child) == "ready"
        child.stop()
        assert child.exit_code() == 9


def test_a_child_that_ignores_term_is_killed() -> None:
    with sh("trap '' TERM; echo ready; while :; do sleep 0.01; done") as child:
        assert line_of(child) == "ready"
        child.stop(term_s=0.05)
        assert child.exit_code() == -signal.SIGKILL


def test_a_suspended_child_is_stopped_too() -> None:
    with sh("sleep 100") as child:
        os.kill(child.pid, signal.SIGSTOP)
        child.stop()
        assert child.exit_code() == -signal.SIGTERM


def test_a_grandchild_that_keeps_our_pipe_open_dies_and_hangs_nothing() -> None:
    with sh("trap '' TERM; sleep 100 & echo $!; exit 0") as child:
        assert child.wait(Deadline.after(LIMIT_S)) == 0
        grandchild = int(line_of(child))
        assert not has_ended(grandchild)
        child.stop()
        eventually(lambda: has_ended(grandchild), "end of the grandchild")


def test_one_that_left_the_group_hangs_nothing() -> None:
    with sh("setsid sleep 100 & echo $!; exit 0") as child:
        child.wait(Deadline.after(LIMIT_S))
        escaped = int(line_of(child))
        child.stop()
    os.kill(escaped, signal.SIGKILL)


def test_a_killed_guard_is_replaced_and_the_new_one_guards() -> None:
    script = """
        import sys, time
        from modelpipes.child import Child
        child = Child(["/bin/sh", "-c", "sleep 100 | cat"], name="it")
        print(child.pid, child._guard_pid, flush=True)
        sys.stdin.readline()
    """
    with owner(script) as process:
        pid, guard = read_numbers(process)
        group = os.getpgid(pid)
        os.kill(guard, signal.SIGKILL)
        eventually(lambda: len(new_guards(group, guard)) == 1, "new guard")
        assert not has_ended(pid)
        process.kill()
        eventually(lambda: not group_of(group), "end of the group")


def new_guards(group: int, old: int) -> set[int]:
    found = set()
    for pid in group_of(group) - {old}:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"kill -KILL 0" in command:
            found.add(pid)
    return found


@contextlib.contextmanager
def no_descriptor_left(spare: int) -> Iterator[None]:
    """All but `spare` descriptors are in use."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(spare):
            os.close(held.pop())
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("spare", range(13))
def test_without_descriptors_a_start_is_one_line_and_leaves_nothing(spare: int) -> None:
    before, processes = open_descriptors(), children_of_ours()
    with no_descriptor_left(spare), contextlib.suppress(ProgramError):
        sh("sleep 100", pipe_stdin=True, pipe_stdout=True).stop()
    assert open_descriptors() == before
    assert children_of_ours() == processes


def test_a_guard_that_cannot_be_replaced_at_once_is_replaced_later() -> None:
    with sh("read line; seq 100000; echo end; sleep 100", pipe_stdin=True) as child:
        with no_descriptor_left(0):
            guard = child._guard_pid
            os.kill(guard, signal.SIGKILL)
            child.close_stdin()
            # The thread that drains goes on, and the child lives.
            eventually(lambda: "end" in child._lines, "output")
            assert child.exit_code() is None
            assert child._guard_pid == guard
        eventually(lambda: child._guard_pid != guard, "new guard")


def test_tend_is_harmless_while_the_guard_lives() -> None:
    with sh("sleep 100") as child:
        guard = child._guard_pid
        child.tend()
        assert child._guard_pid == guard


def test_a_group_wide_term_from_the_child_itself_leaves_the_guard() -> None:
    with sh("trap '' TERM; kill -TERM 0; echo survived; sleep 100") as child:
        assert line_of(child) == "survived"
        assert not has_ended(child._guard_pid)
        child.stop(term_s=0)


def test_nothing_outlives_an_owner_three_levels_up() -> None:
    # leader -> member -> engine, and a program that starts another; only the leader is killed.
    script = """
        import os, sys
        from modelpipes.child import Child
        from modelpipes.values.deadline import Deadline
        level = int(sys.argv[1])
        if level < 3:
            child = Child([sys.executable, *sys.orig_argv[1:-1], str(level + 1)], name="next", pipe_stdout=True)
        else:
            child = Child(["/bin/sh", "-c", "sleep 100 | cat"], name="sleep | cat")
        print(child.pid, flush=True)
        if level < 3:
            os.set_blocking(child.stdout_fd, True)
            with open(child.stdout_fd, closefd=False) as lines:
                for _ in range(3 - level):
                    print(lines.readline(), end="", flush=True)
        sys.stdin.buffer.read() if level == 1 else child.wait(Deadline.never())
    """
    with owner(script, "1") as process:
        pids = [read_numbers(process)[0] for _ in range(3)]
        groups = [os.getpgid(pid) for pid in pids]
        assert len(set(groups)) == 3
        eventually(lambda: len(group_of(groups[-1])) >= 4, "sh, sleep and cat")
        process.kill()
        for group in groups:
            eventually(lambda group=group: not group_of(group), "end of every group")  # type: ignore[misc]


@contextlib.contextmanager
def owner(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that owns others; killed, if it still lives, at the end."""
    package = str(Path(sys.modules["modelpipes.child"].__file__ or "").parent.parent)
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": package},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_numbers(process: subprocess.Popen[bytes]) -> list[int]:
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def test_a_sink_that_fails_is_given_up_and_the_child_is_drained() -> None:
    def sink(data: bytes) -> None:
        taken.append(data)
        raise ZeroDivisionError("ours")

    taken: list[bytes] = []
    with sh("yes | head -c 1000000; echo the end", sink=sink) as child:
        assert child.wait(Deadline.after(LIMIT_S)) == 0
        lines = child.last_lines()
    assert lines[-1] == "the end"
    assert len(taken) == 1


def test_what_a_sink_failed_of_is_among_the_last_lines() -> None:
    def sink(data: bytes) -> None:
        raise ZeroDivisionError("ours")

    with sh("echo one", sink=sink) as child:
        child.wait(Deadline.after(LIMIT_S))
        assert child.last_lines() == ["what it writes is handed on no more: ZeroDivisionError('ours')", "one"]


class Undrained(Child):
    """A child whose draining breaks down."""

    def _keep(self, data: bytes) -> None:
        raise ZeroDivisionError("ours")


def test_a_child_that_nobody_drains_any_more_ends_and_says_why() -> None:
    # It would wait for ever for room in its output.
    with Undrained(["/bin/sh", "-c", "echo one; exec sleep 100"], name="shell") as child:
        assert child.wait(Deadline.after(LIMIT_S)) == -signal.SIGKILL
        assert child.last_lines() == ["its output cannot be read any more: ZeroDivisionError('ours')"]


def test_a_child_has_the_cpus_that_are_named_and_its_guard_and_we_have_ours() -> None:
    ours = os.sched_getaffinity(0)
    with sh("sleep 100", cpus=(max(ours),)) as child:
        assert os.sched_getaffinity(child.pid) == {max(ours)}
        assert os.sched_getaffinity(child._guard_pid) == ours
    assert os.sched_getaffinity(0) == ours


def test_cpus_that_do_not_exist_are_told_and_nothing_is_left() -> None:
    before = open_descriptors()
    with pytest.raises(ProgramError, match="shell cannot have the CPUs 8000-8001: Invalid argument"):
        sh("sleep 100", cpus=(8000, 8001))
    assert open_descriptors() == before


def test_a_child_and_what_it_starts_have_the_memory_that_they_may_have() -> None:
    script = "while [ -z \"$line\" ]; do line=$(grep '^Max data size.*1000000000' /proc/self/limits); done; echo $line"
    with sh(script, data_limit_bytes=10**9) as child:
        assert child.wait(Deadline.after(LIMIT_S)) == 0
        assert line_of(child).split()[3:5] == ["1000000000", "1000000000"]
