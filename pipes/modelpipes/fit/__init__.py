"""Will it fit: the memory that a model takes, alone and beside others."""

from modelpipes.fit.memory import Memory, Predictor, Share, predict_memory
from modelpipes.fit.settings import Settings

__all__ = ["Memory", "Predictor", "Settings", "Share", "predict_memory"]
