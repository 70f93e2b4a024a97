"""The daemon that runs, asked and told over a port and a Unix socket; `test_serve.py` does so by commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.errors import EngineError, UsageError
from modelpipes.gateway import steering
from modelpipes.gateway.record import Daemon, recorded
from modelpipes.gateway.steering import Steering
from modelpipes.serving.gateway import Settings
from modelpipes.values.deadline import Deadline
from tests.models import scripted_model
from tests.serving.pools import Running, SmallPool, gateway
from tests.web.servers import answer, serving

KEY = "secret"


@pytest.fixture(params=["port", "socket"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    listen = "127.0.0.1:0" if request.param == "port" else f"unix:{tmp_path}/socket"
    pool = SmallPool({"a/b": scripted_model(tmp_path / "model.gguf", "Hello.")})
    with gateway(pool, Settings(key=KEY), listen) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of our own: no daemon of anybody else is found."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def daemon(listen: str, *, is_private: bool = False) -> Daemon:
    return Daemon(1, listen, key=KEY, is_private=is_private)


def test_a_daemon_tells_what_it_has_and_does_what_it_is_told(running: Running) -> None:
    there = Steering(daemon(str(running.server.listen)))
    assert [one.id for one in there.models().data] == ["a/b"]
    assert there.act("load", "a/b").state == "ready"
    assert there.act("pin", "a/b").pinned
    assert [(one.name, one.pinned) for one in there.residency().resident] == [("a/b", True)]
    assert [line for line in there.logs("a/b", follow=False) if line.endswith(b"\n")]
    assert there.act("unload", "a/b").state == "unloaded"


def test_a_failure_is_told_in_the_daemons_words(running: Running) -> None:
    there = Steering(daemon(str(running.server.listen)))
    with pytest.raises(EngineError, match="there is no model nix"):
        there.act("load", "nix")
    with pytest.raises(EngineError, match="there is no model nix"):
        list(there.logs("nix", follow=False))


def test_a_daemon_that_has_gone_does_not_answer() -> None:
    with pytest.raises(EngineError, match=r"^serve-models on 127\.0\.0\.1:9 does not answer: .*refused"):
        Steering(daemon("127.0.0.1:9")).residency()


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"\xff"])
def test_what_is_no_answer_of_a_daemon_is_told(body: bytes, status: int) -> None:
    with serving() as server:
        server.say(answer(body, status=status))
        with pytest.raises(EngineError, match="answers something that is none of its words"):
            Steering(daemon(server.url.removeprefix("http://"))).residency()


def test_one_daemon_is_found_and_of_several_the_one_that_is_named(home: None) -> None:
    def find(listen: str | None = None) -> str:
        return steering.find(listen, Deadline.after(0))._record.listen

    with pytest.raises(EngineError, match=r"^no serve-models runs: start one with serve-models CONFIG\.toml$"):
        find()
    with recorded(daemon("h:1")), recorded(daemon("h:3", is_private=True)):
        assert (find(), find("h:3")) == ("h:1", "h:3")
        with recorded(daemon("h:2")):
            assert find("h:2") == "h:2"
            with pytest.raises(UsageError, match=r"^--listen is missing: serve-models runs on h:1, h:2$"):
                find()
    with pytest.raises(EngineError, match=r"^no serve-models runs on h:1: "):
        find("h:1")
