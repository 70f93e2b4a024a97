"""Ask the daemon that runs what it has in memory, and tell it what to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Literal, TypeAlias, TypeVar
from urllib.parse import quote

import msgspec

from modelpipes.config.reading import load, read_key
from modelpipes.errors import EngineError, FileError, UsageError
from modelpipes.gateway.record import Daemon, refusals, running
from modelpipes.gateway.wire import ErrorAnswer, ModelList, ModelState, Residency
from modelpipes.values.deadline import Deadline
from modelpipes.web.site import UNIX, Site
from modelpipes.web.stream import Stream

ANSWER_S = 10.0
LOOK_S = 0.02  # between two looks for a daemon that starts
EVENTS_S = 60.0  # a stream of events has a ping every 15 s
DATA = b"data: "
LOAD_S = 900.0  # a load waits for its turn, and for the disk

Told = TypeVar("Told")
Act: TypeAlias = Literal["load", "unload", "pin", "unpin"]


def find(listen: str | None, deadline: Deadline) -> Steering:
    """The daemon that runs, waited for. EngineError where none does, UsageError for several if `listen` names none.

    FileError for one whose record is of a version to come.
    """
    while not (found := [one for one in running() if _is_meant(one, listen)]):
        for refusal in refusals(listen):
            raise FileError(refusal)
        if deadline.has_passed():
            where = f" on {listen}" if listen else ""
            raise EngineError(f"no serve-models runs{where}: start one with serve-models CONFIG.toml")
        time.sleep(LOOK_S)
    if len(found) > 1:
        raise UsageError(f"--listen is missing: serve-models runs on {', '.join(one.listen for one in found)}")
    return Steering(found[0])


def _is_meant(one: Daemon, listen: str | None) -> bool:
    return not one.is_private if listen is None else one.listen == listen


class Steering:
    """One daemon; everything raises EngineError where it does not answer, or answers with a failure."""

    def __init__(self, record: Daemon) -> None:
        self._record = record
        self._site = Site(record.listen if record.listen.startswith(UNIX) else f"http://{record.listen}")
        self._headers = {"Authorization": f"Bearer {record.key}"} if record.key else {}

    def residency(self) -> Residency:
        """Who is in memory, who waits, and the last decisions."""
        return self._ask("GET", "/residency", Residency)

    def models(self) -> ModelList:
        """Every model that it serves."""
        return self._ask("GET", "/v1/models", ModelList)

    def act(self, act: Act, name: str) -> ModelState:
        """Have it done with a model, which may wait for its turn; what the model is then."""
        return self._ask("POST", f"{_page(name)}/{act}", ModelState, LOAD_S)

    def logs(self, name: str, *, follow: bool) -> Iterator[bytes]:
        """The last lines of a model's engine; with `follow` also those to come, until it ends."""
        with self._stream() as stream:
            page = f"{_page(name)}/logs{'?follow=1' if follow else ''}"
            stream.send("GET", page, None, self._headers, connect_s=None, silence_s=None)
            if stream.status != HTTPStatus.OK:
                raise self._failure(stream.read_all())
            while line := stream.read_line():
                yield line

    def events(self, since: int, *, follow: bool) -> Iterator[bytes]:
        """What happened after this id, each an EventLine in JSON; with `follow` also what is to come, until it ends."""
        with self._stream() as stream:
            page = f"/events?since={since}&follow={int(follow)}"
            stream.send("GET", page, None, self._headers, connect_s=ANSWER_S, silence_s=EVENTS_S)
            if stream.status != HTTPStatus.OK:
                raise self._failure(stream.read_all())
            while line := stream.read_line():
                if line.startswith(DATA):
                    yield line.removeprefix(DATA).rstrip(b"\r\n")

    def reload(self) -> None:
        """Have it read its configuration again; UsageError where that is wrong, which would change nothing."""
        if self._record.config:
            read_key(load(self._record.config).config.server)
        os.kill(self._record.pid, signal.SIGHUP)

    def _ask(self, method: str, page: str, kind: type[Told], limit_s: float = ANSWER_S) -> Told:
        with self._stream() as stream:
            stream.send(method, page, None, self._headers, connect_s=limit_s, silence_s=limit_s)
            answer = stream.read_all()
            if stream.status != HTTPStatus.OK:
                raise self._failure(answer)
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._strange() from None

    def _stream(self) -> Stream:
        return Stream(self._site, self._is_silent)

    def _failure(self, answer: bytes) -> EngineError:
        """What the daemon says of a failure."""
        try:
            return EngineError(msgspec.json.decode(answer, type=ErrorAnswer).error.message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._strange()

    def _strange(self) -> EngineError:
        return EngineError(f"serve-models on {self._record.listen} answers something that is none of its words")

    def _is_silent(self, error: Exception) -> EngineError:
        text = str(error) or type(error).__name__
        return EngineError(f"serve-models on {self._record.listen} does not answer: {text.lower()}")


def _page(name: str) -> str:
    return f"/models/{quote(name, safe='')}"
