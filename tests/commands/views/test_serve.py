"""The words for what happens in a daemon, letter for letter."""

from __future__ import annotations

import typing

import pytest

from modelpipes import events
from modelpipes.commands.views.serve import show, words
from modelpipes.gateway.wire import ModelEntry, ModelList, Residency, ResidentReport
from modelpipes.terminal.drawing import SCREEN

SAID: list[tuple[events.Event, str]] = [
    (events.EngineReady("qwen", 1.234, 7), "qwen is ready after 1.23 s (pid 7)"),
    (events.EngineStuck("qwen"), "qwen hangs: it is there and computes nothing"),
    (events.EngineFailed("qwen", "it died"), "qwen, as it was before, failed: it died"),
    (events.EngineFailed("qwen", "it died", 1), "qwen failed (1 in a row): it died"),
    (events.EngineFailed("qwen", "it died", 3, 20.0), "qwen failed (3 in a row): it died; not before 20 s"),
    (
        events.EngineFailed("qwen", "bad file", 2, 10.0, is_lasting=True),
        "qwen failed (2 in a row): bad file; not before its file or the configuration has changed",
    ),
    (events.StopFailed("qwen", "it stays"), "qwen: it stays"),
    (events.MemoryNotFreed("qwen"), "qwen has ended, and its memory on the card is not free"),
    (
        events.FileReplaced("qwen"),
        "qwen: its file was replaced; the new one is loaded next, once this one is idle",
    ),
    (
        events.FileReplaced("qwen", "incomplete download"),
        "qwen: its file was replaced; the old one is served on: incomplete download",
    ),
    (events.Decided("load", "qwen", "it was asked for"), "load qwen: it was asked for"),
    (events.Listening(1, "unix:/s", "1 GiB"), "1 model on unix:/s, with 1 GiB"),
    (events.Listening(2, "h:1", "1 GiB"), "2 models on h:1, with 1 GiB"),
    (events.LeftOut("qwen", "no such file"), "qwen is left out: no such file"),
    (events.NotCounted("qwen", "what -ot moves or adds is not counted"), "qwen: what -ot moves or adds is not counted"),
    (events.DoesNotFit("qwen", "ctx_size = 512 would fit"), "qwen does not fit: ctx_size = 512 would fit"),
    (events.Reloaded(0), "read again: 0 models"),
    (
        events.Reloaded(2, ("a", "b"), ("c",), ("d",), "2 GiB"),
        "read again: 2 models; added a, b; removed c; changed d; 2 GiB",
    ),
    (events.NotReloaded("a.toml: no key"), "nothing was changed: a.toml: no key"),
    (
        events.NeedsRestart(("server.key", "server.listen")),
        "server.key, server.listen: to change that takes a new start",
    ),
    (events.Trouble("no llama-server"), "no llama-server"),
    (events.EngineState("qwen", "ready", "loading"), "qwen is ready, was loading"),
    (events.EngineGone("qwen", 0.5, {"card": 1 << 30}), "qwen has ended after 0.50 s and freed 1.0 GiB"),
    (events.RequestQueued(3, "qwen", 2, 4.0), "request 3 to qwen waits, 2. in the queue, for some 4s"),
    (events.RequestQueued(3, "qwen", 1, None), "request 3 to qwen waits, 1. in the queue"),
    (events.RequestStarted(3, "qwen", 0.25), "request 3 to qwen has its engine after 0.250 s"),
    (events.FirstToken(3, "qwen", 0.25), "request 3 to qwen is being answered after 0.250 s"),
    (events.RequestEnded(3, "qwen", "cancelled", 1.0), "request 3 to qwen is cancelled after 1.000 s"),
    (
        events.RequestEnded(3, "qwen", "end", 1.0, 90, 80, 12),
        "request 3 to qwen is answered after 1.000 s, 12 tokens, 80 of 90 of its prompt from the cache",
    ),
    (events.RequestEnded(3, "qwen", "lost", 1.0), "request 3 to qwen lost its engine after 1.000 s"),
    (
        events.Machine(4 << 30, 1 << 30, (events.Card(0, "RTX", 1 << 30, 2 << 30, 7, None),)),
        "host 3.0 GiB of 4.0 GiB; card 0 1.0 GiB of 2.0 GiB, 7 % busy",
    ),
    (events.Missed(7, "too slow"), "7 events are missing here: too slow"),
    (events.Missed(None, "another daemon"), "events are missing here: another daemon"),
    (events.Leaving(), "the daemon ends"),
]


@pytest.mark.parametrize(("event", "said"), SAID)
def test_every_event_has_its_words(event: events.Event, said: str) -> None:
    assert words(event) == said


def test_no_kind_of_event_is_left_out() -> None:
    kinds = set(typing.get_args(events.Event))
    assert {type(event) for event, _ in SAID} == kinds
    assert all(f"\n{kind.__name__} " in (events.__doc__ or "") for kind in kinds)


def test_status_says_whose_file_was_replaced_and_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    resident = [ResidentReport(name, "ready", 1, 1, 0, 1.0, name == "phi", name == "qwen") for name in ("phi", "qwen")]
    models = ModelList([ModelEntry(name, 0, f"{name}.gguf", [], 512, "ready") for name in ("phi", "qwen")])
    show(Residency(9, 2, 9, 2, resident, [], []), models, SCREEN)
    said = capfd.readouterr()
    states = {line.split()[0]: line for line in said.out.splitlines()}
    assert "  ready, pinned  " in states["phi"] and "  ready, file replaced  " in states["qwen"]
    assert "qwen serves what it was loaded from, until it is idle or by serve-models load qwen" in said.err
    assert "phi serves" not in said.err
