"""Speak to a server: real engines, and a scripted one for what they will not do on demand."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelpipes.engine.answers import ChatStream, Piece, Reading, TokenUsage
from modelpipes.engine.client import Client, figure_of
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice
from modelpipes.errors import Cancelled, DeadlineError, EngineError, Refused, UsageError
from modelpipes.values.deadline import Deadline
from tests.peers import eventually
from tests.server import Scripted, events, piece

LIMIT_S = 30.0
SILENCE_S = 2.0  # in which an engine that works shows life, on a machine that does other things as well
# llama.cpp's threads wait for each other by spinning: beside other tests on few cores, one is faster than two.
ONE_THREAD = ("--threads", "1")
HELLO = [{"role": "user", "content": "Hello."}]


def text_of(stream: ChatStream) -> tuple[str, str]:
    content = thinking = ""
    for part in stream:
        if isinstance(part, Piece):
            content += part.content
            thinking += part.thinking
    return content, thinking


@contextmanager
def client_of(folder: Path, name: str, kind: EngineChoice, **options: Any) -> Iterator[tuple[Client, Engine]]:
    with Engine(str(folder / f"{name}.gguf"), engine=kind, **options) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        client = Client(engine.base_url)
        yield client, engine


# -- real engines


def test_an_answer_comes_in_pieces_and_ends_with_its_figures(hello_engine: Engine) -> None:
    client = Client(hello_engine.base_url)
    stream = client.stream(HELLO, silence_s=LIMIT_S)
    pieces = list(stream)
    assert [piece.content for piece in pieces if isinstance(piece, Piece)] == [
        "Hello",
        " there,",
        " my",
        " friend.",
    ]
    reading = [piece for piece in pieces if isinstance(piece, Reading)]
    assert reading[-1].done == reading[-1].total
    assert stream.finish == "stop"
    assert stream.usage
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (client.count_tokens(HELLO), 5)
    assert stream.usage.cached_tokens is not None
    assert stream.tokens_per_second is not None


def test_max_tokens_ends_with_length(hello_engine: Engine) -> None:
    client = Client(hello_engine.base_url + "/v1/")
    stream = client.stream(HELLO, silence_s=LIMIT_S, max_tokens=2, temperature=0, top_p=0.5, seed=1)
    assert text_of(stream) == ("Hello there,", "")
    assert stream.finish == "length"


def test_counts_agree_with_the_engines_own(hello_engine: Engine) -> None:
    messages = [{"role": "system", "content": "Be ü."}, {"role": "user", "content": "a </s> b\n\u2028 c"}]
    client = Client(hello_engine.base_url)
    stream = client.stream(messages, silence_s=LIMIT_S)
    text_of(stream)
    assert stream.usage is not None
    assert stream.usage.prompt_tokens == client.count_tokens(messages)


def test_a_prompt_beyond_the_context_is_told(hello_engine: Engine) -> None:
    client = Client(hello_engine.base_url)
    with pytest.raises(Refused, match="context size") as caught:
        list(client.stream([{"role": "user", "content": "x" * 3000}], silence_s=LIMIT_S))
    assert (caught.value.kind, caught.value.status) == ("context", 400)


def test_thoughts_come_apart_from_content(kind: EngineChoice, folder: Path) -> None:
    with client_of(folder, "thinks", kind) as (client, _):
        assert text_of(client.stream(HELLO, silence_s=LIMIT_S)) == ("So be it.", "Hm, well.")


def test_a_template_that_demands_alternation_is_named(kind: EngineChoice, folder: Path) -> None:
    with client_of(folder, "alternating", kind) as (client, _):
        with pytest.raises(Refused, match=r"refuses: Conversation roles must alternate") as caught:
            list(client.stream(HELLO * 2, silence_s=LIMIT_S))
        assert caught.value.kind == "template"


def test_a_template_with_a_system_role_takes_it(hello_engine: Engine) -> None:
    client = Client(hello_engine.base_url)
    assert client.refuses_system() is False


@pytest.mark.parametrize("name", ["nosystem", "deaf"])
def test_system_text_is_never_lost_unnoticed(kind: EngineChoice, folder: Path, name: str) -> None:
    # llama-server folds it into the user message where the template raises or drops it; else we must know.
    with client_of(folder, name, kind) as (client, _):
        messages = [{"role": "system", "content": "Be brief."}, *HELLO]
        assert client.refuses_system() or (client.count_tokens(messages) or 0) > (client.count_tokens(HELLO) or 0)


def busy_slots(engine: Engine) -> int:
    return sum(slot["is_processing"] for slot in engine.client().get("/slots"))


def cancel_from_another_thread(stream: ChatStream, until: Callable[[Piece | Reading], bool], engine: Engine) -> None:
    """Cancel it once that has come; return when no slot works any more."""
    reached = threading.Event()
    ended: list[BaseException] = []

    def read() -> None:
        try:
            for piece in stream:
                if until(piece):
                    reached.set()
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert reached.wait(LIMIT_S)
    assert busy_slots(engine) == 1
    stream.cancel()
    eventually(lambda: not busy_slots(engine), "free slot")
    thread.join(LIMIT_S)
    assert ended


def test_a_cancel_amid_an_answer_frees_the_slot(kind: EngineChoice, folder: Path) -> None:
    with client_of(folder, "endless", kind, ctx_size=16384, engine_args=ONE_THREAD) as (client, engine):
        stream = client.stream(HELLO, silence_s=LIMIT_S)
        cancel_from_another_thread(stream, lambda piece: isinstance(piece, Piece), engine)
        decoded = figure_of(engine.metrics(), "n_decode_total")
        assert decoded and decoded < 16000  # it did not go on to the end of its context


def test_a_cancel_while_the_prompt_is_read_frees_the_slot(kind: EngineChoice, folder: Path) -> None:
    with client_of(folder, "slow", kind, ctx_size=16384, engine_args=ONE_THREAD) as (client, engine):
        stream = client.stream([{"role": "user", "content": "x" * 6000}], silence_s=LIMIT_S)
        cancel_from_another_thread(stream, lambda piece: isinstance(piece, Reading) and 0 < piece.done < 5000, engine)
        read = figure_of(engine.metrics(), "prompt_tokens_total")
        assert read is not None and read < 6000  # it did not read on to the end


def test_a_cancel_before_the_first_byte_ends_the_wait(kind: EngineChoice, folder: Path) -> None:
    # One slot, in use: the second request gets no headers before it is free.
    with client_of(folder, "endless", kind) as (client, _), client.stream(HELLO, silence_s=LIMIT_S) as first:
        next(first)
        waiting = client.stream(HELLO, silence_s=LIMIT_S)
        timer = threading.Timer(0.05, waiting.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            list(waiting)
        timer.join()


def test_a_cancel_before_anything_is_sent_sends_nothing() -> None:
    client = Client("http://127.0.0.1:9")
    stream = client.stream(HELLO, silence_s=1)
    stream.cancel()
    with pytest.raises(Cancelled):
        list(stream)


def test_a_deadline_that_passes_on_what_was_cancelled_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    # Asked first what kind of server it is, one that was silent ended a cancelled answer with a DeadlineError.
    client = Client("http://127.0.0.1:9")
    stream = client.stream(HELLO, silence_s=1)

    def be_silent(*_: dict[str, Any]) -> dict[str, Any]:
        stream.cancel()
        raise DeadlineError("the server did not answer /props for 30 s")

    monkeypatch.setattr(client, "complete_body", be_silent)
    with pytest.raises(Cancelled):
        next(stream)


def test_leaving_the_with_ends_the_work(kind: EngineChoice, folder: Path) -> None:
    with client_of(folder, "endless", kind) as (client, engine):
        with client.stream(HELLO, silence_s=LIMIT_S) as stream:
            next(stream)
        eventually(lambda: not busy_slots(engine), "free slot")


def test_an_engine_that_dies_amid_its_answer_is_told(kind: EngineChoice, folder: Path) -> None:
    with client_of(folder, "endless", kind) as (client, engine):
        stream = client.stream(HELLO, silence_s=LIMIT_S)
        next(stream)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="closed the connection"):
            list(stream)


def test_a_suspended_engine_ends_in_a_deadline(kind: EngineChoice, folder: Path) -> None:
    with client_of(folder, "endless", kind) as (client, engine):
        stream = client.stream(HELLO, silence_s=SILENCE_S)
        next(stream)
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError, match=f"silent for {SILENCE_S:g} s"):
            list(stream)


def test_a_whole_answer_has_its_figures(hello_engine: Engine) -> None:
    client = Client(hello_engine.base_url)
    answer = client.chat("Hello.", temperature=0)
    assert (answer.text, answer.thinking, answer.finish) == ("Hello there, my friend.", "", "stop")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (client.count_tokens(HELLO), 5)
    assert answer.first_token_ms is not None and 0 < answer.first_token_ms <= answer.latency_ms
    assert client.chat(HELLO, temperature=0).text == answer.text


def test_a_completion_has_no_template_around_its_prompt(hello_engine: Engine) -> None:
    client = Client(hello_engine.base_url)
    answer = client.complete("Hello.", max_tokens=2)
    assert (answer.text, answer.finish) == ("Hello there,", "length")
    assert answer.usage and answer.usage.completion_tokens == 2
    assert answer.usage.prompt_tokens < (client.count_tokens(HELLO) or 0)  # no template is around it


def test_a_stream_that_is_read_in_part_tells_the_rest_as_a_whole(hello_engine: Engine) -> None:
    with Client(hello_engine.base_url).stream("Hello.") as stream:
        while not next(stream).content:
            pass
        assert stream.first_token_ms
        assert stream.whole().text == " there, my friend."


# -- what real engines will not do on demand


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


def test_both_names_of_thoughts_are_known(server: Scripted) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    server.say(piece(reasoning="a"), piece(reasoning_content="b"), piece("stop", content="c"), usage, b"[DONE]")
    client = Client(server.url)
    stream = client.stream(HELLO, silence_s=5)
    assert text_of(stream) == ("c", "ab")
    assert (stream.finish, stream.usage, stream.tokens_per_second) == ("stop", TokenUsage(3, 4), None)


def test_a_strange_server_is_asked_only_for_what_it_knows(server: Scripted) -> None:
    server.say(piece("stop", content="x"), b"[DONE]")
    client = Client(server.url, api_key="secret")
    text_of(client.stream(HELLO, silence_s=5))
    assert "return_progress" not in server.asked[0]
    assert server.asked[0]["model"] == "qwen"  # the only one that it has
    assert server.authorization == ["Bearer secret"]
    assert client.count_tokens(HELLO) is None
    assert client.context_size() is None
    assert client.refuses_system() is False


def test_a_named_model_is_asked_for(server: Scripted) -> None:
    server.say(piece("stop", content="x"), b"[DONE]")
    client = Client(server.url, model_name="mine")
    text_of(client.stream(HELLO, silence_s=5))
    assert server.asked[0]["model"] == "mine"


def test_line_separators_inside_words_survive(server: Scripted) -> None:
    words = "one\u2028two\x0bthree\u0085\x1c"
    chunk = json.dumps(piece("stop", content=words), ensure_ascii=False).encode()
    server.say(chunk, b"[DONE]")
    client = Client(server.url)
    assert text_of(client.stream(HELLO, silence_s=5)) == (words, "")


def test_an_answer_is_read_in_every_framing_that_an_event_stream_may_have(server: Scripted) -> None:
    # A BOM hid the first words, lone CRs the whole answer, and an event in two data lines was no chat chunk.
    first, last = (json.dumps(each).encode() for each in (piece(content="The "), piece("stop", content="sea.")))
    half = first.index(b",") + 1
    framings = [
        b"\xef\xbb\xbfdata: " + first + b"\n\ndata: " + last + b"\n\ndata: [DONE]\n\n",
        b"data: " + first + b"\r\rdata: " + last + b"\r\rdata: [DONE]\r\r",
        b"data: " + first + b"\r\n\r\ndata: " + last + b"\r\n\r\ndata: [DONE]\r\n\r\n",
        b"data: " + first[:half] + b"\ndata: " + first[half:] + b"\n\ndata:" + last + b"\n\ndata:[DONE]\n\n",
        b": hi\nid: 1\nevent: message\nretry: 9\ndata: " + first + b"\n\ndata: " + last + b"\n\ndata: [DONE]\n\n",
    ]
    for framing in framings:
        server.body = [framing]
        assert text_of(Client(server.url).stream(HELLO, silence_s=5)) == ("The sea.", "")
        server.body = [framing[at : at + 1] for at in range(len(framing))]
        assert text_of(Client(server.url).stream(HELLO, silence_s=5)) == ("The sea.", "")


def test_a_last_event_without_its_blank_line_counts(server: Scripted) -> None:
    server.body = [*events(piece(content="a")), b"data: " + json.dumps(piece("stop", content="b")).encode() + b"\n"]
    assert text_of(Client(server.url).stream(HELLO, silence_s=5)) == ("ab", "")


def test_done_is_the_end_though_the_connection_stays_open(server: Scripted) -> None:
    server.body = [*events(piece("stop", content="a")), b"data: [DONE]\n"]
    server.hold = True
    stream = Client(server.url).stream(HELLO, silence_s=None)
    assert text_of(stream) == ("a", "")


def test_an_error_line_of_older_servers_ends_the_answer_with_its_words(server: Scripted) -> None:
    server.body = [*events(piece(content="a")), b'error: {"code": 500, "message": "slot unavailable"}\n\n']
    with pytest.raises(Refused, match="slot unavailable"):
        list(Client(server.url).stream(HELLO, silence_s=5))


def test_pings_alone_are_silence(server: Scripted) -> None:
    server.say(piece(content="x"))
    server.hold = True
    client = Client(server.url)
    with pytest.raises(DeadlineError, match="silent"):
        list(client.stream(HELLO, silence_s=0.2))


def test_an_end_without_an_end_is_a_failure(server: Scripted) -> None:
    server.say(piece(content="x"))
    client = Client(server.url)
    with pytest.raises(EngineError, match="closed the connection"):
        list(client.stream(HELLO, silence_s=5))


def test_rubbish_in_the_stream_is_told(server: Scripted) -> None:
    server.say(b"{not json")
    client = Client(server.url)
    with pytest.raises(EngineError, match="no chat chunk"):
        list(client.stream(HELLO, silence_s=5))


def test_an_error_inside_the_stream_has_its_own_words(server: Scripted) -> None:
    server.say(piece(content="x"), {"error": {"code": 500, "message": "the GPU is gone", "type": "server_error"}})
    client = Client(server.url)
    with pytest.raises(Refused, match="the GPU is gone") as caught:
        list(client.stream(HELLO, silence_s=5))
    assert (caught.value.status, caught.value.kind) == (500, "other")


@pytest.mark.parametrize(
    ("status", "body", "words", "kind"),
    [
        (400, b'{"error": "maximum context length is 9"}', "maximum context length", "context"),
        (401, b'{"error": {"message": "bad key"}}', "bad key", "auth"),
        (404, b'{"detail": "model not found"}', "model not found", "missing"),
        (503, b'{"error": {"message": "Loading model", "code": 503}}', "Loading model", "loading"),
        (500, b"<html>oops", "<html>oops", "other"),
        (502, b"", "HTTP 502", "other"),
    ],
)
def test_a_refusal_carries_the_servers_words(server: Scripted, status: int, body: bytes, words: str, kind: str) -> None:
    server.status, server.body = status, [body]
    client = Client(server.url)
    with pytest.raises(Refused, match=words) as caught:
        list(client.stream(HELLO, silence_s=5))
    assert (caught.value.status, caught.value.kind) == (status, kind)
    assert "\n" not in str(caught.value)


def test_a_page_that_is_no_stream_is_told(server: Scripted) -> None:
    server.status = 203  # success, and not an event stream
    server.body = [b"<html>"]
    client = Client(server.url)
    with pytest.raises(EngineError, match="no chat server"):
        list(client.stream(HELLO, silence_s=5))


def test_nobody_at_the_address_is_told() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(EngineError, match="no server answers at"):
            list(client.stream(HELLO, silence_s=5))
        with pytest.raises(EngineError, match="no server answers at"):
            client.count_tokens(HELLO)


@pytest.mark.parametrize(
    "fault",
    [
        b'data: {"error":{"message":"out of memory","code":500}}\n\n',
        b'data: {"object":"error","message":"out of memory","code":500}\n\n',
        b'data: {"text":"out of memory","error_code":50001}\n\n',
        b'event: error\ndata: {"message":"out of memory","code":500}\n\n',
        b"event: error\ndata: out of memory\n\n",
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_an_error_inside_200_ends_the_answer_with_the_servers_words_and_what_had_come(
    server: Scripted, fault: bytes, together: bool
) -> None:
    parts = [*events(piece(content="The sea")), fault, b"data: [DONE]\n\n"]
    server.body = [b"".join(parts)] if together else parts
    stream = Client(server.url).stream(HELLO, silence_s=5)
    said = []
    with pytest.raises(Refused, match=r"refuses: out of memory$"):
        for part in stream:
            assert isinstance(part, Piece)
            said.append(part.content)
    assert "".join(said) == "The sea"


@pytest.mark.parametrize("finish", ["", "null", None])
def test_a_stream_that_is_cut_off_is_no_answer_whatever_reason_its_chunks_have(
    server: Scripted, finish: str | None
) -> None:
    server.body = events(piece(finish, content="The sea"), piece(finish, content=" is"))
    with pytest.raises(EngineError, match="closed the connection amid its answer"):
        text_of(Client(server.url).stream(HELLO, silence_s=5))


def test_the_end_before_any_word_is_no_answer(server: Scripted) -> None:
    server.body = [b"data: [DONE]\n\n"]
    with pytest.raises(EngineError, match="ended its answer without a word of it"):
        text_of(Client(server.url).stream(HELLO, silence_s=5))


def test_half_an_emoji_waits_for_its_other_half(server: Scripted) -> None:
    server.body = events(piece(content="\ud83c"), piece(content="\udf0a blue"), piece("stop"), b"[DONE]")
    assert text_of(Client(server.url).stream(HELLO, silence_s=5)) == ("\U0001f30a blue", "")


NOT_PERMITTED = {"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}


@pytest.mark.parametrize("field", ["stream_options", "stop"])
@pytest.mark.parametrize(
    ("status", "fault"),
    [
        (422, {"detail": [NOT_PERMITTED | {"loc": ["body", "FIELD"]}]}),  # FastAPI, where extra fields are forbidden
        (400, {"error": {"message": "[{'loc': ('body', 'FIELD'), 'msg': 'Extra inputs are not permitted'}]"}}),  # vLLM
        (400, {"error": {"message": "Unrecognized request argument supplied: FIELD"}}),
        (400, {"error": {"message": "body.FIELD: unexpected", "code": 400}}),
        (400, {"error": {"message": "Unsupported parameter.", "param": "FIELD"}}),
        (400, {"message": "Additional properties are not allowed ('FIELD' was unexpected)"}),
        (400, {"error": "property `FIELD` is unsupported"}),
        (422, {"error": "unknown field `FIELD`, expected one of `model`, `messages`, `stream_options`, `stop`"}),
        (400, {"error": {"message": "openai does not support parameters: ['FIELD'], for model=tiny"}}),
    ],
)
def test_a_field_of_ours_that_a_server_refuses_is_left_out_and_not_sent_again(
    server: Scripted, field: str, status: int, fault: object
) -> None:
    server.answers = [(status, [json.dumps(fault).replace("FIELD", field, 1).encode()])]
    server.body = events(piece(content="blue"), piece("stop"), b"[DONE]")
    client = Client(server.url)
    for _ in range(2):
        assert text_of(client.stream(HELLO, silence_s=5, may_stop=["\nalice:"])) == ("blue", "")
    assert [field in asked for asked in server.asked] == [True, False, False]
    other = {"stop", "stream_options"} - {field}
    assert all(other <= set(asked) for asked in server.asked)


def test_fields_of_ours_that_are_refused_one_after_the_other_are_all_left_out(server: Scripted) -> None:
    server.answers = [(400, [b"unknown field stream_options"]), (400, [b"unknown field stop"])]
    server.body = events(piece(content="blue"), piece("stop"), b"[DONE]")
    assert text_of(Client(server.url).stream(HELLO, silence_s=5, may_stop=["\nalice:"])) == ("blue", "")
    assert set(server.asked[2]) == {"messages", "stream", "model"}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (422, "temperature is too high"),
        (500, "stream_options"),
        (400, "unstoppable"),
        (400, "the prompt is longer than the context size; stop"),
        (422, "unknown field `seed`, expected one of `stream_options`, `stop`"),
    ],
)
def test_a_refusal_of_something_else_is_not_asked_again(server: Scripted, status: int, words: str) -> None:
    server.status, server.body = status, [json.dumps({"error": words}).encode()]
    with pytest.raises(Refused, match=words):
        text_of(Client(server.url).stream(HELLO, silence_s=5, may_stop=["\nalice:"]))
    assert len(server.asked) == 1


def test_a_field_that_was_asked_for_is_never_left_out(server: Scripted) -> None:
    server.status, server.body = 400, [b'{"error": {"message": "stop is not supported"}}']
    with pytest.raises(Refused, match="stop is not supported"):
        text_of(Client(server.url).stream(HELLO, silence_s=5, stop=["END"], may_stop=["\nalice:"]))
    assert [asked["stop"] for asked in server.asked] == [["END", "\nalice:"]]
    server.body = [b'{"detail": [{"loc": ["body", "temperature"], "msg": "Input should be less than 2"}]}']
    with pytest.raises(Refused, match=r"refuses: body.temperature: Input should be less than 2$"):
        text_of(Client(server.url).stream(HELLO, silence_s=5, temperature=9))


THOUGHTS_WITHOUT_BEGINNING = events(
    piece(content="The user asks of the sea."),
    piece(content="\n</think>\n\n"),
    piece("stop", content="Blue."),
    b"[DONE]",
)


def stepwise(server: Scripted, client: Client) -> list[Piece | Reading]:
    """The pieces of an answer whose every part is read before the next one is sent."""
    server.step = threading.Semaphore(1)
    with client.stream(HELLO, silence_s=LIMIT_S) as stream:
        pieces = []
        while piece := next(stream, None):
            pieces.append(piece)
            server.step.release()
        server.step = None
        return pieces


def test_words_that_turn_out_to_be_thoughts_are_told_anew_and_are_thoughts_from_then_on(server: Scripted) -> None:
    # Where the template opens <think> in the prompt, the answer has only </think>: all of it was taken for words.
    server.body = THOUGHTS_WITHOUT_BEGINNING
    client = Client(server.url)
    assert stepwise(server, client) == [
        Piece("The user asks of the sea."),
        Piece("\n"),
        Piece("Blue.", "The user asks of the sea.\n", anew=True),
    ]
    assert stepwise(server, client) == [
        Piece(thinking="The user asks of the sea."),
        Piece(thinking="\n"),
        Piece("Blue."),
    ]


def test_a_model_that_did_not_think_this_time_is_told_anew_and_taken_at_its_word_again(server: Scripted) -> None:
    client = Client(server.url)
    server.body = THOUGHTS_WITHOUT_BEGINNING
    text_of(client.stream(HELLO, silence_s=5))
    server.say(piece(content="Still "), piece("stop", content="blue."), b"[DONE]")
    assert stepwise(server, client) == [
        Piece(thinking="Still "),
        Piece(thinking="blue."),
        Piece("Still blue.", anew=True),
    ]
    assert stepwise(server, client) == [Piece("Still "), Piece("blue.")]


def test_thoughts_cut_for_their_length_never_become_words(server: Scripted) -> None:
    client = Client(server.url)
    server.body = THOUGHTS_WITHOUT_BEGINNING
    text_of(client.stream(HELLO, silence_s=5))
    server.say(piece(content="The user "), piece("length", content="asks of"), b"[DONE]")
    assert text_of(client.stream(HELLO, silence_s=5)) == ("", "The user asks of")


def test_where_a_server_parts_the_thoughts_its_words_are_left_alone(server: Scripted) -> None:
    server.say(piece(reasoning_content="Hm."), piece("stop", content="It ends with </think> always."), b"[DONE]")
    assert text_of(Client(server.url).stream(HELLO, silence_s=5)) == ("It ends with </think> always.", "Hm.")


def test_a_completion_is_taken_as_it_is(server: Scripted) -> None:
    texts = [{"choices": [{"text": text, "finish_reason": None}]} for text in ("<think>", "hm</think>")]
    server.body = events(*texts, {"choices": [{"text": "!", "finish_reason": "length"}]}, b"[DONE]")
    answer = Client(server.url, model_name="m").complete("x", temperature=0.5, stop=["."])
    assert (answer.text, answer.finish, answer.usage) == ("<think>hm</think>!", "length", None)
    assert {key: server.asked[0][key] for key in ("prompt", "temperature", "stop", "model")} == {
        "prompt": "x",
        "temperature": 0.5,
        "stop": ["."],
        "model": "m",
    }


def test_a_stream_that_is_left_early_is_closed(server: Scripted) -> None:
    server.say(piece(content="x"))
    server.hold = True
    with Client(server.url).stream(HELLO, silence_s=5) as stream:
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_of_several_models_none_is_guessed(server: Scripted) -> None:
    server.pages["/v1/models"] = {"data": [{"id": "text-embedding-nomic"}, {"id": "qwen"}]}
    server.body = events(piece(content="blue"), piece("stop"), b"[DONE]")
    with pytest.raises(UsageError, match="has text-embedding-nomic, qwen: name one of these models"):
        text_of(Client(server.url).stream(HELLO, silence_s=5))
    assert text_of(Client(server.url, model_name="qwen").stream(HELLO, silence_s=5)) == ("blue", "")
    server.pages["/v1/models"] = {"data": [{"id": f"m{number}"} for number in range(40)]}
    with pytest.raises(UsageError, match="m10, m11 and 28 more: name"):
        text_of(Client(server.url).stream(HELLO, silence_s=5))
