"""What is said of a machine and of its parts: how each stands, and what to do about it. Pure."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Literal, TypeAlias

import msgspec

from modelpipes.machine.cards import Cards
from modelpipes.machine.disk import Disk
from modelpipes.machine.nvml import NO_DRIVER
from modelpipes.values.units import format_bytes

State: TypeAlias = Literal["ok", "warning", "missing"]

FIRST_KERNEL = (5, 3)  # pidfd_open(2), by which children are watched
KERNEL_ADVICE = "use Linux 5.3 or newer; on Windows, WSL 2"
PIPE_PAGES = 16  # of a pipe that nobody widened (pipe(7))
PIPES_OF_A_SEAT = 2  # one to it, one from it
FEW_SEATS = 16  # less is little for one user, who has other pipes in every shell
PIPE_MAX_BYTES, PIPE_SOFT_PAGES = 1 << 20, 16384  # the kernel's own values
LITTLE_MEMORY_BYTES = 2 << 30  # two of the smallest models worth talking to, of 0.6 B, with their caches


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing looked at: how it stands, what was found, and what to do about it, "" where there is nothing to do."""

    name: str
    state: State
    found: str
    advice: str = ""


def judge_kernel(system: str, release: str) -> Check:
    """`system` and `release` as uname tells them."""
    number = re.match(r"(\d+)\.(\d+)", release)
    is_new = number is not None and (int(number[1]), int(number[2])) >= FIRST_KERNEL
    if system == "Linux" and is_new:
        return Check("kernel", "ok", f"{system} {release}")
    return Check("kernel", "missing", f"{system} {release}", KERNEL_ADVICE)


def judge_pipe_size(limit_bytes: int | None, wide_bytes: int) -> Check:
    """`limit_bytes` is pipe-max-size, up to which anybody may widen a pipe; long messages want `wide_bytes`."""
    if limit_bytes is None:
        return Check("pipe-size", "warning", "pipe-max-size cannot be read", "is /proc mounted?")
    found = f"a pipe may be made {format_bytes(limit_bytes)} wide"
    if limit_bytes >= wide_bytes:
        return Check("pipe-size", "ok", found)
    advice = f"long messages travel slower; sudo sysctl fs.pipe-max-size={PIPE_MAX_BYTES}"
    return Check("pipe-size", "warning", f"{found}, and long messages want {format_bytes(wide_bytes)}", advice)


def judge_pipe_pages(soft_pages: int | None, hard_pages: int | None, wide_pages: int) -> Check:
    """`soft_pages` and `hard_pages` are pipe-user-pages-soft and -hard, of all open pipes of a user; 0 is no limit.

    A pipe for long messages takes `wide_pages`.
    """
    if soft_pages is None:
        return Check("pipe-pages", "warning", "pipe-user-pages-soft cannot be read", "is /proc mounted?")
    key, pages = ("soft", soft_pages) if not hard_pages or 0 < soft_pages < hard_pages else ("hard", hard_pages)
    if not pages:
        return Check("pipe-pages", "ok", "no limit to a user's open pipes")
    n_pipes = pages // PIPE_PAGES
    n_seats = n_pipes // PIPES_OF_A_SEAT
    n_wide = pages // wide_pages
    found = f"{n_pipes} pipes open at once, which is {n_seats} seats; {n_wide} pipes if long messages widen them"
    if n_seats >= FEW_SEATS:
        return Check("pipe-pages", "ok", found)
    then = "further pipes hold two pages and are slow" if key == "soft" else "further pipes cannot be opened"
    advice = f"past that {then}; sudo sysctl fs.pipe-user-pages-{key}={PIPE_SOFT_PAGES}"
    return Check("pipe-pages", "warning", found, advice)


def judge_disk(name: str, disk: Disk | None, path: str, wanted_bytes: int, what_for: str) -> Check:
    """`wanted_bytes` is what one should have free for `what_for`; `disk` is None where the file system does not say."""
    if disk is None:
        return Check(name, "warning", f"{path}: its file system cannot be asked", "is its disk mounted?")
    found = f"{path}: {format_bytes(disk.free_bytes)} free"
    if not disk.can_write:
        variable = f"XDG_{name.upper()}_HOME"
        return Check(name, "warning", f"{found}, but we may not write there", f"make it yours, or set {variable}")
    if disk.free_bytes < wanted_bytes:
        return Check(name, "warning", found, f"make room: {what_for} takes some {format_bytes(wanted_bytes)}")
    return Check(name, "ok", found)


def judge_memory(available_bytes: int, total_bytes: int) -> Check:
    """Host memory, within the container's limit where there is one."""
    found = f"{format_bytes(available_bytes)} of {format_bytes(total_bytes)} available"
    if available_bytes >= LITTLE_MEMORY_BYTES:
        return Check("memory", "ok", found)
    advice = "end what is not needed, or take very small models: find-gguf --sort memory"
    return Check("memory", "warning", found, advice)


def judge_cards(cards: Cards | None, vendors: Set[str]) -> list[Check]:
    """`cards` as NVML shows them, None where it did not answer in time; `vendors` of what is on the PCI bus."""
    if cards is None:
        return [Check("gpu", "warning", "the NVIDIA driver did not answer in time", "see whether nvidia-smi runs")]
    if not cards.cards:
        return [_judge_no_card("; ".join(cards.problems), vendors)]
    checks = []
    for card in cards.cards:
        found = f"{card.name}, {format_bytes(card.free_bytes)} of {format_bytes(card.total_bytes)} free"
        checks.append(Check("gpu", "ok", f"{found}, driver {card.driver_version}" if card.driver_version else found))
    return checks + [Check("gpu", "warning", problem, "see nvidia-smi") for problem in cards.problems]


def _judge_no_card(why: str, vendors: Set[str]) -> Check:
    others = ", ".join(sorted(vendors - {"Intel", "NVIDIA"}))  # nearly every Intel CPU has a display of its own
    if "hides every card" in why:
        return Check("gpu", "warning", why, "unset CUDA_VISIBLE_DEVICES")
    if "NVIDIA" in vendors:
        return Check(
            "gpu", "warning", f"an NVIDIA card, but {why}", "install its driver; nvidia-smi shows whether it runs"
        )
    if others:
        advice = "say what it has, as find-gguf --vram 16GB; for an engine that uses it: modelpipes build-engine"
        return Check("gpu", "warning", f"{others}: its memory is not read here", advice)
    if why.startswith(NO_DRIVER):
        return Check("gpu", "missing", why, "none is needed: models compute on the CPU, small ones well")
    return Check("gpu", "warning", why, "see nvidia-smi")
