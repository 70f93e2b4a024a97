"""The README, typed from top to bottom, as it stands."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest

from modelpipes import errors
from modelpipes.commands import (
    ask,
    attach,
    build_engine,
    chat,
    check,
    cleanup,
    find,
    fit,
    gpu,
    ping,
    seats,
    serve,
    setup,
    show,
)
from modelpipes.deadline import Deadline
from modelpipes.engine.lifecycle import Engine
from modelpipes.message import Delta, Progress, Reply, Say
from tests.bench import __main__ as bench
from tests.shell import CHECKOUT, Ended, Home

README = CHECKOUT / "README.md"
START_LIMIT_S = 30.0
SERVER = "127.0.0.1:8080"  # a llama-server that runs already; in the test it has a port of its own
GATEWAY = "127.0.0.1:9090"
TYPED = "Do you like boats?\n"  # by the person in the conversation, who then leaves
MARK = "-- README.md line "  # in the output, before that of each block
COMMANDS: dict[str, click.Command] = {
    "setup-pipes": setup.command,
    "cleanup-pipes": cleanup.command,
    "attach-model": attach.command,
    "list-seats": seats.command,
    "ask-model": ask.command,
    "chat-models": chat.command,
    "find-gguf": find.command,
    "fit-models": fit.command,
    "ping-pipes": ping.command,
    "serve-models": serve.command,
    "check-system": check.command,
    "watch-gpu": gpu.command,
    "modelpipes show": show.command,
    "modelpipes build-engine": build_engine.command,
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its first line's number, what is in it, and why it is not run."""

    language: str
    line: int
    text: str
    why_not_run: str | None


def blocks() -> list[Block]:
    found = []
    lines = README.read_text("utf-8").splitlines()
    opened: int | None = None
    for index, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = index
            continue
        why = re.fullmatch(r"<!-- not run: (.+) -->", lines[opened - 1])
        text = "\n".join(lines[opened + 1 : index])
        found.append(Block(lines[opened].removeprefix("```"), opened + 1, text, why and why[1]))
        opened = None
    assert opened is None, "a block without an end"
    return found


def mark(block: Block) -> str:
    return f"{MARK}{block.line}"


def commands() -> list[Block]:
    """What is run: lines for the shell, and programs."""
    return [block for block in blocks() if block.language in ("sh", "python")]


def for_the_shell(block: Block) -> str:
    """A block as the shell runs it; a program by the Python that has the package."""
    return block.text if block.language == "sh" else f"{sys.executable} -P - <<'PYTHON'\n{block.text}\nPYTHON"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("readme"))
    for name in ("bin", "pipes"):
        (home.cwd / name).symlink_to(CHECKOUT / name)
    return home


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with a model that somebody else started."""
    with Engine("tiny-chat", ctx_size=1024) as engine:
        engine.be_ready(Deadline.after(START_LIMIT_S))
        yield engine.base_url.removeprefix("http://")


@pytest.fixture(scope="module")
def typed(home: Home, server: str) -> Ended:
    """All of it, in one shell; the shell stops at the first command that fails."""
    script = ["set -eu"]
    with socket.create_server(("127.0.0.1", 0)) as probe:
        gateway = f"127.0.0.1:{probe.getsockname()[1]}"
    for block in commands():
        text = for_the_shell(block).replace(SERVER, server).replace(GATEWAY, gateway)
        script += [f"echo '{mark(block)}'; echo '{mark(block)}' >&2", text]
    path = home.cwd.parent / "readme.sh"
    path.write_text("\n".join(script) + "\n", "utf-8")
    return home.run(["sh", path], typed=TYPED)


def said_by(typed: Ended, beginning: str) -> list[str]:
    """What the block that begins with these words wrote to stdout."""
    (block,) = [block for block in commands() if block.text.startswith(beginning)]
    said = typed.stdout.split(f"{mark(block)}\n")
    assert len(said) == 2, f"line {block.line} was not reached:\n{typed.stderr}"
    return said[1].split(MARK)[0].splitlines()


def speakers(lines: list[str]) -> list[str]:
    return [line.split(": ")[0] for line in lines]


def test_every_command_runs_in_one_shell(typed: Ended) -> None:
    assert typed.code == 0, f"{typed.stdout}\n{typed.stderr}"


def test_nothing_fails_with_a_traceback(typed: Ended) -> None:
    assert "Traceback" not in typed.stderr


def test_no_process_is_left(typed: Ended, home: Home) -> None:
    assert home.left_processes() == []


def test_no_room_is_left(typed: Ended, home: Home) -> None:
    assert home.left_files() == []


def test_the_demo_has_alice_and_bob_talk(typed: Ended) -> None:
    assert speakers(said_by(typed, "./bin/demo")) == ["hub", *["alice", "bob"] * 4]


def test_one_command_leads_a_conversation(typed: Ended) -> None:
    said = said_by(typed, "chat-models --model alice=tiny-chat --model bob=tiny-chat \\\n    --system")
    assert speakers(said) == ["hub", *["alice", "bob"] * 3]


def test_a_random_order_never_has_one_speak_twice_in_a_row(typed: Ended) -> None:
    said = speakers(said_by(typed, "chat-models --model alice=tiny-chat --model bob=tiny-chat --model carol=tiny-chat"))
    assert set(said) <= {"hub", "alice", "bob", "carol"}
    assert all(one != other for one, other in pairwise(said))


def test_a_person_takes_part_and_leaves(typed: Ended) -> None:
    said = said_by(typed, "chat-models me")
    assert f"me: {TYPED.strip()}" in said
    assert any(line.startswith("alice: ") for line in said)


def test_a_seated_model_answers(typed: Ended) -> None:
    said = said_by(typed, "setup-pipes alice bob\n")
    assert "It is 7." in said
    assert [line.split()[:2] for line in said[-3:]] == [["alice", "ready"], ["bob", "ready"], ["hub", "free"]]


def test_an_answer_goes_through_a_pipeline(typed: Ended) -> None:
    answer, shouted = said_by(typed, 'ask-model alice "Do you like boats?" | ask-model bob')
    assert answer
    assert "LANTERN" in shouted


def test_each_line_is_a_message(typed: Ended, home: Home) -> None:
    assert said_by(typed, "printf '%s\\n'") == ["It is 3.", "It is 11."]
    answers = [json.loads(line) for line in (home.cwd / "answers.jsonl").read_text().splitlines()]
    assert [answer["content"] for answer in answers] == ["It is 3.", "It is 11."]


def test_a_transcript_is_a_memory(typed: Ended, home: Home) -> None:
    first, second = said_by(typed, "ask-model alice --transcript")
    turns = [json.loads(line) for line in (home.cwd / "memory.jsonl").read_text().splitlines()[1:]]
    assert [turn["from"] for turn in turns] == ["hub", "alice"] * 2
    assert [turns[1]["content"], turns[3]["content"]] == [first, second]


def test_seated_models_talk_to_each_other(typed: Ended) -> None:
    assert speakers(said_by(typed, "chat-models alice bob")) == ["hub", *["alice", "bob"] * 2]


def test_plain_lines_are_answered(typed: Ended) -> None:
    piano, sum_ = said_by(typed, "eval")
    assert "piano" in piano
    assert sum_ == "It is 4."


def test_programs_answer_as_models_do(typed: Ended) -> None:
    *_, total, shouted = said_by(typed, "cat > adder.py")
    assert total == "That makes 19"
    assert shouted == shouted.upper()


def test_a_program_takes_part_in_a_conversation(typed: Ended) -> None:
    said = said_by(typed, 'chat-models --model carol=tiny-chat --exec "words=wc -w"')
    assert speakers(said) == ["hub", *["carol", "words"] * 2]
    assert said[2] == f"words: {len(said[1].split()) - 1}"


def test_a_resumed_conversation_goes_on_where_it_ended(typed: Ended) -> None:
    *_, turns = said_by(typed, "chat-models --model alice=tiny-chat --model bob=tiny-chat --rounds 2 --transcript")
    assert turns.split() == ["hub", *["alice", "bob"] * 4]


def test_a_running_server_gives_a_seat_its_voice(typed: Ended) -> None:
    said = said_by(typed, "setup-pipes bob\n")
    assert speakers(said[-3:]) == ["hub", "bob", "alice"]


def test_models_are_listed_and_reported_for_scripts(typed: Ended, home: Home) -> None:
    assert said_by(typed, "find-gguf --gpu")[0].split()[:2] == ["name", "arch"]
    assert list(json.loads((home.cwd / "models.json").read_text())) == ["gpu", "settings", "files", "problems"]
    assert (home.cwd / "models.csv").read_text().startswith("path,path_bytes,name,")


def test_more_models_than_fit_talk_and_are_served(typed: Ended) -> None:
    assert speakers(said_by(typed, "cat >models.toml")) == ["hub", *["alice", "bob", "carol"] * 2]
    answer, residency = map(json.loads, said_by(typed, "serve-models models.toml")[-2:])
    assert answer["choices"][0]["message"]["content"]
    assert [one["name"] for one in residency["resident"] if one["pinned"]] == ["phi"]


def test_a_deadline_ends_with_its_own_exit_code(typed: Ended) -> None:
    assert said_by(typed, "setup-pipes dave") == ["exit code 124"]


def test_what_is_not_run_says_why() -> None:
    for block in blocks():
        assert block.language in ("sh", "python", "console", "text", "json"), f"line {block.line}"
        assert (block.language == "console") == (block.why_not_run is not None), f"line {block.line}"


def test_almost_everything_is_run() -> None:
    assert len([block for block in blocks() if block.language == "console"]) <= 4  # what takes minutes, or a card


def test_messages_on_the_pipe_are_what_the_code_reads() -> None:
    import msgspec

    (block,) = [block for block in blocks() if block.language == "json"]
    read = [msgspec.json.decode(line, type=Say | Progress | Delta | Reply) for line in block.text.splitlines()]
    assert [type(message) for message in read] == [Say, Progress, Delta, Delta, Reply]


def test_every_option_that_is_named_exists() -> None:
    text = README.read_text("utf-8")
    known = {name for command in COMMANDS.values() for option in command.params for name in option.opts}
    others = {"--help", "--cpu-moe"}  # click's, llama-server's
    known |= set(re.findall(r"--[a-z]+", bench.__doc__ or ""))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - others <= known


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    table = README.read_text("utf-8").split("## Exit codes")[1].split("\n\n")[1]
    codes = {int(code) for row in table.splitlines()[2:] for code in re.findall(r"\d+", row.split("|")[1])}
    kinds: list[Any] = [errors.PipesError, errors.UsageError, errors.DeadlineError]
    assert codes == {0, *(kind.exit_code for kind in kinds), *(errors.Ended(number).exit_code for number in (1, 2, 15))}


def test_every_variable_in_the_table_is_read_somewhere() -> None:
    table = README.read_text("utf-8").split("## Environment")[1].split("##")[0]
    source = "".join(path.read_text("utf-8") for path in (CHECKOUT / "pipes").rglob("*.py"))
    for name in re.findall(r"^\| `([A-Z_]+)`", table, re.MULTILINE):
        assert name.removesuffix("BOB") in source, name


def test_every_link_leads_to_a_file() -> None:
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text("utf-8")):
        assert Path(CHECKOUT, name).is_file(), name
