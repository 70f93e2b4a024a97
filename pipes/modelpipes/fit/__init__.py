"""Will it fit: the memory that a model takes, alone and beside others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelpipes.fit.shares import Memory, Share
from modelpipes.fit.spec import EngineSpec

if TYPE_CHECKING:
    from modelpipes.fit.memory import Predictor, predict_memory

__all__ = ["EngineSpec", "Memory", "Predictor", "Share", "predict_memory"]


def __getattr__(name: str) -> Any:
    """Load what predicts once it is asked for: its forty modules take longer than a run that has all in the cache."""
    if name not in ("Predictor", "predict_memory"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from modelpipes.fit import memory

    return getattr(memory, name)
