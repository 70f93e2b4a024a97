"""Compile llama.cpp, try what came of it, and keep it where `locate` finds it.

The tree of the build stays in the cache until it has succeeded, so that a build that was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import shlex
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from modelpipes.child import Child
from modelpipes.engine import builds
from modelpipes.engine.builds import Build
from modelpipes.engine.client import Client
from modelpipes.engine.hardware import Machine
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import Binary, engines
from modelpipes.engine.source import Source
from modelpipes.engine.variants import Choice
from modelpipes.errors import Ended, EngineError, PipesError
from modelpipes.machine.memory import available_bytes
from modelpipes.values.deadline import Deadline
from modelpipes.values.formats import BUILD_TREE, format_of
from modelpipes.values.paths import build_dir, make_private

# The folder of llama.cpp's tree in which each program is made, and what b11434 calls it: names have changed.
TOOLS = {"server": "llama-server", "fit-params": "llama-fit-params", "rpc": "ggml-rpc-server"}
NEEDED_BYTES = 500_000_000  # the tree of a CPU build takes 110 MB, and one for cards several times that
SHOWN_LINES = 15  # of a compiler that failed
MODEL = "tiny-chat"
READY_S = 60.0
SILENCE_S = 30.0
SPEED_TOKENS, SPEED_RUNS = 200, 3
JOB_BYTES = {True: 1_000_000_000, False: 2_000_000_000}  # a compiler took 640 MB at most for the CPU
MAKE = "Unix Makefiles"
RUNNING = "running"  # it is in the tree of a build that did not come to its own end
WRITING_S = 10.0  # longer than a compiler needs to write what it has made
_STEP = re.compile(r"\[\s*(?:(\d+)%|(\d+)/(\d+))\] (.*)")  # of make and of ninja
_FAILED = re.compile(r"make.*\*\*\* \[(?:.*: )?(\S+)\] Error|FAILED: (?:\[.*?\] )?(\S+)")


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Only one build-engine at a time; EngineError where another one is at work."""
    path = os.path.join(build_dir(), "lock")
    make_private(build_dir())
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            raise EngineError(f"another build-engine (pid {pid}) is at work; run this again when it is done") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def jobs_here(choice: Choice) -> int:
    """Compilers at a time: one a core, or fewer where memory is short."""
    return max(1, min(len(os.sched_getaffinity(0)), available_bytes() // JOB_BYTES[choice.variant == "cpu"]))


def tree_of(source: Source, choice: Choice) -> str:
    """The folder in which a build is made."""
    return os.path.join(build_dir(), f"{source.version}-{choice.variant}")


def log_of(source: Source, choice: Choice) -> str:
    """The file that has all that cmake and the compilers said."""
    return f"{tree_of(source, choice)}.log"


def configuration(source: Source, choice: Choice, machine: Machine) -> list[str]:
    """The command that configures a build."""
    assert machine.cmake  # or there is no choice
    # Not ninja where there is make: it gives each compiler a process group of its own, in which it outlives us.
    generator = ["-G", MAKE if machine.make else "Ninja"]
    if program := machine.make or machine.ninja:
        generator.append(f"-DCMAKE_MAKE_PROGRAM={program.path}")
    number = re.fullmatch(r"b(\d+)", source.version)
    if number and not os.path.exists(os.path.join(source.path, ".git")):  # or cmake asks git
        generator.append(f"-DLLAMA_BUILD_NUMBER={number[1]}")
    command = [machine.cmake.path, "-S", source.path, "-B", tree_of(source, choice), *generator, *choice.options]
    if choice.variant == "rocm" and machine.rocm:  # cmake looks for hipconfig on PATH
        return ["env", f"PATH={os.path.dirname(machine.rocm.path)}:{os.environ.get('PATH', os.defpath)}", *command]
    return command


def compilation(source: Source, choice: Choice, machine: Machine, jobs: int) -> list[str]:
    """The command that compiles it."""
    assert machine.cmake
    targets = list(_targets(source))
    return [machine.cmake.path, "--build", tree_of(source, choice), "-j", str(jobs), "--target", *targets]


def _targets(source: Source) -> Iterator[str]:
    if not os.path.isdir(source.path):  # not fetched yet
        yield from TOOLS.values()
    for tool in TOOLS:
        with contextlib.suppress(OSError), open(os.path.join(source.path, "tools", tool, "CMakeLists.txt")) as file:
            if made := re.search(r"set\(TARGET (\S+)\)\s*add_executable\(\$\{TARGET\}", file.read()):
                yield made[1]


def already(version: str, choice: Choice, machine: Machine) -> Build | None:
    """What a build would make again: the same version with the same options for the same CPU."""
    same = (version, choice.options, machine.cpu_features)
    return next((made for made in builds.builds() if (made.version, made.options, made.cpu_features) == same), None)


def build(
    source: Source,
    choice: Choice,
    machine: Machine,
    *,
    jobs: int,
    report: Callable[[str], None],
    show: Callable[[str], None],
    deadline: Deadline,
) -> Build:
    """Configure, compile, try and keep; under `lock`. `report` gets lines, `show` how far it is.

    Raises EngineError where a step fails, DeadlineError.
    """
    tree, log = tree_of(source, choice), log_of(source, choice)
    configure = configuration(source, choice, machine)
    builds.check_replaceable(os.path.basename(tree))
    try:
        _begin(tree, log, configure)
        _run(configure, "cmake", tree, log, report, show, deadline)
        _run(compilation(source, choice, machine, jobs), "the build", tree, log, report, show, deadline)
        builds.sweep()
        path = builds.new_folder(f"{source.version}-{choice.variant}")
        try:
            for target in _targets(source):
                shutil.copy2(os.path.join(tree, "bin", target), os.path.join(path, "bin", target))
            shutil.copy2(os.path.join(source.path, "LICENSE"), path)
            show("trying it with tiny-chat")
            speed = measure(Binary("llama-server", (os.path.join(path, "bin", "llama-server"),)))
            now = datetime.now(UTC).isoformat(timespec="seconds")
            made = Build(source.version, choice.variant, choice.options, machine.cpu_features, now, speed)
            builds.publish(path, made)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
    except OSError as error:
        raise _no_room(error, error.filename or tree) from None
    shutil.rmtree(tree, ignore_errors=True)
    return made


def measure(binary: Binary) -> float:
    """Tokens a second that an engine makes of tiny-chat, the median of a few answers; EngineError where it does not."""
    speeds = []
    with Engine(MODEL, ctx_size=1024, engine=binary) as engine:
        engine.be_ready(Deadline.after(READY_S))
        client = Client(engine.base_url)
        asked = [{"role": "user", "content": "Count from one to fifty."}]
        for seed in range(SPEED_RUNS):
            with client.stream(asked, max_tokens=SPEED_TOKENS, seed=seed, silence_s=SILENCE_S) as answer:
                for _ in answer:
                    pass
                if not answer.usage or not answer.usage.completion_tokens:
                    raise EngineError(f"{binary.argv[0]} answers nothing with {MODEL}")
                speeds.append(answer.tokens_per_second or 0.0)
    return round(statistics.median(speeds), 1)


@dataclass(frozen=True)
class Tried:
    """An engine of this machine, and the tokens a second that it makes of tiny-chat; None where it does not: why."""

    name: str
    binary: Binary
    tokens_per_second: float | None
    problem: str = ""


def tried() -> Iterator[Tried]:
    """Every engine of this machine, tried; the one that is used comes first."""
    for name, binary in engines():
        try:
            yield Tried(name, binary, measure(binary))
        except Ended:
            raise
        except PipesError as error:
            yield Tried(name, binary, None, str(error))


def _begin(tree: str, log: str, configure: Sequence[str]) -> None:
    """Go on with a tree that was configured alike, else begin anew: cmake does not take another compiler in one.

    EngineError for a tree whose note is of a version to come. Version 1 is the list of words alone.
    """
    note = os.path.join(tree, "modelpipes.json")
    with contextlib.suppress(OSError, ValueError), open(note, "rb") as file:
        was = file.read()
        if refusal := BUILD_TREE.refusal(format_of(was)):
            raise EngineError(f"{note}: {refusal}, or remove {tree}")
        if json.loads(was) == list(configure):
            if MAKE in configure and os.path.exists(os.path.join(tree, RUNNING)):
                _drop_halves(tree)
            return
    shutil.rmtree(tree, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(log)
    os.makedirs(tree)
    free = shutil.disk_usage(tree).free
    if free < NEEDED_BYTES:
        raise OSError(errno.ENOSPC, "", tree)
    with open(note, "w", encoding="utf-8") as file:
        json.dump(list(configure), file)


def _drop_halves(tree: str) -> None:
    """Remove what was being written when a build was killed: make takes half a file for a whole one, ninja does not."""
    made = {
        path: os.stat(path).st_mtime
        for folder, _, names in os.walk(tree)
        for path in (os.path.join(folder, name) for name in names)
        if path.endswith((".o", ".a")) or os.path.basename(folder) == "bin"
    }
    newest = max(made.values(), default=0.0)
    for path, at in made.items():
        if at >= newest - WRITING_S:
            os.unlink(path)


def _run(
    argv: Sequence[str],
    name: str,
    tree: str,
    log: str,
    report: Callable[[str], None],
    show: Callable[[str], None],
    deadline: Deadline,
) -> None:
    """Run one command to its end, its output in the log; EngineError with its last lines where it fails."""
    began_s = time.monotonic()
    lines: deque[str] = deque(maxlen=400)
    step, tens = name, 0
    running = os.path.join(tree, RUNNING)
    with open(log, "ab") as file, open(running, "wb"):
        file.write(f"$ {shlex.join(argv)}\n".encode())
        file.flush()
        # One stream, or a compiler's words and its step would come in any order.
        with Child(["sh", "-c", 'exec "$@" 2>&1', "sh", *argv], name=name, pipe_stdout=True) as child:
            for line in _lines(child.stdout_fd, deadline):
                file.write(line + b"\n")
                text = line.decode("utf-8", "replace")
                lines.append(text)
                if found := _STEP.match(text):
                    percent = int(found[1]) if found[1] else 100 * int(found[2]) // max(int(found[3]), 1)
                    step = found[4]
                    show(f"{percent} % {step}")
                    if percent // 10 > tens:
                        tens = percent // 10
                        report(f"{percent} % after {time.monotonic() - began_s:.0f} s: {step}")
            code = child.wait(Deadline.after(READY_S))
    os.unlink(running)
    if code == 0:
        return
    if any("No space left on device" in line for line in lines):
        raise OSError(errno.ENOSPC, "", tree)
    told = list(lines)
    first = next((n for n, text in enumerate(told) if " error: " in text), max(len(told) - SHOWN_LINES, 0))
    for text in told[first : first + SHOWN_LINES]:
        report(f"  {text}")
    if failed := next(filter(None, map(_FAILED.match, told)), None):
        step = failed[1] or failed[2]
    raise EngineError(f"{name} failed (exit code {code}) at: {step}; everything it said is in {log}")


def _lines(descriptor: int, deadline: Deadline) -> Iterator[bytes]:
    """Lines as they come until the end of the stream; DeadlineError."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    rest = b""
    while True:
        deadline.check("the end of the build")
        if not poll.poll(deadline.poll_ms()):
            continue
        try:
            data = os.read(descriptor, 65536)
        except BlockingIOError:
            continue
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _no_room(error: OSError, path: str) -> EngineError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError(
            f"no room left for {path}: a build takes some {NEEDED_BYTES // 10**6} MB (cards more); make room and run"
            " this again, it goes on where it stopped"
        )
    return EngineError(f"{path}: {(error.strerror or str(error)).lower()}")
