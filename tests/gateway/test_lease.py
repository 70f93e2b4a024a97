"""Leases from a real gateway in front of real engines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.engine.answers import Piece
from modelpipes.engine.client import Client
from modelpipes.errors import Cancelled, DeadlineError, EngineError, Refused
from modelpipes.gateway.lease import Lease, is_gateway
from modelpipes.serving.gateway import GatewaySettings
from modelpipes.values.deadline import Deadline
from tests.models import scripted_model
from tests.server import Scripted
from tests.serving.pools import LIMIT_S, Running, SmallPool, gateway
from tests.web.servers import answer, serving


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = scripted_model(tmp_path_factory.mktemp("models") / "hello.gguf", "Hello there.")
    with gateway(SmallPool({"hello": path})) as running:
        yield running


@pytest.fixture
def closed(running: Running) -> Iterator[Running]:
    """It, while it has no engine free."""
    running.call(lambda: setattr(running.pool, "gate", asyncio.Event()))
    yield running
    running.call(lambda: setattr(running.pool, "gate", None))


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


def test_a_lease_lets_one_speak_to_the_engine_and_holds_it_until_it_is_closed(running: Running) -> None:
    with Lease(Client(running.url), "also-hello") as lease:
        client = lease.take(lambda: None, Deadline.after(LIMIT_S))
        assert client.root != running.url
        answer = client.stream([{"role": "user", "content": "Hi."}], silence_s=LIMIT_S)
        assert "".join(piece.content for piece in answer if isinstance(piece, Piece)) == "Hello there."
        assert len(running.pool.grants) == 1
    running.pool.wait_until(lambda: not running.pool.grants)


def test_whoever_waits_for_an_engine_is_told_of_life_and_leaves_the_queue_at_a_cancel(
    closed: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelpipes.gateway.lease.TICK_S", 0.01)
    with Lease(Client(closed.url), "hello") as lease:
        ticks: list[None] = []

        def tick() -> None:
            ticks.append(None)
            if len(ticks) == 3:
                threading.Thread(target=lease.cancel).start()

        with pytest.raises(Cancelled, match="the lease was cancelled"):
            lease.take(tick, Deadline.after(LIMIT_S))
    assert len(ticks) >= 3
    closed.pool.wait_until(lambda: not closed.pool.waiting)


def test_a_lease_that_was_cancelled_asks_nobody(closed: Running) -> None:
    with Lease(Client(closed.url), "hello") as lease:
        lease.cancel()
        with pytest.raises(Cancelled):
            lease.take(lambda: None, Deadline.after(LIMIT_S))
    assert not closed.pool.waiting


def test_a_wait_ends_at_its_deadline(closed: Running) -> None:
    with (
        Lease(Client(closed.url), "hello") as lease,
        pytest.raises(DeadlineError, match="engine of hello at the gateway"),
    ):
        lease.take(lambda: None, Deadline.after(0.05))


def test_a_model_that_is_not_served_is_refused_with_the_gateways_words(running: Running) -> None:
    with Lease(Client(running.url), "no/body") as lease, pytest.raises(Refused, match="no model no/body") as refused:
        lease.take(lambda: None, Deadline.after(LIMIT_S))
    assert refused.value.status == 404


@pytest.mark.parametrize("line", [b"", b'{"what": "ever"}\n', b'{"host": "\xff"}\n'])
def test_a_server_whose_lease_is_none_is_no_gateway(line: bytes) -> None:
    with serving() as other, Lease(Client(other.url), "hello") as lease:
        other.say(answer(line))
        with pytest.raises(EngineError, match="is no gateway of serve-models: its lease is none"):
            lease.take(lambda: None, Deadline.after(LIMIT_S))


def test_nobody_there_is_told_in_one_line() -> None:
    with Lease(Client("http://127.0.0.1:9"), "hello") as lease, pytest.raises(EngineError, match="gateway at") as told:
        lease.take(lambda: None, Deadline.after(LIMIT_S))
    assert "\n" not in str(told.value)


def test_a_gateway_is_known_by_what_it_has_in_memory_and_other_servers_are_none(
    running: Running, server: Scripted
) -> None:
    assert is_gateway(Client(running.url))
    assert not is_gateway(Client(server.url))
    server.pages["/residency"] = {"budget": 1}
    assert not is_gateway(Client(server.url))
    server.statuses = [500]
    assert not is_gateway(Client(server.url))


def test_a_gateway_that_wants_a_key_is_not_taken_for_another_server(tmp_path: Path) -> None:
    with gateway(SmallPool({}), GatewaySettings(key="secret")) as running:
        with pytest.raises(Refused, match="key is missing or wrong") as refused:
            is_gateway(Client(running.url))
        assert refused.value.kind == "auth"
        assert is_gateway(Client(running.url, api_key="secret"))
