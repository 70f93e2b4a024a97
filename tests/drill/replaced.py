"""Model files replaced between two loads: at temperature 0 the answer must be that of a fresh start.

    python -m tests.drill.replaced --rounds 20        # on every engine that this machine has

Each round: a real `serve-models` answers a long prompt, its model is unloaded, so that the conversation is kept, its
file is replaced by other weights of the same size and header, and the same prompt is asked again; beside it, of an
engine that has just been started. The file is replaced in turn by another under its name, and by being written over
with its time put back; while the model is not in memory, and while it is. At the end, as a proof that anything is
kept: the same without a replacement goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import PACKAGED_MODELS, EngineKind, engines
from modelpipes.values.deadline import Deadline
from tests.models import shuffled_model
from tests.serving.daemons import CTX_SIZE, LIMIT_S, Served

TINY_CHAT = PACKAGED_MODELS / "tiny-chat.gguf"
# Longer than what a template and a first token have in common with anything.
PROMPT = "Tell me of boats and trains, and of the little goat on the bridge. " * 8
ASKED = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0, "max_tokens": 24}
ALL_BUT_LAST = 0.8  # of a prompt: a conversation that goes on has more of it in its cache


def put_in_its_place(file: Path, other: Path) -> None:
    """As a download ends: another file under the name, of the same size and time."""
    found = file.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.rename(file)


def write_over(file: Path, other: Path) -> None:
    """The same file with other bytes, and its time put back."""
    found = file.stat()
    with open(file, "r+b") as target:
        target.write(other.read_bytes())
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.unlink()


@dataclass(frozen=True)
class Way:
    """How and when a file is replaced."""

    name: str
    replace: Callable[[Path, Path], None]
    is_resident: bool  # the model is in memory meanwhile


WAYS = (
    Way("another file under its name", put_in_its_place, False),
    Way("written over, its time put back", write_over, False),
    Way("another file under its name, in memory", put_in_its_place, True),
    Way("written over, its time put back, in memory", write_over, True),
)


@dataclass
class Found:
    """What the rounds of one engine have shown."""

    engine: str
    rounds: int = 0
    as_fresh: dict[str, list[bool]] = field(default_factory=dict)  # by way
    changed: int = 0  # answers that the other weights made another one: else nothing could be seen
    goes_on: bool = False  # where nothing was replaced

    @property
    def n_as_fresh(self) -> int:
        return sum(sum(found) for found in self.as_fresh.values())

    @property
    def holds(self) -> bool:
        return self.n_as_fresh == self.rounds and self.changed > 0 and self.goes_on

    def lines(self) -> list[str]:
        ways = [f"    {sum(found)} of {len(found)}: {name}" for name, found in self.as_fresh.items()]
        kept = "kept and gone on with" if self.goes_on else "NOT kept"
        return [
            f"{self.engine}: {self.n_as_fresh} of {self.rounds} answers are those of a fresh start",
            *ways,
            f"    {self.changed} of {self.rounds} answers changed with the weights; without a replacement: {kept}",
        ]


class Replacing(Served):
    """A serve-models with one model, whose file is replaced."""

    def __init__(self, base: Path, kind: EngineKind) -> None:
        super().__init__(base)
        self.kind: EngineKind = kind
        self.file = shuffled_model(self.cwd / "model.gguf", TINY_CHAT, 0)
        self.write({"model": self.file}, {"model": f'engine = "{kind}"'})
        self.start("--vram", "1GB")

    def answer(self) -> Any:
        return self.post("/v1/chat/completions", model="model", **ASKED)

    def unload(self) -> int:
        """How many conversations are kept then."""
        self.post("/models/model/unload")
        return sum(1 for folder in (Path(self.env["HOME"]) / ".cache").rglob("slots") for _ in folder.rglob("*.slot"))

    def fresh_answer(self) -> Any:
        """Of an engine that has just been started on the file as it is now."""
        with Engine(str(self.file), engine=self.kind, ctx_size=CTX_SIZE) as engine:
            engine.be_ready(Deadline.after(LIMIT_S))
            return engine.client().post("/v1/chat/completions", ASKED, LIMIT_S)

    def round(self, way: Way, seed: int) -> tuple[bool, bool]:
        """Whether the answer is that of a fresh start; whether it is another than before."""
        before = self.answer()
        other = shuffled_model(self.cwd / "other.gguf", TINY_CHAT, seed)
        if way.is_resident:
            way.replace(self.file, other)
            self.unload()
        else:
            assert self.unload() == 1, "no conversation was kept: nothing is tried here"
            way.replace(self.file, other)
        after, fresh = text_of(self.answer()), text_of(self.fresh_answer())
        return after == fresh, after != text_of(before)

    def goes_on(self) -> bool:
        """Whether a conversation does where the file stays as it is."""
        self.answer()
        self.unload()
        timings = self.answer()["timings"]
        cached: int = timings["cache_n"]
        read: int = timings["prompt_n"]
        return cached > (cached + read) * ALL_BUT_LAST


def text_of(answer: Any) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def replace_often(kind: EngineKind, rounds: int) -> Found:
    """So many rounds on one engine, the ways in turn."""
    found = Found(kind)
    with tempfile.TemporaryDirectory() as base, Replacing(Path(base) / "place", kind) as replacing:
        for number in range(1, rounds + 1):
            way = WAYS[(number - 1) % len(WAYS)]
            is_as_fresh, is_changed = replacing.round(way, number)
            found.rounds += 1
            found.as_fresh.setdefault(way.name, []).append(is_as_fresh)
            found.changed += is_changed
        found.goes_on = replacing.goes_on()
    return found


def kinds() -> list[EngineKind]:
    """Those of this machine's engines."""
    return sorted({binary.kind for _, binary in engines()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="on each engine")
    given = parser.parse_args()
    has_held = True
    for kind in kinds():
        found = replace_often(kind, given.rounds)
        print("\n".join(found.lines()), flush=True)
        has_held &= found.holds
    return 0 if has_held else 1


if __name__ == "__main__":
    sys.exit(main())
