"""serve-models: whether it runs, whether its port is free, and the extras that can be installed."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Collection, Sequence

from modelpipes.machine.checks import Check
from modelpipes.machine.ports import Holder, find_holder

EXTRAS = {  # of pyproject.toml: what is imported
    "check": ("gguf", "numpy"),
    "embedded": ("xllamacpp",),
    "serve": ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop"),
}


def judge_daemons(daemons: Sequence[tuple[int, str]]) -> list[Check]:
    """`daemons` are (pid, address) of the serve-models that run."""
    if not daemons:
        return [Check("daemon", "ok", "no serve-models runs")]
    return [Check("daemon", "ok", f"serve-models on {listen} (pid {pid})") for pid, listen in daemons]


def check_port(listen: str, daemons: Sequence[tuple[int, str]]) -> list[Check]:
    """Whether its address is free; nothing where it is no port."""
    host, _, port = listen.rpartition(":")
    if host.startswith("unix"):
        return []
    error_text, holder = "", Holder()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended bar nobody
            probe.bind((host.strip("[]"), int(port)))
    except OSError as error:
        error_text = (error.strerror or str(error)).lower()
        holder = find_holder(int(port))
    return [judge_port(listen, error_text, holder, daemons)]


def judge_port(listen: str, error: str, holder: Holder, daemons: Sequence[tuple[int, str]]) -> Check:
    """`error` is why the default address of serve-models cannot be had, "" where it can; `holder` is who has it."""
    if not error:
        return Check("port", "ok", f"{listen} is free")
    if any(address == listen for _, address in daemons):
        return Check("port", "ok", f"{listen} is serve-models' own")
    found = f"{listen}: {error}"
    if holder.pid:
        found = f"{listen} is taken by {holder.name or 'a process'} (pid {holder.pid})"
    elif holder.user is not None:
        found = f"{listen} is taken by a process of user {holder.user}"
    return Check("port", "warning", found, "choose another address: serve-models --listen 127.0.0.1:9091")


def check_extras() -> list[Check]:
    """Whether what each extra imports is here."""
    return [
        judge_extra(extra, [name for name in modules if importlib.util.find_spec(name) is None])
        for extra, modules in EXTRAS.items()
    ]


def judge_extra(extra: str, missing: Collection[str]) -> Check:
    """`missing` are the modules of an extra that cannot be found."""
    is_for = {"check": "find-gguf --check-data", "embedded": "the engine as a wheel", "serve": "serve-models"}[extra]
    if not missing:
        return Check("extra", "ok", f"{extra} ({is_for})")
    names = ", ".join(sorted(missing))
    return Check(
        "extra",
        "missing",
        f"{extra} ({is_for}): no {names}",
        f"install modelpipes with its extra {extra}: pip install '.[{extra}]'",
    )
