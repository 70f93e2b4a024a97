"""What a server says that refuses: its own words and the kind of fault, from any of the usual forms of an error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from modelpipes.errors import Refused

if TYPE_CHECKING:
    from modelpipes.errors import Refusal

SHOWN_BODY_CHARS = 300  # of an error answer that is no JSON


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
        message = error.get("message") or error.get("detail") or error.get("text") or json.dumps(error)
        return str(message), str(error.get("type", "")), error.get("code")
    return str(error), "", None


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
