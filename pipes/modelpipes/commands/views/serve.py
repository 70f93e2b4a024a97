"""serve-models as a person sees it: what happens, line by line, and what is in memory, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

import msgspec

from modelpipes import events
from modelpipes.gateway.wire import EventLine, ModelList, ModelState, Residency, ResidentReport, Snapshot
from modelpipes.terminal import output
from modelpipes.terminal.drawing import SCREEN
from modelpipes.terminal.safetext import make_line, make_safe
from modelpipes.terminal.table import Table
from modelpipes.values.units import format_bytes, format_seconds

SHOWN_DECISIONS = 5


def say(line: str) -> None:
    """One line of the daemon's, or of an action's."""
    output.say(f"serve-models: {line}")


# What is for those who ask for events: one or more of them for each request, or each second.
QUIET = (
    events.EngineState, events.EngineGone, events.RequestQueued, events.RequestStarted, events.FirstToken,
    events.RequestEnded, events.Machine, events.Missed, events.Leaving,
)  # fmt: skip


def tell(event: events.Event) -> None:
    """The Sink of a daemon that runs for a person: each event that is not QUIET is one line on stderr."""
    if not isinstance(event, QUIET):
        say(words(event))


def words(event: events.Event) -> str:
    """What happened, in one line."""
    match event:
        case events.EngineReady(name, load_s, pid):
            return f"{name} is ready after {load_s:.2f} s (pid {pid})"
        case events.EngineStuck(name):
            return f"{name} hangs: it is there and computes nothing"
        case events.EngineFailed(name, why):
            return _failure(event) if event.in_a_row else f"{name}, as it was before, failed: {why}"
        case events.StopFailed(name, why):
            return f"{name}: {why}"
        case events.MemoryNotFreed(name):
            return f"{name} has ended, and its memory on the card is not free"
        case events.FileReplaced(name, why):
            return f"{name}: its file was replaced; {_then(why)}"
        case events.Decided(action, name, reason):
            return f"{action} {name}: {reason}"
        case events.Listening(models, address, memory):
            return f"{_count(models)} on {address}, with {memory}"
        case events.LeftOut(name, why):
            return f"{name} is left out: {why}"
        case events.NotCounted(name, what):
            return f"{name}: {what}"
        case events.DoesNotFit(name, advice):
            return f"{name} does not fit: {advice}"
        case events.Reloaded():
            return "; ".join((f"read again: {_count(event.models)}", *_news(event)))
        case events.NotReloaded(why):
            return f"nothing was changed: {why}"
        case events.NeedsRestart(keys):
            return f"{', '.join(keys)}: to change that takes a new start"
        case events.Trouble(why):
            return why
        case events.Missed(count, why):
            return f"{'' if count is None else f'{count} '}events are missing here: {why}"
        case events.Leaving():
            return "the daemon ends"
        case events.Machine():
            return _machine(event)
        case events.EngineState(name, state, before):
            return f"{name} is {state}, was {before}"
        case events.EngineGone(name, stop_s, freed):
            return f"{name} has ended after {stop_s:.2f} s and freed {format_bytes(sum(freed.values()))}"
        case (
            events.RequestQueued(name=name)
            | events.RequestStarted(name=name)
            | events.FirstToken(name=name)
            | events.RequestEnded(name=name)
        ):
            return f"request {event.request} to {name} {_request(event)}"
        case _:
            assert_never(event)


def told(line: bytes) -> str:
    """A line of the daemon's events, for a person; what a later daemon may say beside ours is left as it is."""
    try:
        event = msgspec.json.decode(line, type=EventLine)
    except msgspec.DecodeError:
        return make_safe(line.decode("utf-8", "replace")) + "\n"
    if isinstance(event.event, Snapshot):
        residency = event.event.residency
        there = ", ".join(f"{one.name} {one.state}" for one in residency.resident) or "nothing"
        said = f"in memory: {there}; {len(residency.waiting)} wait"
    else:
        said = words(event.event)
    return f"{event.at} {make_line(said)}\n"


def _machine(machine: events.Machine) -> str:
    used = machine.host_total_bytes - machine.host_available_bytes
    parts = [f"host {format_bytes(used)} of {format_bytes(machine.host_total_bytes)}"]
    for card in machine.cards:
        if card.used_bytes is not None and card.total_bytes is not None:
            load = "" if card.utilization_percent is None else f", {card.utilization_percent} % busy"
            parts.append(f"card {card.index} {format_bytes(card.used_bytes)} of {format_bytes(card.total_bytes)}{load}")
    return "; ".join(parts)


def _request(
    event: events.RequestQueued | events.RequestStarted | events.FirstToken | events.RequestEnded,
) -> str:
    """What became of it, in words that follow its name."""
    match event:
        case events.RequestQueued(position=position, expected_wait_s=wait_s):
            return f"waits, {position}. in the queue" + (
                "" if wait_s is None else f", for some {format_seconds(wait_s)}"
            )
        case events.RequestStarted(waited_s=waited_s):
            return f"has its engine after {waited_s:.3f} s"
        case events.FirstToken(first_token_s=first_token_s):
            return f"is being answered after {first_token_s:.3f} s"
        case events.RequestEnded(how=how, total_s=total_s):
            ends = {"end": "is answered", "lost": "lost its engine"}
            counts = "" if event.tokens is None else f", {event.tokens} tokens"
            if event.cached_tokens:
                counts += f", {event.cached_tokens} of {event.prompt_tokens} of its prompt from the cache"
            return f"{ends.get(how, f'is {how}')} after {total_s:.3f} s{counts}"


def _then(why: str) -> str:
    return f"the old one is served on: {why}" if why else "the new one is loaded next, once this one is idle"


def _failure(event: events.EngineFailed) -> str:
    then = ""
    if event.is_lasting:
        then = "; not before its file or the configuration has changed"
    elif event.pause_s:
        then = f"; not before {event.pause_s:g} s"
    return f"{event.name} failed ({event.in_a_row} in a row): {event.why}{then}"


def _news(event: events.Reloaded) -> Iterator[str]:
    for what, names in (("added", event.added), ("removed", event.removed), ("changed", event.changed)):
        if names:
            yield f"{what} {', '.join(names)}"
    if event.memory:
        yield event.memory


def _count(models: int) -> str:
    return f"{models} model{'s' if models != 1 else ''}"


def tell_state(model: ModelState, format_: str) -> None:
    """What a model is now that something was done with it; asked for as a document, a row on stdout."""
    state = _state(model)
    if format_ == SCREEN:
        say(f"{model.name} is {state}")
    else:
        output.write_table(Table(["model", "state"], [(model.name, state)]), format_)


def _state(model: ModelState | ResidentReport) -> str:
    is_old = isinstance(model, ResidentReport) and model.replaced
    return model.state + (", pinned" if model.pinned else "") + (", file replaced" if is_old else "")


def show(residency: Residency, models: ModelList, format_: str) -> None:
    """Every model as a row of a table; the memory, who waits and the last decisions on stderr."""
    resident = {one.name: one for one in residency.resident}
    rows = []
    for model in models.data:
        one = resident.get(model.id)
        rows.append(
            (
                model.id,
                _state(one) if one else "",
                format_bytes(one.bytes + one.host_bytes) if one else "",
                one.busy if one else "",
                format_seconds(one.idle_s) if one and not one.busy else "",
            )
        )
    right = ("memory", "busy", "idle")
    output.write_table(Table(["model", "state", *right], rows, right), format_)
    used, budget = residency.used_bytes, residency.budget_bytes
    card = f"card {format_bytes(used)} of {format_bytes(budget)}; " if budget else ""
    say(f"{card}host {format_bytes(residency.host_used_bytes)} of {format_bytes(residency.host_budget_bytes)}")
    for one in residency.resident:
        if one.replaced:
            say(f"{one.name} serves what it was loaded from, until it is idle or by serve-models load {one.name}")
    for waiting in residency.waiting:
        say(f"{waiting.position}. waits for {waiting.name} since {format_seconds(waiting.waited_s)}")
    for decision in residency.decisions[-SHOWN_DECISIONS:]:
        say(f"{decision.at} {decision.action} {decision.name}: {decision.reason}")
