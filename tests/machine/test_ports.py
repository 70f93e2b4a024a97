from __future__ import annotations

import os
import socket

from modelpipes.machine.ports import find_holder, find_listener

# /proc/net/tcp of a machine where root has port 2024 and user 1000 has 9090, with a connection to it.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:07E8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1145 1 00000000651afbea
   1: 0100007F:2382 0100007F:9C40 01 00000000:00000000 00:00000000 00000000  1001        0 7777 1 0000000000000000
   2: 0100007F:2382 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0000000000000000
"""


def test_who_listens_is_read_from_the_kernels_table() -> None:
    assert find_listener(TCP, 9090) == (1000, 4242)
    assert find_listener(TCP, 9091) is None
    assert find_listener("", 9090) is None


def test_who_listens_on_a_port_of_ours_is_found_with_the_name_of_its_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        holder = find_holder(server.getsockname()[1])
    with open("/proc/self/comm") as file:
        assert (holder.pid, holder.name, holder.user) == (os.getpid(), file.read().strip(), os.getuid())
