from __future__ import annotations

from modelpipes.machine.bus import display_vendors


def test_only_display_controllers_of_the_bus_are_cards() -> None:
    devices = [("0x030000", "0x10de"), ("0x040300", "0x1002"), ("0x120000", "0x1002"), ("0x030000", "0x1234")]
    assert display_vendors(devices) == {"NVIDIA", "AMD"}
    assert display_vendors([("0x020000", "0x10de")]) == set()
