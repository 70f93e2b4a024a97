"""Every row of "Their word, ours", docs/reference.md, typed as it stands."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.machine.driver import build_driver
from tests.shell import BIN, CHECKOUT, TINY_CHAT, Ended, Home
from tests.their_words import Row, rows

COMMANDS = [row for row in rows() if not row.is_key]
KEYS = [row for row in rows() if row.is_key]
ADDRESS = "127.0.0.1:8090"
MARK = "-- row "  # in the output, before that of each row
THEIR_PROGRAMS = (
    "setup_pipes.sh", "cleanup_pipes.sh", "model1_comm.pl", "model2_comm.pl", "find_gguf_files.pl", "monitor_gpu.pl",
    "llcuda infer", "llcuda serve", "vramcram-cli", "make demo",
)  # fmt: skip


@dataclass(frozen=True)
class Typed:
    """All rows typed into one shell."""

    home: Home
    ended: Ended
    left_out: tuple[Row, ...]

    def said(self, ours: str) -> list[str]:
        """What the row whose line begins so wrote to stdout."""
        (number,) = [number for number, row in enumerate(COMMANDS) if row.ours.startswith(ours)]
        if COMMANDS[number] in self.left_out:
            pytest.skip("what it needs is not here")
        _, _, said = self.ended.stdout.partition(f"{MARK}{number}\n")
        return said.split(MARK)[0].splitlines()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The folder of a library that plays the driver of a card."""
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return None
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory, driver: Path | None) -> Typed:
    """The rows, from top to bottom, with what the text before the table wants; it stops at the first that fails."""
    home = Home(tmp_path_factory.mktemp("typed"))
    models = Path(home.env["HOME"]) / "models"
    models.mkdir()
    (models / "tiny-chat.gguf").symlink_to(TINY_CHAT)
    page = (CHECKOUT / "docs" / "serving.md").read_text("utf-8")
    (home.cwd / "models.toml").write_text(page.split("cat >models.toml <<'END'\n")[1].split("END\n")[0])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    script, left_out = ["set -eu"], []
    for number, row in enumerate(COMMANDS):
        line = row.ours.replace(ADDRESS, address)
        program = line.split()[0]
        if program == "watch-gpu":
            line = f"LD_LIBRARY_PATH={driver} {line}"
        if program == "make":
            line = f"(cd '{CHECKOUT}' && {line})"
        if not shutil.which(program, path=f"{BIN}:{os.environ['PATH']}") or (program == "watch-gpu" and not driver):
            left_out.append(row)
        else:
            script += [f"echo '{MARK}{number}'", f"echo '{MARK}{number}' >&2", line]
    script += [f"echo '{MARK}'", "kill $!", "wait", "cleanup-pipes", "cleanup-pipes -d talk"]
    path = home.cwd.parent / "rows.sh"
    path.write_text("\n".join(script) + "\n", "utf-8")
    environment = {"PATH": f"{BIN}:{os.environ['PATH']}", "MAKEFLAGS": ""}
    return Typed(home, home.run(["sh", path], env=environment), tuple(left_out))


def test_every_line_runs_and_leaves_nothing_behind(typed: Typed) -> None:
    assert typed.ended.code == 0, f"{typed.ended.stdout}\n{typed.ended.stderr}"
    assert "Traceback" not in typed.ended.stderr
    assert typed.home.left_processes() == []
    assert typed.home.left_files() == []


def test_the_table_has_what_people_come_from() -> None:
    theirs = " ".join(row.theirs for row in rows())
    assert [program for program in THEIR_PROGRAMS if program not in theirs] == []
    assert len({row.ours for row in rows()}) == len(rows())


def test_as_many_seats_as_were_asked_for_begin_with_the_prefix(typed: Typed) -> None:
    names = [os.path.basename(path) for path in typed.said("setup-pipes --num 3 --prefix llm")]
    assert names == [name for seat in ("llm1", "llm2", "llm3") for name in (f"hub_to_{seat}", f"{seat}_to_hub")]


def test_the_models_have_pipes_between_each_other_under_the_ancestors_names(typed: Typed) -> None:
    names = {os.path.basename(path) for path in typed.said("setup-pipes --num 2 --mesh")}
    assert {"model1_to_model2", "model2_to_model1"} < names


def test_who_listens_answers_who_sends(typed: Typed) -> None:
    assert typed.said("echo Hello") == ["HELLO"]
    assert typed.said("attach-model model1") == ["2"]


def test_each_pipe_that_goes_is_told(typed: Typed) -> None:
    told = re.findall(r"cleanup-pipes: removed \S*/(\S+)", typed.ended.stderr)
    assert sorted(told) == sorted(f"{a}_to_{b}" for seat in ("llm1", "llm2", "llm3")
                                  for a, b in (("hub", seat), (seat, "hub")))  # fmt: skip


def test_files_of_the_folder_are_listed_by_size_and_rated(typed: Typed) -> None:
    assert any("tiny-chat" in line for line in typed.said("find-gguf --dir"))
    (file,) = json.loads("\n".join(typed.said("find-gguf --gpu-fit")))["files"]
    assert (file["name"], file["fit"]) == ("tiny-chat", "fits")


def test_the_card_is_logged(typed: Typed) -> None:
    assert typed.said("watch-gpu --continuous") == []
    lines = (typed.home.cwd / "gpu.csv").read_text().splitlines()
    assert len(lines) >= 3
    assert len({line.count(",") for line in lines}) == 1


def test_a_model_answers_one_prompt(typed: Typed) -> None:
    *_, answer = typed.said("setup-pipes bob; attach-model")
    assert "_to_" not in answer


def test_the_models_are_served_and_listed(typed: Typed) -> None:
    assert typed.said("serve-models status")
    (answer,) = [json.loads(line) for line in typed.said(f"curl -sf http://{ADDRESS}/v1/chat/completions")]
    assert answer["choices"][0]["message"]["content"]
    (listed,) = [json.loads(line) for line in typed.said(f"curl -sf http://{ADDRESS}/v1/models")]
    assert {"qwen", "gemma", "phi"} <= {model["id"] for model in listed["data"]}


def test_make_forwards(typed: Typed) -> None:
    lines = typed.said("make demo")
    assert [line.split(": ")[0] for line in lines] == ["hub", *["alice", "bob"] * 4]
    assert " passed" in typed.said("make test")[-1]


@pytest.fixture(scope="module")
def configured() -> str:
    """A configuration with all the keys of the table."""
    sections: dict[str, list[str]] = {}
    for row in KEYS:
        section, _, key = row.ours.partition("] ")
        sections.setdefault(f"{section}]", []).append(key)
    return "\n".join("\n".join([section, *keys]) for section, keys in sections.items()) + "\n"


def test_every_key_is_read_as_it_stands(tmp_path: Path, configured: str) -> None:
    home = Home(tmp_path)
    (home.cwd / "keys.toml").write_text(configured)
    shown = home.run([BIN / "modelpipes", "config", "show", "--config", "keys.toml"])
    assert (shown.code, shown.stderr) == (0, "")
    wanted, in_force = tomllib.loads(configured), tomllib.loads(shown.stdout)
    (name,) = wanted["models"]
    assert set(wanted["models"][name]) <= set(in_force["models"][name])
    assert in_force["server"] == in_force["server"] | wanted["server"]
    assert len(KEYS) >= 8


def test_models_are_served_with_these_keys(tmp_path: Path, configured: str) -> None:
    home = Home(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    (home.cwd / "keys.toml").write_text(re.sub(r"(?m)^llama_server = .*\n", "", configured))
    script = f"""
        serve-models keys.toml --listen {address} &
        serve-models status --wait 30 >status.txt
        serve-models load qwen --json
        kill $!
        wait
    """
    served = home.run(["sh", "-euc", script], env={"PATH": f"{BIN}:{os.environ['PATH']}"})
    assert served.code == 0, served.stderr
    assert "qwen" in served.stdout
    assert home.left_processes() == []
