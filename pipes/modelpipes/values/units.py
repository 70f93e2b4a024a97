"""Quantities as people write them: "30s", "14GB", "9B", "0-3,8" <-> seconds, bytes, numbers of parameters, CPUs.

Bytes are as coreutils reads them: GB is 10^9, G and GiB are 2^30.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from modelpipes.errors import UsageError

_SECONDS_PER = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_POWERS = "kmgtpe"
_BINARY_SUFFIXES = ("", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
# Longer than any machine runs; keeps sums of durations far from infinity.
MAX_SECONDS = 1e9
LEAST_AMOUNT = 1_000_000  # bytes, of what may hold a model: who writes 14 means something else
MAX_CPU = 8191  # NR_CPUS of the largest kernels (MAXSMP)
_CPUS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_QUANTITY = re.compile(r"\s*([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_seconds(text: str) -> float | None:
    """Seconds in a duration such as "500ms", "30", "30s", "2m" or "1h"; None for "none".

    Raises UsageError for what is no duration, and for zero: no wait is endless by accident.
    """
    if text.strip().lower() == "none":
        return None
    match = _QUANTITY.fullmatch(text)
    scale = _SECONDS_PER.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise UsageError(f"{text!r} is not a duration: write 30s, 500ms, 2m, 1h or none")
    seconds = float(match[1]) * scale
    if seconds == 0:
        raise UsageError(f"{text!r} leaves no time at all: write a duration above 0, or none")
    if seconds > MAX_SECONDS:
        raise UsageError(f"{text!r} is too long: write none for no limit")
    return seconds


def format_seconds(seconds: float | None) -> str:
    """A duration as `parse_seconds` reads it, to three digits or better; None: "none"."""
    if seconds is None:
        return "none"
    if seconds < 0.9995:  # what would round to 1000 ms is a second
        return f"{seconds * 1000:.3g}ms"
    for unit, scale in (("h", 3600), ("m", 60)):
        if seconds >= scale and seconds % scale == 0:
            return f"{seconds / scale:.0f}{unit}"
    return f"{seconds:.3g}s" if seconds < 999.5 else f"{seconds:.0f}s"


def parse_bytes(text: str) -> int:
    """Bytes in a size such as "14GB", "512MiB", "1G" or "4096"; raises UsageError for what is none."""
    match = _QUANTITY.fullmatch(text)
    scale = _bytes_per(match[2].lower()) if match else None
    if match is None or scale is None:
        raise UsageError(f"{text!r} is not a size: write 14GB (10^9 bytes each), 512MiB, 1G (2^30) or plain bytes")
    whole, _, fraction = match[1].partition(".")
    # In whole numbers: a float would lose bytes above 2^53.
    parts: int = 10 ** len(fraction)
    return int(whole or "0") * scale + int(fraction or "0") * scale // parts


def _bytes_per(unit: str) -> int | None:
    if unit in ("", "b"):
        return 1
    power = _POWERS.find(unit[0]) + 1
    if power == 0 or unit[1:] not in ("", "b", "ib"):
        return None
    scale: int = 1000**power if unit[1:] == "b" else 1024**power
    return scale


def format_elapsed(seconds: float) -> str:
    """How long something has taken by now, in whole seconds: "12 s", "2 min 3 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_bytes(size_bytes: int) -> str:
    """A size with a binary suffix, to one decimal: "1.5 MiB"; below 1024 exact: "17 B"."""
    if abs(size_bytes) < 1024:
        return f"{size_bytes} B"
    size, power = float(size_bytes), 0
    # 1023.95, not 1024: what would round to "1024.0" belongs to the next suffix.
    while abs(size) >= 1023.95 and power < len(_BINARY_SUFFIXES) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.1f} {_BINARY_SUFFIXES[power]}"


def format_share(done_bytes: int, total_bytes: int) -> str:
    """A part of a size, in the unit of the whole: "3.1 of 4.7 GiB"."""
    number, _, suffix = format_bytes(total_bytes).rpartition(" ")
    if suffix == "B":
        return f"{done_bytes} of {number} B"
    return f"{done_bytes / 1024 ** _BINARY_SUFFIXES.index(suffix):.1f} of {number} {suffix}"


def parse_count(text: str) -> int:
    """How many parameters "9B" or "500M" are; raises UsageError for what is no such number."""
    match = _QUANTITY.fullmatch(text)
    scale = _COUNTS.get(match[2].lower()) if match else None
    if match is None or scale is None:
        raise UsageError(f"{text!r} is no number of parameters: write 9B or 500M")
    return round(float(match[1]) * scale)


def parse_cpus(text: str) -> tuple[int, ...]:
    """The numbers of the CPUs in a list such as "0-3,8", as taskset takes it; raises UsageError for what is none."""
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = _CPUS.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last <= MAX_CPU:
            raise UsageError(f"{text!r} is no list of CPUs: write 0-3,8 for the first four and the ninth")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def format_cpus(cpus: Iterable[int]) -> str:
    """Numbers of CPUs as `parse_cpus` reads them, runs of them short: "0-3,8"."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def format_count(number: int, noun: str) -> str:
    """So many of them: 1 seat, 2 seats."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
