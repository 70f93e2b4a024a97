"""build-engine, on a small tree of llama.cpp's shape that a real cmake and a real compiler build."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.engine import hardware
from modelpipes.values.deadline import Deadline
from tests.commands.conftest import LIMIT_S, Commands
from tests.drill.processes import marked
from tests.peers import eventually, holds_in_time
from tests.shell import Ended

MACHINE = hardware.look()
NEEDED = pytest.mark.skipif(
    not (MACHINE.cmake and MACHINE.compiler and (MACHINE.ninja or MACHINE.make)), reason="it needs cmake and a compiler"
)
GENERATORS = [name for name in ("make", "ninja") if getattr(MACHINE, name)]
TOOLS = ("cmake", "c++", "cc", "sh", "ar", "ranlib", "ld", "as", "touch", "cat", "uname")

# A server as ours embeds it, in place of llama.cpp's 700 files; and a step that can be made to fail, to wait, to
# find the disk full.
CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project("llama.cpp" C CXX)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(base STATIC base.c)
add_subdirectory(tools/server)
"""
TOOL = """\
set(TARGET llama-server)
add_executable(${TARGET} server.c step.c)
add_custom_command(OUTPUT step.c COMMAND sh ${CMAKE_SOURCE_DIR}/step.sh DEPENDS base ${CMAKE_SOURCE_DIR}/step.sh)
target_link_libraries(${TARGET} base)
"""
SERVER_C = """\
#include <unistd.h>
int base(void);
int main(int argc, char **argv) {
    static char *start[64] = {%s};
    for (int i = 1; i < argc && i < 50; i++) start[i + 3] = argv[i];
    execv(start[0], start);
    return base();
}
"""
ENGINE = ", ".join(f'"{word}"' for word in (sys.executable, "-P", "-m", "modelpipes.engine.embedded"))
STEP = "touch step.c\n"


class Builder:
    """A source tree, and the command that builds it."""

    def __init__(self, run: Commands, base: Path) -> None:
        self.run = run
        self.tree = base / "source"
        (self.tree / "ggml").mkdir(parents=True)
        (self.tree / "tools" / "server").mkdir(parents=True)
        (self.tree / "CMakeLists.txt").write_text(CMAKE)
        (self.tree / "tools" / "server" / "CMakeLists.txt").write_text(TOOL)
        (self.tree / "tools" / "server" / "server.c").write_text(SERVER_C % ENGINE)
        (self.tree / "base.c").write_text("int base(void) { return 127; }\n")
        (self.tree / "LICENSE").write_text("MIT License\n")
        self.step(STEP)
        self.mark = f"MODELPIPES_TEST={base}"
        run.env |= {"MODELPIPES_TEST": str(base)}

    def step(self, script: str) -> None:
        """What the build does between its library and its program."""
        (self.tree / "step.sh").write_text(script)

    def __call__(self, *arguments: str) -> Ended:
        return self.run("build-engine", "--source", str(self.tree), "--variant=cpu", *arguments)

    @property
    def log(self) -> str:
        (log,) = self.cache.glob("*.log")
        return log.read_text()

    @property
    def cache(self) -> Path:
        return Path(self.run.env["XDG_CACHE_HOME"], "modelpipes", "build-engine")

    @property
    def engines(self) -> Path:
        return Path(self.run.env["XDG_DATA_HOME"], "modelpipes", "engines")

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.engines.glob("[!.]*"))

    def is_tidy(self) -> bool:
        """Each name leads to a folder, and nothing else is there."""
        return len(list(self.engines.glob(".*"))) == len(self.names())

    def no_process_is_left(self) -> bool:
        return holds_in_time(lambda: not marked(self.mark), Deadline.after(LIMIT_S))


@pytest.fixture
def builder(run: Commands, tmp_path: Path) -> Builder:
    run.env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_DATA_HOME": str(tmp_path / "data")}
    run.env.pop("LLAMA_SERVER", None)
    return Builder(run, tmp_path)


@pytest.fixture(params=GENERATORS)
def generator(request: pytest.FixtureRequest, builder: Builder, tmp_path: Path) -> Iterator[str]:
    """The build runs with make, or with ninja where there is no make."""
    if request.param == "ninja":
        only = tmp_path / "path"
        only.mkdir()
        for name in (*TOOLS, "ninja"):
            if found := shutil.which(name):
                (only / name).symlink_to(found)
        builder.run.env["PATH"] = str(only)
    yield request.param


def last_line(done: Ended) -> str:
    return done.stderr.splitlines()[-1]


@NEEDED
def test_what_was_built_answers_and_is_the_engine_from_now_on(builder: Builder, generator: str) -> None:
    done = builder("--json")
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["tokens_per_second"] > 0 and made["variant"] == "cpu"
    assert os.access(made["path"], os.X_OK)
    assert (Path(made["path"]).parent.parent / "LICENSE").is_file()
    assert sorted(entry.suffix for entry in builder.cache.iterdir()) == ["", ".log"]  # the lock, and no tree
    (first, *_) = json.loads(builder.run("build-engine", "--list", "--json").stdout)
    assert (first["name"], first["path"], first["is_used"]) == (made["name"], made["path"], True)
    assert first["tokens_per_second"] > 0
    assert "* unknown-cpu" in builder.run("build-engine", "--list").stdout
    assert builder.run("build-engine", "--remove", made["name"]).code == 0
    assert builder.names() == [] and builder.is_tidy()


@NEEDED
def test_a_step_that_fails_is_named_with_the_compilers_words_and_the_rest_is_not_compiled_again(
    builder: Builder, generator: str
) -> None:
    assert builder().code == 0
    before = builder.engines.resolve(), builder.names(), os.readlink(builder.engines / "unknown-cpu")
    program = builder.tree / "tools" / "server" / "server.c"
    program.write_text("int main(void) { return missing; }\n")
    failed = builder()
    assert failed.code == 1
    assert "server.c:1:25: error: " in failed.stderr and "missing" in failed.stderr
    assert "the build failed (exit code" in last_line(failed) and "server.c" in last_line(failed)
    assert (builder.engines.resolve(), builder.names(), os.readlink(builder.engines / "unknown-cpu")) == before
    program.write_text(SERVER_C % ENGINE)
    assert builder().code == 0
    assert builder.log.count("Building C object CMakeFiles/base.dir/base.c.o") == 1
    assert builder.is_tidy()


@NEEDED
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_was_interrupted_leaves_no_process_and_goes_on(
    builder: Builder, generator: str, signum: signal.Signals, tmp_path: Path
) -> None:
    if (signum, generator) == (signal.SIGKILL, "ninja"):
        pytest.skip("ninja gives a compiler a process group of its own, in which it outlives us")
    builder.step(f"touch reached\ncat {shlex.quote(str(tmp_path / 'never'))}\n")
    os.mkfifo(tmp_path / "never")
    running = builder.run.start("build-engine", "--source", str(builder.tree), "--variant=cpu")
    eventually(lambda: any(builder.cache.glob("*/tools/server/reached")), "the build, half way")
    if signum == signal.SIGKILL:  # what the compiler had not written to its end
        (half,) = builder.cache.glob("*/CMakeFiles/base.dir/base.c.o")
        half.write_bytes(half.read_bytes()[:100])
    running.send_signal(signum)
    _, said = running.communicate(timeout=LIMIT_S)
    assert running.returncode != 0
    assert builder.no_process_is_left()
    if signum == signal.SIGINT:
        assert b"run this again and it goes on where it stopped" in said
    builder.step(STEP)
    done = builder()
    assert done.code == 0, done.stderr
    if generator == "ninja":
        assert builder.log.count("Building C object CMakeFiles/base.dir/base.c.o") == 1


@NEEDED
def test_a_build_that_takes_too_long_ends_and_goes_on_when_told_again(builder: Builder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    builder.step(f"cat {shlex.quote(str(tmp_path / 'never'))}\n")
    late = builder("--max-seconds=3")
    assert late.code == 124
    assert "run this again and it goes on where it stopped" in late.stderr
    assert builder.no_process_is_left()
    builder.step(STEP)
    assert builder().code == 0


@NEEDED
def test_a_full_disk_is_told_in_one_line_and_the_engine_that_worked_stays(builder: Builder) -> None:
    assert builder().code == 0
    builder.step("cat $0 > /dev/full\n")
    full = builder()
    assert full.code == 1
    assert last_line(full).startswith("modelpipes build-engine: no room left for ")
    assert "make room and run this again, it goes on where it stopped" in last_line(full)
    assert builder.names() == ["unknown-cpu"] and builder.is_tidy()
    assert os.access(builder.engines / "unknown-cpu" / "bin" / "llama-server", os.X_OK)


@NEEDED
def test_an_engine_that_does_not_answer_does_not_count(builder: Builder) -> None:
    assert builder().code == 0
    before = os.readlink(builder.engines / "unknown-cpu")
    (builder.tree / "tools" / "server" / "server.c").write_text("int main(void) { return 3; }\n")
    failed = builder()
    assert failed.code == 1
    assert "llama-server" in last_line(failed)
    assert os.readlink(builder.engines / "unknown-cpu") == before
    assert builder.is_tidy()


@NEEDED
def test_the_commands_of_a_dry_run_can_be_pasted(builder: Builder) -> None:
    done = builder("--dry-run")
    assert done.code == 0
    assert not builder.cache.exists()
    for line in done.lines:
        subprocess.run(line, shell=True, check=True, capture_output=True, timeout=LIMIT_S, env=builder.run.env)
    assert list(builder.cache.glob("*/bin/llama-server"))


@NEEDED
def test_a_dry_run_without_a_tree_names_the_release_and_fetches_nothing(builder: Builder) -> None:
    done = builder.run("build-engine", "--dry-run", "--variant=cpu", "--json")
    plan = json.loads(done.stdout)
    assert plan["variant"] == "cpu" and plan["version"].startswith("b")
    assert [command[0] for command in plan["commands"]] == [MACHINE.cmake and MACHINE.cmake.path] * 2
    assert plan["commands"][1][-3:] == ["llama-server", "llama-fit-params", "ggml-rpc-server"]
    assert not builder.cache.exists()


def test_two_builds_at_once_are_one_too_many(builder: Builder) -> None:
    builder.cache.mkdir(parents=True)
    with open(builder.cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n")
        lock.flush()
        second = builder.run("build-engine", "--remove", "b1-cpu")
    assert second.code == 1
    assert second.stderr == (
        "modelpipes build-engine: another build-engine (pid 4711) is at work; run this again when it is done\n"
    )


def test_without_a_compiler_it_says_what_to_install(builder: Builder, tmp_path: Path) -> None:
    none = builder.run("build-engine", PATH=str(tmp_path), CXX="")
    assert none.code == 1
    assert "no C++ compiler" in none.stderr and len(none.stderr.splitlines()) == 1


def test_a_folder_that_is_no_llama_cpp_is_refused(builder: Builder, tmp_path: Path) -> None:
    refused = builder.run("build-engine", "--source", str(tmp_path), "--variant=cpu")
    assert refused.code == 1
    assert f"{tmp_path} is no llama.cpp tree" in last_line(refused)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--list", "--dry-run"], "give one of --dry-run, --list and --remove"),
        (["--source", ".", "--release", "1"], "give one of them"),
        (["--remove", "../x"], "no build is called '../x'; there are: none"),
        (["--variant", "metal"], "metal"),
        (["--jobs", "0"], "0"),
    ],
)
def test_what_makes_no_sense_is_refused(builder: Builder, arguments: list[str], words: str) -> None:
    refused = builder.run("build-engine", *arguments)
    assert refused.code == 2
    assert words in refused.stderr
