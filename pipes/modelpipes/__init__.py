"""Local language models that talk to each other, and to any Unix program, through named pipes."""

__version__ = "0.1.0"
