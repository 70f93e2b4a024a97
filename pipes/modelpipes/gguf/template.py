"""The chat template of a model file, which `Header` does not keep, and what it can be told to take."""

from __future__ import annotations

import re

from modelpipes.errors import ModelFileError
from modelpipes.gguf.header import read_header

_KEY = b"tokenizer.chat_template"
_STRING = 8  # the type of a value, as gguf.h has it
_WRITES_ROLE = re.compile(r"\{\{[^}]*\brole\b")
_REFUSALS = re.compile(r"raise_exception\s*\([^)]*system", re.IGNORECASE)


def read_template(path: str) -> str:
    """The chat template of a model file; empty where it has none. ModelFileError for what is no model file."""
    header = read_header(path)
    order = header.byte_order
    try:
        with open(path, "rb") as file:
            data = file.read(header.data_offset)
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}") from None
    key = len(_KEY).to_bytes(8, order) + _KEY + _STRING.to_bytes(4, order)
    start = data.find(key)
    if start < 0:
        return ""
    start += len(key)
    length = int.from_bytes(data[start : start + 8], order)
    return data[start + 8 : start + 8 + length].decode("utf-8", "replace")


def refuses_system(path: str) -> bool:
    """Whether the template of a model file, by its text, refuses a system message, or drops it.

    An engine that runs can be asked, which is surer: `Client.refuses_system`.
    """
    template = read_template(path)
    writes_any_role = "system" in template or _WRITES_ROLE.search(template)
    return bool(template) and (not writes_any_role or bool(_REFUSALS.search(template)))
