"""Model files with something broken in them, given to the commands that predict what they take.

    python -m tests.fit.test_mutants 10000 [SEED]

runs longer than the test does. Whatever is broken, a command ends with an exit code of ours and one line.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from modelpipes import commands
from modelpipes.pipe.room import Room
from tests.fit.shapes import SHAPES, Model, encode_header
from tests.gguf.make import File, llama_entries, llama_tensors
from tests.gguf.test_mutations import mutated

COUNT = 150
LIMIT_S = 30.0  # of one command: what takes so long has no end
SHAPE_NAMES = ("llama-3.2-1b", "qwen3-0.6b", "gemma-2-9b", "gpt-oss-20b", "falcon-mamba-7b", "deepseek-v2-lite")
# It lists what every llama-server has, and serves nothing: these files shall be judged before an engine is.
NUMBERS = (0, 1, 2, 3, 5, 63, 64, 127, 255, 256, 257, 4095, 65535, 1 << 20, 1 << 31, (1 << 32) - 1)
ENGINE = """#!/bin/sh
[ "$1" = --help ] && printf -- '-m, --model FNAME  model path to load\\n' && exit 0
[ "$1" = --list-devices ] && exit 0
echo 'error: this engine serves nothing' >&2
exit 1
"""


def lines_of(path: str, room: str) -> dict[str, list[str]]:
    """By verb, the arguments that make a command judge a model file, and no more."""
    return {
        "fit": [path, path, "--vram=16GB"],
        "chat": [f"--model=a={path}", "--model=b=tiny-chat", "--turns=moderator", "--moderator=nobody"],
        "attach": ["bob", f"--model={path}", f"--dir={room}"],
    }


def mutants(count: int, seed: int, path: Path) -> Iterator[int]:
    """Write one mutant after another to a path; the number of each."""
    rng = random.Random(seed)
    small = File(llama_entries(), llama_tensors())
    models = [SHAPES[name]() for name in SHAPE_NAMES]
    for number in range(count):
        model = rng.choice(models)
        if number % 3:
            data: bytes | bytearray = encode_header(lying(model, rng))
        elif number % 2:
            data = mutated(header := encode_header(model), len(header), rng)
        else:
            data = mutated(bytes(small), len(small.header), rng)
        with path.open("wb") as file:
            file.write(data)
            file.truncate(max(len(data), 64 << 30))  # where the data would be, a hole
        yield number


def lying(model: Model, rng: random.Random) -> Model:
    """A model with other numbers among its hyper-parameters, or without some of its tensors."""
    metadata = dict(model.metadata)
    numbers = [key for key, value in metadata.items() if isinstance(value, int | float)]
    for key in rng.sample(numbers, rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.1:
            del metadata[key]
        elif isinstance(metadata[key], float):
            metadata[key] = rng.choice((0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan")))
        else:
            metadata[key] = rng.choice((*NUMBERS, rng.randrange(1 << 32), rng.randrange(300)))
    tensors = [tensor for tensor in model.tensors if rng.random() > rng.choice((0.0, 0.0, 0.0, 0.1))]
    return replace(model, metadata=metadata, tensors=tensors)


def judge(count: int, seed: int) -> dict[str, dict[str, float]]:
    """Give mutants to every command, in this process: exit codes, and the slowest in seconds, by verb."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "llama-server"
        engine.write_text(ENGINE)
        engine.chmod(0o755)
        os.environ["LLAMA_SERVER"] = str(engine)
        room = Room.make(f"{folder}/room", ["bob"])
        path = Path(folder) / "mutant.gguf"
        for number in mutants(count, seed, path):
            for verb, arguments in lines_of(str(path), room.path).items():
                began = time.perf_counter()
                faulthandler.dump_traceback_later(LIMIT_S, exit=True)
                code, said = run(verb, arguments)
                faulthandler.cancel_dump_traceback_later()
                took = time.perf_counter() - began
                assert code in (0, 1, 2), (verb, number, code, said)
                assert code == 0 or (verb == "fit" and "\n" in said) or said.count("\n") == 1, (verb, number, said)
                figures = found.setdefault(verb, {"slowest_s": 0.0})
                figures["slowest_s"] = max(figures["slowest_s"], round(took, 3))
                figures[str(code)] = figures.get(str(code), 0) + 1
    return found


def run(verb: str, arguments: list[str]) -> tuple[int, str]:
    """A command in this process: its exit code, and what it said on stderr."""
    kept = os.dup(1), os.dup(2)
    said, nowhere = os.memfd_create("said"), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(said, 2)
    try:
        code = commands.run_verb(verb, arguments, verb)
    finally:
        for descriptor, number in zip(kept, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        text = os.pread(said, os.fstat(said).st_size, 0).decode()
        os.close(said)
        os.close(nowhere)
    return code, text


def test_no_mutation_of_a_good_file_breaks_a_command_that_judges_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fit.test_mutants", str(COUNT)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["pipes", "."])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) == {"fit", "chat", "attach"}
    assert figures["chat"]["1"] > COUNT / 10  # there were files to refuse
    assert figures["chat"]["2"] > COUNT / 10  # and files to let through


if __name__ == "__main__":
    print(json.dumps(judge(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
