"""A program kept running that is told and answers in lines of JSON: words with newlines, who spoke, the conversation.

{"id":"6f1c","from":"hub","to":"bob","content":"What is 3 and 4?"}
{"delta":"It is"}
{"content":"It is 7."}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct, field

from modelpipes.chat.voices import Work
from modelpipes.chat.voices.filter import FilterVoice
from modelpipes.child import Child
from modelpipes.errors import ProgramError
from modelpipes.pipe.message import Heard
from modelpipes.terminal import output

TURNS_BYTES = 1 << 20  # of a conversation: all of it is told each time, which then still takes a millisecond


class Told(Struct, frozen=True, omit_defaults=True):
    """One message, as the program is told it.

    `from` is who spoke, `content` what is to be answered. In a conversation `turn` is the one that the program now
    takes, `turns` are those before it, as far as they are remembered (the opening, and the newest), the last of them
    the one to answer; `others` are who else takes part, `person` which of them is one.
    """

    id: str
    sender: str = field(name="from")
    to: str
    content: str
    conversation: str | None = None
    turn: int | None = None
    turns: tuple[Heard, ...] = ()
    others: tuple[str, ...] = ()
    person: str = ""


class Said(Struct, frozen=True, omit_defaults=True):
    """One line of the program. Any number with `delta`, the next piece of the answer, or `thinking`; then one with
    `content`, the whole answer, or with `error`, why there is none. Where an `id` is given, it is that of the message.
    """

    id: str | None = None
    delta: str | None = None
    thinking: str | None = None
    content: str | None = None
    error: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Said).decode


class JsonFilterVoice(FilterVoice):
    """Keeps one program running that is told and answers in lines of JSON."""

    history_bytes = TURNS_BYTES
    _advice = "a line with its content ends an answer"

    def __init__(
        self,
        command: str,
        *,
        silence_s: float | None = None,
        log: str | None = None,
        report: Callable[[str], None] = output.say,
    ) -> None:
        super().__init__(command, silence_s=silence_s, log=log, report=report)
        self.kind = f"filter-json {command}"

    def _question(self, work: Work) -> bytes:
        say, last = work.say, work.turns[-1]
        is_talk = say.conversation is not None
        told = Told(
            id=say.id,
            sender=last.sender,
            to=say.to,
            content=last.content,
            conversation=say.conversation,
            turn=say.turn,
            turns=tuple(work.turns) if is_talk else (),
            others=say.cast.others if say.cast else (),
            person=say.cast.person if say.cast else "",
        )
        return _encode(told) + b"\n"

    def _take_answer(self, child: Child, lines: Iterator[bytes], work: Work) -> None:
        for line in lines:
            if not line.lstrip().startswith(b"{"):
                if line.strip():  # what libraries print while they load
                    self._tell_vain(child, line)
                continue
            said = self._read(child, line)
            if said.id is not None and said.id != work.say.id:
                self._tell_vain(child, line)
            elif said.error is not None:
                raise ProgramError(f"{child.name}: {said.error or 'it does not say why'}")
            elif said.content is not None:
                _emit_whole(work, said.content, said.thinking)
                return
            else:
                work.emit(said.delta or "", said.thinking or "")

    def _read(self, child: Child, line: bytes) -> Said:
        try:
            said = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            why = str(e)
        else:
            if (said.delta, said.thinking, said.content, said.error) != (None,) * 4:
                return said
            why = "it has no delta, thinking, content or error"
        self._end()  # what else it says may answer anything
        shown = line.decode("utf-8", "replace")
        raise ProgramError(f"{child.name} wrote no answer: {why}: {shown if len(shown) <= 200 else shown[:199] + '…'}")


def _emit_whole(work: Work, content: str, thinking: str | None) -> None:
    """Emit what is still missing of the answer; all of it anew where it is not what the pieces said."""
    so_far = "".join(work.content)
    if content.startswith(so_far) and thinking is None:
        work.emit(content[len(so_far) :])
    else:
        work.begin_anew(content, "".join(work.thinking) if thinking is None else thinking)
