"""The former name of the spec."""

from modelpipes.fit.spec import Backend as Backend
from modelpipes.fit.spec import EngineSpec as Settings

__all__ = ["Backend", "Settings"]
