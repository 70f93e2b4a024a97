"""The chunks of a streamed answer, as servers of OpenAI's protocol really send them; no I/O.

Words are never lost for a figure: what cannot be read as a count is no count, content may be a list of parts, an empty
list of choices may be null. Only a reason that says something ends an answer, and an error may stand in any chunk.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

NO_REASONS = ("", "null", "none")  # what some write into every chunk for a reason that is none yet
ERROR_EVENT = "error"  # a server-sent event of this type is one
_HALVES = (0xD800, 0xDC00, 0xE000)  # where first and second halves of a surrogate pair begin, and where they end


class Chunk(msgspec.Struct):
    """What one chunk adds; None: nothing of the kind. `is_fault`: it is an error of the server's instead."""

    content: str = ""
    thinking: str = ""
    finish: str | None = None
    usage: tuple[int, int, int | None] | None = None  # tokens of the prompt, of the answer; of the prompt, read before
    tokens_per_second: float | None = None
    read: tuple[int, int] | None = None  # tokens of the prompt that were read, of so many
    is_fault: bool = False


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None  # llama-server, LM Studio, vLLM
    reasoning: str | None = None  # Ollama, OpenRouter


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None  # of a completion that is no chat
    finish_reason: str | None = None


class _Usual(msgspec.Struct, forbid_unknown_fields=False):
    """A chunk that has nothing but words: nearly all of them."""

    choices: list[_Choice]
    error: Any = None
    error_code: Any = None
    prompt_progress: Any = None
    usage: Any = None
    timings: Any = None
    object: Any = None


_decode_usual = msgspec.json.Decoder(_Usual).decode


def read_chunk(data: bytes) -> Chunk:
    """What a chunk says; ValueError where it is no JSON object."""
    try:
        usual = _decode_usual(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _read_any(data)
    if usual.error is not None or usual.error_code is not None or usual.object == ERROR_EVENT:
        return Chunk(is_fault=True)
    chunk = Chunk()
    for choice in usual.choices[:1]:
        if choice.delta is not None:
            chunk.thinking = choice.delta.reasoning_content or choice.delta.reasoning or ""
            chunk.content = choice.delta.content or ""
        elif choice.text is not None:
            chunk.content = choice.text
        chunk.finish = _reason(choice.finish_reason)
    return _with_figures(chunk, usual.usage, usual.timings, usual.prompt_progress)


def _read_any(data: bytes) -> Chunk:
    """The same, whatever forms its parts have."""
    try:
        said = json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(said, dict):
        raise ValueError(f"a {type(said).__name__}, not an object")
    if said.get("error") is not None or said.get("error_code") is not None or said.get("object") == ERROR_EVENT:
        return Chunk(is_fault=True)
    chunk = Chunk()
    choices = said.get("choices")
    for choice in choices[:1] if isinstance(choices, list) else []:
        choice = choice if isinstance(choice, dict) else {}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            chunk.thinking = _words(delta.get("reasoning_content")) or _words(delta.get("reasoning"))
            chunk.content = _words(delta.get("content"))
        else:
            chunk.content = _words(choice.get("text"))
        chunk.finish = _reason(choice.get("finish_reason"))
    return _with_figures(chunk, said.get("usage"), said.get("timings"), said.get("prompt_progress"))


def _with_figures(chunk: Chunk, usage: Any, timings: Any, progress: Any) -> Chunk:
    if isinstance(usage, dict):
        details = usage.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        chunk.usage = _count(usage.get("prompt_tokens")) or 0, _count(usage.get("completion_tokens")) or 0, cached
    # The first token belongs to the prompt's time: llama.cpp counts it at no cost.
    if isinstance(timings, dict) and (_count(timings.get("predicted_n")) or 0) > 1:
        rate = timings.get("predicted_per_second")
        chunk.tokens_per_second = float(rate) if isinstance(rate, int | float) else None
    if isinstance(progress, dict):
        done, total = _count(progress.get("processed")), _count(progress.get("total"))
        chunk.read = None if done is None or total is None else (done, total)
    return chunk


def _words(content: Any) -> str:
    """Text, or the texts of a list of parts."""
    if isinstance(content, list):
        return "".join(_words(part.get("text")) if isinstance(part, dict) else _words(part) for part in content)
    return content if isinstance(content, str) else ""


def _reason(reason: Any) -> str | None:
    return reason if isinstance(reason, str) and reason.lower() not in NO_REASONS else None


def _count(figure: Any) -> int | None:
    if isinstance(figure, bool) or not isinstance(figure, int | float) or not 0 <= figure < 1 << 53:
        return None
    return int(figure)


class HalfJoiner:
    """Joins the halves of a surrogate pair that came in two pieces; a half whose other never comes is U+FFFD."""

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        """The text so far that is whole."""
        if self._half or not text.isascii():
            text = self._half + text
            self._half = text[-1] if text and _HALVES[0] <= ord(text[-1]) < _HALVES[1] else ""
            text = _whole(text[:-1] if self._half else text)
        return text

    def rest(self) -> str:
        """What the end leaves."""
        half, self._half = self._half, ""
        return _whole(half)


def _whole(text: str) -> str:
    """Text without lone halves."""
    if not any(_HALVES[0] <= ord(char) < _HALVES[2] for char in text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
