"""The pool on real engines: loaded when asked for, swapped within the budget, failures told and survived."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelpipes.engine.client import Client
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.pulse import Pulse
from modelpipes.errors import ServingError
from modelpipes.events import EngineFailed, Event, Trouble
from modelpipes.serving import failures
from modelpipes.serving.bytes import Bytes
from modelpipes.serving.grant import Grant
from modelpipes.serving.kept import Kept
from modelpipes.serving.pool import Pool
from modelpipes.serving.servable import Servable
from modelpipes.serving.situation import Yield
from tests.drill.processes import descendants, living
from tests.models import scripted_model
from tests.peers import eventually, eventually_beside

LIMIT_S = 30.0
NAMES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {name: str(scripted_model(folder / f"{name}.gguf", f"This is {name}.", name=name)) for name in NAMES}


@dataclass(frozen=True)
class Make:
    """How an engine is made; equal for equal models."""

    file: str
    name: str
    engine_args: tuple[str, ...] = ()
    load_timeout_s: float = LIMIT_S

    def __call__(self, slot_folder: str | None) -> Engine:
        return Engine(
            self.file,
            ctx_size=512,
            engine="embedded",
            engine_args=self.engine_args,
            load_timeout_s=self.load_timeout_s,
            name=self.name,
            with_key=True,
            slot_folder=slot_folder,
        )


def servable(name: str, file: str, *engine_args: str, **more: object) -> Servable:
    return Servable(
        name=name,
        file=file,
        start=Make(file, name, engine_args),
        needs=Bytes.of(10),
        file_bytes=300_000,
        created=0,
        context_length=512,
        **more,  # type: ignore[arg-type]
    )


def runs(test: Callable[[], Awaitable[None]]) -> None:
    """Run it to its end, within a limit, and see that no process of it is left."""

    async def within() -> None:
        await asyncio.wait_for(test(), LIMIT_S)

    before = descendants(os.getpid())
    asyncio.run(within())
    eventually(lambda: not living(descendants(os.getpid()) - before), "end of every engine")


@asynccontextmanager
async def pool_of(*servables: Servable, budget: int = 20, **more: object) -> AsyncIterator[Pool]:
    pool = Pool(servables, Bytes.of(budget), **{"min_resident_s": 0.0, "max_wait_s": 5.0, **more})  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        await pool.close()


def answer(grant: Grant) -> str:
    client = Client(f"http://{grant.address.host}:{grant.address.port}", api_key=grant.address.key)
    with client.stream([{"role": "user", "content": "Hello."}], silence_s=LIMIT_S) as stream:
        return "".join(getattr(piece, "content", "") for piece in stream)


async def ask(pool: Pool, name: str) -> str:
    grant = await pool.acquire(name)
    try:
        return await asyncio.to_thread(answer, grant)
    finally:
        grant.release()


def states(pool: Pool) -> dict[str, str]:
    return {one.name: one.state for one in pool.residency().resident}


def test_a_model_is_loaded_when_it_is_asked_for_and_stays(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"], aliases=("a",))) as pool:
            assert states(pool) == {}
            assert await ask(pool, "alpha") == "This is alpha."
            assert states(pool) == {"alpha": "ready"}
            assert await ask(pool, "a") == "This is alpha."
            assert [one.action for one in pool.residency().decisions] == ["load"]
            (model,) = pool.models()
            assert (model.id, model.aliases, model.state) == ("alpha", ["a"], "ready")

    runs(test)


def test_three_models_share_room_for_two_and_every_request_is_answered(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(*(servable(name, files[name]) for name in NAMES)) as pool:

            async def client(seed: int) -> None:
                chooses = random.Random(seed)
                for _ in range(5):
                    name = chooses.choice(NAMES)
                    assert await ask(pool, name) == f"This is {name}."
                    assert pool.residency().used_bytes <= 20

            await asyncio.gather(*(client(seed) for seed in range(4)))
            assert len(pool.residency().resident) <= 2
            assert not pool.residency().waiting
            assert any(one.action == "stop" for one in pool.residency().decisions)
            assert b"modelpipes_pool_load_seconds_count" in pool.metrics()

    runs(test)


def test_a_model_that_can_never_fit_is_refused_at_once_with_the_reason(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"]), budget=5) as pool:
            with pytest.raises(ServingError) as refused:
                await pool.acquire("alpha")
            assert (refused.value.status, refused.value.code) == (400, "model_does_not_fit")

    runs(test)


def test_an_unknown_model_is_refused_with_the_known_ones(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"])) as pool:
            with pytest.raises(ServingError, match=r"no model is called 'x'; there are: alpha"):
                await pool.acquire("x")

    runs(test)


def test_a_killed_engine_is_told_to_those_who_use_it_and_started_again_for_the_next(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"])) as pool:
            grant = await pool.acquire("alpha")
            os.kill(engine_pid(pool, "alpha"), signal.SIGKILL)
            await asyncio.wait_for(grant.drain.wait(), LIMIT_S)
            assert grant.is_lost
            grant.release()
            assert await ask(pool, "alpha") == "This is alpha."

    runs(test)


def test_a_model_that_cannot_be_loaded_fails_its_requests_with_the_cause_and_then_waits(files: dict[str, str]) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])
            async with pool_of(servable("alpha", files["alpha"], "--port", port)) as pool:
                for _ in range(2):  # the first failure may be an accident
                    with pytest.raises(ServingError, match=f"port {port} is taken") as failed:
                        await pool.acquire("alpha")
                    assert (failed.value.status, failed.value.code) == (503, "model_load_failed")
                    assert failed.value.retry_after_s is not None
                with pytest.raises(ServingError, match="could not be loaded") as blocked:
                    await pool.acquire("alpha")
                assert blocked.value.retry_after_s is not None and 0 < blocked.value.retry_after_s <= 10
                assert states(pool) == {}

    runs(test)


def loads(pool: Pool) -> int:
    return sum(one.action == "load" for one in pool.residency().decisions)


async def see_refused_at_once(pool: Pool, name: str) -> None:
    """With the cause, no time to come back, and no other attempt."""
    before = loads(pool)
    with pytest.raises(ServingError, match="could not be loaded") as refused:
        await pool.acquire(name)
    assert (refused.value.status, refused.value.code, refused.value.retry_after_s) == (503, "model_load_failed", None)
    assert loads(pool) == before


def test_a_damaged_file_is_not_loaded_again_until_it_has_changed(files: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "alpha.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)

    async def test() -> None:
        async with pool_of(servable("alpha", str(file))) as pool:
            with pytest.raises(ServingError, match="bad file") as failed:
                await pool.acquire("alpha")
            assert failed.value.retry_after_s is None
            await see_refused_at_once(pool, "alpha")
            shutil.copy(files["alpha"], file)
            assert await ask(pool, "alpha") == "This is alpha."

    runs(test)


def test_a_flag_that_no_engine_knows_is_tried_again_with_another_configuration_or_when_told_to(
    files: dict[str, str],
) -> None:
    async def test() -> None:
        wrong = servable("alpha", files["alpha"], "--no-such-flag")
        async with pool_of(wrong) as pool:
            with pytest.raises(ServingError, match="bad flag"):
                await pool.acquire("alpha")
            await see_refused_at_once(pool, "alpha")
            with pytest.raises(ServingError, match="bad flag"):
                await pool.load("alpha")
            assert loads(pool) == 2
            await see_refused_at_once(pool, "alpha")
            with pytest.raises(ServingError, match="could not be loaded") as soon:  # also whoever says so has to wait
                await pool.load("alpha")
            assert soon.value.retry_after_s is not None
            pool.serve([wrong])
            with pytest.raises(ServingError, match="bad flag"):
                await pool.acquire("alpha")
            pool.serve([servable("alpha", files["alpha"])])
            assert await ask(pool, "alpha") == "This is alpha."

    runs(test)


def test_what_is_pinned_and_cannot_be_loaded_for_a_cause_that_lasts_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "alpha.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)

    async def test() -> None:
        told: list[Event] = []
        async with pool_of(servable("alpha", str(file), is_pinned=True), sink=told.append) as pool:
            pool.load_pinned()
            await eventually_beside(
                lambda: any(isinstance(event, EngineFailed) and event.is_lasting for event in told), "lasting failure"
            )
            before = loads(pool)
            pool.load_pinned()
            await eventually_beside(
                lambda: any(isinstance(event, Trouble) and "tried again when" in event.why for event in told), "word"
            )
            assert loads(pool) == before, told

    runs(test)


def test_a_failure_of_what_was_configured_before_is_none_of_what_is_now(files: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + b"\0" * 100)

    async def test() -> None:
        async with pool_of(servable("alpha", str(file))) as pool:
            waits = asyncio.ensure_future(ask(pool, "alpha"))
            await eventually_beside(lambda: states(pool) == {"alpha": "loading"}, "load")
            pool.serve([servable("alpha", files["alpha"])])
            assert await waits == "This is alpha."

    runs(test)


def test_a_load_that_never_ends_is_ended_after_its_own_time(files: dict[str, str]) -> None:
    async def test() -> None:
        slow = servable("alpha", files["alpha"])
        slow = replace(slow, start=Make(files["alpha"], "alpha", load_timeout_s=1.0), load_timeout_s=1.0)
        async with pool_of(slow) as pool:
            waits = asyncio.ensure_future(pool.acquire("alpha"))
            await eventually_beside(lambda: "alpha" in pool._held and engine_pid(pool, "alpha") > 0, "engine")
            os.kill(engine_pid(pool, "alpha"), signal.SIGSTOP)
            with pytest.raises(ServingError, match=r"is not loaded after 1s, its load_timeout_s") as failed:
                await waits
            assert failed.value.code == "model_load_failed"
            assert states(pool) == {}
            pool.serve([servable("alpha", files["alpha"])])
            assert await ask(pool, "alpha") == "This is alpha."

    runs(test)


def test_a_busy_model_that_has_to_go_may_answer_on_for_its_drain_timeout_and_no_longer(files: dict[str, str]) -> None:
    async def test() -> None:
        short = {"alpha": 0.2, "beta": LIMIT_S}
        async with pool_of(
            *(servable(name, files[name], drain_timeout_s=short[name]) for name in short), budget=10, max_wait_s=0.0
        ) as pool:
            busy = await pool.acquire("alpha")
            other = asyncio.ensure_future(pool.acquire("beta"))
            await asyncio.wait_for(busy.drain.wait(), LIMIT_S)
            was_lost = [busy.is_lost]
            grant = await other  # although nobody released the first
            assert [*was_lost, busy.is_lost] == [False, True]
            assert states(pool) == {"beta": "ready"}
            assert any("drain_timeout_s is over" in decision.reason for decision in pool.residency().decisions)
            busy.release()
            grant.release()

    runs(test)


def test_an_unload_waits_no_longer_than_the_drain_timeout(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"], drain_timeout_s=0.2)) as pool:
            busy = await pool.acquire("alpha")
            await pool.unload("alpha")
            assert busy.is_lost
            assert states(pool) == {}
            busy.release()

    runs(test)


def test_a_budget_that_was_looked_at_again_counts_for_the_next_load(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"]), servable("beta", files["beta"]), budget=10) as pool:
            grant = await pool.acquire("alpha")
            other = asyncio.ensure_future(pool.acquire("beta"))
            await eventually_beside(lambda: len(pool.residency().waiting) == 1, "waiting")
            pool.set_budget(Bytes.of(20))
            (await other).release()
            pool.set_budget(Bytes.of(10))  # the idle one makes room for whoever took it
            await eventually_beside(lambda: states(pool) == {"alpha": "ready"}, "room")
            grant.release()

    runs(test)


class Hasty:
    """The loop, with timers that fire before their time: a clock of milliseconds beside one of nanoseconds."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, delay - 0.01), callback)


def test_what_is_pinned_comes_back_after_two_deaths_though_a_timer_fires_early(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "BACKOFF_S", 0.1)

    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"], is_pinned=True)) as pool:
            pool._loop = Hasty(pool._loop)  # type: ignore[assignment]
            killed: list[int] = []
            pool.load_pinned()
            for _ in range(2):
                await eventually_beside(
                    lambda: states(pool) == {"alpha": "ready"} and engine_pid(pool, "alpha") not in killed, "new engine"
                )
                killed.append(engine_pid(pool, "alpha"))
                os.kill(killed[-1], signal.SIGKILL)
            # and nobody asked for it
            await eventually_beside(
                lambda: states(pool) == {"alpha": "ready"} and engine_pid(pool, "alpha") not in killed, "new engine"
            )

    runs(test)


def test_what_is_pinned_is_never_evicted_and_what_is_unloaded_has_gone(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(*(servable(name, files[name]) for name in NAMES), budget=20) as pool:
            pool.pin("alpha", is_pinned=True)
            for name in (*NAMES, *NAMES):
                await ask(pool, name)
                assert name == "alpha" or "alpha" in states(pool)
            with pytest.raises(ServingError, match="pinned"):
                await pool.unload("alpha")
            pool.pin("alpha", is_pinned=False)
            await pool.unload("alpha")
            assert "alpha" not in states(pool)

    runs(test)


def test_all_who_wait_for_a_model_that_no_longer_fits_are_refused(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"]), servable("beta", files["beta"]), budget=10) as pool:
            grant = await pool.acquire("alpha")
            waits = [asyncio.ensure_future(pool.acquire("beta")) for _ in range(3)]
            await eventually_beside(lambda: len(pool.residency().waiting) == 3, "three waiters")
            pool.pin("alpha", is_pinned=True)
            refusals = await asyncio.gather(*waits, return_exceptions=True)
            assert [getattr(one, "code", None) for one in refusals] == ["model_does_not_fit"] * 3
            assert [one.action for one in pool.residency().decisions].count("refuse") == 3
            grant.release()

    runs(test)


def test_who_is_to_give_way_is_asked_to_end_and_nobody_else(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"], "-np", "2", sequences=2)) as pool:
            one, other = [await pool.acquire("alpha") for _ in range(2)]
            (number,) = (each.id for each in pool._held["alpha"].grants if each is other)
            pool._carry_out(Yield(number, "alpha", "beta goes first"))  # nobody yields yet who could be asked
            assert (one.drain.is_set(), other.drain.is_set()) == (False, True)
            assert pool.residency().decisions[-1].action == "yield"
            one.release()
            other.release()

    runs(test)


def test_a_wait_that_is_cancelled_leaves_the_queue(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"]), servable("beta", files["beta"]), budget=10) as pool:
            grant = await pool.acquire("alpha")
            waits = asyncio.ensure_future(pool.acquire("beta"))
            await eventually_beside(lambda: bool(pool.residency().waiting), "waiter")
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
            assert not pool.residency().waiting
            grant.release()

    runs(test)


def test_who_waited_too_long_has_the_busy_model_drained(files: dict[str, str]) -> None:
    async def test() -> None:
        served = servable("alpha", files["alpha"]), servable("beta", files["beta"])
        async with pool_of(*served, budget=10, max_wait_s=0.05) as pool:
            grant = await pool.acquire("alpha")
            waits = asyncio.ensure_future(pool.acquire("beta"))
            await asyncio.wait_for(grant.drain.wait(), LIMIT_S)
            assert states(pool) == {"alpha": "draining"}
            grant.release()
            (await waits).release()
            assert states(pool) == {"beta": "ready"}

    runs(test)


def test_a_change_of_the_configuration_touches_only_what_changed(files: dict[str, str]) -> None:
    async def test() -> None:
        alpha, beta = servable("alpha", files["alpha"]), servable("beta", files["beta"])
        async with pool_of(alpha, beta) as pool:
            await ask(pool, "alpha")
            await ask(pool, "beta")
            pid = engine_pid(pool, "alpha")
            pool.serve([alpha, servable("gamma", files["gamma"])])
            await eventually_beside(lambda: "beta" not in states(pool), "end of beta")
            assert engine_pid(pool, "alpha") == pid
            assert await ask(pool, "gamma") == "This is gamma."
            with pytest.raises(ServingError, match="no model is called 'beta'"):
                await pool.acquire("beta")

    runs(test)


def engine_pid(pool: Pool, name: str) -> int:
    return pool._held[name].engine.pid


def test_a_conversation_goes_on_after_a_swap_where_it_ended(files: dict[str, str], tmp_path: Path) -> None:
    question = [{"role": "user", "content": "boats and trains " * 20}]

    def cached(grant: Grant) -> int:
        """Tokens of the prompt that the engine need not read again."""
        client = Client(f"http://{grant.address.host}:{grant.address.port}", api_key=grant.address.key)
        answer = client.post("/v1/chat/completions", {"messages": question, "max_tokens": 1}, LIMIT_S)
        found: int = answer["timings"]["cache_n"]
        return found

    async def test() -> None:
        kept = Kept(str(tmp_path / "slots"))
        alpha, beta = servable("alpha", "tiny-chat"), servable("beta", files["beta"])
        async with pool_of(alpha, beta, budget=10, kept=kept) as pool:
            found = []
            for _ in range(2):
                grant = await pool.acquire("alpha")
                found.append(await asyncio.to_thread(cached, grant))
                grant.release()
                await ask(pool, "beta")
            assert found[0] < 5 < 50 < found[1]
        assert os.listdir(tmp_path / "slots") == []

    runs(test)


def test_what_can_never_fit_is_told_beforehand_with_what_would(files: dict[str, str]) -> None:
    async def test() -> None:
        alpha = servable("alpha", files["alpha"], advise=lambda limits: f"{limits.card} would fit")
        async with pool_of(alpha, budget=5) as pool:
            assert list(pool.unfit()) == [("alpha", "5 would fit")]
            with pytest.raises(ServingError, match="5 would fit"):
                await pool.acquire("alpha")

    runs(test)


def test_what_a_killed_daemon_kept_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    (tmp_path / str(killed.pid)).mkdir()
    lives = str(os.getppid())
    (tmp_path / lives).mkdir()
    Kept(str(tmp_path))
    assert os.listdir(tmp_path) == [lives]


def test_a_wait_that_is_cancelled_while_it_is_granted_holds_nothing(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"])) as pool:
            first = await pool.acquire("alpha")
            waits = [asyncio.ensure_future(pool.acquire("alpha")) for _ in range(3)]
            await eventually_beside(lambda: len(pool.residency().waiting) == 3, "three waiters")
            waits[0].cancel()  # its future is done, and it is in the queue until it runs
            first.release()
            granted = await waits[1]
            assert (pool.residency().resident[0].busy, len(pool.residency().waiting)) == (1, 1)
            granted.release()
            (await waits[2]).release()
            assert pool.residency().resident[0].busy == 0

    runs(test)


def test_conversations_of_a_model_that_was_replaced_are_not_given_to_the_new_one(
    files: dict[str, str], tmp_path: Path
) -> None:
    async def test() -> None:
        kept = Kept(str(tmp_path / "slots"))
        async with pool_of(servable("alpha", "tiny-chat"), servable("beta", files["beta"]), kept=kept) as pool:
            await ask(pool, "alpha")
            await pool.unload("alpha")
            assert os.listdir(kept.folder)
            pool.serve([servable("alpha", files["alpha"])])
            assert not os.listdir(kept.folder)
            assert await ask(pool, "alpha") == "This is alpha."
            pool.serve([servable("alpha", files["gamma"])])  # while the old one is in memory
            assert await ask(pool, "alpha") == "This is gamma."
            assert not os.listdir(kept.folder)

    runs(test)


def test_an_engine_that_hangs_is_ended_and_who_waits_for_it_is_told(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelpipes.serving.pool.LOOK_INTERVAL_S", 0.05)
    monkeypatch.setattr("modelpipes.serving.pool.Pulse", partial(Pulse, quiet_s=0.05, probe_s=2.0))
    monkeypatch.setattr("modelpipes.engine.pulse.LOOK_LIMIT_S", 1.0)

    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"])) as pool:
            grant = await pool.acquire("alpha")
            os.kill(engine_pid(pool, "alpha"), signal.SIGSTOP)
            await asyncio.wait_for(grant.drain.wait(), LIMIT_S)
            assert grant.is_lost
            grant.release()
            assert await ask(pool, "alpha") == "This is alpha."

    runs(test)


def test_a_pool_that_is_closed_while_it_loads_leaves_no_engine(files: dict[str, str]) -> None:
    async def test() -> None:
        async with pool_of(servable("alpha", files["alpha"])) as pool:
            waits = asyncio.ensure_future(pool.acquire("alpha"))
            await eventually_beside(lambda: states(pool) == {"alpha": "loading"}, "load")
        with pytest.raises(ServingError, match="ending"):
            await waits

    runs(test)
