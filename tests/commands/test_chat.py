from __future__ import annotations

import itertools
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from modelpipes.values.deadline import Deadline
from tests.commands.conftest import LIMIT_S, QUICK_ENGINE, Commands
from tests.peers import eventually
from tests.shell import UNMEASURED, HeldEngine

PAIR = ("--filter", "alice=cat", "--filter", "bob=cat")
SLOW = "sh -c 'printf begun; exec sleep 1000'"  # begins to answer, and never ends
GRANDCHILDREN = "sh -c 'sh -c \"sleep 1000 & sleep 1000\" & printf begun; wait'"


def records(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def turns_of(path: Path) -> list[dict[str, object]]:
    """The turns, but for their times."""
    turns = [line for line in records(path.read_text()) if "from" in line]
    assert all(datetime.fromisoformat(str(turn.pop("at"))).tzinfo for turn in turns)
    return turns


def contents(path: Path) -> list[object]:
    return [turn["content"] for turn in turns_of(path)]


def read_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """What the process writes to stdout, up to this text."""
    assert process.stdout
    deadline, seen = Deadline.after(LIMIT_S), b""
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while text not in seen:
        assert poll.poll(deadline.poll_ms()), f"{text!r} did not come: {seen!r}"
        data = os.read(process.stdout.fileno(), 65536)
        assert data, f"{text!r} never came: {seen!r}"
        seen += data
    return seen


def end_of(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """How a process that was started ends, and its stderr."""
    _, stderr = process.communicate(timeout=LIMIT_S)
    return process.returncode, stderr.decode()


def is_left_nothing(run: Commands) -> bool:
    return run.left_processes() == [] and run.left_files() == [] and not list(run.runtime.glob("modelpipes/*"))


# -- one command does it all


def test_one_command_seats_leads_and_leaves_nothing(run: Commands) -> None:
    chat = run("chat", *PAIR, "--rounds", "2", "--opening", "Hi")
    assert chat.code == 0
    assert chat.stdout == "hub: Hi\nalice: Hi\nbob: Hi\nalice: Hi\nbob: Hi\n"
    assert chat.stderr.startswith("4 turns, first token ")
    assert chat.stderr.endswith(" s in all; ended by: rounds\n")
    assert is_left_nothing(run)


def line_of(process: subprocess.Popen[bytes]) -> str:
    """The next line that the process writes to stderr."""
    assert process.stderr
    poll = select.poll()
    poll.register(process.stderr, select.POLLIN)
    assert poll.poll(LIMIT_S * 1000), "it said nothing"
    return os.read(process.stderr.fileno(), 65536).decode()


def test_one_log_has_what_the_leader_and_its_members_did_in_the_order_it_happened(run: Commands) -> None:
    chat = run("chat", *PAIR, "--rounds", "1", "--log", "log", "--opening", "secret")
    assert chat.code == 0, chat.stderr
    text = (run.cwd / "log").read_text()
    done = [tuple(line.split()[1:3]) for line in text.splitlines()]
    assert [each for each in done if each[0] == "hub"] == [
        ("hub", what) for what in ("leads", "asked", "heard", "asked", "heard", "ended")
    ]
    for name in ("alice", "bob"):
        assert [what for who, what in done if who == name] == ["seated", "ready", "heard", "answered", "left"]
    times = [line.split()[0] for line in text.splitlines()]
    assert times == sorted(times)
    assert "secret" not in text
    assert len(re.findall(" turn=1 ", text)) == 4  # asked, heard, answered, heard


def test_verbose_says_what_the_leader_does_between_the_turns(run: Commands) -> None:
    chat = run("chat", *PAIR, "--rounds", "1", "-v", LOG_FILE="log", LOG_CONTENT="1")
    assert chat.stdout == "hub: Hello.\nalice: Hello.\nbob: Hello.\n"
    said = [line.split()[2] for line in chat.stderr.splitlines()[:-1]]
    assert said == ["leads", "asked", "heard", "asked", "heard", "ended"]
    assert 'content="Hello."' in (run.cwd / "log").read_text()


def test_a_talk_that_breaks_off_says_why_in_the_log(run: Commands) -> None:
    chat = run("chat", "--exec", "alice=false", "--filter", "bob=cat", "--retries", "0", "--log", "log")
    assert chat.code == 1
    ended = [line for line in (run.cwd / "log").read_text().splitlines() if " hub ended " in line]
    assert len(ended) == 1 and "false ended with 1" in ended[0]


SLOWLY_LOADED = ("--engine", "llama-server", "--no-fit-check", "--max-tokens", "3", *QUICK_ENGINE)


def test_while_models_load_it_is_said_which_and_how_far_it_is(run: Commands, tmp_path: Path) -> None:
    # Two models that took 12 s each to load: 24 s without a word.
    held = HeldEngine(tmp_path)
    chat = run.start(
        "chat", "--model", "alice=tiny-chat", "--model", "bob=tiny-chat", "--rounds", "1", *SLOWLY_LOADED,
        LLAMA_SERVER=str(held.engine),
    )  # fmt: skip
    for number, name in enumerate(("alice", "bob"), 1):
        said = line_of(chat)
        assert re.fullmatch(rf"loading {name} \({number} of 2\)(: 0\.0 of 1\.6 MiB)?, \d+ s\n", said), said
        held.let_load()
    stdout, stderr = chat.communicate(timeout=LIMIT_S)
    assert chat.returncode == 0, stderr
    assert [line.split(b":")[0] for line in stdout.splitlines()] == [b"hub", b"alice", b"bob"]
    assert b"loading" not in stdout
    assert is_left_nothing(run)


def test_members_speak_in_the_order_typed_whatever_names_them(run: Commands) -> None:
    run.attach("dora", "--filter", "cat")
    chat = run("chat", "--exec", "bob=cat", "--seed", "carol=5", "--filter=alice=cat", "dora", "-d", run.room.path,
               "--model=carol=tiny-chat", "--max-tokens", "1", *QUICK_ENGINE, "--json", "--rounds", "1")  # fmt: skip
    assert chat.code == 0, chat.stderr
    assert [turn["from"] for turn in records(chat.stdout)] == ["hub", "bob", "alice", "dora", "carol"]
    assert run.room.seats() == ["dora", "hub"]
    assert run.room.sitting("dora").state == "ready"


TELLER = """
import json, sys
for line in sys.stdin:
    told = json.loads(line)
    heard = [f"{turn['from']}:{turn['content']!r}" for turn in told["turns"]]
    print(json.dumps({"content": f"turn {told['turn']}\\n" + " ".join(heard)}), flush=True)
"""


def test_a_filter_in_json_hears_the_whole_conversation_and_is_seated_the_same_way_again(run: Commands) -> None:
    (run.cwd / "teller.py").write_text(TELLER)
    talk = ("--transcript", "talk.jsonl", "--opening", "Hi")
    seated = ("--filter", "alice=cat", "--filter-json", f"bob={sys.executable} teller.py")
    chat = run("chat", *seated, "--rounds", "1", *talk, "--json")
    assert chat.code == 0, chat.stderr
    assert [json.loads(line)["content"] for line in chat.lines] == ["Hi", "Hi", "turn 2\nhub:'Hi' alice:'Hi'"]
    more = run("chat", "--resume", "--transcript", "talk.jsonl", "--rounds", "2", "--json")
    assert more.code == 0, more.stderr
    assert "bob" not in more.stderr, "it is seated as it was"
    assert json.loads(more.lines[-1])["content"].startswith("turn 4\nhub:'Hi' alice:'Hi' bob:\"turn 2\\nhub:")


def test_a_filter_that_dies_in_mid_talk_is_seated_again(run: Commands) -> None:
    # Its failures came faster than its death was noticed, and took all tries.
    dyer = "sh -c 'read l; echo one; read l; exit 3'"
    chat = run("chat", "--filter", f"alice={dyer}", "--exec", "bob=cat", "--rounds", "3")
    assert (chat.code, chat.stdout.count("alice: one\n")) == (0, 3)
    assert "seating it again" in chat.stderr


def test_seats_that_are_taken_are_led_and_left_as_they_were(run: Commands) -> None:
    run.attach("alice", "--filter", "cat")
    run.attach("bob", "--exec", "tr a-z A-Z")
    chat = run("chat", "bob", "alice", "--rounds", "1", "--opening", "-", typed="two\nlines\n")
    assert (chat.code, chat.stdout) == (0, "hub: two\nlines\nbob: TWO\nLINES\nalice: TWO LINES\n")
    assert {run.room.sitting(seat).state for seat in ("alice", "bob")} <= {"ready", "busy"}


def test_real_models_talk(run: Commands) -> None:
    chat = run("chat", "--model", "alice=tiny-chat", "--model", "bob=tiny-chat", "--temperature", "0", "--system",
               "alice=You are alice.", "--rounds", "1", "--opening", "What is your name?", *QUICK_ENGINE)  # fmt: skip
    assert chat.code == 0, chat.stderr
    assert "alice" in chat.stdout.splitlines()[1].removeprefix("alice: ").lower()
    assert " tokens, " in chat.stderr
    assert is_left_nothing(run)


def test_json_is_the_transcripts_turns(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    chat = run("chat", *PAIR, "--rounds", "2", "--json", "--transcript", str(path))
    assert chat.stdout.splitlines() == path.read_text().splitlines()[1:-1]
    header, *_, end = records(path.read_text())
    assert header["members"] == ["alice", "bob"]
    assert header["voices"] == {"alice": "filter cat", "bob": "filter cat"}
    assert end == {"type": "end", "why": "rounds"}


def test_escape_sequences_never_reach_stdout_split_across_deltas_or_not(run: Commands) -> None:
    script = "printf 'a\\033'; sleep 0.05; printf '[31mb\\033]0;ti'; sleep 0.05; printf 'tle\\007c\\033[2Jd\\n'"
    chat = run("chat", "--exec", f'alice=sh -c "{script}"', "--filter", "bob=cat", "--rounds", "1",
               "--opening", "\033[1mHello")  # fmt: skip
    assert chat.stdout == "hub: Hello\nalice: abcd\nbob: abcd\n"


# -- options


def test_random_turns_are_the_same_with_the_same_seed_and_after_a_resume(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    random = (*PAIR, "--filter", "carol=cat", "--turns", "random")
    whole = run("chat", *random, "--rounds", "4", "--seed", "7", "--json").stdout
    speakers = [turn["from"] for turn in records(whole)]
    assert all(a != b for a, b in itertools.pairwise(speakers))
    run("chat", *random, "--rounds", "2", "--seed", "7", "--transcript", str(path))
    run("chat", *random, "--rounds", "4", "--seed", "8", "--transcript", str(path), "--resume")
    assert [turn["from"] for turn in turns_of(path)] == speakers


def test_without_a_seed_random_turns_differ_and_are_written_down(run: Commands) -> None:
    paths = [run.cwd / name for name in ("a", "b")]
    for path in paths:
        run("chat", *PAIR, "--turns", "random", "--rounds", "1", "--transcript", str(path))
    seeds = [records(path.read_text())[0]["settings"]["seed"] for path in paths]  # type: ignore[index]
    assert seeds[0] != seeds[1]


def test_an_option_reaches_its_own_member_and_a_common_one_those_who_can_use_it(run: Commands) -> None:
    chat = run.start("chat", "--model", "alice=tiny-chat", "--model", "bob=tiny-chat", "--exec", f"carol={SLOW}",
                     "--filter", "dora=cat", "--max-tokens", "3", "--max-tokens", "bob=5", "--parallel", "2",
                     "--temperature", "alice=0", "--timeout", "7", *QUICK_ENGINE)  # fmt: skip
    read_until(chat, b"carol: begun")
    (room,) = run.runtime.glob("modelpipes/chat-*")
    said = {
        seat: json.loads((room / f"{seat}.lock").read_text())["command"] for seat in ("alice", "bob", "carol", "dora")
    }
    chat.terminate()
    assert end_of(chat)[0] == 143
    ours = {seat: command.partition(" -d ")[2].partition(" ")[2] for seat, command in said.items()}
    engine = "--ctx-size=1024 --engine-arg=--threads --engine-arg=1"
    assert ours[
        "alice"
    ] == f"--model=tiny-chat --no-fit-check --timeout=7.0 --max-tokens=3 --temperature=0 --parallel=2 {engine}".replace(
        "--parallel=2 --ctx-size=1024", "--ctx-size=1024 --parallel=2"
    )
    assert "--max-tokens=5" in ours["bob"] and "--max-tokens=3" not in ours["bob"] and "temperature" not in ours["bob"]
    assert ours["carol"].endswith("--timeout=7.0 --parallel=2")
    assert ours["dora"] == "--filter=cat --timeout=7.0"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a conversation needs two members"),
        (["alice"], "a conversation needs two members"),
        (["--filter", "alice=cat"], "a conversation needs two members"),
        (["--filter", "alice=cat", "--filter", "alice=cat"], "alice is named twice"),
        (["alice", "alice"], "alice is named twice"),
        (["alice", "--filter", "alice=cat"], "alice is named twice"),
        (["me", "me"], "me is named twice"),
        (["b_b", "alice"], "'b_b' cannot be a seat"),
        (["--filter", "Bob=cat", "alice"], "'Bob' cannot be a seat"),
        (["hub", "alice"], "'hub' is who leads"),
        (["--filter", "hub=cat", "alice"], "'hub' is who leads"),
        (["--filter", "me=cat", "alice"], "'me' is you at the terminal"),
        (["--filter", "alice", "bob"], "--filter alice: give it as NAME=alice"),
        (["--filter", "alice=", "bob"], "--filter alice=: give it as NAME=VALUE"),
        (["--exec", "alice='", *PAIR[2:]], "alice: cannot read the command"),
        (["--exec", "alice=wc | rev", *PAIR[2:]], "alice: no shell runs 'wc | rev', so its | has no meaning"),
        (["--filter-json", "alice=~/tool", *PAIR[2:]], "alice: no shell runs '~/tool', so its ~"),
        ([*PAIR, "--nonsense"], "--nonsense"),
        ([*PAIR, "--rounds", "0"], "--rounds"),
        ([*PAIR, "--max-seconds", "0"], "--max-seconds"),
        ([*PAIR, "--timeout", "0"], "--timeout"),
        ([*PAIR, "--patience", "-1"], "--patience"),
        ([*PAIR, "--retries", "-1"], "--retries"),
        ([*PAIR, "--stop-word", " "], "the stop word is empty"),
        ([*PAIR, "--opening", ""], "the opening is empty"),
        ([*PAIR, "--opening", "-"], "the opening is empty"),
        (["me", *PAIR, "--opening", "-"], "'me' is to type"),
        ([*PAIR, "--resume"], "--resume needs the --transcript"),
        ([*PAIR, "--turns", "moderator"], "go together"),
        ([*PAIR, "--moderator", "bob"], "go together"),
        ([*PAIR, "--turns", "moderator", "--moderator", "carol"], "--moderator carol is no member"),
        ([*PAIR, "--turns", "dance"], "'dance' is not one of"),
        ([*PAIR, "--system", "alice=x"], "alice: --system is for a model"),
        ([*PAIR, "--system", "carol=x"], "no member 'carol' is seated here; those are alice, bob"),
        ([*PAIR, "--system", "x"], "--system x: no member that is seated here can use it"),
        (["alice", "bob", "--system", "alice=x"], "no member 'alice' is seated here; nobody is"),
        ([*PAIR, "--turns", "random", "--seed", "x"], "--seed x: give a whole number"),
        (["--model", "alice=tiny-chat", *PAIR[2:], "--seed", "x"], "alice: Invalid value for '--seed'"),
        (["--model", "alice=tiny-chat", *PAIR[2:], "--model-name", "x"], "--model-name x: no member"),
        (["--model", "alice=tiny-chat", *PAIR[2:], "--system", "@missing"], "alice: missing: cannot be read: no such"),
        (["--server", "alice=http://x", *PAIR[2:], "--gpu-layers", "alice=0"], "alice: --gpu-layers is for an engine"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_exit_2_before_anything_is_made(
    run: Commands, arguments: list[str], said: str
) -> None:
    chat = run("chat", *arguments)
    assert (chat.code, chat.stdout) == (2, "")
    assert said in chat.stderr
    assert chat.stderr.count("\n") == 1
    assert not os.path.exists(run.room.path)
    assert not list(run.runtime.iterdir())


def test_an_opening_that_is_no_text_is_told(run: Commands) -> None:
    chat = " ".join(run.command("chat", *PAIR, "--opening"))
    for script in (f"printf '\\377' | {chat} -", f"{chat} \"$(printf '\\377')\""):
        ended = run.run(["sh", "-c", script])
        assert (ended.code, ended.stdout) == (1, "")
        assert "is not UTF-8 text" in ended.stderr
        assert ended.stderr.count("\n") == 1


# -- what cannot be seated


def test_what_cannot_be_seated_is_one_line_that_names_the_member_and_nothing_is_left(run: Commands) -> None:
    junk = run.cwd / "junk.gguf"
    junk.write_text("junk")
    half = run.cwd / "half.gguf"
    half.write_bytes(
        Path(__file__).parents[2].joinpath("pipes/modelpipes/models/tiny-chat.gguf").read_bytes()[:500_000]
    )
    for voice, said in (
        ("--model=bob=missing.gguf", "bob: no model file "),
        (f"--model=bob={junk}", "is no GGUF file"),
        (f"--model=bob={half}", "incomplete download"),
        ("--exec=bob=no-such-program", "no-such-program: no such program on PATH"),
        ("--filter=bob=/etc/passwd", "bob"),
        ("--server=bob=http://127.0.0.1:9", "bob ended with 1: "),
    ):
        chat = run("chat", "--filter", "alice=cat", voice, "--transcript", "talk.jsonl")
        assert (chat.code, chat.stdout) == (1, ""), voice
        assert said in chat.stderr
        assert "bob" in chat.stderr
        assert chat.stderr.count("\n") == 1, chat.stderr
        assert is_left_nothing(run)
    # The transcript that nobody spoke for is in nobody's way.
    assert run("chat", *PAIR, "--rounds", "1", "--transcript", "talk.jsonl").code == 0


def test_a_room_or_a_seat_that_is_missing_is_told(run: Commands) -> None:
    chat = run("chat", "alice", "bob")
    assert (chat.code, chat.stdout) == (1, "")
    assert chat.stderr == (
        f"modelpipes chat: {run.room.path}: no room there; run setup-pipes first, or name the room with -d\n"
    )
    run("setup", "alice")
    chat = run("chat", "alice", "bob")
    assert chat.code == 1
    assert "no seat 'bob'; its seats are alice, hub" in chat.stderr
    chat = run("chat", "alice", "--filter", "bob=cat", "carol")
    assert "no seat 'carol'; its seats are alice, hub;" in chat.stderr
    assert run.room.seats() == ["alice", "hub"]


# -- transcripts


def test_a_transcript_is_not_resumed_by_others(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    run("chat", *PAIR, "--rounds", "1", "--transcript", str(path))
    before = path.read_text()
    others = run(
        "chat", "--filter", "a=cat", "--filter", "b=cat", "--rounds", "2", "--transcript", str(path), "--resume"
    )
    assert (others.code, others.stdout, path.read_text()) == (2, "", before)
    assert "is a conversation of alice, bob: --resume goes on with the same members" in others.stderr


def test_a_moderator_is_asked_where_nobody_keeps_a_transcript(run: Commands) -> None:
    """What was said so far was once looked for in a file that is not there."""
    moderated = ("--turns", "moderator", "--moderator", "bob", "--moderator-speaks")
    chat = run("chat", *PAIR, *moderated, "--rounds", "2")
    assert chat.code == 0, chat.stderr
    assert len(chat.lines) == 5


def test_an_interrupted_conversation_is_summed_up_too(run: Commands) -> None:
    talk = run.start("chat", "--filter", "alice=cat", "--exec", "bob=sleep 60", "--rounds", "9")
    assert talk.stdout is not None
    assert [talk.stdout.readline(), talk.stdout.readline()] == [b"hub: Hello.\n", b"alice: Hello.\n"]
    talk.send_signal(signal.SIGINT)
    _, stderr = talk.communicate(timeout=LIMIT_S)
    assert stderr.decode().splitlines()[-1].startswith("1 turn, ")
    assert talk.returncode in (130, -signal.SIGINT)


def test_a_transcript_is_not_begun_twice_but_resumed_and_resume_of_nothing_begins(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    talk = ("--filter", "alice=cat", "--exec", "bob=wc -c", "--transcript", str(path))
    assert run("chat", *talk, "--rounds", "1", "--resume").code == 0
    before = path.read_text()
    again = run("chat", *talk, "--rounds", "2")
    assert (again.code, again.stdout, path.read_text()) == (2, "", before)
    assert "--resume" in again.stderr
    assert run("chat", *talk, "--rounds", "1", "--resume").stderr == "nothing was left to say; ended by: rounds\n"
    path.write_text(path.read_text() + '{"turn":3,"from":"alice","con')
    resumed = run("chat", *talk, "--rounds", "2", "--resume", "--opening", "not said")
    assert resumed.stdout == "alice: 7\nbob: 2\n"
    assert contents(path) == ["Hello.", "Hello.", "7", "7", "2"]


def test_a_second_leader_of_a_transcript_is_refused(run: Commands) -> None:
    first = run.start("chat", "--filter", "alice=cat", "--exec", f"bob={SLOW}", "--transcript", "talk.jsonl")
    read_until(first, b"bob: begun")
    for resume in ((), ("--resume",)):
        second = run("chat", *PAIR, "--transcript", "talk.jsonl", *resume)
        assert (second.code, second.stdout) == (1, "")
        assert second.stderr.endswith(
            "modelpipes chat: talk.jsonl: another leader holds this transcript: "
            "wait for it to end, or name another file\n"
        )
    first.terminate()
    assert end_of(first)[0] == 143


def test_a_file_of_something_else_is_kept(run: Commands) -> None:
    (run.cwd / "poem").write_text("a poem\n")
    assert run("chat", *PAIR, "--transcript", "poem").code == 2
    resumed = run("chat", *PAIR, "--transcript", "poem", "--resume")
    assert (resumed.code, resumed.stdout) == (1, "")
    assert "poem: is no transcript" in resumed.stderr
    assert (run.cwd / "poem").read_text() == "a poem\n"


def test_a_full_disk_is_one_clear_line_and_loses_no_turn(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    talk = [*PAIR, "--rounds", "50", "--transcript", str(path)]
    ended = run.run(["sh", "-c", f"ulimit -f 8; exec {' '.join(run.command('chat', *talk))}"], env=UNMEASURED)
    assert ended.code == 1
    assert "talk.jsonl: cannot write turn " in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert is_left_nothing(run)
    said = len(turns_of(path))
    assert ended.stdout.count("\n") == said + 1 > 2  # the last one was heard, but could not be kept
    assert run("chat", *talk, "--resume").code == 0
    assert [turn["turn"] for turn in turns_of(path)] == list(range(101))


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_loses_no_turn(run: Commands, tiny_disk: Path) -> None:
    path = tiny_disk / "talk.jsonl"
    chat = run("chat", *PAIR, "--rounds", "50", "--transcript", str(path))
    assert chat.code == 1
    assert f"{path}: cannot write turn " in chat.stderr and "No space left on device" in chat.stderr
    assert chat.stderr.count("\n") == 1
    assert [turn["turn"] for turn in turns_of(path)] == list(range(chat.stdout.count("\n") - 1))


# -- ends


def test_max_seconds_ends_it_in_mid_answer_and_stops_the_work(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    chat = run(
        "chat", "--filter", "alice=cat", "--exec", f"bob={SLOW}", "--max-seconds", "3s", "--transcript", str(path)
    )
    assert (chat.code, chat.stdout) == (0, "hub: Hello.\nalice: Hello.\nbob: begun\n")
    assert chat.stderr.startswith("2 turns, ") and chat.stderr.endswith("ended by: max-seconds\n")
    assert turns_of(path)[-1] == {"turn": 2, "from": "bob", "content": "begun", "stop": "timeout"}
    assert records(path.read_text())[-1] == {"type": "end", "why": "max-seconds"}
    assert is_left_nothing(run)


def test_the_stop_word_ends_it(run: Commands) -> None:
    chat = run("chat", "--filter", "alice=cat", "--exec", "bob=echo well, STOP now", "--stop-word", "stop")
    assert chat.stdout == "hub: Hello.\nalice: Hello.\nbob: well, STOP now\n"
    assert chat.stderr.endswith("ended by: stop-word\n")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_with_its_own_code_and_nothing_is_left(run: Commands, signum: int, code: int) -> None:
    chat = run.start("chat", "--filter", "alice=cat", "--exec", f"bob={GRANDCHILDREN}", "--transcript", "talk.jsonl")
    read_until(chat, b"bob: begun")
    chat.send_signal(signum)
    ended, said = end_of(chat)
    assert (ended, said.endswith("ended by: a signal\n")) == (code, True)
    assert is_left_nothing(run)
    assert contents(run.cwd / "talk.jsonl") == ["Hello.", "Hello."]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_member_loads_ends_it_too(run: Commands, signum: int) -> None:
    chat = run.start("chat", "--model", "alice=tiny-chat", "--model", "bob=tiny-chat", *QUICK_ENGINE)
    eventually(lambda: list(run.runtime.glob("modelpipes/chat-*/alice.lock")), "member in its seat")
    chat.send_signal(signum)
    assert end_of(chat) == (128 + signum, "")
    assert is_left_nothing(run)


def test_killed_it_takes_members_engines_and_grandchildren_with_it(run: Commands) -> None:
    chat = run.start("chat", "--model", "alice=tiny-chat", "--max-tokens", "4", "--exec", f"bob={GRANDCHILDREN}",
                     *QUICK_ENGINE)  # fmt: skip
    read_until(chat, b"bob: begun")
    chat.kill()
    chat.wait(LIMIT_S)
    assert run.left_processes() == []


def test_a_closed_stdout_ends_it_quietly_with_nothing_left(run: Commands) -> None:
    chat = " ".join(run.command("chat", *PAIR, "--rounds", "100000"))
    ended = run.run(["bash", "-c", f"{chat} | head -2; echo ${{PIPESTATUS[0]}}"])
    assert (ended.stdout, ended.stderr) == ("hub: Hello.\nalice: Hello.\n0\n", "")
    assert is_left_nothing(run)


def test_a_full_stdout_is_told(run: Commands) -> None:
    ended = run.run(["sh", "-c", f"{' '.join(run.command('chat', *PAIR))} > /dev/full"])
    assert (ended.code, ended.stderr) == (1, "modelpipes chat: cannot write to stdout: No space left on device\n")
    assert is_left_nothing(run)


# -- members that fail


def script(run: Commands, text: str) -> str:
    """A program of the shell, as a command."""
    path = run.cwd / "member.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def member_pid(run: Commands, seat: str) -> int:
    """Of a member in the fresh room of the one chat that runs."""
    (lock,) = run.runtime.glob(f"modelpipes/chat-*/{seat}.lock")
    pid = json.loads(lock.read_text())["pid"]
    assert isinstance(pid, int)
    return pid


def test_a_member_that_was_killed_is_seated_again_and_told_what_it_missed(run: Commands) -> None:
    (run.cwd / "first").touch()
    bob = script(
        run, "read -r said; [ ! -e first ] || { rm first; printf 'heard '; exec sleep 1000; }; echo heard $said"
    )
    chat = run.start("chat", "--filter", "alice=cat", "--exec", f"bob={bob}", "--rounds", "2",
                     "--transcript", "talk.jsonl")  # fmt: skip
    said = read_until(chat, b"bob: heard ")
    os.kill(member_pid(run, "bob"), signal.SIGKILL)
    rest, stderr = chat.communicate(timeout=LIMIT_S)
    assert chat.returncode == 0
    assert stderr.startswith(b"chat-models: bob was killed by signal 9; seating it again\n4 turns, ")
    # What was said before it died does not count, and stays on a line of its own.
    assert (said + rest).decode().splitlines() == [
        "hub: Hello.", "alice: Hello.", "bob: heard ", "bob: heard Hello.",
        "alice: heard Hello.", "bob: heard heard Hello.",
    ]  # fmt: skip
    assert contents(run.cwd / "talk.jsonl") == [
        "Hello.", "Hello.", "heard Hello.", "heard Hello.", "heard heard Hello.",
    ]  # fmt: skip


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_member_that_ends_while_another_speaks_is_seated_again(run: Commands, signum: int) -> None:
    bob = script(run, "printf 'begun '; while [ ! -e go ]; do sleep 0.01; done; echo done")
    chat = run.start("chat", "--filter", "alice=cat", "--exec", f"bob={bob}", "--rounds", "2")
    read_until(chat, b"bob: begun ")
    os.kill(member_pid(run, "alice"), signum)
    (run.cwd / "go").touch()
    code, stderr = end_of(chat)
    assert code == 0
    assert stderr.startswith("chat-models: alice ") and "; seating it again\n" in stderr


def test_an_engine_that_dies_is_started_again_with_its_member(run: Commands) -> None:
    bob = script(run, "printf 'begun '; while [ ! -e go ]; do sleep 0.01; done; echo done")
    chat = run.start("chat", "--model", "alice=tiny-chat", "--max-tokens", "4", "--exec", f"bob={bob}",
                     "--rounds", "2", *QUICK_ENGINE)  # fmt: skip
    read_until(chat, b"bob: begun ")
    member = member_pid(run, "alice")
    for task in Path(f"/proc/{member}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "trap" not in Path(f"/proc/{child}/cmdline").read_text():  # the guard
                os.kill(int(child), signal.SIGKILL)
    (run.cwd / "go").touch()
    code, stderr = end_of(chat)
    assert code == 0
    assert stderr.startswith("chat-models: alice ended with 1: the engine ended: ")
    assert "; seating it again\n4 turns, " in stderr


def test_a_member_that_dies_again_and_again_is_given_up_after_the_retries(run: Commands) -> None:
    chat = run("chat", "--filter", "alice=cat", "--exec", "bob=sh -c 'echo x >> tries; exit 3'", "--retries", "1")
    assert chat.code == 1
    assert chat.stderr == "modelpipes chat: bob: sh ended with 3: it said nothing\n"
    assert (run.cwd / "tries").read_text() == "x\nx\n"


def test_a_member_of_somebody_else_that_dies_is_waited_for_or_not(run: Commands) -> None:
    run.attach("alice", "--filter", "cat")
    bob = run.attach("bob", "--exec", SLOW)
    chat = run.start("chat", "alice", "bob", "--rounds", "1", "--transcript", "talk.jsonl")
    read_until(chat, b"bob: begun")
    bob.kill()
    assert chat.stderr
    assert b"waiting 30 s for it" in chat.stderr.readline()
    run.attach("bob", "--filter", "cat")
    assert end_of(chat)[0] == 0
    assert contents(run.cwd / "talk.jsonl") == ["Hello.", "Hello.", "Hello."]


def test_without_patience_a_member_of_somebody_else_that_dies_ends_it(run: Commands) -> None:
    run.attach("alice", "--filter", "cat")
    bob = run.attach("bob", "--exec", SLOW)
    chat = run.start("chat", "alice", "bob", "--patience", "0")
    read_until(chat, b"bob: begun")
    bob.kill()
    code, stderr = end_of(chat)
    assert code == 1
    assert stderr.startswith("modelpipes chat: bob (pid ") and " died" in stderr and stderr.count("\n") == 1


def test_a_member_that_is_stopped_ends_it_with_124(run: Commands) -> None:
    run.attach("alice", "--filter", "cat")
    bob = run.attach("bob", "--filter", "cat")
    bob.send_signal(signal.SIGSTOP)
    try:
        chat = run.start("chat", "alice", "bob", "--timeout", "2", stdin=subprocess.PIPE)
        read_until(chat, b"alice: Hello.\n")
        assert chat.stderr
        line = chat.stderr.readline().decode()
        assert chat.wait(LIMIT_S) == 124
    finally:
        bob.send_signal(signal.SIGCONT)
    assert line == "modelpipes chat: bob showed no life for 2 s (--timeout)\n"


# -- the person


def test_the_person_sits_in_and_leaves_with_the_end_of_input(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    chat = run("chat", "me", "--filter", "bob=cat", "--transcript", str(path),
               typed="one\ntwo\nthree")  # fmt: skip
    assert chat.code == 0, chat.stderr
    assert contents(path) == ["one", "one", "two", "two", "three", "three"]
    assert chat.stdout.endswith("me: three\nbob: three\n")
    assert "6 turns" in chat.stderr and chat.stderr.endswith("ended by: me left\n")
    assert records(path.read_text())[-1] == {"type": "end", "why": "me left"}
    assert is_left_nothing(run)


def test_a_person_without_input_leaves_at_once_also_without_retries(run: Commands) -> None:
    chat = run("chat", "--filter", "bob=cat", "me", "--retries", "0", "--opening", "Hello.")
    assert (chat.code, chat.stdout) == (0, "hub: Hello.\nbob: Hello.\n")
    assert chat.stderr.endswith("ended by: me left\n")


def test_a_person_has_no_time_limit(run: Commands) -> None:
    chat = run.start("chat", "me", "--filter", "bob=cat", "--timeout", "1", "--opening", "Hello.", "--rounds", "1",
                     stdin=subprocess.PIPE)  # fmt: skip
    assert chat.stderr and chat.stdin
    read_until(chat, b"hub: Hello.\n")
    with pytest.raises(subprocess.TimeoutExpired):
        chat.wait(2.0)
    chat.stdin.write(b"late\n")
    chat.stdin.flush()
    read_until(chat, b"bob: late\n")
    assert end_of(chat)[0] == 0


def test_a_message_too_long_for_the_context_is_refused_and_the_person_asked_again(run: Commands) -> None:
    path = run.cwd / "talk.jsonl"
    chat = run("chat", "me", "--model", "alice=tiny-chat", "--engine-arg=--threads", "--engine-arg=1",
               "--ctx-size=256", "--temperature=0", "--transcript", str(path),
               typed=f"{'word ' * 2000}\nWhat is 3 and 4?\n{'word ' * 2000}\nWhat is 3 and 5?\n")  # fmt: skip
    assert chat.code == 0, chat.stderr
    refusals = [line for line in chat.stderr.splitlines() if line.endswith("your last message is taken back")]
    assert len(refusals) == 2 and all("too large for the model's context" in line for line in refusals)
    assert [turn["content"] for turn in turns_of(path) if turn["from"] == "alice"] == ["It is 7.", "It is 8."]


def test_an_opening_too_long_for_the_context_is_nobodys_to_shorten(run: Commands) -> None:
    chat = run("chat", "--model", "alice=tiny-chat", "me", *QUICK_ENGINE[:2], "--ctx-size=256",
               "--opening", "word " * 2000)  # fmt: skip
    assert chat.code == 1
    assert "too large for the model's context" in chat.stderr


def test_a_second_person_in_one_room_is_told_who_sits_there(run: Commands) -> None:
    run.attach("alice", "--filter", "cat")
    first = run.start("chat", "me", "alice", "--opening", "Hello.", stdin=subprocess.PIPE)
    read_until(first, b"hub: Hello.\n")
    second = run("chat", "me", "alice", typed="x\n")
    assert (second.code, second.stdout) == (1, "")
    assert f"the seat is taken by me (pid {first.pid}" in second.stderr
    assert second.stderr.count("\n") == 1
    assert end_of(first)[0] == 0


# -- what members are told, and what is resumed

THREE = ("--model", "alice=tiny-chat", "--exec", "carol=cat", "--model", "bob=tiny-chat", "--no-fit-check")


def test_a_dry_run_prints_what_each_would_be_told_first_and_starts_nothing(run: Commands) -> None:
    dry = run("chat", *THREE, "--opening", "Do you like cats?", "--system", "bob=Be {name} to {others}.", "--dry-run")
    assert (dry.code, dry.stderr) == (0, "")
    assert dry.stdout == (
        "turn 1, alice\n  system\n    You are alice. You are in a conversation with carol and bob.\n"
        "  user\n    hub: Do you like cats?\n\n"
        "turn 2, carol\n    (what alice says)\n\n"
        "turn 3, bob\n  system\n    Be bob to alice and carol.\n"
        "  user\n    hub: Do you like cats?\n    alice: (what alice says)\n    carol: (what carol says)\n"
    )
    assert is_left_nothing(run)


def test_what_a_dry_run_prints_is_what_the_first_turns_are_told(run: Commands) -> None:
    talk = ("--model", "alice=tiny-chat", "--model", "bob=tiny-chat", "--temperature", "0", "--rounds", "1")
    dry = run("chat", *talk, "--dry-run", "--json")
    assert run("chat", *talk, "--transcript", "talk.jsonl").code == 0
    shown = [run("show", "talk.jsonl", "--as", name, "--format", "json").stdout for name in ("alice", "bob")]
    said = turns_of(run.cwd / "talk.jsonl")[1]["content"]
    assert dry.stdout.replace("(what alice says)", str(said)) == "".join(shown)


@pytest.mark.parametrize(
    ("when", "is_named"), [("always", True), ("never", False), ("auto", True), ("bob=never", True)]
)
def test_names_are_told_as_labels_say(run: Commands, when: str, is_named: bool) -> None:
    dry = run("chat", "--model", "alice=tiny-chat", "--model", "bob=tiny-chat", "--labels", when, "--dry-run")
    assert ("hub: Hello." in dry.stdout) is is_named
    assert ("alice: (what" in dry.stdout) is (is_named and when != "bob=never")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*PAIR, "--labels", "sometimes"), "give always, never or auto"),
        ((*PAIR, "--labels", "bob=often"), "give always, never or auto"),
        (("--resume",), "--resume needs the --transcript to continue"),
        (("--resume", "--transcript", "none.jsonl"), "none.jsonl: no conversation to continue"),
    ],
)
def test_what_cannot_be_meant_is_told(run: Commands, arguments: tuple[str, ...], said: str) -> None:
    refused = run("chat", *arguments)
    assert (refused.code, refused.stdout) == (2, "")
    assert said in refused.stderr


def test_labels_for_a_member_that_is_not_there_are_refused(run: Commands) -> None:
    refused = run("chat", *PAIR, "--labels", "carol=never")
    assert refused.code == 2
    assert "no member 'carol'" in refused.stderr


def test_a_resumed_conversation_needs_no_members_and_no_settings(run: Commands) -> None:
    moderated = ("--exec", "mod=echo alice", "--turns", "moderator", "--moderator", "mod")
    first = run("chat", *PAIR, *moderated, "--rounds", "1", "--transcript", "talk.jsonl")
    assert first.code == 0, first.stderr
    header = records((run.cwd / "talk.jsonl").read_text())[0]
    assert header["moderator"] == "mod" and header["labels"] == ["alice", "bob", "mod"]
    resumed = run("chat", "--resume", "--transcript", "talk.jsonl", "--rounds", "2")
    assert resumed.code == 0, resumed.stderr
    assert "chat-models: --rounds 2 in place of 1\n" in resumed.stderr
    lines = records((run.cwd / "talk.jsonl").read_text())
    assert len([line for line in lines if line.get("type") == "choice"]) == 4
    assert len(turns_of(run.cwd / "talk.jsonl")) == 5


def test_what_is_given_to_a_resumed_conversation_overrides_it_and_is_told(run: Commands) -> None:
    talk = ("--model", "alice=tiny-chat", "--exec", "bob=cat", "--temperature", "0", "--transcript", "talk.jsonl")
    assert run("chat", *talk, "--rounds", "1").code == 0
    resumed = run("chat", "--resume", "--transcript", "talk.jsonl", "--rounds", "2", "--exec", "bob=wc -c",
                  "--temperature", "alice=0.5")  # fmt: skip
    assert resumed.code == 0, resumed.stderr
    assert "chat-models: alice: --temperature 0.5 in place of 0.0\n" in resumed.stderr
    assert "chat-models: bob: exec wc -c in place of exec cat\n" in resumed.stderr
    assert str(turns_of(run.cwd / "talk.jsonl")[4]["content"]).isdecimal()


def test_labels_cannot_change_in_a_conversation(run: Commands) -> None:
    assert run("chat", *PAIR, "--rounds", "1", "--transcript", "talk.jsonl").code == 0
    before = records((run.cwd / "talk.jsonl").read_text())[0]
    resumed = run("chat", "--resume", "--transcript", "talk.jsonl", "--labels", "never", "--rounds", "2")
    assert resumed.code == 0
    assert "--labels is left out" in resumed.stderr
    assert records((run.cwd / "talk.jsonl").read_text())[0] == before


def test_the_header_tells_of_each_model_what_it_is_and_what_it_was_told(run: Commands) -> None:
    talk = ("--model", "alice=tiny-chat", "--system", "alice=You are {name}.", "--max-tokens", "9", "--exec", "bob=cat")
    assert run("chat", *talk, "--rounds", "1", "--transcript", "talk.jsonl").code == 0
    header = records((run.cwd / "talk.jsonl").read_text())[0]
    about = header["abouts"]["alice"]  # type: ignore[index]
    assert about["file"].endswith("/tiny-chat.gguf") and about["engine"]
    assert (about["system"], about["sampling"]) == ("You are {name}.", {"max_tokens": 9})
    assert datetime.fromisoformat(str(header["at"])).tzinfo
    assert header["commands"]["bob"] == ["--exec=cat"]  # type: ignore[index]


def test_the_share_of_the_prompt_that_was_read_before_stands_in_every_turn(run: Commands) -> None:
    talk = ("--model", "alice=tiny-chat", "--model", "bob=tiny-chat", "--rounds", "3")
    assert run("chat", *talk, "--transcript", "talk.jsonl").code == 0
    usages = [turn["usage"] for turn in turns_of(run.cwd / "talk.jsonl")[1:]]
    assert all(usage["cached_tokens"] > usage["prompt_tokens"] / 2 for usage in usages[2:])  # type: ignore[index]


def test_a_moderator_of_two_members_must_speak_itself(run: Commands) -> None:
    refused = run("chat", *PAIR, "--turns", "moderator", "--moderator", "bob")
    assert refused.code == 2
    assert "--moderator-speaks" in refused.stderr


def test_a_fall_back_is_told(run: Commands) -> None:
    chat = run(
        "chat", *PAIR, "--exec", "mod=echo nobody", "--turns", "moderator", "--moderator", "mod", "--rounds", "1"
    )
    assert chat.code == 0
    assert "chat-models: alice speaks next: mod named nobody of them\n" in chat.stderr
