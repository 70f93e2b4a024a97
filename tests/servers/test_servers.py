"""Servers of others as they really are: each is installed once, started with tiny-chat behind it, and talked to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpipes.engine.lifecycle import Engine
from modelpipes.values.deadline import Deadline
from tests.commands.conftest import LIMIT_S, Commands
from tests.servers.servers import SERVERS, NotInstalled, Server, running
from tests.shell import CHECKOUT

ASKED = os.environ.get("MODELPIPES_TEST_SERVERS", "").split()
CHOSEN = [SERVERS[name] for name in ASKED] or [server for server in SERVERS.values() if not server.on_demand]


def those(which: Callable[[Server], object]) -> pytest.MarkDecorator:
    """A test for some of them."""
    chosen = [server for server in CHOSEN if which(server)]
    return pytest.mark.parametrize("served", chosen, indirect=True, ids=lambda server: server.name)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine("tiny-chat", ctx_size=1024, parallel=2, engine_args=("--threads", "1")) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        yield engine


@pytest.fixture(scope="module", params=CHOSEN, ids=lambda server: server.name)
def served(
    request: pytest.FixtureRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, str]]:
    """A server of others, and its address."""
    server = request.param
    try:
        with running(server, engine.base_url, tmp_path_factory.mktemp(server.name)) as url:
            yield server, url
    except NotInstalled as why:
        if server.name in ASKED:
            raise
        pytest.skip(f"{server.name} cannot be installed: {why}")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Commands]:
    commands = Commands(tmp_path)
    yield commands
    commands.close()
    assert commands.left_processes() == []


def options(server: Server, url: str) -> tuple[list[str], dict[str, str]]:
    given = ["--server", url, "--temperature", "0", "--model-name", server.model]
    return given, {"OPENAI_API_KEY": server.key} if server.key else {}


def test_it_answers_in_words_and_figures(run: Commands, served: tuple[Server, str]) -> None:
    server, url = served
    given, env = options(server, url)
    run.attach("bob", *given, **env)
    assert run("ask", "bob", "What is 3 and 4?").stdout == "It is 7.\n"
    told = json.loads(run("ask", "bob", "What is 3 and 4?", "--json").stdout)
    assert (told["content"], told["stop"]) == ("It is 7.", "end")
    assert (told["usage"] is not None) == server.counts
    assert told["timing"]["first_token_ms"] > 0


def test_two_of_its_voices_talk(run: Commands, served: tuple[Server, str]) -> None:
    server, url = served
    shared = ["--model-name", server.model, "--temperature", "0"]
    said = run(
        "chat", "--server", f"alice={url}", "--server", f"bob={url}", *shared, "--opening", "Do you like boats?",
        "--rounds", "2", OPENAI_API_KEY=server.key,
    )  # fmt: skip
    assert said.code == 0, said.stderr
    speakers = [line.partition(":")[0] for line in said.lines if line.startswith(("hub:", "alice:", "bob:"))]
    assert speakers == ["hub", "alice", "bob", "alice", "bob"]


@those(lambda server: server.knows_models)
def test_a_model_that_it_does_not_have_is_told_in_its_words(run: Commands, served: tuple[Server, str]) -> None:
    server, url = served
    env = {"OPENAI_API_KEY": server.key} if server.key else {}
    run.attach("bob", "--server", url, "--model-name", "nothing-of-the-kind", **env)
    refused = run("ask", "bob", "Hello.")
    assert (refused.code, refused.stdout) == (1, "")
    assert "refuses: " in refused.stderr and "nothing-of-the-kind" in refused.stderr
    assert refused.stderr.count("\n") == 1


@those(lambda server: server.key)
def test_a_wrong_key_is_told_before_a_seat_is_taken(run: Commands, served: tuple[Server, str]) -> None:
    server, url = served
    assert run("setup", "bob").code == 0
    refused = run("attach", "bob", "--server", url, "--model-name", server.model, OPENAI_API_KEY="sk-wrong")
    assert (refused.code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert "refuses: " in refused.stderr


@those(lambda server: server.name == "fastchat")  # whose worker can be made to fail
def test_what_breaks_amid_an_answer_is_told(run: Commands, served: tuple[Server, str]) -> None:
    server, url = served
    given, env = options(server, url)
    run.attach("bob", *given, **env)
    failed = run("ask", "bob", "Are you out of memory?")
    assert (failed.code, failed.stdout) == (1, "")
    assert failed.stderr.endswith("refuses: CUDA out of memory\n")


def test_the_docs_tell_which_versions_are_tried() -> None:
    docs = (CHECKOUT / "docs" / "conversations.md").read_text("utf-8")
    for server in SERVERS.values():
        if not server.on_demand:
            name, _, version = server.packages[0].partition("==")
            assert f"| {name.partition('[')[0]} {version} |" in docs
