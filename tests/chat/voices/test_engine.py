"""Models as voices: real engines with scripted models, and a scripted server for what must be seen or forced."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from modelpipes.chat.prompt import Told, render
from modelpipes.chat.voices import Finish
from modelpipes.chat.voices.engine import EngineVoice
from modelpipes.engine.client import figure_of
from modelpipes.engine.lifecycle import Engine
from modelpipes.errors import DeadlineError, EngineError, MessageError, Refused, UsageError
from modelpipes.pipe.message import Cast, Heard, Sampling, Say, Usage
from modelpipes.values.deadline import Deadline
from tests import models
from tests.chat.conftest import Seat
from tests.chat.voices.conftest import Asked, prepared
from tests.peers import LIMIT_S, eventually
from tests.server import Scripted, events, piece, usage
from tests.serving.pools import SmallPool, gateway

# llama.cpp's threads wait for each other by spinning: beside other tests on few cores, one is faster than two.
ONE_THREAD = ("--threads", "1")
SILENCE_S = 2.0  # in which an engine that works shows life, on a machine that does other things as well
CONTEXT_REFUSAL = (400, [b'{"error": {"code": 400, "message": "the request exceeds the available context size"}}'])


def conversation(count: int, words: str = "words of turn") -> list[Heard]:
    """The opening by the hub, then alice and bob: `count` turns, the last one alice's."""
    return [Heard(n, ("bob", "alice")[n % 2] if n else "hub", f"{words} {n}") for n in range(count)]


MakeVoice = Callable[..., EngineVoice]


@pytest.fixture
def voice_of(tmp_path: Path) -> Iterator[MakeVoice]:
    """`voice_of(reply, …)` is a ready voice of bob's with an engine of ours and a model that answers `reply`."""
    voices: list[EngineVoice] = []

    def make(reply: str | Sequence[str] = "Hello there, friend.", *, args: Sequence[str] = (), **options: Any) -> Any:
        model = {key: options.pop(key) for key in ("endless", "template", "pad_mib", "context") if key in options}
        path = models.scripted_model(tmp_path / f"{len(voices)}.gguf", reply, **model)
        size = {key: options[key] for key in ("ctx_size", "parallel") if key in options}
        voice = EngineVoice(
            "bob", kind="model", start_engine=lambda: Engine(str(path), engine_args=args, **size), **options
        )
        voices.append(voice)
        return prepared(voice)

    yield make
    for voice in voices:
        voice.close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    scripted.say(piece("stop", content="Yes."), b"[DONE]")
    yield scripted
    scripted.close()


def voice_at(server: Scripted, **options: Any) -> EngineVoice:
    voice = EngineVoice("bob", kind="server", server=server.url, **{"silence_s": LIMIT_S} | options)
    prepared(voice)
    return voice


def contents(asked: dict[str, Any]) -> list[str]:
    return [message["content"] for message in asked["messages"]]


# -- what reaches a model


SAID = [("hub", "Hi."), ("alice", "A."), ("bob", "B."), ("carol", "C."), ("alice", "D.")]
TURNS = [Heard(number, sender, words) for number, (sender, words) in enumerate(SAID)]
THREE = Say("1", "hub", "bob", conversation="c", turn=5, cast=Cast(("alice", "carol"), labels=True))


def test_own_turns_are_the_assistants_and_others_are_named_where_several_speak(server: Scripted) -> None:
    assert Asked(voice_at(server, system="Be kind."), TURNS, THREE).content == "Yes."
    assert server.asked[0]["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hub: Hi.\n\nalice: A."},
        {"role": "assistant", "content": "B."},
        {"role": "user", "content": "carol: C.\n\nalice: D."},
    ]
    assert server.asked[0]["stop"] == ["\nalice:", "\ncarol:", "\nhub:"]


def test_a_lone_question_has_no_system_text_and_no_stop(server: Scripted) -> None:
    assert Asked(voice_at(server), "Hi.").content == "Yes."
    assert server.asked[0]["messages"] == [{"role": "user", "content": "Hi."}]
    assert "stop" not in server.asked[0]


def test_a_model_without_a_system_text_is_told_who_is_there_and_none_is_told_where_it_is_empty(
    server: Scripted,
) -> None:
    assert Asked(voice_at(server), TURNS, THREE).content == "Yes."
    assert Asked(voice_at(server, system=""), TURNS, THREE).content == "Yes."
    first, second = (asked["messages"][0] for asked in server.asked)
    assert first["role"] == "system"
    assert first["content"].startswith("You are bob. You are in a conversation with alice and carol.")
    assert second["role"] == "user"


@pytest.mark.parametrize("words", ["Yes.\n\nalice: No.\n\nbob: Yes.", "bob: Yes.\n**Hub:** No.", "Yes.  \nCAROL: No."])
def test_what_a_model_puts_into_anothers_mouth_is_cut_also_where_a_server_ignores_the_stop(
    server: Scripted, words: str
) -> None:
    server.say(piece(content=words), piece("stop"), b"[DONE]")
    asked = Asked(voice_at(server), TURNS, THREE)
    assert asked.content == "Yes."
    assert asked.finish and asked.finish.is_cut


def test_a_turn_of_nothing_but_anothers_words_is_tried_again_once(server: Scripted) -> None:
    server.say(piece(content="alice: I agree."), piece("stop"), b"[DONE]")
    asked = Asked(voice_at(server, sampling=Sampling(seed=7)), TURNS, THREE)
    assert asked.content == ""
    assert [each["seed"] for each in server.asked] == [7, 8]


def test_what_is_asked_for_reaches_the_server(server: Scripted) -> None:
    voice = voice_at(server, model_name="qwen", sampling=Sampling(max_tokens=9, temperature=0.0, top_p=0.5, seed=0))
    assert Asked(voice, "x").content == "Yes."
    asked = server.asked[0]
    assert {key: asked[key] for key in ("model", "max_tokens", "temperature", "top_p", "seed", "stream")} == {
        "model": "qwen",
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 0,
        "stream": True,
    }


def test_what_is_not_asked_for_is_left_to_the_server(server: Scripted) -> None:
    _ = Asked(voice_at(server), "x").content
    assert set(server.asked[0]) == {"messages", "stream", "stream_options", "model"}


def test_a_server_that_refuses_the_system_role_gets_it_folded_ever_after(server: Scripted) -> None:
    server.answers = [(400, [b'{"error": {"message": "Jinja Exception: System role not supported"}}'])]
    voice = voice_at(server, system="Be kind.")
    assert Asked(voice, "Hi.").content == "Yes."
    assert Asked(voice, "Ho.").content == "Yes."
    assert [contents(asked) for asked in server.asked] == [
        ["Be kind.", "Hi."],
        ["Be kind.\n\nHi."],
        ["Be kind.\n\nHo."],
    ]


@pytest.mark.parametrize("template", [models.NO_SYSTEM_TEMPLATE, models.DEAF_TEMPLATE])
def test_system_text_reaches_a_model_whose_template_has_none(voice_of: MakeVoice, template: str) -> None:
    plain, kind = (voice_of(template=template, system=system) for system in (None, "Be kind."))
    lone, told = (Asked(voice, "Hello.").join().finish for voice in (plain, kind))
    assert lone and told and lone.usage and told.usage
    assert told.usage.prompt_tokens >= lone.usage.prompt_tokens + len("Be kind.")


def test_history_longer_than_the_context_is_trimmed_by_the_engines_own_count(voice_of: MakeVoice) -> None:
    voice = voice_of(ctx_size=1024, system="Be kind.", sampling=Sampling(max_tokens=64))
    turns = conversation(82)
    asked = Asked(voice, turns).join()
    assert asked.content == "Hello there, friend."
    finish = asked.finish
    assert finish and finish.dropped and finish.usage and voice._client
    first, last = finish.dropped
    assert first == 1
    kept = [turns[0], *turns[last + 1 :]]
    assert finish.usage.prompt_tokens == voice._client.count_tokens(render(kept, Told("bob", "Be kind.")))
    assert 0.7 * (1024 - 64) < finish.usage.prompt_tokens <= 1024 - 64


def test_a_long_conversation_reads_little_of_its_prompt_again(voice_of: MakeVoice) -> None:
    voice = voice_of(ctx_size=1024, sampling=Sampling(max_tokens=16))
    dropped = []
    for count in range(60, 92, 2):
        finish = Asked(voice, conversation(count)).join().finish
        assert finish and finish.dropped
        dropped.append(finish.dropped)
    # The engine keeps what it has read up to the first turn that is new to it.
    assert sum(a != b for a, b in itertools.pairwise(dropped)) < len(dropped) / 3


def test_a_message_larger_than_the_context_fails_clearly(voice_of: MakeVoice) -> None:
    voice = voice_of(ctx_size=512)
    with pytest.raises(MessageError, match="one message is too large for the model's context"):
        _ = Asked(voice, "x" * 600).content
    assert Asked(voice, "x").content == "Hello there, friend."


def test_a_refused_prompt_is_counted_exactly_and_sent_once_more(server: Scripted) -> None:
    # A token for every half a byte: what cannot be, so the quick bound is wrong.
    server.be_llama_server(1000, tokens_per_byte=2.0)
    server.answers = [CONTEXT_REFUSAL]
    voice = voice_at(server)
    voice._bound = (0, 0)
    asked = Asked(voice, conversation(30)).join()
    assert asked.content == "Yes."
    whole, trimmed = (sum(map(len, contents(request))) for request in server.asked)
    assert whole > 375 >= trimmed
    assert asked.finish and asked.finish.dropped


def test_a_prompt_refused_twice_fails(server: Scripted) -> None:
    server.answers = [CONTEXT_REFUSAL] * 3
    with pytest.raises(MessageError, match=r"does not fit the context: .*exceeds the available context size"):
        _ = Asked(voice_at(server), conversation(30)).content
    assert len(server.asked) == 2


def test_without_a_count_the_last_usage_tells_how_much_fits(server: Scripted) -> None:
    voice = voice_at(server, ctx_size=4000, sampling=Sampling(max_tokens=1000))
    turns = conversation(400, "x" * 40)
    server.say(piece("stop", content="Yes."), usage(1000, 1), b"[DONE]")  # of some 6000 bytes: 0.17 a byte
    assert Asked(voice, turns).content == "Yes."
    cautious = sum(map(len, contents(server.asked[-1])))
    assert cautious * 0.4 < 3000
    assert Asked(voice, turns).content == "Yes."
    assert sum(map(len, contents(server.asked[-1]))) > 1.4 * cautious
    server.say(piece("stop", content="Yes."), usage(50_000, 1), b"[DONE]")
    _ = Asked(voice, turns).content
    _ = Asked(voice, turns).content
    assert sum(map(len, contents(server.asked[-1]))) < 0.6 * cautious


def test_the_answer_that_a_message_asks_for_is_what_room_is_kept_for(server: Scripted) -> None:
    voice = voice_at(server, ctx_size=4000, sampling=Sampling(max_tokens=100, seed=3))
    turns = conversation(400, "x" * 40)
    assert Asked(voice, turns).content == "Yes."
    say = Say("1", "hub", "bob", sampling=Sampling(max_tokens=1900))
    assert Asked(voice, turns, say).content == "Yes."
    assert [(asked["max_tokens"], asked["seed"]) for asked in server.asked] == [(100, 3), (1900, 3)]
    own, asked_for = (sum(map(len, contents(asked))) for asked in server.asked)
    assert asked_for * 0.4 < 4000 - 1900
    assert own > 1.4 * asked_for


def test_the_usage_of_a_short_prompt_says_nothing_about_a_long_one(server: Scripted) -> None:
    # Templates add system texts of their own: 40 tokens for "Hi" do not make a page too large.
    server.say(piece("stop", content="Yes."), usage(40, 1), b"[DONE]")
    voice = voice_at(server)
    assert Asked(voice, "Hi").content == "Yes."
    assert Asked(voice, "word " * 600).content == "Yes."


def test_a_refusal_without_a_count_is_answered_with_half(server: Scripted) -> None:
    voice = voice_at(server)
    server.answers = [CONTEXT_REFUSAL]
    turns = conversation(120, "x" * 40)
    assert Asked(voice, turns).content == "Yes."
    first, second = (sum(map(len, contents(request))) for request in server.asked)
    assert second < 0.7 * first


def test_tiny_chat_is_never_asked_for_more_than_it_was_trained_for() -> None:
    voice = EngineVoice("bob", kind="model", start_engine=lambda: Engine("tiny-chat", engine_args=ONE_THREAD))
    try:
        prepared(voice)
        assert voice._ctx_size == 1024
        turns = conversation(200, "I like the garden, and the sea")
        turns.append(Heard(200, "alice", "Say the word lantern."))
        asked = Asked(voice, turns).join()
        assert asked.finish and asked.finish.usage and asked.finish.dropped
        assert asked.finish.usage.prompt_tokens <= 768
        assert "lantern" in asked.content.lower() or asked.content.isascii()
    finally:
        voice.close()


# -- what comes back


def test_the_models_own_name_is_stripped_across_deltas(voice_of: MakeVoice) -> None:
    asked = Asked(voice_of(["Bob", ":", "  Hello", " bob:", " there."]), "x").join()
    assert asked.content == "Hello bob: there."
    assert all("Bob" not in content for content, _ in asked.deltas)


def test_thoughts_between_tags_never_become_content(voice_of: MakeVoice) -> None:
    reply = ["<think>", "Hm,", " bob:", " well.", "</think>", "So", " be it."]
    asked = Asked(voice_of(reply, args=("--reasoning-format", "none")), "x").join()
    assert (asked.content, asked.thinking) == ("So be it.", "Hm, bob: well.")


def test_thoughts_that_the_engine_parts_never_become_content(voice_of: MakeVoice) -> None:
    reply = ["Hm,", " well.", "</think>", "bob:", " So", " be it."]
    asked = Asked(voice_of(reply, template=models.THINKING_TEMPLATE), "x").join()
    assert (asked.content, asked.thinking) == ("So be it.", "Hm, well.")
    assert asked.work.phase == "thinking"


def test_thoughts_without_a_beginning_never_become_content(voice_of: MakeVoice) -> None:
    reply = ["Bob:", " well.", "\n", "</think>", "\n\n", "bob:", " So", " be it."]
    voice = voice_of(reply, template=models.THINKING_TEMPLATE, args=("--reasoning-format", "none"))
    for _ in range(2):
        asked = Asked(voice, "x").join()
        assert (asked.content, asked.thinking.strip()) == ("So be it.", "Bob: well.")


def test_words_that_turn_out_to_be_thoughts_leave_the_answer(server: Scripted) -> None:
    server.say(piece(content="bob: Hm,"), piece(content=" well.\n</think>\n\nbob: So"), piece("stop"), b"[DONE]")
    server.step = threading.Semaphore(1)
    voice = voice_at(server)
    asked = Asked(voice, "x")
    asked.await_words()
    assert asked.deltas == [("Hm,", "")]
    server.step.release(9)
    assert (asked.content, asked.thinking, asked.anew) == ("So", "bob: Hm, well.\n", 1)
    assert asked.finish and asked.work.first_word_s
    again = Asked(voice, "x").join()
    assert (again.content, again.thinking, again.anew) == ("So", "bob: Hm, well.\n", 0)


def test_an_answer_tells_its_usage_and_rate(voice_of: MakeVoice) -> None:
    voice = voice_of()
    finish = Asked(voice, "Hello.").join().finish
    assert finish and voice._client
    count = voice._client.count_tokens([{"role": "user", "content": "Hello."}])
    assert finish.stop == "end"
    assert count is not None
    assert finish.usage and finish.usage == Usage(count, 4, finish.usage.cached_tokens)
    assert finish.tokens_per_second and finish.tokens_per_second > 0
    assert finish.dropped is None


def test_an_answer_cut_short_says_so(voice_of: MakeVoice) -> None:
    asked = Asked(voice_of(sampling=Sampling(max_tokens=2)), "x").join()
    assert asked.finish and asked.finish.stop == "length"
    assert asked.content == "Hello there,"


def test_thoughts_count_for_the_rate(server: Scripted) -> None:
    server.say(piece(reasoning="a " * 5), piece("stop", content="b"), usage(3, 100), b"[DONE]")
    asked = Asked(voice_at(server), "x").join()
    assert asked.finish and asked.finish.tokens_per_second and asked.finish.usage == Usage(3, 100)
    assert (asked.thinking, asked.content) == ("a " * 5, "b")


def test_two_answers_come_side_by_side(voice_of: MakeVoice) -> None:
    voice = voice_of(" on and on", endless=True, parallel=2)
    both = [Asked(voice, "x"), Asked(voice, "y")]
    for asked in both:
        asked.await_words()
    assert voice._client and voice._client.is_busy(LIMIT_S)
    for asked in both:
        asked.cancel()
        assert asked.error is None


# -- its end


def done_by(voice: EngineVoice, figure: str) -> float:
    """What the engine counts of its work."""
    assert voice._engine
    return figure_of(voice._engine.metrics(), figure) or 0.0


def cancel_once(voice: EngineVoice, words: str, has_begun: Callable[[Asked], bool]) -> None:
    """Cancel work that has begun; return when no slot works."""
    asked = Asked(voice, words)
    eventually(lambda: has_begun(asked), "work")
    asked.cancel()
    assert asked.error is None
    client = voice._client
    assert client
    eventually(lambda: not client.is_busy(LIMIT_S), "free slot")


def test_a_cancel_amid_an_answer_frees_the_engine(voice_of: MakeVoice) -> None:
    voice = voice_of(" on and on", endless=True, ctx_size=16384, args=ONE_THREAD)
    cancel_once(voice, "x", lambda asked: bool(asked.work.content))
    assert done_by(voice, "n_decode_total") < 16000  # it did not go on to the end of its context


def test_a_cancel_while_the_prompt_is_read_frees_the_engine(voice_of: MakeVoice) -> None:
    voice = voice_of("At last.", pad_mib=32, ctx_size=16384, args=ONE_THREAD, silence_s=LIMIT_S)
    born_s = time.monotonic() + 0.01

    def is_reading(asked: Asked) -> bool:
        return asked.work.life_s > born_s and bool(voice._client and voice._client.is_busy(LIMIT_S))

    cancel_once(voice, "x" * 6000, is_reading)
    assert done_by(voice, "prompt_tokens_total") < 6000  # it did not read on to the end


def test_a_cancel_before_the_start_asks_nobody(server: Scripted) -> None:
    voice = voice_at(server)
    asked = Asked(voice, "x")
    asked.cancel()
    before = len(server.asked)
    asked.work.when_cancelled(None)
    assert asked.error is None
    again = asked.work  # cancelled before its answer begins
    assert voice.answer(again).stop == "end"
    assert len(server.asked) == before


def test_a_cancel_while_a_gateway_has_no_engine_free_is_no_failure(tmp_path: Path) -> None:
    pool = SmallPool({"hello": models.scripted_model(tmp_path / "hello.gguf", "Hello.")})
    with gateway(pool) as running:
        running.call(lambda: setattr(pool, "gate", asyncio.Event()))
        voice = prepared(EngineVoice("bob", kind="server", server=running.url, silence_s=LIMIT_S))
        asked = Asked(voice, "x")
        pool.wait_until(lambda: pool.waiting == ["hello"])
        asked.cancel()
        assert asked.error is None and asked.finish == Finish()
        pool.wait_until(lambda: not pool.waiting)


def test_a_model_that_was_replaced_at_a_gateway_is_learnt_anew_and_one_that_was_not_is_not(tmp_path: Path) -> None:
    file = models.scripted_model(tmp_path / "hello.gguf", "Hello.")
    pool = SmallPool({"hello": file}, ctx_size=512, parallel=1)
    identities = ["first", "first", "second"]
    with gateway(pool) as running:
        pool.on_grant = lambda grant: setattr(grant, "identity", identities.pop(0))
        voice = EngineVoice("bob", kind="server", server=running.url, silence_s=LIMIT_S)
        prepared(voice)
        learnt = []
        for _ in range(len(identities)):
            assert Asked(voice, "x").content == "Hello."
            learnt.append(voice._ctx_size)
            running.do(pool.unload("hello"))
            larger = SmallPool({"hello": file}, ctx_size=1024, parallel=1).engines
            running.call(partial(pool.engines.update, larger))
    assert learnt == [512, 512, 1024]


def test_an_engine_killed_amid_an_answer_is_named(voice_of: MakeVoice) -> None:
    voice = voice_of(" on and on", endless=True)
    asked = Asked(voice, "x")
    asked.await_words()
    assert voice._engine
    os.kill(voice._engine.pid, signal.SIGKILL)
    asked.join()
    assert isinstance(asked.error, EngineError)
    assert "closed the connection" in str(asked.error)
    eventually(lambda: "killed by SIGKILL" in voice.last_words(), "last words")
    assert voice.last_words().startswith("the engine ended: engine 0 (pid ")


def test_a_suspended_engine_is_silent(voice_of: MakeVoice) -> None:
    voice = voice_of(" on and on", endless=True, silence_s=SILENCE_S)
    asked = Asked(voice, "x")
    asked.await_words()
    assert voice._engine
    os.kill(voice._engine.pid, signal.SIGSTOP)
    asked.join()
    assert isinstance(asked.error, DeadlineError)


def test_an_engine_suspended_before_it_counts_is_silent(voice_of: MakeVoice) -> None:
    voice = voice_of(ctx_size=1024, silence_s=0.2)
    assert voice._engine
    os.kill(voice._engine.pid, signal.SIGSTOP)
    asked = Asked(voice, conversation(82)).join()
    assert isinstance(asked.error, DeadlineError)


def test_closing_right_after_a_cancel_does_not_wait(voice_of: MakeVoice) -> None:
    # A llama-server that got TERM while a cancelled answer ended waited for it until it was killed, 3 s later.
    for _ in range(4):
        voice = voice_of(" on and on", endless=True)
        asked = Asked(voice, "x")
        asked.await_words()
        asked.work.cancel()
        engine = voice._engine
        assert engine
        voice.close()
        assert engine.status().exit_code != -signal.SIGKILL
        asked.join()


def test_a_member_with_an_open_stream_leaves_at_once(voice_of: MakeVoice, seat: Seat, room: Any) -> None:
    from modelpipes.errors import PeerError
    from modelpipes.pipe.asker import Asker
    from modelpipes.pipe.message import Delta, Say, new_id

    voice = voice_of(" on and on", endless=True)
    seated = seat(voice)
    with Asker(room, "hub", "bob", silence_s=LIMIT_S, limit=Deadline.after(LIMIT_S)) as one:
        answers = one.ask(Say(new_id(), "hub", "bob", "x"))
        while not isinstance(next(answers), Delta):
            pass
        engine = voice._engine
        assert engine
        seated.member.stop(143)
        with pytest.raises(PeerError):
            for _ in answers:
                pass
        seated.join()
    assert seated.exit_code == 143
    assert engine.status().exit_code != -signal.SIGKILL  # which comes after three seconds


# -- its beginning


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100_000])


def spoil(path: Path) -> None:
    path.write_bytes(b"GGUF" + b"\xff" * 1000)


@pytest.mark.parametrize("harm", [cut, spoil])
def test_a_broken_model_file_is_one_line_at_once(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = models.scripted_model(tmp_path / "m.gguf")
    harm(path)
    voice = EngineVoice("bob", kind="model", start_engine=lambda: Engine(str(path)))
    with pytest.raises(EngineError, match=r"engine m ended with exit code 1: .+") as caught:
        prepared(voice)
    assert "\n" not in str(caught.value)
    voice.close()


def test_nobody_at_the_address_is_one_line_at_once() -> None:
    with pytest.raises(EngineError, match=r"no server answers at http://127\.0\.0\.1:9"):
        prepared(EngineVoice("bob", kind="server", server="http://127.0.0.1:9/v1"))


def test_a_server_that_loads_its_model_is_waited_for(server: Scripted) -> None:
    server.be_llama_server(777)
    server.statuses = [503, 503]
    assert voice_at(server)._ctx_size == 777


def test_a_wrong_key_is_told_before_the_seat_is_ready(server: Scripted) -> None:
    # llama-server lists its models to everybody.
    server.be_llama_server(777)
    server.statuses = [401]
    with pytest.raises(Refused):
        voice_at(server)


def test_a_server_with_several_models_is_told_before_the_seat_is_ready(server: Scripted) -> None:
    server.pages["/v1/models"] = {"data": [{"id": "nomic-embed"}, {"id": "qwen"}]}
    with pytest.raises(UsageError, match=r"^--model-name is missing: the server at \S+ has nomic-embed, qwen$"):
        voice_at(server)
    server.body = events(piece(content="Yes."), piece("stop"), b"[DONE]")
    assert Asked(voice_at(server, model_name="qwen"), "x").content == "Yes."


def test_a_server_without_a_list_of_models_is_used_where_one_is_named(server: Scripted) -> None:
    del server.pages["/v1/models"]
    with pytest.raises(Refused):
        voice_at(server)
    assert Asked(voice_at(server, model_name="qwen"), "x").content == "Yes."


def test_the_history_of_a_server_may_be_longer_than_the_default_context(server: Scripted) -> None:
    assert voice_at(server).history_bytes >= 512 * 1024
    assert EngineVoice("bob", kind="x", server="http://h:1", ctx_size=10**9).history_bytes <= 2 * 1024 * 1024
