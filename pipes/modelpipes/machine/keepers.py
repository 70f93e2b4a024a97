"""Whose a card's memory is: which model a process serves, and which of our seats or servers keeps it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from modelpipes.machine.processes import command_of, parent_of
from modelpipes.machine.watch import Gpu, Share

MAX_ANCESTORS = 64  # of a process, on the way up to its seat; an engine is two steps away from it
_SHARD = r"(?i)(-[0-9]{5}-of-[0-9]{5})?\.gguf$"


class Keeper(msgspec.Struct, frozen=True):
    """Which of our processes keeps an engine: the member in a seat, or the serve-models that listens somewhere."""

    seat: str | None = None
    room: str | None = None
    server: str | None = None


def name_shares(gpus: Iterable[Gpu], keepers: Mapping[int, Keeper]) -> tuple[Gpu, ...]:
    """The GPUs with the processes named: the model by the command line, seat or server by the nearest keeper above.

    `keepers` has our members and servers by pid.
    """
    return tuple(
        msgspec.structs.replace(
            each,
            processes=None
            if each.processes is None
            else tuple(_name_share(share, keepers) for share in each.processes),
        )
        for each in gpus
    )


def model_of(argv: Sequence[str]) -> str | None:
    """The name of the model that a server's command line tells: its alias, else its file's name. Pure."""
    is_llama = bool(argv) and os.path.basename(argv[0]).startswith("llama-")  # elsewhere -m and -a are something else
    told: dict[str, str] = {}
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        flag = {"-m": "--model", "-a": "--alias"}.get(flag, flag) if is_llama else flag
        if flag in ("--model", "--alias") and (value if equals else following):
            told[flag] = value if equals else following  # llama.cpp takes the last of two
    if "--alias" in told:
        return told["--alias"]
    return re.sub(_SHARD, "", os.path.basename(told["--model"].rstrip("/"))) or None if "--model" in told else None


def _name_share(share: Share, keepers: Mapping[int, Keeper]) -> Share:
    keeper = Keeper()
    pid: int | None = share.pid
    for _ in range(MAX_ANCESTORS):
        if pid is None or pid <= 1:
            break
        if pid in keepers:
            keeper = keepers[pid]
            break
        pid = parent_of(pid)
    return msgspec.structs.replace(
        share, model=model_of(command_of(share.pid)), seat=keeper.seat, room=keeper.room, server=keeper.server
    )
