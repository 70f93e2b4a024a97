"""Conversations kept over a restart, with every engine that this machine has."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from modelpipes.engine import slots
from modelpipes.engine.client import Client
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import PACKAGED_MODELS, EngineChoice, engines, find_engine
from modelpipes.errors import DeadlineError
from modelpipes.values.deadline import Deadline
from tests.models import adapter_model, shuffled_model

TINY_CHAT = PACKAGED_MODELS / "tiny-chat.gguf"
LIMIT_S = 30.0
TALKS = [
    "Once upon a time there was a little boat on the wide blue sea, and it was happy.",
    "Two goats stood on a bridge, and neither of them wanted to go back to where it came from.",
]


def within() -> Deadline:
    return Deadline.after(LIMIT_S)


def go_on(client: Client, prompt: str, slot: int, **more: Any) -> dict[str, Any]:
    asked = {"prompt": prompt, "n_predict": 1, "id_slot": slot, "temperature": 0} | more
    timings = client.post("/completion", asked, LIMIT_S)["timings"]
    assert isinstance(timings, dict)
    return timings


def test_conversations_go_on_after_a_restart_where_they_were(kind: EngineChoice, tmp_path: Path) -> None:
    folder = str(tmp_path / "slots")
    with Engine("tiny-chat", engine=kind, ctx_size=512, parallel=2, slot_folder=folder, with_key=True) as engine:
        assert engine.keeps_slots()
        engine.be_ready(within())
        assert os.stat(folder).st_mode & 0o777 == 0o700
        assert slots.works(engine.client(), folder, within())
        for number, talk in enumerate(TALKS):
            go_on(engine.client(), talk, number)
        saved = slots.save(engine.client(), folder, within())
        assert [slot.slot for slot in saved] == [0, 1]
        assert all(slot.size_bytes == os.path.getsize(os.path.join(folder, slot.file)) for slot in saved)

        engine.restart(within())
        client = engine.client()
        assert slots.restore(client, folder, saved, within()) == saved
        reused = slots.reused_tokens(client, within())
        for number, talk in enumerate(TALKS):
            timings = go_on(client, talk + " And then", number)
            assert timings["cache_n"] >= saved[number].tokens - 2
            assert timings["prompt_n"] < 10
        after = slots.reused_tokens(client, within())
        assert reused is not None and after is not None
        assert after - reused >= sum(slot.tokens for slot in saved) - 4
        slots.discard(folder, saved)
        assert os.listdir(folder) == []


def test_a_model_that_reuses_nothing_is_found_out(kind: EngineChoice, tmp_path: Path) -> None:
    with Engine("tiny-chat", engine=kind, slot_folder=str(tmp_path)) as engine:
        engine.be_ready(within())
        client = NoReuse(engine.base_url)
        assert not slots.works(client, str(tmp_path), within())
        assert os.listdir(tmp_path) == []


class NoReuse(Client):
    """Asks as a model answers that goes on from no saved slot."""

    def post(self, path: str, body: Any, limit_s: float) -> Any:
        return super().post(path, body | {"cache_prompt": False} if "prompt" in body else body, limit_s)


def test_a_server_that_was_told_no_folder_is_found_out(
    kind: EngineChoice, hello_engine: Engine, tmp_path: Path
) -> None:
    assert not hello_engine.keeps_slots()
    assert not slots.works(hello_engine.client(), str(tmp_path), within())
    assert slots.save(hello_engine.client(), str(tmp_path), within()) == []


def test_files_that_are_gone_damaged_or_of_another_model_are_not_taken(
    kind: EngineChoice, hello: str, tmp_path: Path
) -> None:
    folder = str(tmp_path)
    with Engine("tiny-chat", engine=kind, ctx_size=512, slot_folder=folder) as engine:
        engine.be_ready(within())
        go_on(engine.client(), TALKS[0], 0)
        (saved,) = slots.save(engine.client(), folder, within())
        slots.discard(folder, [saved])
        assert slots.restore(engine.client(), folder, [saved], within()) == []
        (again,) = slots.save(engine.client(), folder, within())
        path = tmp_path / again.file
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])  # llama-server would die of it
        assert slots.restore(engine.client(), folder, [again], within()) == []
        path.write_bytes(whole)
        assert slots.restore(engine.client(), folder, [again], within()) == [again]
    with Engine(hello, engine=kind, ctx_size=512, slot_folder=folder) as other:
        other.be_ready(within())
        assert slots.restore(other.client(), folder, [again], within()) == []
        assert other.health(within())


def test_a_conversation_in_a_slot_that_is_no_more_stays_in_its_file(kind: EngineChoice, tmp_path: Path) -> None:
    # llama-server takes slot 1 of one slot for slot 0.
    folder = str(tmp_path)
    with Engine("tiny-chat", engine=kind, ctx_size=512, parallel=2, slot_folder=folder) as engine:
        engine.be_ready(within())
        go_on(engine.client(), TALKS[1], 1)
        saved = [slot for slot in slots.save(engine.client(), folder, within()) if slot.slot == 1]
    with Engine("tiny-chat", engine=kind, ctx_size=512, slot_folder=folder) as engine:
        engine.be_ready(within())
        assert slots.restore(engine.client(), folder, saved, within()) == []
        assert os.path.exists(os.path.join(folder, saved[0].file))


def test_a_slot_that_a_server_refuses_to_restore_is_empty_and_not_counted(kind: EngineChoice, tmp_path: Path) -> None:
    # A slot file is bound to the number of slots, and llama-server empties a slot before it reads its file.
    folder = str(tmp_path)
    with Engine("tiny-chat", engine=kind, ctx_size=256, parallel=2, slot_folder=folder) as engine:
        engine.be_ready(within())
        go_on(engine.client(), TALKS[0], 0)
        saved = slots.save(engine.client(), folder, within())
    with Engine("tiny-chat", engine=kind, ctx_size=512, slot_folder=folder) as engine:
        engine.be_ready(within())
        client = engine.client()
        assert go_on(client, TALKS[1], 0)["prompt_n"] > 10
        assert slots.restore(client, folder, saved, within()) == []
        assert slots.save(client, folder, within()) == []


def test_weights_of_another_file_are_not_noticed_by_the_server(kind: EngineChoice, tmp_path: Path) -> None:
    # Why conversations are kept under a key (see cachekey): this must be asked before, here it is too late.
    folder = str(tmp_path)
    with Engine("tiny-chat", engine=kind, ctx_size=512, slot_folder=folder) as engine:
        engine.be_ready(within())
        go_on(engine.client(), TALKS[0], 0)
        saved = slots.save(engine.client(), folder, within())
    other = shuffled_model(tmp_path / "other.gguf", TINY_CHAT, 1)
    with Engine(str(other), engine=kind, ctx_size=512, slot_folder=folder) as engine:
        engine.be_ready(within())
        assert slots.restore(engine.client(), folder, saved, within()) == saved


def test_a_conversation_of_other_scales_of_an_adapter_is_not_restored(kind: EngineChoice, tmp_path: Path) -> None:
    if "--lora" not in find_engine(kind).flags:
        pytest.skip("this engine takes no adapters")
    folder, adapter = str(tmp_path), adapter_model(tmp_path / "adapter.gguf")
    with Engine(
        "tiny-chat", engine=kind, ctx_size=256, parallel=2, slot_folder=folder, engine_args=["--lora", str(adapter)]
    ) as engine:
        engine.be_ready(within())
        go_on(engine.client(), TALKS[0], 0)
        go_on(engine.client(), TALKS[1], 1, lora=[{"id": 0, "scale": 0.5}])
        saved = slots.save(engine.client(), folder, within(), has_adapters=True)
        assert [slot.scales for slot in saved] == [(1.0,), (0.5,)]
        engine.restart(within())
        assert slots.restore(engine.client(), folder, saved, within(), has_adapters=True) == saved[:1]


def test_a_server_that_hangs_leaves_no_file_behind(kind: EngineChoice, tmp_path: Path) -> None:
    with Engine("tiny-chat", engine=kind, slot_folder=str(tmp_path)) as engine:
        engine.be_ready(within())
        os.kill(engine.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, engine.pid, os.WSTOPPED | os.WNOWAIT)  # some threads run on for a moment
        with pytest.raises(DeadlineError):
            slots.save(engine.client(), str(tmp_path), Deadline.after(0.1))
        assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.slot", "trial.slot", "notes.txt"):
        (tmp_path / name).write_text("x")
    slots.sweep(str(tmp_path))
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_real_llama_server_is_among_the_engines() -> None:
    if not any(engines("llama-server")):
        pytest.skip("no llama-server on this machine: the tests above ran with the embedded engine alone")
    assert any(engines("llama-server"))
