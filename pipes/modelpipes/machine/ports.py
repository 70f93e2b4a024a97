"""Who listens on a port of this machine."""

from __future__ import annotations

import msgspec

from modelpipes.machine.kernel import read_text
from modelpipes.machine.processes import find_owner_of_socket, name_of

_LISTENS = "0A"  # TCP_LISTEN of the kernel's tcp_states.h


class Holder(msgspec.Struct, frozen=True):
    """Who has a port: the process where it could be seen, else at least its user."""

    pid: int | None = None
    name: str = ""
    user: int | None = None


def find_holder(port: int) -> Holder:
    """Who listens on a port of TCP, as far as it can be seen."""
    for name in ("tcp", "tcp6"):
        if listener := find_listener(read_text(f"/proc/net/{name}"), port):
            user, inode = listener
            pid = find_owner_of_socket(inode)
            return Holder(pid, name_of(pid) if pid else "", user)
    return Holder()


def find_listener(table: str, port: int) -> tuple[int, int] | None:
    """(user, inode) of the socket that listens on a port, in the text of /proc/net/tcp or tcp6. Pure."""
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
            return int(words[7]), int(words[9])
    return None
