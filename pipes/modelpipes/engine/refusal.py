"""What a server says that refuses: its own words and the kind of fault, from any of the usual forms of an error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from modelpipes.errors import Refused

if TYPE_CHECKING:
    from modelpipes.errors import Refusal

SHOWN_BODY_CHARS = 300  # of an error answer that is no JSON
_EXPECTED = re.compile(
    r",? (?:expected one of|expected:|must be one of|supported (?:fields|parameters))", re.IGNORECASE
)


def refusal(root: str, status: int, body: bytes) -> Refused:
    """The error that a server's answer stands for, with the server's own words."""
    text, type_name, code = _server_words(body)
    # An error inside a stream comes with its own code (llama-server: error.code).
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    kind = _kind_of(status, type_name, text)
    # A template's own complaint comes after pages of its source.
    said = " ".join(text.rpartition("Jinja Exception:")[2].split()) or f"HTTP {status}"
    return Refused(f"the server at {root} refuses: {said}", status, kind)


def _server_words(body: bytes) -> tuple[str, str, Any]:
    """Message, type and code of an error in any of the usual forms."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")[:SHOWN_BODY_CHARS], "", None
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict):
        message = _text_of(error.get("message") or error.get("detail") or error.get("text") or error)
        field = error.get("param")
        if isinstance(field, str) and field and not _names(message, field):
            message += f" ({field})"
        return message, str(error.get("type", "")), error.get("code")
    return _text_of(error), "", None


def _text_of(said: Any) -> str:
    """A message in one line; the complaints of a schema as FastAPI lists them, each with the field that it is about."""
    if isinstance(said, list) and said and all(isinstance(each, dict) and "msg" in each for each in said):
        return "; ".join(f"{_place(each.get('loc'))}{each['msg']}" for each in said)
    return said if isinstance(said, str) else json.dumps(said)


def _place(loc: Any) -> str:
    return ".".join(map(str, loc)) + ": " if isinstance(loc, list) and loc else ""


def refused_fields(refused: Refused, fields: Iterable[str]) -> set[str]:
    """Those of a request's fields that the server names as what it does not take, in whatever words."""
    if refused.status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY) or refused.kind != "other":
        return set()
    # What some list after it are the fields that they do take.
    said = _EXPECTED.split(str(refused))[0]
    return {field for field in fields if _names(said, field)}


def _names(text: str, field: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(field)}(?![\w-])", text) is not None


def _kind_of(status: int, type_name: str, text: str) -> Refusal:
    words = text.lower()
    # llama-server names it; the others (vLLM, LM Studio, Ollama) only write of it.
    if type_name == "exceed_context_size_error" or any(
        phrase in words for phrase in ("context length", "context size", "context window", "maximum context")
    ):
        return "context"
    # From minja and Jinja: raise_exception in the template, or an error of its own.
    if any(word in words for word in ("template", "jinja", "roles must alternate", "system role", "system message")):
        return "template"
    if status in (401, 403):
        return "auth"
    if status == 404:
        return "missing"
    if status == 503:
        return "loading"
    return "other"
