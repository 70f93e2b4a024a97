"""A plan as command lines of llama-server, to be pasted into a shell."""

from __future__ import annotations

import os
import shlex

from modelpipes.commands.views.plan import View
from modelpipes.fit.plan import Planned
from modelpipes.terminal import output

HOST = "127.0.0.1"
FIRST_PORT = 8081  # 8080 is every other server's


def write(view: View) -> None:
    """Write to stdout a command line for each model."""
    for number, (model, path) in enumerate(zip(view.plan.models, view.paths, strict=True)):
        words = command_words(model, path, FIRST_PORT + number, len(view.cards))
        output.write_text(" ".join(map(_quoted, words)) + "\n")


def command_words(model: Planned, path: str, port: int, n_cards: int) -> list[str]:
    """The command line of one engine, which leaves nothing of the plan to llama-server."""
    settings = model.settings
    words = ["llama-server", "-m", path, "--fit", "off", "-c", str(settings.n_ctx), "-np", str(settings.n_parallel)]
    if settings.n_parallel > 1:
        words += ["--kv-unified"]
    words += ["-ngl", str(model.gpu_layers), "-ctk", settings.type_k, "-ctv", settings.type_v]
    words += ["-fa", "on" if settings.flash_attn else "off"]
    if settings.cpu_moe:
        words += ["--cpu-moe"]
    if n_cards > 1:  # llama.cpp counts the cards that it sees; a single one needs no name
        words += ["-dev", ",".join(f"CUDA{device}" for device in model.devices)]
    if settings.tensor_split:
        words += ["-ts", ",".join(f"{share:.0f}" for share in settings.tensor_split)]
    return [*words, "--host", HOST, "--port", str(port)]


def _quoted(word: str) -> str:
    """A word for the shell; what cannot be printed in the notation of POSIX.1-2024, which bash has had for long."""
    if word.isprintable():
        return shlex.quote(word)
    plain = (f"\\{byte:03o}" if not 0x20 <= byte < 0x7F or byte in b"\\'" else chr(byte) for byte in os.fsencode(word))
    return f"$'{''.join(plain)}'"
