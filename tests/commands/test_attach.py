from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.engine.lifecycle import Engine
from modelpipes.values.deadline import Deadline
from tests.commands.conftest import LIMIT_S, QUICK_ENGINE, Commands
from tests.peers import eventually
from tests.server import Scripted, piece
from tests.shell import TINY_CHAT, HeldEngine
from tests.web.servers import certificate

MODEL = ("--model", "tiny-chat", "--temperature", "0", *QUICK_ENGINE)


def children_of(pid: int) -> dict[int, str]:
    """The processes that one has started: pid, command line."""
    pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        pids += (thread / "children").read_text().split()
    return {int(one): Path(f"/proc/{one}/cmdline").read_text().replace("\0", " ") for one in pids}


def engine_of(member: subprocess.Popen[bytes]) -> int:
    """The pid of a member's engine, which is no guard."""
    (pid,) = (pid for pid, command in children_of(member.pid).items() if not command.startswith("/bin/sh -c trap"))
    return pid


def await_end(pids: set[int]) -> None:
    """Wait for processes to be gone."""
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "end of the processes")


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=LIMIT_S)
    return process.returncode, stderr.decode()


def log_of(run: Commands) -> list[tuple[str, str]]:
    """Who did what, as the log has it."""
    return [(line.split()[1], line.split()[2]) for line in (run.cwd / "log").read_text().splitlines()]


def test_its_log_has_a_line_for_each_thing_done_and_no_word_of_what_was_said(run: Commands) -> None:
    # It stayed empty after ten exchanges: it had what the program wrote to its stderr.
    member = run.attach("bob", "--filter", "cat", "--log", "log")
    assert run("ask", "bob", "secret").code == 0
    run.room.wait_for_process("bob", member.pid, Deadline.after(LIMIT_S), check=lambda: None)
    member.terminate()
    assert end_of(member) == (143, "")
    assert log_of(run) == [("bob", what) for what in ("seated", "ready", "heard", "answered", "left")]
    text = (run.cwd / "log").read_text()
    assert "secret" not in text
    ids = re.findall(r"(?:heard|answered) id=(\S+) ", text)
    assert len(ids) == 2 and len(set(ids)) == 1
    assert re.search(r" bob answered id=\S+ to=hub stop=end bytes=6 ms=\S+\n", text)


def test_plain_lines_failures_and_cancelled_answers_are_in_the_log(run: Commands) -> None:
    run.attach("bob", "--exec", "sh -c 'read -r line; test \"$line\" != no && echo ok'", "--log", "log")
    with open(run.room.pipe("hub", "bob"), "w") as pipe:
        pipe.write("no\n")
    with open(run.room.pipe("bob", "hub")) as pipe:
        assert pipe.readline().startswith("error: ")
    assert run("ask", "bob", "no").code == 1
    reasons = [line for line in (run.cwd / "log").read_text().splitlines() if " bob failed " in line]
    assert len(reasons) == 2 and all(" reason=voice " in line and "why=" in line for line in reasons)


def test_verbose_says_the_lines_of_the_log_on_stderr_and_with_content_the_words(run: Commands) -> None:
    member = run.attach("bob", "--filter", "cat", "-v", "--log-content")
    assert run("ask", "bob", "Hello").code == 0
    member.terminate()
    code, said = end_of(member)
    assert code == 143
    assert [line.split()[2] for line in said.splitlines()] == ["seated", "ready", "heard", "answered", "left"]
    assert said.count('content="Hello"') == 2


def test_what_cannot_be_logged_to_is_said_before_the_seat_is_taken(run: Commands) -> None:
    assert run("setup", "bob").code == 0
    member = run("attach", "bob", "--filter", "cat", "--log", "none/log")
    assert (member.code, member.stderr) == (
        1, "modelpipes attach: none/log: the log cannot be written: no such file or directory\n",
    )  # fmt: skip


def test_while_its_model_loads_it_says_how_far_it_is(run: Commands, tmp_path: Path) -> None:
    held = HeldEngine(tmp_path)
    assert run("setup", "bob").code == 0
    options = ("--engine", "llama-server", "--no-fit-check", *QUICK_ENGINE)
    member = run.start("attach", "bob", "--model", "tiny-chat", *options, LLAMA_SERVER=str(held.engine))
    assert member.stderr
    assert re.fullmatch(rb"loading bob: 0\.0 of 1\.6 MiB, \d s\n", member.stderr.readline())
    [bob] = json.loads(run("seats", "bob", "--json").stdout)
    assert bob["loading"] == {"done_bytes": bob["loading"]["done_bytes"], "total_bytes": TINY_CHAT.stat().st_size}
    held.let_load()
    assert run("seats", "--wait", "bob").code == 0
    member.terminate()
    assert end_of(member) == (143, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of --model, --server, --exec and --filter"),
        (["--exec", "cat", "--filter", "cat"], "give one of"),
        (["--model", "x", "--server", "y"], "give one of"),
        (["--exec", "a 'b"], "cannot read the command"),
        (["--exec", "cat", "--system", "x"], "--system is for a model"),
        (["--exec", "cat", "--seed", "0"], "--seed is for a model"),
        (["--filter", "cat", "--gpu-layers", "0"], "--gpu-layers is for a model"),
        (["--filter", "cat", "--parallel", "2"], "a filter answers one line after the other"),
        (["--server", "http://x", "--gpu-layers", "0"], "--gpu-layers is for an engine of ours"),
        (["--server", "http://x", "--engine-arg=-x"], "--engine-arg is for an engine of ours"),
        (["--server", "http://x", "--engine-log", "x"], "--engine-log is for an engine of ours"),
        (["--server", "http://x", "--draft", "x"], "--draft is for an engine of ours"),
        (["--exec", "cat", "--cpu-affinity", "0"], "--cpu-affinity is for a model"),
        (["--model", "tiny-chat", "--cpu-affinity", "3-1"], "'3-1' is no list of CPUs"),
        (["--model", "tiny-chat", "--cpu-affinity", "8000"], "cpu_affinity: 8000 is none of our CPUs"),
        (["--model", "tiny-chat", "--memory-limit", "0"], "0 bytes hold no model"),
        (["--model", "tiny-chat", "--memory-limit", "1000TB"], "memory_limit: 909.5 TiB is more than the"),
        (["--model", "tiny-chat", "--batch-size", "0"], "0 is not in the range x>=1"),
        (["--server", "nowhere"], "--server: 'nowhere' is no server address"),
        (["--server", "http://x", "--api-key-file", "missing"], "missing: cannot be read: no such file"),
        (["--model", "tiny-chat", "--model-name", "x"], "--model-name is for --server"),
        (["--model", "tiny-chat", "--api-key-file", "x"], "--api-key-file is for --server"),
        (["--model", "tiny-chat", "--system", "@missing"], "missing: cannot be read: no such file"),
        (["--model", "tiny-chat", "--engine", "steam"], "'steam' is not one of"),
        (["--model", "tiny-chat", "--max-tokens", "0"], "--max-tokens"),
        (["--model", "tiny-chat", "--temperature", "-1"], "--temperature"),
        (["--model", "tiny-chat", "--top-p", "2"], "--top-p"),
        (["--model", "tiny-chat", "--ctx-size", "x"], "--ctx-size"),
        (["--model", "tiny-chat", "--parallel", "0"], "--parallel"),
        (["--exec", "cat", "--timeout", "0"], "--timeout"),
        (["--exec", "cat", "--json"], "--json is for --filter"),
        (["--exec", "tr a-z A-Z | rev"], """so its | has no meaning: give it a shell, "sh -c 'tr a-z A-Z | rev'","""),
        (["--filter", "~/bin/tool"], "so its ~ has no meaning"),
        (["--filter", "LANG=C cat", "--json"], "so its LANG= has no meaning"),
        (["--exec", "cat > x"], "so its > has no meaning"),
        (["--exec", "cat", "--nonsense"], "--nonsense"),
        (["second", "--exec", "cat"], "second"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2_also_without_a_room(run: Commands, arguments: list[str], said: str) -> None:
    attach = run("attach", "bob", *arguments)
    assert (attach.code, attach.stdout) == (2, "")
    assert said in attach.stderr
    assert attach.stderr.count("\n") == 1


def test_a_room_a_seat_or_a_fifo_that_is_not_there_is_told(run: Commands) -> None:
    assert run("attach", "b_b", "--exec", "cat").code == 2
    attach = run("attach", "bob", "--exec", "cat")
    assert (attach.code, attach.stderr) == (
        1, f"modelpipes attach: {run.room.path}: no room there; run setup-pipes first, or name the room with -d\n",
    )  # fmt: skip
    run("setup", "alice")
    attach = run("attach", "bob", "--exec", "cat")
    assert (attach.code, attach.stderr) == (
        1, f"modelpipes attach: {run.room.path}: no seat 'bob'; its seats are alice, hub; add it with setup-pipes\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "said"), [("file", "not a FIFO"), ("link", "a symbolic link, which is never followed")]
)
def test_what_is_no_fifo_is_named_and_left_alone(run: Commands, tmp_path: Path, kind: str, said: str) -> None:
    run("setup", "bob")
    pipe = Path(run.room.pipe("hub", "bob"))
    pipe.unlink()
    if kind == "file":
        pipe.write_text("precious")
    else:
        os.mkfifo(tmp_path / "elsewhere")
        pipe.symlink_to(tmp_path / "elsewhere")
    attach = run("attach", "bob", "--exec", "cat")
    assert (attach.code, attach.stdout) == (1, "")
    assert attach.stderr.startswith(f"modelpipes attach: {pipe}: {said}")
    assert attach.stderr.count("\n") == 1
    assert kind == "link" or pipe.read_text() == "precious"


def test_a_seat_that_is_taken_names_who_sits_there(run: Commands) -> None:
    first = run.attach("bob", "--filter", "cat")
    second = run("attach", "bob", "--filter", "cat")
    assert (second.code, second.stdout) == (1, "")
    assert f"the seat is taken by bob (pid {first.pid}, __main__.py attach bob --filter cat); end it" in second.stderr
    assert run("ask", "bob", "still there?").stdout == "still there?\n"


@pytest.mark.parametrize(
    ("voice", "said"),
    [
        (["--model", "missing.gguf"], "no model file "),
        (["--model", "/etc/passwd"], "is no GGUF file"),
        (["--exec", "no-such-program"], "no-such-program: no such program on PATH"),
        (["--filter", "no-such-program"], "no-such-program: no such program on PATH"),
        (["--filter", "sh -c 'echo last words >&2; exit 3'"], "bob: sh ended with 3: last words"),
        (["--server", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["--model", "tiny-chat", "--engine-arg=--nonsense"], "invalid argument: --nonsense"),
        (["--model", "tiny-chat", "--engine-log", "/missing/log"], "log file /missing/log cannot be written"),
    ],
)
def test_a_voice_that_cannot_begin_is_one_line_and_exit_1_and_leaves_nothing(
    run: Commands, voice: list[str], said: str
) -> None:
    run("setup", "bob")
    attach = run("attach", "bob", *voice)
    assert (attach.code, attach.stdout) == (1, "")
    assert said in attach.stderr
    assert attach.stderr.count("\n") == 1
    assert run.left_processes() == []


def test_an_engine_that_is_missing_says_how_to_get_one(run: Commands) -> None:
    run("setup", "bob")
    attach = run("attach", "bob", "--model", "tiny-chat", LLAMA_SERVER="/missing")
    assert (attach.code, attach.stderr.count("\n")) == (1, 1)
    assert "$LLAMA_SERVER" in attach.stderr and "names '/missing'" in attach.stderr
    attach = run("attach", "bob", "--model", "tiny-chat", "--engine", "llama-server", PATH="/missing", LLAMA_SERVER="")
    assert (attach.code, attach.stderr.count("\n")) == (1, 1)
    assert "llama-server" in attach.stderr


def test_once_answers_one_message_and_leaves_with_its_outcome(run: Commands) -> None:
    bob = run.attach("bob", "--exec", "cat", "--once")
    assert run("ask", "bob", "x").stdout == "x\n"
    assert end_of(bob) == (0, "")
    bob = run.attach("bob", "--exec", "false", "--once")
    assert run("ask", "bob", "x").code == 1
    assert end_of(bob) == (1, "modelpipes attach: bob: false ended with 1: it said nothing\n")


def test_the_log_is_appended_what_the_program_writes(run: Commands) -> None:
    log = run.cwd / "log"
    log.write_text("before\n")
    run.attach("bob", "--exec", "sh -c 'cat; echo aside >&2'", "--engine-log", "log")
    assert run("ask", "bob", "x").stdout == "x\n"
    assert log.read_text() == "before\naside\n"


def test_the_log_of_an_engine_is_kept(run: Commands) -> None:
    run.attach("bob", *MODEL, "--engine-log", "log")
    assert "tiny-chat" in (run.cwd / "log").read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_and_its_engine_with_its_own_code(run: Commands, signum: int, code: int) -> None:
    bob = run.attach("bob", *MODEL)
    started = set(children_of(bob.pid))
    bob.send_signal(signum)
    assert end_of(bob) == (code, "")
    await_end(started)
    assert run.room.sitting("bob").state == "free"


def test_a_signal_while_it_loads_ends_it_too(run: Commands) -> None:
    run("setup", "bob")
    bob = run.start("attach", "bob", *MODEL)
    eventually(lambda: run.room.sitting("bob").pid == bob.pid, "member in its seat")
    bob.terminate()
    assert end_of(bob) == (143, "")
    assert run.left_processes() == []


def test_nohup_keeps_it_alive(run: Commands) -> None:
    run("setup", "bob")
    command = " ".join(run.command("attach", "bob", "--filter", "cat"))
    run.run(["sh", "-c", f"trap '' HUP; {command} & echo $! > pid"])
    run.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    pid = int((run.cwd / "pid").read_text())
    os.kill(pid, signal.SIGHUP)
    assert run("ask", "bob", "x").stdout == "x\n"
    os.kill(pid, signal.SIGINT)  # which a script's `&` had ignored
    await_end({pid})


def test_ctrl_c_at_a_terminal_ends_a_loop_of_the_shell_as_well(run: Commands) -> None:
    run("setup", "bob")
    command = " ".join(run.command("attach", "bob", "--filter", "cat"))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(run.cwd)
        os.execvpe("bash", ["bash", "-c", f"while :; do {command}; echo again; done"], run.env)
    run.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    os.write(terminal, b"\x03")
    poll, seen = select.poll(), b""
    poll.register(terminal, select.POLLIN)
    try:
        while poll.poll(LIMIT_S * 1000) and (data := os.read(terminal, 65536)):
            seen += data
    except OSError:
        pass  # how the end of a terminal reads
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGINT
    assert b"again" not in seen


def test_an_engine_that_is_killed_takes_its_member_with_it(run: Commands) -> None:
    bob = run.attach("bob", *MODEL)
    os.kill(engine_of(bob), signal.SIGKILL)
    code, stderr = end_of(bob)
    assert (code, stderr) == (1, "modelpipes attach: bob: the engine ended: killed by signal 9\n") or (
        code == 1 and stderr.startswith("modelpipes attach: bob: the engine ended: ") and stderr.count("\n") == 1
    )
    assert run.room.sitting("bob").state == "died"


def test_a_member_whose_pipes_vanish_leaves_and_its_engine_with_it(run: Commands) -> None:
    bob = run.attach("bob", *MODEL)
    started = set(children_of(bob.pid))
    assert started
    assert run("cleanup", "-f").code == 0
    assert end_of(bob) == (0, "")
    await_end(started)
    assert not os.path.exists(run.room.path)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A running server that wants a key."""
    arguments = ["--threads", "1", "--api-key", "secret"]
    with Engine("tiny-chat", ctx_size=1024, engine_args=arguments, name="shared") as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        yield engine


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_a_running_server_is_spoken_to_with_or_without_v1(run: Commands, engine: Engine, ending: str) -> None:
    run.attach("bob", "--server", engine.base_url + ending, "--temperature", "0", OPENAI_API_KEY="secret")
    assert run("ask", "bob", "Say the word lantern.").stdout.lower().count("lantern") == 1
    assert json.loads(run("seats", "bob", "--json").stdout)[0]["voice"] == f"server {engine.base_url}{ending}"


def test_the_key_comes_from_a_file_before_the_environment(run: Commands, engine: Engine) -> None:
    (run.cwd / "key").write_text("secret\n")
    server = ("--server", engine.base_url, "--max-tokens", "1")
    run.attach("bob", *server, "--api-key-file", "key", OPENAI_API_KEY="wrong")
    assert run("ask", "bob", "Hello").code == 0
    run("setup", "alice")
    for wrong in ({"OPENAI_API_KEY": "wrong"}, {}):
        alice = run("attach", "alice", *server, **wrong)
        assert (alice.code, alice.stderr.count("\n")) == (1, 1)
        assert "key" in alice.stderr.lower()
        assert "secret" not in alice.stderr and "wrong" not in alice.stderr


@pytest.mark.parametrize("voice", [("--filter", "cat"), ("--exec", "cat")])
def test_a_members_memory_stays_small_however_much_is_said(run: Commands, voice: tuple[str, str]) -> None:
    # Messages in cycles that Python seldom looks for made it 130 MB.
    member = run.attach("bob", *voice)
    batch = "".join(f"{n} {'x' * 900_000}\n" for n in range(100))
    asked = run("ask", "bob", "--each-line", "--whole", typed=batch)
    assert (asked.code, len(asked.stdout)) == (0, len(batch))
    peak_kb = Path(f"/proc/{member.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert int(peak_kb) < 80_000


BANNER = """
import sys
print("Welcome to tool 1.0", flush=True)
for line in sys.stdin:
    print("answer to", line.strip(), flush=True)
"""


def test_a_filters_banner_is_told_and_answers_nothing(run: Commands) -> None:
    (run.cwd / "tool.py").write_text(BANNER)
    member = run.attach("bob", "--filter", f"{sys.executable} tool.py")
    asked = run("ask", "bob", "--each-line", typed="one\ntwo\nthree\n")
    assert asked.lines == ["answer to one", "answer to two", "answer to three"]
    member.terminate()
    _, said = end_of(member)
    assert said == f"bob: {sys.executable} said before it was asked: 'Welcome to tool 1.0'; dropped\n"


REVERSER = """
import json, sys
for line in sys.stdin:
    told = json.loads(line)
    words = f"{told['from']} said:\\n{told['content'][::-1]}"
    print(json.dumps({"delta": words[:5]}), flush=True)
    print(json.dumps({"id": told["id"], "content": words}), flush=True)
"""


def test_a_filter_in_json_is_told_who_speaks_and_keeps_newlines(run: Commands) -> None:
    (run.cwd / "reverser.py").write_text(REVERSER)
    run.attach("bob", "--filter", f"{sys.executable} reverser.py", "--json")
    assert run("ask", "bob", "--whole", "one\ntwo").stdout == "hub said:\nowt\neno\n"
    assert json.loads(run("seats", "bob", "--json").stdout)[0]["voice"] == f"filter-json {sys.executable} reverser.py"


def test_a_program_answers_as_many_at_a_time_as_it_may(run: Commands) -> None:
    # Each of the two waits for the other at the ends of one FIFO.
    assert run("setup", "bob", "alice", "--mesh").code == 0
    os.mkfifo(run.cwd / "fifo")
    script = "read what; case $what in first) cat fifo;; *) echo met > fifo;; esac"
    run.attach("bob", "--exec", shlex.join(["sh", "-c", script]), "--parallel", "2")
    first = run.start("ask", "bob", "first")
    assert run("ask", "bob", "second", "--from", "alice").code == 0
    assert first.communicate(timeout=LIMIT_S)[0] == b"met\n"


FAULTY = """
import sys
from modelpipes.chat.voices.filter import FilterVoice
from modelpipes.commands import main
def fail(*_):
    raise ZeroDivisionError("integer division\\nor modulo by zero")
setattr(FilterVoice, sys.argv.pop(1), fail)
sys.argv[0] = "attach-model"
main()
"""
A_FAULT = (
    "attach-model: bob: a fault of modelpipes, please report it: "
    "ZeroDivisionError: integer division or modulo by zero (<string>:6)\n"
)


def attach_faulty(run: Commands, method: str) -> subprocess.Popen[bytes]:
    """attach-model with a filter that fails, in one of its methods, in a way that nobody foresaw."""
    assert run("setup", "bob").code == 0
    command = [sys.executable, "-P", "-c", FAULTY, method, "bob", "--filter", "cat"]
    return subprocess.Popen(command, env=run.env, cwd=run.cwd, stderr=subprocess.PIPE)


@pytest.mark.parametrize("method", ["prepare", "tend", "death_fd"])
def test_a_fault_that_nobody_foresaw_is_one_line_and_exit_1(run: Commands, method: str) -> None:
    # A fault while it loaded left the member "loading" for ever.
    assert end_of(attach_faulty(run, method)) == (1, A_FAULT)
    assert run.room.sitting("bob").state == "died"
    ask = run("ask", "bob", "hello", "--timeout", "10s")
    assert (ask.code, ask.stdout) == (1, "")
    assert "bob" in ask.stderr


def test_a_fault_in_an_answer_is_told_to_its_asker_and_the_member_answers_on(run: Commands) -> None:
    member = attach_faulty(run, "_exchange")
    run.room.wait_for(["bob"], Deadline.after(LIMIT_S))
    for _ in range(2):
        ask = run("ask", "bob", "hello")
        assert (ask.code, ask.stdout) == (1, "")
        assert "a fault of modelpipes, please report it: ZeroDivisionError: integer division" in ask.stderr
        assert ask.stderr.count("\n") == 1
    member.terminate()
    code, said = end_of(member)
    assert (code, said.count("\n")) == (128 + signal.SIGTERM, 2)
    assert said.startswith(A_FAULT.removeprefix("attach-model: "))


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate: install it")
def test_a_server_with_a_certificate_of_its_own_answers_where_that_is_named(run: Commands, tmp_path: Path) -> None:
    path, context = certificate(tmp_path)
    server = Scripted(context)
    server.say(piece("stop", content="Safely."), b"[DONE]")
    try:
        run.attach("bob", "--server", server.url, SSL_CERT_FILE=str(path))
        assert run("ask", "bob", "How?").stdout == "Safely.\n"
        assert run("setup", "alice").code == 0
        refused = run("attach", "alice", "--server", server.url, SSL_CERT_FILE="")
        assert (refused.code, refused.stdout) == (1, "")
        assert "is signed by nobody trusted here (self-signed certificate): name the file" in refused.stderr
    finally:
        server.close()
