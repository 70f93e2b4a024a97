"""A llama-server for the drill: the real engine behind a proxy that writes down every chat request.

    python recorder.py RECORD ENGINE… -- OPTIONS…

takes llama-server's options, starts ENGINE with them on another port, and passes everything on. Each
request for a chat is one line of JSON in RECORD, before the engine has it. Ends when the engine does.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading

from modelpipes.child import Child
from modelpipes.values.deadline import Deadline

CHUNK_BYTES = 65536


def main(arguments: list[str]) -> int:
    record, *rest = arguments
    engine, options = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    if "--help" in options:
        os.execvp(engine[0], [*engine, *options])
    at = options.index("--port") + 1
    listener = socket.create_server(("127.0.0.1", int(options[at])), backlog=32)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    with Child([*engine, *options[:at], str(port), *options[at + 1 :]], name="engine") as child:
        threading.Thread(target=_serve, args=(listener, port, record), daemon=True).start()
        code = child.wait(Deadline.never())
        print("\n".join(child.last_lines()), file=sys.stderr)
    return 1 if code < 0 else code


def _serve(listener: socket.socket, port: int, record: str) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_pass_on, args=(client, port, record), daemon=True).start()


def _pass_on(client: socket.socket, port: int, record: str) -> None:
    """One connection carries one request: members ask for that."""
    with client:
        try:
            request = _read_request(client)
            head, _, body = request.partition(b"\r\n\r\n")
            if b"/v1/chat/completions" in head.partition(b"\r\n")[0]:
                _write_down(record, body)
            with socket.create_connection(("127.0.0.1", port)) as engine:
                engine.sendall(request)
                watcher = threading.Thread(target=_close_with, args=(client, engine), daemon=True)
                watcher.start()
                while data := engine.recv(CHUNK_BYTES):
                    client.sendall(data)
        except OSError:
            pass  # either of them has gone, and the other will see it


def _close_with(client: socket.socket, engine: socket.socket) -> None:
    """A client that goes away stops the engine's work."""
    try:
        while client.recv(CHUNK_BYTES):
            pass
        engine.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _read_request(client: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(client)
    head = data.partition(b"\r\n\r\n")[0]
    lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    size = len(head) + 4 + (int(lengths[0].split(b":")[1]) if lengths else 0)
    while len(data) < size:
        data += _more(client)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close"]) + data[len(head) :]


def _more(client: socket.socket) -> bytes:
    if not (data := client.recv(CHUNK_BYTES)):
        raise ConnectionResetError
    return data


def _write_down(record: str, body: bytes) -> None:
    line = json.dumps(json.loads(body)).encode() + b"\n"
    descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
