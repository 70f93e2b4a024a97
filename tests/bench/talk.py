"""What a talk costs an engine, and what it does to what tiny-chat says; another checkout's build beside this one.

python -m tests.bench.talk                     the cache, the first token, tiny-chat's own check, cut turns
python -m tests.bench.talk --beside CHECKOUT   the same of the build there, in the same run
python -m tests.bench.talk --quick             does it run? The figures prove nothing

A relay stands before each engine and looks at what is asked: builds that do not tell what was cached are measured as
those that do. Both builds are given the same engines, one after the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from modelpipes.chat.speech import LabelCutter
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice
from modelpipes.errors import EngineError
from modelpipes.values.deadline import Deadline
from tests.bench.relay import Asked, relay
from tests.models import scripted_model
from tests.shell import CHECKOUT

SEATS = ("alice", "bob", "carol")
TURNS, RUNS, CASES, LONG = 30, 5, 200, 1000
QUICK = (6, 1, 4, 12)
EARLY = 5  # the turn that a late one is compared with
CTX_SIZE = 1024  # all that tiny-chat was trained for: 30 turns of at most 20 tokens
MAX_TOKENS = 20
# Of tiny-chat a third of the work is attention, which grows with what was said; of real models a few hundredths.
PAD_MIB = 256
REPLY = "abcdefghijklmnopqrst"  # letters: read again, they are the tokens that were said
LIMIT_S = 600.0
TINY_CHAT = CHECKOUT / "examples" / "tiny-chat"


def main() -> int:
    given = _arguments()
    builds = [("this build", CHECKOUT)] + ([("the other build", Path(given.beside).resolve())] if given.beside else [])
    turns, runs, cases, long = QUICK if given.quick else (TURNS, RUNS, CASES, LONG)
    with tempfile.TemporaryDirectory(prefix="modelpipes-bench-") as folder:
        weighty = str(scripted_model(Path(folder, "weighty.gguf"), list(REPLY), pad_mib=PAD_MIB))
        engines: tuple[EngineChoice, ...] = ("llama-server", "embedded")
        for choice, model in itertools.product(engines, ("tiny-chat", weighty)):
            what = "tiny-chat" if model == "tiny-chat" else f"a model of {PAD_MIB} MiB of weights"
            print(f"\n{turns} turns of three members on {choice}, {what}, {runs} runs", flush=True)
            for name, checkout in builds:
                try:
                    print(_cost(checkout, choice, model, turns, runs).told(name), flush=True)
                except EngineError as error:
                    print(f"  {name}: {error}")
    print(f"\ntiny-chat through chat-models, {cases} questions of each kind", flush=True)
    for name, checkout in builds:
        print(f"  {name}: {_check(checkout, cases)}", flush=True)
    print(f"\n{long} turns of three members, stop words kept from the engine", flush=True)
    for name, checkout in builds:
        print(f"  {name}: {_labels(checkout, long)}", flush=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", metavar="CHECKOUT", help="the same of the build there")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    return parser.parse_args()


# -- what a turn costs


class Cost:
    """What each turn of a member cost, from its second on, over several runs."""

    def __init__(self) -> None:
        self.shares: list[float] = []  # of what the engine had read or said, how much was still there
        self.reads: list[int] = []  # tokens of the prompt that were read
        self.first_ms: dict[int, list[float]] = {}  # by turn

    def add(self, asked: Sequence[Sequence[Asked]]) -> None:
        for seat, requests in enumerate(asked):
            for number, now in enumerate(requests):
                self.first_ms.setdefault(number * len(SEATS) + seat + 1, []).append(now.first_word_ms)
                if number:
                    before = requests[number - 1]
                    had = before.prompt_tokens + before.completion_tokens
                    self.shares.append(min(1.0, now.cached_tokens / had))
                    self.reads.append(now.prompt_tokens - now.cached_tokens)

    def told(self, name: str) -> str:
        last = max(self.first_ms)
        early, late = (median(self._around(turn)) for turn in (EARLY, last - 1))
        return (
            f"  {name}: from the cache {min(self.shares):.1%} at least, {median(self.shares):.1%} (median); "
            f"{median(self.reads):.0f} tokens read a turn (most {max(self.reads)}); first word {early:.2f} ms at turn "
            f"{EARLY}, {late:.2f} ms at turn {last - 1} ({late / early - 1:+.0%})"
        )

    def _around(self, turn: int) -> list[float]:
        """Of one round, so that each member has its part in it."""
        return [ms for near in (turn - 1, turn, turn + 1) for ms in self.first_ms.get(near, [])]


def _cost(checkout: Path, choice: EngineChoice, model: str, turns: int, runs: int) -> Cost:
    cost = Cost()
    for run in range(runs):
        with _engines(choice, model) as (urls, asked):
            _chat(checkout, urls, turns // len(SEATS), run)
            cost.add(asked)
    return cost


@contextmanager
def _engines(
    choice: EngineChoice, model: str = "tiny-chat", *, drops_stop: bool = False
) -> Iterator[tuple[dict[str, str], list[list[Asked]]]]:
    ctx_size = CTX_SIZE if model == "tiny-chat" else 2 * CTX_SIZE
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        asked = []
        for seat in SEATS:
            engine = stack.enter_context(Engine(model, ctx_size=ctx_size, threads=1, engine=choice))
            engine.be_ready(Deadline.after(LIMIT_S))
            urls[seat], requests = stack.enter_context(relay(engine.base_url, engine.api_key, drops_stop=drops_stop))
            asked.append(requests)
        yield urls, asked


def _chat(checkout: Path, urls: dict[str, str], rounds: int, seed: int) -> list[dict[str, object]]:
    """Let three talk; the turns as the command prints them. All builds are told the same system text."""
    argv = [f"--server={seat}={url}" for seat, url in urls.items()]
    argv += [f"--system={seat}=You are {seat}." for seat in urls]
    argv += [
        f"--max-tokens={MAX_TOKENS}",
        "--temperature=0.7",
        f"--seed={seed}",
        "--opening=Let us talk about the sea.",
    ]
    return _run(checkout, "chat-models", *argv, f"--rounds={rounds}", "--json")


def _run(checkout: Path, command: str, *argv: str, room: str | None = None) -> list[dict[str, object]]:
    environment = {**os.environ, **({"PIPE_DIR": room} if room else {})}
    environment.pop("PYTHONPATH", None)
    process = subprocess.run(
        [str(checkout / "bin" / command), *argv], capture_output=True, text=True, timeout=LIMIT_S, env=environment
    )
    if process.returncode:
        raise EngineError(f"{command} ended with {process.returncode}: {process.stderr.strip()[-400:]}")
    return [json.loads(line) for line in process.stdout.splitlines()]


# -- what tiny-chat says


def _check(checkout: Path, count: int) -> str:
    """The check that tiny-chat was trained by, its question the opening of a talk of two, and of three."""
    sys.path.insert(0, str(TINY_CHAT))
    import check  # type: ignore[import-not-found]

    kinds = ("topic word taken up", "word repeated")
    shares = []
    for seats in (SEATS[:2], SEATS):
        with _seated(checkout, seats) as room:
            for kind in kinds:
                rng = random.Random(4242)
                right = 0
                for _ in range(count):
                    (*_, question), is_right = check.CASES[kind](rng)
                    argv = [*seats, "--rounds=1", "--json", f"--opening={question['content']}"]
                    turns = _run(checkout, "chat-models", *argv, room=room)
                    right += bool(is_right(turns[1]["content"]))
                shares.append(f"{kind} {right / count:.1%} ({len(seats)} members)")
    return ", ".join(shares)


@contextmanager
def _seated(checkout: Path, seats: Sequence[str]) -> Iterator[str]:
    """A room in which tiny-chat sits in these seats, told who it is as each build does by itself, or else by us."""
    with tempfile.TemporaryDirectory(prefix="modelpipes-bench-") as folder:
        room = os.path.join(folder, "room")
        subprocess.run([str(checkout / "bin" / "setup-pipes"), "-d", room, *seats], check=True, capture_output=True)
        tells_itself = (checkout / "docs" / "told.md").exists()
        members = []
        try:
            for seat in seats:
                argv = [str(checkout / "bin" / "attach-model"), seat, "-d", room, "--model=tiny-chat"]
                argv += [] if tells_itself else [f"--system=You are {seat}."]
                members.append(subprocess.Popen([*argv, "--temperature=0.7", "--threads=1"]))
            wait = [str(checkout / "bin" / "list-seats"), "--wait", *seats, "-d", room, "--timeout=60"]
            subprocess.run(wait, check=True, timeout=LIMIT_S)
            yield room
        finally:
            for member in members:
                member.terminate()
            for member in members:
                member.wait(LIMIT_S)


def _labels(checkout: Path, turns: int) -> str:
    """How many turns begin a line with another's name, and how many were cut before one."""
    with _engines("auto", drops_stop=True) as (urls, _):
        said = _chat(checkout, urls, -(-turns // len(SEATS)), 1)[1:]
    others = {seat: [name for name in (*SEATS, "hub") if name != seat] for seat in SEATS}
    named = sum(_has_label(str(turn["content"]), others[str(turn["from"])]) for turn in said)
    cut = sum(bool(turn.get("is_cut")) for turn in said)
    return f"{named} of {len(said)} have another's name before a line, {cut} were cut ({cut / len(said):.1%})"


def _has_label(text: str, names: Sequence[str]) -> bool:
    cutter = LabelCutter(names)
    cutter.feed(text)
    return cutter.is_cut or bool(re.search(rf"^(?:{'|'.join(names)}):", text, re.MULTILINE))


if __name__ == "__main__":
    sys.exit(main())
