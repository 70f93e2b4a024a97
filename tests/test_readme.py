"""The README and the pages of docs/, typed from top to bottom, as they stand."""

from __future__ import annotations

import functools
import importlib
import json
import re
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from modelpipes import errors
from modelpipes.commands import VERBS
from modelpipes.engine.lifecycle import Engine
from modelpipes.pipe.message import Delta, Progress, Reply, Say
from modelpipes.values.deadline import Deadline
from tests.bench import __main__ as bench
from tests.shell import CHECKOUT, Ended, Home
from tests.their_words import without_their_words

README = "README.md"
CONVERSATIONS, MODELS, SERVING, REFERENCE, PYTHON = (
    f"docs/{name}.md" for name in ("conversations", "models", "serving", "reference", "python")
)
PAGES = [README, *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))]
START_LIMIT_S = 30.0
SERVER = "127.0.0.1:8080"  # a llama-server that runs already; in the test it has a port of its own
GATEWAY = "127.0.0.1:9090"
CHECKED_OUT = ("bin", "config", "pipes", ".venv")  # what a page needs of a checkout whose commands were run once
TYPED = "Do you like boats?\n"  # by the person in the conversation, who then leaves
MARK = "-- line "  # in the output, before that of each block


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its first line's number, what is in it, and why it is not run."""

    language: str
    line: int
    text: str
    why_not_run: str | None


def text_of(page: str) -> str:
    return (CHECKOUT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    found = []
    lines = text_of(page).splitlines()
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


def commands(page: str) -> list[Block]:
    """What is run: lines for the shell, and programs."""
    return [block for block in blocks(page) if block.language in ("sh", "python")]


def for_the_shell(block: Block) -> str:
    """A block as the shell runs it; a program by the Python that has the package."""
    return block.text if block.language == "sh" else f"{sys.executable} -P - <<'PYTHON'\n{block.text}\nPYTHON"


@dataclass(frozen=True)
class Typed:
    """A page after it was typed, in a home of its own."""

    page: str
    home: Home
    ended: Ended
    script: Path

    def again(self) -> Ended:
        """Type it once more, in the same place."""
        return self.home.run(["sh", self.script], typed=TYPED)

    def said_by(self, beginning: str) -> list[str]:
        """What the block that begins with these words wrote to stdout."""
        (block,) = [block for block in commands(self.page) if block.text.startswith(beginning)]
        said = self.ended.stdout.split(f"{mark(block)}\n")
        assert len(said) == 2, f"line {block.line} was not reached:\n{self.ended.stderr}"
        return said[1].split(MARK)[0].splitlines()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server with a model that somebody else started."""
    with Engine("tiny-chat", ctx_size=1024) as engine:
        engine.be_ready(Deadline.after(START_LIMIT_S))
        yield engine.base_url.removeprefix("http://")


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory, server: str) -> Callable[[str], Typed]:
    """Types all of a page into one shell, once; the shell stops at the first command that fails."""

    @functools.cache
    def type_(page: str) -> Typed:
        home = Home(tmp_path_factory.mktemp(Path(page).stem))
        for name in CHECKED_OUT:
            (home.cwd / name).symlink_to(sys.prefix if name == ".venv" else CHECKOUT / name)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            gateway = f"127.0.0.1:{probe.getsockname()[1]}"
        script = ["set -eu"]
        for block in commands(page):
            text = for_the_shell(block).replace(SERVER, server).replace(GATEWAY, gateway)
            script += [f"echo '{mark(block)}'; echo '{mark(block)}' >&2", text]
        path = home.cwd.parent / "page.sh"
        path.write_text("\n".join(script) + "\n", "utf-8")
        return Typed(page, home, home.run(["sh", path], typed=TYPED), path)

    return type_


Type = Callable[[str], Typed]


def speakers(lines: list[str]) -> list[str]:
    return [line.split(": ")[0] for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs_in_one_shell_and_leaves_nothing_behind(page: str, typed: Type) -> None:
    done = typed(page)
    assert done.ended.code == 0, f"{done.ended.stdout}\n{done.ended.stderr}"
    assert "Traceback" not in done.ended.stderr
    assert done.home.left_processes() == []
    assert done.home.left_files() == []


def seen_by_git(folder: Path) -> set[str]:
    """What lies there that .gitignore does not name, and what was there before."""
    ignored = {line.strip("/") for line in (CHECKOUT / ".gitignore").read_text("utf-8").splitlines()}
    return {path.name for path in folder.iterdir()} - (ignored - {*CHECKED_OUT})


def test_the_readme_leaves_the_checkout_as_it_was_and_can_be_typed_again(typed: Type) -> None:
    # Its files lay among those of the checkout, and the second time its transcript was refused.
    done = typed(README)
    assert done.ended.code == 0
    assert seen_by_git(done.home.cwd) == {*CHECKED_OUT}
    again = done.again()
    assert again.code == 0, f"{again.stdout}\n{again.stderr}"
    assert seen_by_git(done.home.cwd) == {*CHECKED_OUT}
    assert done.home.left_files() == []


def test_the_demo_has_alice_and_bob_talk_as_the_sample_shows(typed: Type) -> None:
    said = typed(README).said_by("./bin/demo")
    assert speakers(said) == ["hub", *["alice", "bob"] * 4]
    sample = next(block for block in blocks(README) if block.text.startswith("hub: ")).text.splitlines()
    assert speakers(sample[: len(said)]) == speakers(said)
    prose = typed(README).ended.stderr.split(mark(commands(README)[0]))[1].splitlines()
    for line, shown in zip([line for line in prose if line.strip()][:2], sample[len(said) :], strict=True):
        assert re.sub(r"[0-9.]+", "#", line) == re.sub(r"[0-9.]+", "#", shown)


def test_a_program_asks_from_the_interpreter_that_the_install_gave(typed: Type) -> None:
    assert typed(README).said_by(".venv/bin/python") == ["It is 7."]


def test_one_command_leads_a_conversation(typed: Type) -> None:
    said = typed(CONVERSATIONS).said_by("chat-models --model alice=tiny-chat --model bob=tiny-chat --rounds 3")
    assert speakers(said) == ["hub", *["alice", "bob"] * 3]


def test_a_random_order_never_has_one_speak_twice_in_a_row(typed: Type) -> None:
    said = speakers(
        typed(CONVERSATIONS).said_by(
            "chat-models --model alice=tiny-chat --model bob=tiny-chat --model carol=tiny-chat"
        )
    )
    assert set(said) <= {"hub", "alice", "bob", "carol"}
    assert all(one != other for one, other in pairwise(said))


def test_a_person_takes_part_and_leaves(typed: Type) -> None:
    said = typed(CONVERSATIONS).said_by("chat-models me")
    assert f"me: {TYPED.strip()}" in said
    assert any(line.startswith("alice: ") for line in said)


def test_a_seated_model_answers(typed: Type) -> None:
    said = typed(CONVERSATIONS).said_by("setup-pipes alice bob\n")
    assert "It is 7." in said
    assert [line.split()[:2] for line in said[-3:]] == [["alice", "ready"], ["bob", "ready"], ["hub", "free"]]


def test_an_answer_goes_through_a_pipeline(typed: Type) -> None:
    answer, shouted = typed(CONVERSATIONS).said_by('ask-model alice "Do you like boats?" | ask-model bob')
    assert answer
    assert "LANTERN" in shouted


def test_each_line_is_a_message(typed: Type) -> None:
    assert typed(CONVERSATIONS).said_by("printf '%s\\n'") == [
        "What is 1 and 2?\tIt is 3.",
        "\t",
        "What is 5 and 6?\tIt is 11.",
        "It is 4.",
        "It is 5.",
    ]
    answers = [json.loads(line) for line in (typed(CONVERSATIONS).home.cwd / "answers.jsonl").read_text().splitlines()]
    assert [answer.get("content") for answer in answers] == ["It is 3.", None, "It is 11."]


def test_lines_are_asked_side_by_side(typed: Type) -> None:
    assert typed(CONVERSATIONS).said_by("setup-pipes sizes")[-3:] == ["17", "", "17"]
    answers = [json.loads(line) for line in (typed(CONVERSATIONS).home.cwd / "sizes.jsonl").read_text().splitlines()]
    assert sorted(answer["line"] for answer in answers) == [1, 2, 3]


def test_an_answer_is_json_of_a_schema(typed: Type) -> None:
    (answer,) = typed(CONVERSATIONS).said_by('echo \'{"enum"')
    assert json.loads(answer) in ("yes", "no")


def test_a_transcript_is_a_memory(typed: Type) -> None:
    first, second = typed(CONVERSATIONS).said_by("ask-model alice --transcript")
    turns = [json.loads(line) for line in (typed(CONVERSATIONS).home.cwd / "memory.jsonl").read_text().splitlines()[1:]]
    assert [turn["from"] for turn in turns] == ["hub", "alice"] * 2
    assert [turns[1]["content"], turns[3]["content"]] == [first, second]


def test_seated_models_talk_to_each_other(typed: Type) -> None:
    assert speakers(typed(CONVERSATIONS).said_by("chat-models alice bob")) == ["hub", *["alice", "bob"] * 2]


def test_plain_lines_are_answered(typed: Type) -> None:
    piano, sum_ = typed(CONVERSATIONS).said_by("eval")
    assert "piano" in piano
    assert sum_ == "It is 4."


def test_programs_answer_as_models_do(typed: Type) -> None:
    *_, total, shouted = typed(CONVERSATIONS).said_by("cat > adder.py")
    assert total == "That makes 19"
    assert shouted == shouted.upper()


def test_a_program_that_speaks_json_keeps_newlines_and_knows_who_spoke(typed: Type) -> None:
    said = typed(CONVERSATIONS).said_by("cat > counsel.py")
    assert said[2:5] == ["hub said:", "> Two lines,", "one answer."]
    assert [line for line in said if line.startswith("scribe: ")] == ["scribe: dora said:"]


def test_programs_that_open_the_pipes_themselves_answer_and_talk(typed: Type) -> None:
    *_, rolled, backwards, hub, dice, last = typed(CONVERSATIONS).said_by("cat > dice.sh")
    assert rolled in "123456"
    assert backwards == "nalp a ,nam a"
    assert (hub, dice[:6], last) == ("hub: Hello.", "dice: ", f"backwards: {dice[6:]}")


def test_a_program_takes_part_in_a_conversation(typed: Type) -> None:
    said = typed(CONVERSATIONS).said_by('chat-models --model carol=tiny-chat --exec "words=wc -w"')
    assert speakers(said) == ["hub", *["carol", "words"] * 2]
    assert said[2] == f"words: {len(said[1].split()) - 1}"


def test_a_resumed_conversation_goes_on_where_it_ended(typed: Type) -> None:
    *_, turns = typed(CONVERSATIONS).said_by(
        "chat-models --model alice=tiny-chat --model bob=tiny-chat --rounds 2 --transcript"
    )
    assert turns.split() == ["hub", *["alice", "bob"] * 4]


def test_a_running_server_gives_a_seat_its_voice(typed: Type) -> None:
    said = typed(CONVERSATIONS).said_by("setup-pipes bob\n")
    assert speakers(said[-3:]) == ["hub", "bob", "alice"]


def test_models_are_listed_and_reported_for_scripts(typed: Type) -> None:
    assert typed(MODELS).said_by("find-gguf --gpu")[0].split()[:2] == ["name", "arch"]
    assert list(json.loads((typed(MODELS).home.cwd / "models.json").read_text())) == [
        "gpu",
        "settings",
        "files",
        "problems",
    ]
    assert (typed(MODELS).home.cwd / "models.csv").read_text().startswith("path,path_bytes,name,")


def test_more_models_than_fit_talk_and_are_served(typed: Type) -> None:
    assert speakers(typed(SERVING).said_by("cat >models.toml")) == ["hub", *["alice", "bob", "carol"] * 2]
    answer, residency = map(json.loads, typed(SERVING).said_by("serve-models models.toml")[-2:])
    assert answer["choices"][0]["message"]["content"]
    assert [one["name"] for one in residency["resident"] if one["pinned"]] == ["phi"]


def test_a_program_asks_and_leads_a_conversation(typed: Type) -> None:
    answer, *said = typed(PYTHON).said_by("from modelpipes import Conversation")
    assert answer == "It is 7."
    assert speakers(said) == ["hub", *["alice", "echo"] * 2]
    assert said[2].removeprefix("echo: ") == said[1].removeprefix("alice: ")


def test_a_program_predicts_and_plans(typed: Type) -> None:
    predicted, planned = typed(PYTHON).said_by("from modelpipes import EngineSpec")
    assert predicted.startswith("llama ")
    assert planned.startswith("all whole at a context of 1024")


def test_a_deadline_ends_with_its_own_exit_code(typed: Type) -> None:
    assert typed(REFERENCE).said_by("setup-pipes dave") == ["exit code 124"]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_not_run_says_why(page: str) -> None:
    for block in blocks(page):
        assert block.language in ("sh", "python", "console", "text", "json"), f"line {block.line}"
        assert (block.language == "console") == (block.why_not_run is not None), f"line {block.line}"


def test_almost_everything_is_run() -> None:
    console = [block for page in PAGES for block in blocks(page) if block.language == "console"]
    assert len(console) <= 4  # what takes minutes, or a card


def test_messages_on_the_pipe_are_what_the_code_reads() -> None:
    import msgspec

    (block,) = [block for block in blocks(CONVERSATIONS) if block.language == "json"]
    read = [msgspec.json.decode(line, type=Say | Progress | Delta | Reply) for line in block.text.splitlines()]
    assert [type(message) for message in read] == [Say, Progress, Delta, Delta, Reply]


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page: str) -> None:
    modules = [importlib.import_module(f"modelpipes.commands.{verb.replace('-', '_')}") for verb in VERBS]
    known = {name for module in modules for option in module.command.params for name in option.opts}
    others = {"--help", "--cpu-moe"}  # click's, llama-server's
    known |= set(re.findall(r"--[a-z]+", bench.__doc__ or ""))
    text = without_their_words(text_of(page))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) - others <= known


def test_every_command_is_in_the_readmes_table() -> None:
    table = text_of(README).partition("| command | what it does |")[2].partition("\n\n")[0]
    assert all(f"`{command or verb}`" in table for verb, (command, _) in VERBS.items())


def test_the_readme_reads_in_five_minutes() -> None:
    prose = re.sub(r"```.*?```", "", text_of(README), flags=re.DOTALL)
    assert len(prose.split()) < 1300  # 260 words a minute; what is typed is looked at, not read


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    table = text_of(REFERENCE).split("## Exit codes")[1].split("\n\n")[1]
    codes = {int(code) for row in table.splitlines()[2:] for code in re.findall(r"\d+", row.split("|")[1])}
    kinds: list[Any] = [errors.PipesError, errors.UsageError, errors.DeadlineError]
    assert codes == {0, *(kind.exit_code for kind in kinds), *(errors.Ended(number).exit_code for number in (1, 2, 15))}


def test_every_variable_in_the_table_is_read_somewhere() -> None:
    table = text_of(REFERENCE).split("## Environment")[1].split("##")[0]
    source = "".join(path.read_text("utf-8") for path in (CHECKOUT / "pipes").rglob("*.py"))
    for name in re.findall(r"^\| `([A-Z_]+)`", table, re.MULTILINE):
        assert name.removesuffix("BOB") in source, name


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    for name in re.findall(r"\]\((?!https?:)([^)#]+)\)", text_of(page)):
        assert (CHECKOUT / page).parent.joinpath(name).is_file(), name


def test_every_page_is_in_the_readme() -> None:
    assert all(f"]({page})" in text_of(README) for page in PAGES if page != README)
