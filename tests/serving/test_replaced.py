"""A model's file is replaced: before it is loaded, while it loads, while it is in memory; nothing old is taken for new.

Long: python -m tests.drill.replaced
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelpipes.engine.client import Client
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import PACKAGED_MODELS, EngineKind
from modelpipes.errors import FileError, ServingError
from modelpipes.events import EngineFailed, Event, FileReplaced
from modelpipes.gguf.identity import stamp_of
from modelpipes.serving import failures
from modelpipes.serving.bytes import Bytes
from modelpipes.serving.grant import Grant
from modelpipes.serving.kept import Kept
from modelpipes.serving.pool import Pool
from modelpipes.serving.servable import Servable
from modelpipes.values.deadline import Deadline
from tests.drill.replaced import WAYS, kinds, put_in_its_place, replace_often
from tests.models import scripted_model, shuffled_model
from tests.peers import eventually_beside
from tests.serving.daemons import Refusal, Served
from tests.serving.test_pool import LIMIT_S, ask, engine_pid, loads, pool_of, runs, servable, states

TINY_CHAT = PACKAGED_MODELS / "tiny-chat.gguf"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return scripted_model(tmp_path / "alpha.gguf", "This is old.")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return scripted_model(tmp_path / "other", "This is new.")


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelpipes.serving.pool.LOOK_INTERVAL_S", 0.02)


def alpha(file: Path, **more: object) -> Servable:
    return servable("alpha", str(file), stamp=stamp_of(str(file)), **more)


def is_replaced(pool: Pool) -> bool:
    return any(one.replaced for one in pool.residency().resident)


@pytest.mark.parametrize("kind", kinds())
def test_the_answer_of_a_replaced_model_is_that_of_a_fresh_start(kind: EngineKind) -> None:
    found = replace_often(kind, len(WAYS))
    assert found.holds, found.lines()


@pytest.mark.drill
@pytest.mark.parametrize("kind", kinds())
def test_twenty_answers_of_replaced_models_are_those_of_fresh_starts(kind: EngineKind) -> None:
    found = replace_often(kind, 20)
    assert found.holds, found.lines()


def test_a_model_replaced_before_its_load_is_looked_at_anew_once(file: Path, other: Path) -> None:
    def renew() -> Servable:
        looked.append(stamp_of(str(file)))
        return replace(alpha(file, renew=renew), needs=Bytes.of(30))

    looked: list[object] = []

    async def test() -> None:
        # Of what lies there first, two fit; of the other, none: as it was, it would be loaded.
        async with pool_of(alpha(file, renew=renew), budget=20) as pool:
            assert await ask(pool, "alpha") == "This is old."
            await pool.unload("alpha")
            put_in_its_place(file, other)
            asked = await asyncio.gather(*(ask(pool, "alpha") for _ in range(5)), return_exceptions=True)
            assert [str(one) for one in asked] == ["alpha: 30 B needed, the budget is 20 B"] * 5
            assert len(looked) == 1

    runs(test)


def test_a_model_that_could_never_fit_fits_once_a_smaller_file_is_there(file: Path, other: Path) -> None:
    def renew() -> Servable:
        return alpha(file)

    async def test() -> None:
        large = replace(alpha(file, renew=renew), needs=Bytes.of(30))
        async with pool_of(large, budget=20) as pool:
            with pytest.raises(ServingError, match="30 B needed"):
                await ask(pool, "alpha")
            put_in_its_place(file, other)
            assert await ask(pool, "alpha") == "This is new."

    runs(test)


def test_a_file_that_is_no_model_any_more_is_refused_until_it_is_one(file: Path, other: Path) -> None:
    def renew() -> Servable:
        if file.stat().st_size < other_bytes:
            raise FileError("incomplete download")
        return alpha(file, renew=renew)

    other_bytes = other.stat().st_size

    async def test() -> None:
        async with pool_of(alpha(file, renew=renew)) as pool:
            assert await ask(pool, "alpha") == "This is old."
            await pool.unload("alpha")
            before = loads(pool)
            file.write_bytes(other.read_bytes()[:1000])
            for _ in range(2):
                with pytest.raises(ServingError, match="could not be loaded: incomplete download; tried again when"):
                    await ask(pool, "alpha")
            assert loads(pool) == before
            shutil.copy(other, file)
            assert await ask(pool, "alpha") == "This is new."

    runs(test)


class Late(Engine):
    """An engine before whose start something happens that its owner does not see."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def be_ready(self, deadline: Deadline) -> None:
        type(self).happens()
        super().be_ready(deadline)


def test_a_file_replaced_while_its_engine_starts_gets_no_conversation_and_nothing_is_learnt(
    file: Path, tmp_path: Path, quick_looks: None
) -> None:
    shuffled_model(file, TINY_CHAT, 1)
    question = {"messages": [{"role": "user", "content": "boats and trains " * 20}], "max_tokens": 1}

    def cached(grant: Grant) -> int:
        client = Client(f"http://{grant.address.host}:{grant.address.port}", api_key=grant.address.key)
        found: int = client.post("/v1/chat/completions", question, LIMIT_S)["timings"]["cache_n"]
        return found

    async def talk(pool: Pool) -> int:
        grant = await pool.acquire("alpha")
        try:
            return await asyncio.to_thread(cached, grant)
        finally:
            grant.release()

    def start(slot_folder: str | None) -> Engine:
        return Late(str(file), ctx_size=512, engine="embedded", with_key=True, slot_folder=slot_folder)

    def happens() -> None:
        Late.happens = staticmethod(lambda: None)
        put_in_its_place(file, shuffled_model(tmp_path / "b.gguf", TINY_CHAT, 2))

    async def test() -> None:
        kept = Kept(str(tmp_path / "slots"))
        slow = replace(alpha(file), start=start, measure=lambda pid: Bytes.of(7))
        async with pool_of(slow, kept=kept) as pool:
            assert await talk(pool) < 5
            await pool.unload("alpha")
            assert await talk(pool) > 50  # with the same file it goes on
            await pool.unload("alpha")
            assert os.listdir(kept.folder)
            Late.happens = staticmethod(happens)
            grant = await pool.acquire("alpha")
            assert await asyncio.to_thread(cached, grant) < 5
            learnt = pool._learnt.of("alpha", stamp_of(str(file)))
            assert learnt is None
            # What it has loaded belongs to neither file: it goes, and nothing of it is kept.
            await eventually_beside(lambda: is_replaced(pool), "notice")
            grant.release()
            await eventually_beside(lambda: states(pool) == {}, "end of the engine")
            assert not os.listdir(kept.folder)
            assert await talk(pool) < 5

    runs(test)


def test_a_model_replaced_in_memory_is_told_and_goes_when_it_is_idle(
    file: Path, other: Path, quick_looks: None
) -> None:
    async def test() -> None:
        told: list[Event] = []
        async with pool_of(alpha(file), sink=told.append) as pool:
            grant = await pool.acquire("alpha")
            assert not is_replaced(pool)
            put_in_its_place(file, other)
            await eventually_beside(lambda: FileReplaced("alpha") in told, "word of it")
            assert is_replaced(pool) and states(pool) == {"alpha": "ready"}
            waiting = asyncio.ensure_future(ask(pool, "alpha"))
            await eventually_beside(lambda: len(pool.residency().waiting) == 1, "waiter")
            grant.release()
            assert await waiting == "This is new."
            assert not is_replaced(pool)
            assert told.count(FileReplaced("alpha")) == 1

    runs(test)


def test_a_pinned_model_replaced_in_memory_is_loaded_anew(file: Path, other: Path, quick_looks: None) -> None:
    async def test() -> None:
        async with pool_of(alpha(file, is_pinned=True)) as pool:
            await ask(pool, "alpha")
            before = engine_pid(pool, "alpha")
            put_in_its_place(file, other)
            await eventually_beside(
                lambda: states(pool) == {"alpha": "ready"} and engine_pid(pool, "alpha") != before, "new engine"
            )
            assert await ask(pool, "alpha") == "This is new."

    runs(test)


def test_a_pinned_model_whose_file_was_away_comes_back_with_it(
    file: Path, quick_looks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "BACKOFF_S", 0.05)

    def renew() -> Servable:
        if not file.exists():
            raise FileError("no model file")
        return alpha(file, renew=renew, is_pinned=True)

    async def test() -> None:
        told: list[Event] = []
        async with pool_of(alpha(file, renew=renew, is_pinned=True), sink=told.append) as pool:
            await ask(pool, "alpha")
            away = file.rename(file.with_suffix(".away"))
            await eventually_beside(lambda: FileReplaced("alpha", "no model file") in told, "word of it")
            assert await ask(pool, "alpha") == "This is old."  # it has its file open
            os.kill(engine_pid(pool, "alpha"), signal.SIGKILL)
            await eventually_beside(
                lambda: any(isinstance(event, EngineFailed) and event.in_a_row > 2 for event in told), "failures"
            )
            away.rename(file)
            await eventually_beside(lambda: states(pool) == {"alpha": "ready"}, "new engine")

    runs(test)


def test_a_pinned_model_that_dies_after_its_file_was_replaced_comes_back_as_the_new_one(
    file: Path, other: Path, quick_looks: None
) -> None:
    async def test() -> None:
        told: list[Event] = []
        async with pool_of(alpha(file, is_pinned=True), sink=told.append) as pool:
            grant = await pool.acquire("alpha")
            before = engine_pid(pool, "alpha")
            put_in_its_place(file, other)
            await eventually_beside(lambda: FileReplaced("alpha") in told, "word of it")
            os.kill(before, signal.SIGKILL)
            await eventually_beside(lambda: grant.is_lost, "loss")
            grant.release()
            await eventually_beside(
                lambda: states(pool) == {"alpha": "ready"} and engine_pid(pool, "alpha") != before, "new engine"
            )
            assert await ask(pool, "alpha") == "This is new."

    runs(test)


def test_a_file_that_was_only_touched_or_linked_keeps_its_engine(file: Path, quick_looks: None) -> None:
    async def test() -> None:
        async with pool_of(alpha(file)) as pool:
            await ask(pool, "alpha")
            held = pool._held["alpha"]
            assert held.key is not None and held.watched is not None
            file.chmod(0o400)
            os.link(file, file.with_suffix(".link"))
            touched = held.key.stamp_now()
            await eventually_beside(lambda: held.watched is not None and held.watched._last == touched, "look")
            assert not is_replaced(pool)
            assert states(pool) == {"alpha": "ready"}

    runs(test)


def test_a_model_in_memory_is_served_on_while_what_lies_there_is_no_model(
    file: Path, other: Path, quick_looks: None
) -> None:
    def renew() -> Servable:
        if file.stat().st_size < 100:
            raise FileError("incomplete download")
        return alpha(file, renew=renew)

    async def test() -> None:
        told: list[Event] = []
        async with pool_of(alpha(file, renew=renew), sink=told.append) as pool:
            await ask(pool, "alpha")
            half = file.with_suffix(".half")
            half.write_bytes(b"GGUF")
            half.rename(file)
            await eventually_beside(lambda: FileReplaced("alpha", "incomplete download") in told, "word of it")
            assert await ask(pool, "alpha") == "This is old."
            with pytest.raises(ServingError, match="what it was loaded from: its file was replaced, and incomplete"):
                await pool.load("alpha")
            assert is_replaced(pool) and await ask(pool, "alpha") == "This is old."
            other.rename(file)
            await eventually_beside(lambda: states(pool) == {}, "end of the engine")
            assert await ask(pool, "alpha") == "This is new."

    runs(test)


def test_a_load_that_is_asked_for_takes_the_new_file_at_once(file: Path, other: Path) -> None:
    async def test() -> None:
        async with pool_of(alpha(file)) as pool:
            await ask(pool, "alpha")
            before = engine_pid(pool, "alpha")
            await pool.load("alpha")  # nothing has changed
            assert engine_pid(pool, "alpha") == before
            grant = await pool.acquire("alpha")
            put_in_its_place(file, other)
            load = asyncio.ensure_future(pool.load("alpha"))
            await asyncio.wait_for(grant.drain.wait(), LIMIT_S)
            grant.release()
            await load
            assert await ask(pool, "alpha") == "This is new."

    runs(test)


def test_failures_of_a_file_do_not_hold_back_the_one_that_replaced_it(file: Path, other: Path) -> None:
    shutil.copy(file, kept := file.with_suffix(".kept"))
    kept_bytes = kept.read_bytes()

    async def test() -> None:
        async with pool_of(alpha(file)) as pool:
            file.write_bytes(b"GGUF" + b"\0" * 100)
            for _ in range(2):
                with pytest.raises(ServingError):  # the engine may not come to say why
                    await ask(pool, "alpha")
            file.write_bytes(kept_bytes)
            assert await ask(pool, "alpha") == "This is old."

    runs(test)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "place") as served:
        yield served


def test_a_daemon_predicts_and_loads_the_file_that_lies_there_now(served: Served, tmp_path: Path) -> None:
    large = scripted_model(tmp_path / "alpha.gguf", "This is large.", pad_mib=64)
    served.write({"alpha": large})
    served.start("--vram", "32MB")
    with pytest.raises(Refusal, match="would fit") as refused:
        served.ask("alpha")
    assert refused.value.code == "model_does_not_fit"
    scripted_model(tmp_path / "small", "This is small.").rename(large)
    assert served.ask("alpha") == "This is small."
    resident = served.residency()["resident"][0]
    assert resident["bytes"] < 32e6 and not resident["replaced"]
    scripted_model(tmp_path / "third", "This is the third.").rename(large)
    served.said.wait_for("alpha: its file was replaced; the new one is loaded next, once")
    served.said.wait_for("stop alpha: alpha: its file was replaced since it was loaded")
    assert served.ask("alpha") == "This is the third."
