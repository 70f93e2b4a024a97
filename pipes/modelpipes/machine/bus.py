"""Whose cards are on the PCI bus, whether a driver shows them or not."""

from __future__ import annotations

import os
from collections.abc import Iterable

from modelpipes.machine.kernel import read_text

VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}  # of the PCI bus
_DEVICES = "/sys/bus/pci/devices"
_DISPLAY_CLASSES = ("0x03", "0x12")  # display controllers, and accelerators that have no display


def find_display_vendors() -> frozenset[str]:
    """The makers of this machine's cards; none where there is no such bus."""
    try:
        devices = os.listdir(_DEVICES)
    except OSError:
        return frozenset()
    return display_vendors(
        (read_text(f"{_DEVICES}/{name}/class").strip(), read_text(f"{_DEVICES}/{name}/vendor").strip())
        for name in devices
    )


def display_vendors(devices: Iterable[tuple[str, str]]) -> frozenset[str]:
    """The makers of cards among (class, vendor) of PCI devices, as sysfs prints them. Pure."""
    return frozenset(
        VENDORS[vendor] for kind, vendor in devices if kind.startswith(_DISPLAY_CLASSES) and vendor in VENDORS
    )
