"""How long an engine may take, where a person says nothing."""

from __future__ import annotations

LOAD_TIMEOUT_S = 600.0  # tens of gigabytes from a slow disk
STOP_TIMEOUT_S = 5.0  # an engine with an open stream looks at its ping interval (1 s) before it goes
DRAIN_TIMEOUT_S = 300.0  # a long answer of a large model on a CPU
