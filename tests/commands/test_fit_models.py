"""fit-models, as it is run."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Commands
from tests.fit.shapes import SHAPES, write_model
from tests.machine.driver import build_driver
from tests.models import scripted_model
from tests.shell import Ended

MIB = 1 << 20
LIMIT_S = 30.0
NAMES = ("llama-3.1-8b", "qwen2.5-7b", "qwen3-0.6b", "qwen3-30b-a3b")
KEYS = ["gpu", "settings", "plan", "context", "contexts", "estimate", "reason", "models", "swaps", "cards", "host"]


@pytest.fixture
def models(run: Commands) -> Path:
    """Where the commands run, with a few model files that are headers and holes."""
    for name in NAMES:
        write_model(run.cwd / f"{name}.gguf", SHAPES[name]())
    return run.cwd


def ask_json(run: Commands, *arguments: str, code: int = 0) -> dict[str, Any]:
    ended = run("fit", *arguments, "--json")
    assert ended.code == code, ended.stderr
    made: dict[str, Any] = json.loads(ended.stdout)
    return made


def test_the_table_says_what_was_decided_and_why_and_draws_the_card(run: Commands, models: Path) -> None:
    ended = run("fit", "llama-3.1-8b.gguf", "qwen2.5-7b.gguf", "--gpu", "rtx4080", "--ctx-size", "8192")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.lines[0].split() == [
        "model", "context", "KV", "layers", "card", "weights", "caches", "buffers", "host",
    ]  # fmt: skip
    assert ended.lines[1].split()[:6] == ["A", "llama-3.1-8b", "8192", "f16", "33/33", "0"]
    assert "plan: all whole at a context of 8192 (as asked for), KV cache of f16" in ended.lines
    assert "card 0: RTX 4080, 16.0 GiB" in ended.lines
    (bar,) = [line for line in ended.lines if line.startswith("[")]
    assert set(bar) == set("[AB-.]")
    assert "- kept free 1.0 GiB" in ended.stdout
    assert max(map(len, ended.lines)) <= 80
    assert len(bar) == 80


def test_json_has_every_setting_in_one_object(run: Commands, models: Path) -> None:
    made = ask_json(run, "llama-3.1-8b.gguf", "qwen2.5-7b.gguf", "--gpu", "rtx4080")
    assert list(made) == KEYS
    assert (made["plan"], made["estimate"], made["swaps"]) == ("whole", "exact", [])
    assert made["contexts"].keys() == {"f16", "q8_0", "q4_0"}
    assert made["gpu"]["name"] == "RTX 4080"
    assert made["settings"]["kv_types"] == ["f16", "q8_0", "q4_0"]
    first, second = made["models"]
    assert (first["name"], first["path"], first["path_bytes"]) == (
        "llama-3.1-8b", str(models / "llama-3.1-8b.gguf"), None,
    )  # fmt: skip
    assert (first["gpu_layers"], first["n_layers"], first["devices"], first["cpu_moe"]) == (33, 33, [0], False)
    assert set(first["memory"]["host"]) == {"model_bytes", "context_bytes", "compute_bytes", "overhead_bytes"}
    used = sum(sum(model["memory"]["devices"][0].values()) for model in (first, second))
    (card,) = made["cards"]
    assert card["used_by_plan_bytes"] == used <= card["free_bytes"] - card["reserve_bytes"]


def test_without_a_card_it_reckons_with_another_and_says_so_on_stderr(run: Commands, models: Path) -> None:
    ended = run("fit", "qwen3-0.6b.gguf", LD_LIBRARY_PATH="")
    if "RTX 4080" not in ended.stdout:
        pytest.skip("this machine has a card")
    assert "reckoning with an RTX 4080" in ended.stderr


def test_the_processes_that_hold_the_cards_memory_are_named(run: Commands, models: Path) -> None:
    driver = {"LD_LIBRARY_PATH": str(build_driver(run.temporary)), "CUDA_VISIBLE_DEVICES": "0"}
    ended = run("fit", "qwen3-0.6b.gguf", **driver)
    assert ended.code == 0, ended.stderr
    assert "# in use now 2.4 GiB" in ended.stdout
    assert "in use by: llama-server (pid 200) 1.5 GiB, Xorg (pid 100) 300.0 MiB" in ended.stdout
    (card,) = json.loads(run("fit", "qwen3-0.6b.gguf", "--json", **driver).stdout)["cards"]
    assert card["processes"][0] == {"pid": 200, "name": "llama-server", "used_bytes": 1500 * MIB}
    assert card["used_by_plan_bytes"] <= card["free_bytes"] - card["reserve_bytes"]


def test_what_finds_no_room_on_the_card_goes_to_the_host_unless_it_must_be_whole(run: Commands, models: Path) -> None:
    arguments = ("qwen3-30b-a3b.gguf", "--vram", "12GiB")
    made = ask_json(run, *arguments)
    assert made["plan"] == "partial"
    assert made["models"][0]["gpu_layers"] < made["models"][0]["n_layers"]
    assert ask_json(run, *arguments, "--whole", code=1)["plan"] == "none"


def test_models_that_take_turns_are_named_with_what_a_swap_moves_and_the_exit_code_is_1(
    run: Commands, models: Path
) -> None:
    files = ("llama-3.1-8b.gguf", "qwen2.5-7b.gguf", "qwen3-0.6b.gguf")
    arguments = (*files, "--gpu", "rtx3060", "--vram", "8GB", "--whole")
    ended = run("fit", *arguments)
    assert ended.code == 1
    assert ended.stderr.startswith("modelpipes fit: no plan for all of them together: whole, at a context of 2048, ")
    assert len(ended.stderr.splitlines()) == 1
    assert "swap: B in, A out loads 4.4 GiB; back again 4.6 GiB" in ended.stdout
    made = ask_json(run, *arguments, code=1)
    assert made["plan"] == "turns"
    (swap,) = made["swaps"]
    assert (swap["enters"], swap["leaves"]) == (1, [0])
    assert run("fit", *arguments, "--format", "sh").stdout == ""


def test_one_file_twice_is_two_engines(run: Commands, models: Path) -> None:
    made = ask_json(run, "qwen3-0.6b.gguf", "./qwen3-0.6b.gguf", "--gpu", "rtx4080")
    one, two = (sum(model["memory"]["devices"][0].values()) for model in made["models"])
    assert one == two
    assert made["cards"][0]["used_by_plan_bytes"] == 2 * one


def test_a_name_that_find_gguf_prints_is_a_model_too(run: Commands, models: Path) -> None:
    shutil.copy(models / "qwen3-0.6b.gguf", run.temporary / "small.gguf")
    ended = run("fit", "small", "--gpu", "rtx4080", "--json", SEARCH_PATH=str(run.temporary))
    assert ended.code == 0, ended.stderr
    (model,) = json.loads(ended.stdout)["models"]
    assert (model["name"], model["path"]) == ("small", str(run.temporary / "small.gguf"))


class TestCommandLines:
    def test_each_has_the_whole_plan_in_its_flags(self, run: Commands, models: Path) -> None:
        ended = run("fit", "llama-3.1-8b.gguf", "qwen3-0.6b.gguf", "--gpu", "rtx4080", "--ctx-size=8192",
                    "--kv-type=q8_0", "--parallel=4", "--format=sh")  # fmt: skip
        assert (ended.code, ended.stderr) == (0, "")
        rest = "-ctk q8_0 -ctv q8_0 -fa on --host 127.0.0.1 --port"
        assert ended.lines == [
            f"llama-server -m {models}/llama-3.1-8b.gguf --fit off -c 8192 -np 4 --kv-unified -ngl 33 {rest} 8081",
            f"llama-server -m {models}/qwen3-0.6b.gguf --fit off -c 8192 -np 4 --kv-unified -ngl 29 {rest} 8082",
        ]

    def test_several_cards_are_named_and_shared_as_planned(self, run: Commands, models: Path) -> None:
        split = run("fit", "qwen3-30b-a3b.gguf", "--gpu", "2x rtx3060", "--format=sh").stdout
        assert "-dev CUDA0,CUDA1 -ts 11264,11264 " in split
        each = run("fit", "llama-3.1-8b.gguf", "llama-3.1-8b.gguf", "--gpu", "2x rtx3060", "--format=sh").lines
        assert [line.split(" -dev ")[1].split()[0] for line in each] == ["CUDA0", "CUDA1"]

    def test_experts_on_the_host_are_asked_for(self, run: Commands, models: Path) -> None:
        assert " --cpu-moe " in run("fit", "qwen3-30b-a3b.gguf", "--vram", "3GiB", "--format=sh").stdout

    @pytest.mark.parametrize("name", ["with a space.gguf", "it's $HOME.gguf", "two\nlines.gguf", "\udcff\u202e.gguf"])
    def test_a_shell_reads_back_the_path_whatever_it_is_called(self, run: Commands, models: Path, name: str) -> None:
        (models / "qwen3-0.6b.gguf").rename(models / name)
        ended = run("fit", os.fsencode(name).decode("utf-8", "surrogateescape"), "--gpu=rtx4080", "--format=sh")
        assert ended.code == 0, ended.stderr
        assert len(ended.lines) == 1
        script = f'llama-server() {{ printf %s "$2"; }}\n{ended.stdout}'
        done = subprocess.run(["bash", "--posix", "-c", script.replace("llama-server", "server")],
                              capture_output=True, check=True)  # fmt: skip
        assert done.stdout == os.fsencode(models / name)

    @pytest.mark.parametrize("options", [(), ("--parallel=2", "--kv-type=q8_0"), ("--no-flash-attn", "--ctx-size=512")])
    def test_a_real_llama_server_takes_each_flag(self, run: Commands, options: tuple[str, ...]) -> None:
        server = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server") or pytest.skip("no llama-server here")
        scripted_model(run.cwd / "a.gguf")
        words = shlex.split(run("fit", "a.gguf", "--gpu=rtx4080", *options, "--format=sh").stdout)
        done = run.run([server, *words[1:], "--version"], limit_s=LIMIT_S)  # which ends it once it has read the others
        assert (done.code, "error" in done.stderr) == (0, False), done.stderr


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "code", "says"),
        [
            ([], 2, "Missing argument 'FILE...'"),
            (["missing.gguf"], 1, "missing.gguf"),
            (["/nowhere/missing.gguf"], 1, "/nowhere/missing.gguf: "),
            (["text.gguf"], 1, "text.gguf is no GGUF file"),
            (["qwen3-0.6b.gguf", "short.gguf"], 1, "short.gguf: incomplete download"),
            (["qwen3-0.6b.gguf", "--vram", "lots"], 2, "'lots' is not a size"),
            (["qwen3-0.6b.gguf", "--gpu", "voodoo2"], 2, "voodoo2"),
            (["qwen3-0.6b.gguf", "--ctx-size", "0"], 2, "--ctx-size"),
            (["qwen3-0.6b.gguf", "--ctx-size", "4096", "--min-ctx", "2048"], 2, "give one of them"),
            (["qwen3-0.6b.gguf", "--kv-type", "q9"], 2, "'q9' is not one of"),
            (["qwen3-0.6b.gguf", "--kv-type", "q8_0", "--no-flash-attn"], 2, "needs flash attention"),
            (["qwen3-0.6b.gguf"] * 13, 2, "13 models: a plan is for 1 to 12"),
        ],
    )
    def test_what_is_wrong_is_one_line_and_its_exit_code(
        self, run: Commands, models: Path, arguments: list[str], code: int, says: str
    ) -> None:
        (models / "text.gguf").write_text("hello\n")
        (models / "short.gguf").write_bytes((models / "qwen3-0.6b.gguf").read_bytes()[:20000])
        gpu_given = [] if "--gpu" in arguments else ["--gpu=rtx4080"]
        ended = run("fit", *arguments, *gpu_given)
        assert (ended.code, ended.stdout) == (code, "")
        assert says in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_the_table_and_the_bar_fit_the_terminal(run: Commands, models: Path, columns: int) -> None:
    long = models / f"{'a-long-name-' * 6}.gguf"
    (models / "qwen3-0.6b.gguf").rename(long)
    lines = in_terminal(run, columns, "fit", long.name, "llama-3.1-8b.gguf", "--gpu=rtx4080")
    assert [len(line) for line in lines if line.startswith("[")] == [columns]
    if columns >= 80:
        assert max(map(len, lines)) <= columns


def in_terminal(run: Commands, columns: int, verb: str, *arguments: str) -> list[str]:
    """What a command writes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        subprocess.run(["stty", "cols", str(columns)], stdin=theirs, check=True)
        process = subprocess.Popen(run.command(verb, *arguments), cwd=run.cwd, env=run.env, stdout=theirs)
        os.close(theirs)
        written = bytearray()
        try:
            while piece := screen.read(65536):
                written += piece
        except OSError:  # Linux's end of a terminal that nobody has open any more
            pass
    assert process.wait(LIMIT_S) == 0
    return written.decode().splitlines()


def test_help_fits_80_columns_and_has_examples(run: Commands) -> None:
    ended: Ended = run("fit", "--help")
    assert ended.code == 0
    assert max(map(len, ended.lines)) <= 80
    assert "  Examples:" in ended.lines
