"""What 0.1.0 kept is opened; what a later version keeps is refused in one line, and stays as it is.

The files are of tests/kept, which has been written by the programs themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from modelpipes.engine import builds, locate
from modelpipes.errors import EngineError
from modelpipes.lockfile import Lock
from modelpipes.pipe.room import Room
from modelpipes.values import formats
from modelpipes.values.formats import Format
from modelpipes.values.version import __version__
from tests.commands.conftest import Commands
from tests.commands.test_build_engine import NEEDED
from tests.serving.daemons import Served, write_models
from tests.shell import CHECKOUT, TINY_CHAT, Ended

KEPT = CHECKOUT / "tests" / "kept" / "0.1.0"
TRANSCRIPTS = {  # the turns, and what else the file must bring
    "talk": (15, {"dropped", "usage", "tokens_per_second"}),
    "failed": (3, {"voices"}),
    "timeout": (3, {'"stop":"timeout"', "max-seconds"}),
    "asked": (4, {'"members":["hub","dave"]'}),
}


def words(path: Path) -> list[str]:
    """What was said, by the file itself."""
    lines = map(json.loads, path.read_text().splitlines())
    return [line["content"] for line in lines if "turn" in line]


def refusal_of(kind: Format, where: str | Path) -> str:
    """What is said of a file of the version after ours."""
    return (
        f"{where}: {kind.name} of version {kind.version + 1}; this modelpipes ({__version__}) reads version "
        f"{kind.version}: use a newer modelpipes"
    )


@contextlib.contextmanager
def unchanged(*paths: Path) -> Iterator[None]:
    """Within, these files stay as they are, to the byte and the moment."""
    before = [(path.read_bytes(), os.stat(path).st_mtime_ns, os.stat(path).st_ino) for path in paths]
    yield
    assert [(path.read_bytes(), os.stat(path).st_mtime_ns, os.stat(path).st_ino) for path in paths] == before


@contextlib.contextmanager
def held(path: Path, says: bytes) -> Iterator[None]:
    """A lock file that somebody holds, and that says this."""
    with Lock.try_take(str(path)) or pytest.fail(f"{path} is held") as lock:
        lock.clear()
        lock.write(says)
        yield


# Transcripts


@pytest.fixture
def kept(run: Commands) -> Path:
    """Where the files of 0.1.0 are, to be written to."""
    shutil.copytree(KEPT, run.cwd / "kept")
    return run.cwd / "kept"


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_transcript_of_0_1_0_is_shown_whole(run: Commands, kept: Path, name: str) -> None:
    path = kept / f"{name}.jsonl"
    n_turns, has = TRANSCRIPTS[name]
    assert len(words(path)) == n_turns and all(each in path.read_text() for each in has)  # it is what it should be
    for form in ("json", "text", "markdown", "html"):
        done = run("show", str(path), "--format", form)
        assert (done.code, done.stderr) == (0, "")
    shown = json.loads(run("show", str(path), "--format", "json").stdout)
    assert [turn["content"] for turn in shown["turns"]] == words(path)
    turns = [line for line in map(json.loads, path.read_text().splitlines()) if "turn" in line]
    assert [{key: turn[key] for key in told} for turn, told in zip(shown["turns"], turns, strict=True)] == turns


def test_a_conversation_of_0_1_0_goes_on(run: Commands, kept: Path) -> None:
    path = kept / "talk.jsonl"
    before = path.read_bytes()
    resume = ("--rounds", "8", "--transcript", str(path), "--resume")
    assert run("chat", "--filter", "alice=cat", "--exec", "bob=cat", *resume).code == 0
    assert path.read_bytes().startswith(before)
    assert words(path)[15:] == [words(path)[14]] * 2  # each says what it heard last


def test_a_half_written_line_of_0_1_0_is_mended_and_a_turn_at_its_deadline_is_followed(
    run: Commands, kept: Path
) -> None:
    path = kept / "timeout.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"turn":3,"from":"alice","con')
    resume = ("--rounds", "2", "--transcript", str(path), "--resume")
    assert run("chat", "--exec", "alice=cat", "--exec", "bob=cat", *resume).code == 0
    assert words(path)[2:] == ["Thinking."] * 3


def newer_transcript(path: Path, *, turns: bool = True) -> Path:
    """With members in a form that only a later program knows."""
    header, *rest = path.read_bytes().replace(b'"version":1', b'"version":2', 1).splitlines(keepends=True)
    header = header.replace(b'"members":["alice","bob"]', b'"members":{"alice":{},"bob":{}}')
    path.write_bytes(header + b"".join(rest if turns else []))
    return path


def test_a_transcript_of_a_version_to_come_is_refused_and_stays(run: Commands, kept: Path) -> None:
    path = newer_transcript(kept / "talk.jsonl")
    refusal = refusal_of(formats.TRANSCRIPT, path)
    voices = ("--exec", "alice=cat", "--exec", "bob=cat", "--transcript", str(path))
    with unchanged(path):
        for form in ("json", "text"):
            assert run("show", str(path), "--format", form) == Ended(1, "", f"modelpipes show: {refusal}\n")
        assert run("chat", *voices, "--resume") == Ended(1, "", f"modelpipes chat: {refusal}\n")
    with open(path, "ab") as file:
        file.write(b'{"turn":15,"half')
    with unchanged(path):
        assert run("chat", *voices, "--resume") == Ended(1, "", f"modelpipes chat: {refusal}\n")


def test_one_that_a_later_program_has_only_begun_is_not_begun_again(run: Commands, kept: Path) -> None:
    path = newer_transcript(kept / "talk.jsonl", turns=False)
    with unchanged(path):
        done = run("chat", "--exec", "alice=cat", "--exec", "bob=cat", "--transcript", str(path))
        assert done == Ended(1, "", f"modelpipes chat: {refusal_of(formats.TRANSCRIPT, path)}\n")


def test_a_question_is_not_asked_for_a_transcript_of_a_version_to_come(run: Commands, kept: Path) -> None:
    path = newer_transcript(kept / "asked.jsonl")
    run.attach("dave", "--exec", "touch heard")
    with unchanged(path):
        done = run("ask", "dave", "Hello.", "--transcript", str(path))
        assert done == Ended(1, "", f"modelpipes ask: {refusal_of(formats.TRANSCRIPT, path)}\n")
    assert not (run.cwd / "heard").exists()


# The configuration


@pytest.mark.parametrize("name", ["rtx4080", "serve"])
def test_a_configuration_of_0_1_0_is_in_force_key_by_key(run: Commands, kept: Path, name: str) -> None:
    path = kept / f"{name}.toml"
    done = run("config", "show", "--config", str(path))
    assert (done.code, done.stderr) == (0, "")
    shown = tomllib.loads(done.stdout)
    for section, table in tomllib.loads(path.read_text()).items():
        for key, value in table.items():
            if (section, key) != ("server", "key"):  # which is not shown
                assert shown[section][key] == value or section in ("models", "use")
    assert set(shown.get("models", {})) == set(tomllib.loads(path.read_text()).get("models", {}))


def test_every_key_that_0_1_0_wrote_is_still_one(run: Commands, kept: Path) -> None:
    """Its example, with what is commented out in use."""
    path = kept / "rtx4080.toml"
    text = re.sub(r"^# key = .*\n", "", path.read_text(), flags=re.MULTILINE)
    path.write_text(re.sub(r"^# (?=[a-z_]+ = |\[)", "", text, flags=re.MULTILINE))
    done = run("config", "show", "--config", str(path))
    assert (done.code, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout)["models"]["qwen"]["file"].endswith("qwen2.5-7b-instruct-q6_k.gguf")


def test_a_configuration_of_a_version_to_come_is_refused_before_its_keys(run: Commands, kept: Path) -> None:
    path = kept / "serve.toml"
    path.write_text(f"version = 2\nplaces = ['here']\n{path.read_text()}")
    refusal = refusal_of(formats.CONFIGURATION, path)
    with unchanged(path):
        for command in (("config", "show"), ("find", str(TINY_CHAT)), ("serve",)):
            done = run(command[0], *command[1:], "--config", str(path))
            assert done == Ended(2, "", f"modelpipes {command[0]}: {refusal}\n")
    path.write_text(path.read_text().replace("version = 2\nplaces = ['here']", "version = 1"))
    assert run("config", "show", "--config", str(path)).code == 0


# Caches


def cache_of(run: Commands) -> Path:
    folder = Path(run.env["HOME"]) / ".cache" / "modelpipes"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find(run: Commands) -> Ended:
    return run("find", str(TINY_CHAT.parent), "--vram", "8GB", "--format", "json")


def test_a_cache_of_0_1_0_is_made_anew_and_its_folders_are_remembered(run: Commands, kept: Path) -> None:
    folder = cache_of(run)
    os.mkdir(run.cwd / "models")
    shutil.copy(TINY_CHAT, run.cwd / "models" / "other.gguf")
    shutil.copy(kept / "models.cache", folder)
    (folder / "folders").write_bytes(
        (kept / "folders").read_bytes().replace(b"/tmp/versions-corpus/work", os.fsencode(run.cwd))
    )
    cold = run("find", str(TINY_CHAT.parent), "--vram", "8GB", "--format", "json", "--no-cache")
    assert find(run) == Ended(0, cold.stdout, "")
    assert (folder / "models.cache").read_bytes().startswith(b"modelpipes cache 1 ")
    assert (folder / "folders").read_bytes().split(b"\0")[:2] == [
        os.fsencode(TINY_CHAT.parent), os.fsencode(run.cwd / "models"),
    ]  # fmt: skip
    assert run("fit", "other", "--vram", "8GB").code == 0  # found by its name alone


def test_caches_of_a_version_to_come_are_left_alone_and_work_goes_on_without(run: Commands) -> None:
    known = find(run)
    assert known.code == 0 and known.stderr == ""
    cache, folders = cache_of(run) / "models.cache", cache_of(run) / "folders"
    cache.write_bytes(cache.read_bytes().replace(b"cache 1 ", b"cache 2 ", 1))
    folders.write_bytes(b"modelpipes folders 2\0/nowhere\0")
    told = f"{refusal_of(formats.MODEL_CACHE, cache)}\n{refusal_of(formats.FOLDERS, folders)}\n"
    with unchanged(cache, folders):
        assert find(run) == Ended(0, known.stdout, told)
        assert run("find", str(TINY_CHAT.parent), "--vram", "8GB", "--format", "json", "--no-cache").stderr == ""
        assert run("fit", str(TINY_CHAT), "--vram", "8GB").stderr == run("fit", "tiny-chat", "--vram", "8GB").stderr


# Records of what runs


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "served") as served:
        served.write(write_models(served.cwd, ["alpha"]))
        served.start("--vram", "1GiB")
        yield served


def record_of(served: Served) -> Path:
    (path,) = (served.runtime / "modelpipes" / "serve").glob("*.json")
    return path


def test_a_daemon_is_found_by_a_record_of_0_1_0_and_refused_by_one_of_a_version_to_come(served: Served) -> None:
    path = record_of(served)
    ours = json.loads(path.read_bytes())
    theirs = json.loads((KEPT / "daemon.json").read_bytes())
    path.write_bytes(json.dumps(theirs | {key: ours[key] for key in ("pid", "listen", "config", "key")}).encode())
    done = served.run(served.command("serve", "load", "alpha", "--json"))
    assert (done.code, json.loads(done.stdout)["state"]) == (0, "ready")
    path.write_bytes(json.dumps({"format": 2, "pids": [ours["pid"]], "listen": {"port": 1}}).encode())
    refusal = f"modelpipes serve: {refusal_of(formats.DAEMON, path)}\n"
    with unchanged(path):
        for where in ((), ("--listen", served.listen)):
            assert served.run(served.command("serve", "status", *where)) == Ended(1, "", refusal)
            assert served.run(served.command("serve", "load", "alpha", *where)) == Ended(1, "", refusal)
        other = served.run(served.command("serve", "status", "--listen", "127.0.0.1:1"))
        assert other.code == 1 and "no serve-models runs on 127.0.0.1:1" in other.stderr
        second = served.run(served.command("serve", str(served.config), "--listen", served.listen))
        assert second.code == 2 and "another serve-models listens on" in second.stderr
        looked = served.run(served.command("gpu", "--system", "--per-process"))
        assert refusal not in looked.stderr  # who asks nothing of it goes on


def test_a_member_of_0_1_0_is_listed_and_one_of_a_version_to_come_refused(run: Commands, kept: Path) -> None:
    assert run("setup", "dave", "erin").code == 0
    room, line = Room(run.room.path), (kept / "seat.lock").read_bytes()
    lock = Path(room.seat_lock("dave"))
    with held(lock, line):
        (dave,) = json.loads(run("seats", "dave", "--json").stdout)
        assert dave == {**json.loads(line), "queue": 0, "about": None, "loading": None}
        assert run("seats", "--wait", "dave").code == 0
    newer = b'{"seat":"dave","state":{"of":"mind"},"format":2}\n'
    refusal = Ended(1, "", f"modelpipes seats: {refusal_of(formats.SEAT, lock)}\n")
    with held(lock, newer):
        assert run("seats") == run("seats", "--wait", "dave", "--timeout", "20") == refusal
        assert run("seats", "erin").code == 0
        assert lock.read_bytes() == newer
    assert run("cleanup").code == 0  # one that has died has nothing to keep
    assert not lock.exists()


# Builds


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data" / "modelpipes" / "engines"


def put_build(change: Callable[[dict[str, object]], Mapping[str, object]] = lambda record: record) -> Path:
    """The build of 0.1.0, as its record has it, or otherwise; the record."""
    path = Path(builds.new_folder("unknown-cpu"))
    server = path / "bin" / "llama-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    record = path / "build.json"
    record.write_text(json.dumps(change(json.loads((KEPT / "build.json").read_bytes()))))
    os.symlink(path.name, Path(builds.folder(), "unknown-cpu"))
    return Path(builds.folder(), "unknown-cpu", "build.json")


def test_a_build_of_0_1_0_is_there(data: Path) -> None:
    put_build()
    (found,) = builds.builds()
    assert (found.name, found.tokens_per_second, found.format) == ("unknown-cpu", 4432.6, 1)
    assert found.options[0] == "-DCMAKE_BUILD_TYPE=Release" and "avx2" in found.cpu_features
    assert builds.refusals() == []


@pytest.fixture
def tree(run: Commands, data: Path) -> Path:
    """A source tree of llama.cpp's shape, which no compiler takes."""
    run.env |= {"XDG_DATA_HOME": os.environ["XDG_DATA_HOME"], "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
    tree = run.cwd / "source"
    (tree / "ggml").mkdir(parents=True)
    (tree / "CMakeLists.txt").write_text('cmake_minimum_required(VERSION 3.14)\nproject("llama.cpp" C)\nmistake()\n')
    return tree


def made(run: Commands, tree: Path, *arguments: str) -> Ended:
    return run("build-engine", "--source", str(tree), "--variant", "cpu", *arguments)


@NEEDED
def test_a_build_of_a_version_to_come_is_told_of_not_used_and_not_replaced(run: Commands, tree: Path) -> None:
    record = put_build(lambda record: record | {"format": 2, "variant": ["cpu"]})
    refusal = refusal_of(formats.BUILD, record)
    assert builds.builds() == [] and builds.refusals() == [refusal]
    with unchanged(record):
        done = made(run, tree)
        assert done.code == 1 and done.stdout == ""
        assert done.stderr.endswith(
            f"build-engine: {refusal}, or remove the build first: modelpipes build-engine --remove unknown-cpu\n"
        )
        listed = run("build-engine", "--list", LLAMA_SERVER="/bin/false")
        assert f"build-engine: {refusal}\n" in listed.stderr and "unknown-cpu" not in listed.stdout
        told = {
            "name": "engine",
            "state": "warning",
            "found": refusal.rpartition(": ")[0],
            "advice": "use a newer modelpipes",
        }
        assert told in json.loads(run("check", "--json").stdout)["checks"]
        with pytest.raises(EngineError, match=re.escape(refusal)):
            locate.find_engine("llama-server")
    assert run("build-engine", "--remove", "unknown-cpu").code == 0
    assert builds.refusals() == []


@NEEDED
def test_a_build_under_way_of_0_1_0_goes_on_and_one_of_a_version_to_come_is_left_alone(
    run: Commands, tree: Path
) -> None:
    (configure, _) = json.loads(made(run, tree, "--dry-run", "--json").stdout)["commands"]
    then = json.loads((KEPT / "build-tree.json").read_bytes())
    assert {type(word) for word in then} == {str} and then[1] == configure[1] == "-S"  # words, as ours
    note = Path(configure[configure.index("-B") + 1]) / "modelpipes.json"
    compiled = note.parent / "compiled"
    compiled.mkdir(parents=True)
    note.write_text(json.dumps(configure))
    with unchanged(note):
        assert "cmake failed" in made(run, tree).stderr
    assert compiled.is_dir()
    note.write_text(json.dumps({"format": 2, "command": configure}))
    with unchanged(note):
        done = made(run, tree)
        assert done.code == 1
        assert done.stderr.endswith(f"{refusal_of(formats.BUILD_TREE, note)}, or remove {note.parent}\n")
    assert compiled.is_dir()
