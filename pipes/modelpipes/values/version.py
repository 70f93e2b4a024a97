"""The version, for all who tell it; apart from the package itself, which would lead to every module."""

__version__ = "0.1.0"
