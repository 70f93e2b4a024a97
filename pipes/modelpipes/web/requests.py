"""One short request and its whole answer, and what is said where none comes."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelpipes.errors import DeadlineError, EngineError, PipesError
from modelpipes.terminal.safetext import make_line
from modelpipes.web.site import Site
from modelpipes.web.stream import Stream

NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")  # OpenSSL's reasons for what plain HTTP says
# X509_V_ERR_* of OpenSSL's x509_vfy.h: nobody who is trusted here has signed the certificate, or its chain.
UNTRUSTED = (2, 18, 19, 20, 21)


@dataclass(frozen=True)
class Response:
    """A whole answer."""

    status: int
    content_type: str
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """What the body says; ValueError where it is no JSON."""
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None


def exchange(
    site: Site, method: str, page: str, body: bytes | None = None, *, headers: Mapping[str, str], limit_s: float
) -> Response:
    """Ask a server; EngineError where it cannot be spoken to, DeadlineError after a silence of `limit_s`."""

    def explain(error: Exception) -> PipesError:
        if isinstance(error, TimeoutError):
            return DeadlineError(f"the server at {site.root} did not answer {page} for {limit_s:g} s")
        return EngineError(explain_transport(site.root, error))

    with Stream(site, explain) as stream:
        stream.send(method, page, body, headers, connect_s=limit_s, silence_s=limit_s)
        return Response(stream.status, stream.content_type, stream.read_all())


def explain_transport(root: str, error: Exception) -> str:
    """One line for a request that did not come through."""
    if isinstance(error, ConnectionRefusedError | TimeoutError | socket.gaierror):
        return f"no server answers at {root}: is it running?"
    if isinstance(
        error, ConnectionError | http.client.IncompleteRead | http.client.RemoteDisconnected | ssl.SSLEOFError
    ):
        return f"the server at {root} closed the connection"
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_certificate(root, error)
    if isinstance(error, ssl.SSLError) and error.reason in NO_TLS:
        return f"the server at {root} does not speak TLS: ask at http{root.removeprefix('https')}"
    return f"the server at {root} cannot be spoken to: {make_line(str(error)) or type(error).__name__}"


def _explain_certificate(root: str, error: ssl.SSLCertVerificationError) -> str:
    why = make_line(error.verify_message.rstrip("."))
    if error.verify_code not in UNTRUSTED:
        return f"the certificate of the server at {root} is not valid: {why}"
    named = os.environ.get("SSL_CERT_FILE", "")
    if named and not os.path.isfile(named):  # which OpenSSL passes over
        advice = f"$SSL_CERT_FILE names {make_line(named)}, which is no file"
    elif named:
        advice = f"$SSL_CERT_FILE names {make_line(named)}, which does not have it: name one that does"
    else:
        advice = "name the file of the certificate, or of its CA, in $SSL_CERT_FILE"
    return f"the certificate of the server at {root} is signed by nobody trusted here ({why}): {advice}"
