"""The hyper-parameters of a GGUF header, checked as they are read (`llama_model_loader::get_key` and its kin)."""

from __future__ import annotations

from modelpipes.errors import ModelFileError
from modelpipes.gguf.header import Header, Value

Counts = tuple[int, ...]
Flags = tuple[bool, ...]

MAX_NUMBER = 2**32 - 1  # llama.cpp keeps them in 32 bits


class Keys:
    """What a header says under its architecture's name.

    Every method raises ModelFileError, with the key and the reason, for a value that llama.cpp would refuse.
    """

    def __init__(self, header: Header, arch: str) -> None:
        self.path = header.path
        self.arch = arch
        self.metadata = header.metadata

    def get(self, key: str) -> Value | None:
        return self.metadata.get(f"{self.arch}.{key}")

    def refuse(self, key: str, reason: str) -> ModelFileError:
        """The error to raise about a key."""
        return ModelFileError(self.path, f"{self.arch}.{key} {reason}")

    def check(self, key: str, value: object) -> int:
        if isinstance(value, int) and 0 <= value <= MAX_NUMBER:
            return int(value)
        raise self.refuse(key, f"is {value!r:.40}, not a number from 0 to {MAX_NUMBER}")

    def number(self, key: str, default: int = 0) -> int:
        value = self.get(key)
        return default if value is None else self.check(key, value)

    def required(self, key: str) -> int:
        value = self.get(key)
        if value is None:
            raise self.refuse(key, "is missing")
        return self.check(key, value)

    def listed(self, key: str) -> Counts | None:
        """The numbers of an array; None where there is no array under the key (`get_arr`)."""
        value = self.get(key)
        return tuple(self.check(key, item) for item in value) if isinstance(value, list) else None

    def each(self, key: str, n: int, default: Counts) -> Counts:
        """One number for each of `n` blocks, or the same for all (`get_key_or_arr`)."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, list):
            return (self.check(key, value),) * n
        if len(value) != n:
            raise self.refuse(key, f"has {len(value)} entries for {n} blocks")
        return tuple(self.check(key, item) for item in value)

    def flags(self, key: str, n: int) -> Flags | None:
        """A flag for each of `n` blocks, False after the array's end; None where there is no array."""
        listed = self.listed(key)
        if listed is None:
            return None
        return tuple(item != 0 for item in listed[:n]) + (False,) * (n - len(listed))
