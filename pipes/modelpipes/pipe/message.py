"""What travels on a pipe: typed messages, one JSON object a line.

    {"type":"say","id":"…","from":"hub","to":"bob","content":"Hello"}
    {"type":"delta","reply_to":"…","from":"bob","to":"hub","content":"Hi"}
    {"type":"reply","id":"…","reply_to":"…","from":"bob","to":"hub","content":"Hi there","stop":"end"}

A `say` is answered by any number of `progress` and `delta`, then by one `reply` or `failure`.
Unknown fields are ignored. A line that is not one of these is a `Plain` or a `Malformed`.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field
from msgspec.structs import replace

from modelpipes.errors import Reason

Stop: TypeAlias = Literal["end", "length", "cancelled", "timeout", "died"]
Phase: TypeAlias = Literal["queued", "loading", "reading", "thinking"]


class Heard(Struct, frozen=True, gc=False):
    """One turn of a conversation, as told to a member."""

    turn: int
    sender: str = field(name="from")
    content: str


class Usage(Struct, frozen=True, omit_defaults=True, gc=False):
    """Tokens of one answer, as the engine counts them; `cached_tokens` of the prompt it had read before, if it says."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None


class Timing(Struct, frozen=True, omit_defaults=True, gc=False):
    """Where the time of one answer went, as the member measured it."""

    queued_ms: float = 0.0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    tokens_per_second: float | None = None


class Cast(Struct, frozen=True, omit_defaults=True, gc=False):
    """Who else takes part in a conversation, for the member that is told, and whether names stand before their words.

    The same for the whole of a conversation, so that a prompt only ever grows at its end.
    """

    others: tuple[str, ...] = ()
    labels: bool = False
    person: str = ""  # which of them is one


class Sampling(Struct, frozen=True, omit_defaults=True, gc=False):
    """How a model chooses its words; None: as the server does. `schema`: the answer is JSON of this schema."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None

    def over(self, other: Sampling) -> Sampling:
        """These, and the other's where these say nothing."""
        said = {name: value for name in self.__struct_fields__ if (value := getattr(self, name)) not in (None, ())}
        return replace(other, **said)


class Say(Struct, frozen=True, omit_defaults=True, tag="say", gc=False):
    """Speak to a member; in a conversation, tell it what it has not heard and ask for `turn`.

    `after` is the last turn that the member is believed to know; -1: none. `sampling`, and `system`, what a model is
    told first, go before the member's own.
    """

    id: str
    sender: str = field(name="from")
    to: str
    content: str = ""
    conversation: str | None = None
    turn: int | None = None
    after: int | None = None
    heard: tuple[Heard, ...] = ()
    cast: Cast | None = None
    sampling: Sampling | None = None
    system: str | None = None

    @property
    def words(self) -> str:
        """What is to be answered: in a conversation, the last turn that is told."""
        return self.heard[-1].content if self.heard else self.content


class Progress(Struct, frozen=True, omit_defaults=True, tag="progress", gc=False):
    """The answer is on its way; `position` is that in the queue, from 1."""

    reply_to: str
    sender: str = field(name="from")
    to: str
    phase: Phase
    position: int | None = None


class Delta(Struct, frozen=True, omit_defaults=True, tag="delta", gc=False):
    """A piece of an answer, or of the thoughts before it. `anew`: the pieces before it do not count any more."""

    reply_to: str
    sender: str = field(name="from")
    to: str
    content: str = ""
    thinking: str = ""
    anew: bool = False


class Reply(Struct, frozen=True, omit_defaults=True, tag="reply", gc=False):
    """A whole answer; `dropped` are the first and the last turn that were left out of the prompt.

    `is_cut`: it went on in another's name, and ends before that.
    """

    id: str
    reply_to: str
    sender: str = field(name="from")
    to: str
    content: str
    stop: Stop
    thinking: str = ""
    usage: Usage | None = None
    timing: Timing | None = None
    dropped: tuple[int, int] | None = None
    is_cut: bool = False


class Failure(Struct, frozen=True, omit_defaults=True, tag="failure", gc=False):
    """Why there is no answer; without `reply_to`, to a line that had no readable id.

    `have` goes with out-of-step: the last turn that the member knows; -1: none.
    """

    sender: str = field(name="from")
    to: str
    reason: Reason
    detail: str = ""
    reply_to: str | None = None
    have: int | None = None


# What a ping carries: a string of JSON that nobody reads. To decode it and encode it again for the way back would take
# 40 % of a round trip of 64 KiB.
Load: TypeAlias = Annotated[Raw, Meta(extra_json_schema={"type": "string"})] | UnsetType


def load(size_bytes: int) -> Raw:
    """So many bytes for a ping to carry."""
    return Raw(b'"%s"' % (b"x" * size_bytes))


class Ping(Struct, frozen=True, omit_defaults=True, tag="ping", gc=False):
    """Answered at once by the endpoint itself, before any model work."""

    id: str
    sender: str = field(name="from")
    to: str
    content: Load = UNSET


class Pong(Struct, frozen=True, omit_defaults=True, tag="pong", gc=False):
    """The answer to a ping, with its content as it came."""

    reply_to: str
    sender: str = field(name="from")
    to: str
    content: Load = UNSET


class Cancel(Struct, frozen=True, omit_defaults=True, tag="cancel", gc=False):
    """Stop working on `reply_to`; the answer ends with stop "cancelled"."""

    reply_to: str
    sender: str = field(name="from")
    to: str


class Bye(Struct, frozen=True, omit_defaults=True, tag="bye", gc=False):
    """The seat is leaving on purpose."""

    sender: str = field(name="from")
    to: str


Message: TypeAlias = Say | Progress | Delta | Reply | Failure | Ping | Pong | Cancel | Bye


class Plain(Struct, frozen=True, gc=False):
    """A non-empty line that does not begin with `{`: words without an envelope."""

    content: str


class Malformed(Struct, frozen=True, gc=False):
    """A line that is neither a message nor plain, and what is wrong with it."""

    detail: str
    reply_to: str | None = None


def new_id() -> str:
    """128 random bits, as 32 hexadecimal digits."""
    return os.urandom(16).hex()
