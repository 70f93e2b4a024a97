"""What `import modelpipes` gives: the names, what they promise, and that a stranger's program gets along with them."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modelpipes
from modelpipes import Conversation, Deadline, Room, StopRules, ask
from modelpipes.chat.conversation import Listener
from modelpipes.chat.transcript import Turn
from modelpipes.errors import DeadlineError, MessageError, PeerFailed, PeerGone, RoomError, UsageError
from modelpipes.pipe.framing import MAX_MESSAGE_BYTES
from tests.peers import LIMIT_S, peer
from tests.shell import CHECKOUT, Home

PROMISED = {"Client", "Conversation", "Endpoint", "Engine", "Room", "ask", "plan", "predict_memory", "read_header"}
COMPANIONS = {
    "Deadline",  # be_ready, wait_for, connect and receive take one
    "PipesError",  # what all of it raises
    "Seating",  # a conversation needs members, and members must not outlive who started them
    "EngineSpec",  # what predict_memory predicts for, and an engine runs by
    "Settings",  # its former name
    "Space",  # what plan plans for
    "StopRules",  # the end of a conversation
    "clean_up",  # the end of a room
    "__version__",
}
PACKAGE = CHECKOUT / "pipes" / "modelpipes"
RUN_LIMIT_S = 120.0
GIB = 1 << 30


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def python(home: Home, program: str, *args: str) -> list[str]:
    """The lines that a program prints, which leaves nothing behind."""
    (home.cwd / "program.py").write_text(program, "utf-8")
    ended = home.run([sys.executable, "-P", "program.py", *args], limit_s=RUN_LIMIT_S)
    assert (ended.code, ended.stderr) == (0, ""), ended.stderr
    assert (home.left_processes(), home.left_files()) == ([], [])
    return ended.lines


def example_in(docstring: str | None) -> str:
    """The first indented block."""
    found = re.search(r"\n\n((?: {4}.*\n|\n)+)", docstring or "")
    assert found, "a docstring without an example"
    return re.sub(r"^ {4}", "", found[1], flags=re.MULTILINE)


# -- the names


def test_a_moderator_who_is_no_member_is_refused(tmp_path: Path) -> None:
    room = Room.make(str(tmp_path / "room"), ["a", "b"])
    with pytest.raises(UsageError, match="zz is no member"):
        Conversation(room, ["a", "b"], moderator="zz")


def test_the_names_are_those_that_were_promised_and_what_they_cannot_do_without() -> None:
    assert set(modelpipes.__all__) == PROMISED | COMPANIONS
    assert modelpipes.__all__ == sorted(modelpipes.__all__)


def test_every_name_is_there_and_says_what_it_is() -> None:
    for name in set(modelpipes.__all__) - {"__version__"}:
        found = getattr(modelpipes, name)
        assert found.__name__ == {"Settings": "EngineSpec"}.get(name, name)
        assert found.__doc__, name
    assert set(modelpipes.__all__) <= set(dir(modelpipes))


def test_a_type_checker_is_shown_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (shown,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    imports = [node for node in shown.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert homes.keys() == set(modelpipes.__all__)
    for name in homes.keys() - {"__version__"}:
        assert getattr(modelpipes, name).__module__ == homes[name]


def test_another_name_is_none_of_ours() -> None:
    with pytest.raises(AttributeError, match="module 'modelpipes' has no attribute 'tell'"):
        modelpipes.tell  # type: ignore[attr-defined]  # noqa: B018


def test_the_version_is_that_of_the_project() -> None:
    assert f'\nversion = "{modelpipes.__version__}"\n' in (CHECKOUT / "pyproject.toml").read_text("utf-8")


def test_importing_the_package_loads_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import modelpipes; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=RUN_LIMIT_S, check=True
    )
    assert done.stdout.split() == ["modelpipes"]


@pytest.mark.parametrize("names", ["Room, Endpoint, ask, clean_up, Deadline, PipesError", "read_header, Settings"])
def test_what_touches_pipes_or_headers_alone_loads_no_engine_and_nothing_heavy(names: str) -> None:
    program = f"import sys; from modelpipes import {names}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=RUN_LIMIT_S, check=True
    )
    heavy = {"http.client", "numpy", "gguf", "subprocess", "asyncio", "modelpipes.engine", "modelpipes.fit.memory"}
    assert not heavy & set(done.stdout.split())


# -- what is said of them


def test_pydoc_tells_what_it_is_how_to_begin_and_every_name() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pydoc", "modelpipes"],
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=True,
    )
    description = done.stdout.split("PACKAGE CONTENTS")[0]
    for name in modelpipes.__all__:
        if name != "__version__":
            assert re.search(rf"\b{name}\b", description), name
            assert re.search(rf"^    (class )?{name}(\(| = )", done.stdout, re.MULTILINE), name


def test_every_module_that_the_package_page_names_is_there() -> None:
    for name in re.findall(r"\bmodelpipes((?:\.[a-z]+)+)", modelpipes.__doc__ or ""):
        assert pkgutil.resolve_name(f"modelpipes{name}"), name


def test_every_module_says_in_its_first_sentence_what_it_is_for() -> None:
    for path in PACKAGE.rglob("*.py"):
        first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].split("\n")[0]
        assert re.match(r"\S.{20,}[.:]$", first), f"{path.relative_to(PACKAGE)}: {first!r}"


def test_all_that_is_public_in_a_class_of_the_page_says_what_it_does() -> None:
    for name in set(modelpipes.__all__) - {"__version__"}:
        found = getattr(modelpipes, name)
        for member, value in vars(found).items() if isinstance(found, type) else ():
            if not member.startswith("_") and (callable(value) or isinstance(value, property | classmethod)):
                assert value.__doc__, f"{name}.{member}"


# -- programs of a stranger


def test_the_shortest_program_is_answered(home: Home) -> None:
    assert python(home, example_in(modelpipes.__doc__)) == ["It is 7."]


def test_a_conversation_of_a_model_and_a_program(home: Home) -> None:
    said = python(
        home,
        """
from modelpipes import Conversation, Room, Seating, StopRules, clean_up

room = Room.make("talk", ["alice", "echo"])
with Seating(room) as seating:
    seating.seat({"alice": ["--model", "tiny-chat"], "echo": ["--filter", "cat"]})
    talk = Conversation(room, ["alice", "echo"], rules=StopRules(rounds=2))
    why = talk.lead("Hello.")
    for turn in talk.turns:
        print(f"{turn.sender}: {turn.content}")
    print(why)
print(*clean_up(room))
""",
    )
    assert [line.partition(": ")[0] for line in said] == ["hub", *["alice", "echo"] * 2, "rounds", ""]
    assert said[2].removeprefix("echo: ") == said[1].removeprefix("alice: ")
    assert not (home.cwd / "talk").exists()


def test_one_engine_of_ours_gives_two_seats_their_voice(home: Home) -> None:
    said = python(
        home,
        """
from modelpipes import Deadline, Engine, Room, Seating, ask, clean_up

room = Room.make("talk", ["alice", "bob"])
with Engine("tiny-chat", ctx_size=1024, parallel=2) as engine, Seating(room) as seating:
    engine.be_ready(Deadline.after(60))
    for seat in ("alice", "bob"):
        seating.seat({seat: ["--server", engine.base_url, "--temperature", "0"]})
        print(ask(seat, "What is 3 and 4?", room=room).content, room.sitting(seat).voice)
clean_up(room)
""",
    )
    assert [line.rpartition(".")[0].split(".")[0] for line in said] == ["It is 7"] * 2


def test_headers_memory_and_plans(home: Home) -> None:
    (said,) = python(
        home,
        """
import json, sys
from modelpipes import Settings, Space, plan, predict_memory, read_header

header = read_header(sys.argv[1])
memory = predict_memory(header)
longer = predict_memory(header, Settings(n_ctx=8192, backend="cuda"))
both = plan([header, header], Space(device_bytes=(16 << 30,), host_bytes=32 << 30))
print(json.dumps([header.architecture, memory.device_bytes, longer.device_bytes, memory.estimate, both.kind,
                  [model.settings.n_ctx for model in both.models], both.reason]))
""",
        str(PACKAGE / "models" / "tiny-chat.gguf"),
    )
    architecture, device_bytes, longer_bytes, estimate, kind, contexts, reason = json.loads(said)
    assert (architecture, estimate, kind, contexts) == ("llama", "exact", "whole", [1024, 1024])
    assert 0 < device_bytes < longer_bytes < GIB
    assert reason.startswith("all whole at a context of 1024")


def test_an_endpoint_speaks_and_hears(home: Home) -> None:
    said = python(
        home,
        """
from modelpipes import Deadline, Endpoint, Room, Seating, clean_up
from modelpipes.pipe.message import Say, new_id

room = Room.make("talk", ["bob"])
with Seating(room) as seating, Endpoint(room, "hub") as hub:
    seating.seat({"bob": ["--filter", "cat"]})
    hub.listen("bob")
    hub.connect("bob", Deadline.after(60))
    hub.send("bob", Say(new_id(), "hub", "bob", "Hello"), Deadline.after(60))
    while (event := hub.receive(Deadline.after(60))).item.__class__.__name__ != "Reply":
        pass
    print(event.sender, event.item.content)
clean_up(room)
""",
    )
    assert said == ["bob Hello"]


def test_members_end_with_who_seated_them_even_where_it_is_killed(home: Home) -> None:
    program = """
import os, signal
from modelpipes import Room, Seating

room = Room.make(os.environ["TMPDIR"] + "/talk", ["bob"])
Seating(room).seat({"bob": ["--model", "tiny-chat"]})
print(room.sitting("bob").state, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    (home.cwd / "program.py").write_text(program)
    ended = home.run([sys.executable, "-P", "program.py"], limit_s=RUN_LIMIT_S)
    assert (ended.code, ended.lines) == (-9, ["ready"]), ended.stderr
    assert home.left_processes() == []


STRANGER = """
from modelpipes import (
    Client, Conversation, Deadline, Endpoint, Engine, PipesError, Room, Seating, Settings, Space, StopRules,
    __version__, ask, clean_up, plan, predict_memory, read_header,
)


def talk(room: Room) -> list[str]:
    with Seating(room) as seating:
        seating.seat({"alice": ["--model", "tiny-chat"]})
        conversation = Conversation(room, ["alice"], rules=StopRules(rounds=1))
        why: str = conversation.lead("Hello.")
        return [why, *(f"{turn.turn} {turn.sender}: {turn.content}" for turn in conversation.turns)]


def fits(path: str) -> bool:
    header = read_header(path)
    share: int = predict_memory(header, Settings(n_ctx=8192)).device_bytes
    return plan([header], Space((share,), 1 << 30)).is_together


def times(url: str) -> list[float]:
    client = Client(url, model_name="tiny-chat")
    answer = client.chat("Hello.", temperature=0, stop=["end"], silence_s=5)
    told: str = client.complete("Once", max_tokens=4).text + answer.text
    for piece in client.stream([{"role": "user", "content": told}], seed=1):
        told += piece.content
    return [answer.latency_ms, answer.usage.completion_tokens if answer.usage else 0.0]


def main() -> str:
    room = Room.make("talk", ["alice"])
    try:
        with Engine("tiny-chat") as engine, Endpoint(room, "hub") as hub:
            engine.be_ready(Deadline.after(60))
            hub.listen("alice")
            address: str = engine.base_url
        return __version__ + address + ask("alice", "Hello.", room=room, timeout_s=None, max_seconds=5).content
    except PipesError as error:
        return str(error)
    finally:
        kept: list[str] = clean_up(room)
        print(kept)
"""
MISTAKEN = """
from modelpipes import ask, tell

ask("alice", 7)
reveal_type(ask("alice", "Hello."))
"""


def test_a_strangers_program_is_checked_with_our_types(tmp_path: Path) -> None:
    assert checked(tmp_path, STRANGER) == ["Success: no issues found in 1 source file"]
    said = checked(tmp_path, MISTAKEN)
    assert [re.sub(r".*?(error|note): ", "", line) for line in said] == [
        'Module "modelpipes" has no attribute "tell"  [attr-defined]',
        'Argument 2 to "ask" has incompatible type "int"; expected "str"  [arg-type]',
        'Revealed type is "modelpipes.pipe.message.Reply"',
        "Found 2 errors in 1 file (checked 1 source file)",
    ]


def checked(folder: Path, program: str, *options: str) -> list[str]:
    """What mypy --strict says of a program outside the checkout."""
    (folder / "stranger.py").write_text(program, "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"), *options, "stranger.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    return done.stdout.splitlines()


# -- ask


def test_ask_returns_the_whole_reply(room: Room) -> None:
    with peer("echo", room):
        reply = ask("bob", "Is it whole?", room=room)
    assert (reply.sender, reply.to, reply.content, reply.stop) == ("bob", "hub", "Is it whole?", "end")


def test_ask_takes_a_room_its_directory_or_the_one_of_the_environment(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPE_DIR", room.path)
    with peer("echo", room):
        assert [ask("bob", "Hi", room=which).content for which in (room, room.path, None)] == ["Hi"] * 3


def test_ask_speaks_from_another_seat(room: Room) -> None:
    room.make_pipes([("alice", "bob"), ("bob", "alice")])
    with peer("echo", room):
        assert ask("bob", "Hi", room=room, sender="alice").to == "alice"


def test_ask_says_which_pipes_are_missing(room: Room) -> None:
    with pytest.raises(RoomError, match="no seat 'carol'; its seats are alice, bob, hub; add it with setup-pipes"):
        ask("carol", "Hi", room=room)
    with pytest.raises(RoomError, match="no pipes between alice and bob; add them with setup-pipes bob --hub alice"):
        ask("bob", "Hi", room=room, sender="alice")
    with pytest.raises(RoomError, match="no room there"):
        ask("bob", "Hi", room=f"{room.path}/nowhere")
    with pytest.raises(UsageError, match="cannot be a seat"):
        ask("Bob", "Hi", room=room)


def test_ask_says_nothing_empty_and_nothing_that_cannot_travel(room: Room) -> None:
    with pytest.raises(UsageError, match="the message is empty"):
        ask("bob", " \n", room=room)
    with peer("echo", room):
        for text in ("\ud800", "x" * MAX_MESSAGE_BYTES):
            with pytest.raises(MessageError):
                ask("bob", text, room=room)


@pytest.mark.parametrize("bound_s", [0, -1, float("nan")])
def test_ask_refuses_a_bound_that_has_passed(room: Room, bound_s: float) -> None:
    with pytest.raises(UsageError, match=r"timeout_s is .*: give seconds above 0, or None"):
        ask("bob", "Hi", room=room, timeout_s=bound_s)
    with pytest.raises(UsageError, match=r"max_seconds is .*: give seconds above 0, or None"):
        ask("bob", "Hi", room=room, max_seconds=bound_s)


def test_ask_ends_at_its_bounds(room: Room) -> None:
    with pytest.raises(DeadlineError, match="nobody took the seat before the deadline"):
        ask("bob", "Hi", room=room, timeout_s=0.05)
    with peer("thinker", room):
        with pytest.raises(DeadlineError, match=r"bob showed no life for 1 s"):
            ask("bob", "Hi", room=room, timeout_s=1)
        with pytest.raises(DeadlineError, match="did not finish within the time allowed"):
            ask("bob", "Hi", room=room, timeout_s=None, max_seconds=1)


def test_ask_tells_that_the_member_left_or_failed(room: Room) -> None:
    with peer("leaver", room), pytest.raises(PeerGone, match="bob has left; seat it again"):
        ask("bob", "Hi", room=room)
    program = ["-P", "-m", "modelpipes", "attach", "alice", "--exec", "false", "-d", room.path]
    with subprocess.Popen([sys.executable, *program]) as member:
        room.wait_for(["alice"], Deadline.after(LIMIT_S))
        with pytest.raises(PeerFailed, match="alice: ") as failed:
            ask("alice", "Hi", room=room)
        assert failed.value.reason == "voice"
        member.terminate()


# -- what is not given


def test_a_room_is_made_with_its_pipes(tmp_path: Path) -> None:
    room = Room.make(str(tmp_path / "talk"), ["alice", "bob"], hub="host")
    assert room.seats() == ["alice", "bob", "host"]
    assert len(Room.make(room.path, ["alice", "carol"], hub="host").pipes()) == 6
    with pytest.raises(UsageError, match="cannot be a seat"):
        Room.make(str(tmp_path / "other"), ["Alice"])
    assert not (tmp_path / "other").exists()


def test_a_conversation_is_led_for_ten_rounds_in_order_and_kept_in_memory(room: Room) -> None:
    with peer("echo", room, "alice"), peer("echo", room, "bob"):
        talk = Conversation(room, ["alice", "bob"])
        assert talk.turns == []
        assert talk.lead("Hello.") == "rounds"
    assert [turn.sender for turn in talk.turns] == ["hub", *["alice", "bob"] * 10]


def test_a_listener_needs_only_the_methods_it_wants(room: Room) -> None:
    class Ends(Listener):
        def __init__(self) -> None:
            self.turns: list[Turn] = []

        def ends(self, turn: Turn) -> None:
            self.turns.append(turn)

    ends = Ends()
    with peer("echo", room, "alice"):
        talk = Conversation(room, ["alice"], listener=ends, rules=StopRules(rounds=2))
        talk.lead("Hello.")
    assert ends.turns == talk.turns
