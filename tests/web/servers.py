"""A server that does what its test says, one connection after the other."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

LIMIT_S = 20.0  # of anything that a test waits for


class Server:
    """`act` is called with each connection once its request's head has come, and closes it by returning."""

    def __init__(self, listening: socket.socket, url: str) -> None:
        self.url = url
        self.heads: list[bytes] = []
        self.speaks_first = False  # before it was asked anything
        self.act: Callable[[socket.socket], object] = lambda connection: None
        self.released = threading.Event()  # for an `act` that holds its connection
        self._listening = listening
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def say(self, *parts: bytes) -> None:
        """Answer with these bytes, from now on."""
        self.act = lambda connection: connection.sendall(b"".join(parts))

    def hold(self, *parts: bytes) -> None:
        """Answer with these bytes and then nothing, until the test ends."""

        def act(connection: socket.socket) -> None:
            connection.sendall(b"".join(parts))
            self.released.wait(LIMIT_S)

        self.act = act

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                head = b""
                while not self.speaks_first and b"\r\n\r\n" not in head and (piece := connection.recv(65536)):
                    head += piece
                self.heads.append(head)
                with contextlib.suppress(OSError):  # clients that go away are what is tested
                    self.act(connection)

    def close(self) -> None:
        self.released.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """One on a port of this machine."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(listening, f"http://127.0.0.1:{listening.getsockname()[1]}")
    try:
        yield server
    finally:
        server.close()


def answer(body: bytes, kind: str = "application/json", status: int = 200) -> bytes:
    head = f"HTTP/1.1 {status} Said\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def certificate(folder: Path, name: str = "IP:127.0.0.1", *, days: int = 1) -> tuple[Path, ssl.SSLContext]:
    """A certificate that signs itself, and what serves with it; `days` from now it ends."""
    made, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
    subject = ["-subj", "/CN=modelpipes test", "-addext", f"subjectAltName={name}", "-days", str(days)]
    subprocess.run([*command, *subject, "-keyout", key, "-out", made], check=True, capture_output=True, timeout=LIMIT_S)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return made, context
