"""Model files: where they lie, what their headers say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelpipes.gguf.header import ArrayInfo, Header, Shard, Tensor, TextInfo, read_header
    from modelpipes.gguf.shards import read_model

__all__ = ["ArrayInfo", "Header", "Shard", "Tensor", "TextInfo", "read_header", "read_model"]


def __getattr__(name: str) -> Any:
    """Load the reader once it is asked for: a run that has all in the cache does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from modelpipes.gguf import header, shards

    return getattr(shards if name == "read_model" else header, name)
