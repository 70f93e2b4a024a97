"""What may take long is asked by a process of its own, which is ended with all that it started at the deadline."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from modelpipes.child import Child
from modelpipes.commands.checkup.engines import ask_engine
from modelpipes.commands.checkup.folders import count_models
from modelpipes.commands.checkup.written import measure
from modelpipes.engine import locate
from modelpipes.errors import ProgramError
from modelpipes.machine.cards import Cards, find_visible_cards
from modelpipes.terminal import output
from modelpipes.values.deadline import Deadline

# A question that may take long: ["cards"], ["engine", KIND, ARGV…], ["folder", PATH] or
# ["written", MOMENT, PATH, OTHERS…].
Question = list[str]

READ_BYTES = 1 << 16
MAX_AT_ONCE = 8  # questions: each may start a program


@contextlib.contextmanager
def asking(questions: list[Question], deadline: Deadline) -> Iterator[dict[int, Any]]:
    """Have these answered meanwhile; after the block the answers are there, by number, but for those that are late."""
    answers: dict[int, Any] = {}
    asked = json.dumps(questions)  # not msgspec: a path may be no UTF-8
    argv = [sys.executable, "-P", "-c", f"from {__name__} import answer; answer()", asked]
    data = bytearray()
    is_done = False
    try:
        with Child(argv, name="the process that asks engines", pipe_stdout=True) as child:
            yield answers
            is_done = True
            poll = select.poll()
            poll.register(child.stdout_fd, select.POLLIN)
            while data.count(b"\n") < len(questions) and poll.poll(deadline.poll_ms()):
                piece = os.read(child.stdout_fd, READ_BYTES)
                if not piece:
                    output.say(f"check-system: {child.name} has died: what it did not answer is not late, but unknown")
                    break
                data += piece
    except ProgramError as error:
        if not is_done:
            raise  # it could not be started: no engine could
        output.say(f"check-system: {error}")  # a driver that hangs is what the report is there to tell
    answers.update(json.loads(line) for line in data.split(b"\n")[:-1])


def answer() -> None:
    """Answer the questions of the command line, each in a line [NUMBER, ANSWER], as soon as it is known."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    questions: list[Question] = json.loads(sys.argv[1])
    with ThreadPoolExecutor(MAX_AT_ONCE) as pool:
        asked = {pool.submit(_answer_one, *question): number for number, question in enumerate(questions)}
        for done in as_completed(asked):
            output.write_json((asked[done], done.result()))


def _answer_one(what: str, *words: str) -> msgspec.Struct:
    if what == "cards":
        found = find_visible_cards()
        return Cards(tuple(msgspec.structs.replace(card, processes=()) for card in found.cards), found.problems)
    if what == "folder":
        return count_models(words[0])
    if what == "written":
        moment_s, path, *others = words
        return measure(path, Deadline(float(moment_s)), others)
    kind: locate.EngineKind = "embedded" if words[0] == "embedded" else "llama-server"
    return ask_engine(locate.Binary(kind, words[1:]))
