"""What is told of a request while an engine works on it: its first token, its end, its tokens."""

from __future__ import annotations

import re
import time
from typing import Literal, TypeAlias

from modelpipes.events import FirstToken, RequestEnded, Sink
from modelpipes.serving.grant import Grant

TAIL_BYTES = 4096  # of an answer, where the engine counts: llama-server writes some 700 bytes after the last word
# llama-server's `timings` (server-task.cpp), which every answer has, and OpenAI's `usage`, which may be left out.
# Within a model's words a quote has a backslash before it: what looks like a count there is none.
_COUNT = re.compile(rb'"(cache_n|prompt_n|predicted_n|prompt_tokens|completion_tokens|cached_tokens)": ?(\d{1,12})')

How: TypeAlias = Literal["end", "cancelled", "refused", "lost", "failed"]


class Asked:
    """One request at its engine; `ends` once, with how it ended."""

    def __init__(self, tell: Sink, grant: Grant) -> None:
        self.how: How = "cancelled"  # unless it comes to another end
        self._tell = tell
        self._grant = grant
        self._began_s = time.monotonic()
        self._before = b""
        self._last = b""

    def begin(self) -> None:
        """The answer's first piece is here."""
        self._tell(FirstToken(self._grant.id, self._grant.name, time.monotonic() - self._began_s))

    def look(self, piece: bytes) -> None:
        """A piece of the answer; the last two are kept, in which the engine counts."""
        self._before, self._last = self._last, piece

    def end(self) -> None:
        """It is over."""
        counts = count_tokens((self._before + self._last)[-TAIL_BYTES:])
        self._tell(RequestEnded(self._grant.id, self._grant.name, self.how, time.monotonic() - self._began_s, *counts))


def count_tokens(tail: bytes) -> tuple[int | None, int | None, int | None]:
    """Tokens of the prompt, of it from the cache, and of the answer, as far as an answer's last bytes tell."""
    found = {name: int(count) for name, count in _COUNT.findall(tail)}
    if b"prompt_n" in found:  # what it read beside what it had
        cached = found.get(b"cache_n", 0)
        return cached + found[b"prompt_n"], cached, found.get(b"predicted_n")
    return found.get(b"prompt_tokens"), found.get(b"cached_tokens"), found.get(b"completion_tokens")
