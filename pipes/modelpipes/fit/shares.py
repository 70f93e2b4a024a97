"""What a prediction says: the bytes that a model takes on every device and on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Estimate: TypeAlias = Literal["exact", "generic", "own"]


@dataclass(frozen=True, slots=True)
class Share:
    """What one device, or the host, holds of a model, in bytes.

    `overhead_bytes` is what the runtime takes beside: a driver's context, libraries, the buffer of logits.
    """

    model_bytes: int = 0
    context_bytes: int = 0
    compute_bytes: int = 0
    overhead_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.model_bytes + self.context_bytes + self.compute_bytes + self.overhead_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """A model's memory on every device and on the host.

    `estimate` is `exact` where llama.cpp's own rules for the architecture were followed, `generic` where the general
    rule stood in for them, and `own` where it is what a person says.
    """

    devices: tuple[Share, ...]
    host: Share
    estimate: Estimate

    @property
    def device_bytes(self) -> int:
        """On all devices together."""
        return sum(share.total_bytes for share in self.devices)
