"""find-gguf, as it is run."""

from __future__ import annotations

import base64
import contextlib
import csv
import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from modelpipes.commands import find
from modelpipes.fit.listing import Line
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.shards import read_model
from tests.commands.conftest import LIMIT_S, Commands
from tests.fit.shapes import SHAPES, write_model
from tests.gguf.make import File, llama_entries, llama_tensors, vocabulary
from tests.machine.driver import build_driver
from tests.peers import eventually
from tests.shell import TINY_CHAT, Ended

GIB = 1 << 30
NAMES = ("gemma-3-12b", "gpt-oss-20b", "llama-3.1-8b", "qwen3-0.6b")
CARD = "--gpu=rtx4080"
WIPED = "\r\x1b[K"
KEYS = [
    "path", "path_bytes", "name", "kind", "architecture", "parameters", "quantization", "size_bytes", "modified_s",
    "context_length", "context", "memory", "fit", "fit_context", "max_context", "gpu_layers", "n_layers", "cpu_moe",
    "estimate", "reason", "advised_quantization",
]  # fmt: skip
HEADERS = ["name", "arch", "params", "quant", "size", "trained", "memory", "fit", "max ctx", "path"]
SHARE = ["model_bytes", "context_bytes", "compute_bytes", "overhead_bytes"]
ELSEWHERE = ("SEARCH_PATH", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "LLAMA_CACHE", "OLLAMA_MODELS")


@pytest.fixture
def models(run: Commands) -> Path:
    """Where the commands run, with a few model files that are headers and holes."""
    for name in ELSEWHERE:
        run.env.pop(name, None)
    for name in NAMES:
        write_model(run.cwd / f"{name}.gguf", SHAPES[name]())
    return run.cwd


def found(run: Commands, *arguments: str, code: int = 0) -> dict[str, Any]:
    """What `find-gguf --json` says."""
    ended = run("find", *arguments, CARD, "--json")
    assert ended.code == code, ended.stderr
    made: dict[str, Any] = json.loads(ended.stdout)
    return made


def names(ended: Ended) -> list[str]:
    return [line.split()[0] for line in ended.lines[1:]]


class TestFormats:
    def test_the_table_has_a_line_for_each_file_its_path_last(self, run: Commands, models: Path) -> None:
        ended = run("find", str(models), CARD)
        assert (ended.code, ended.stderr) == (0, "")
        assert re.split(r"\s{2,}", ended.lines[0]) == HEADERS
        assert names(ended) == list(NAMES)
        llama = re.split(r"\s{2,}", ended.lines[3])
        assert llama[:6] == ["llama-3.1-8b", "llama", "8.03B", "Q4_K_M", "4.6G", "131072"]
        assert (llama[7], llama[9]) == ("fits", str(models / "llama-3.1-8b.gguf"))

    def test_json_is_one_object_with_every_key(self, run: Commands, models: Path) -> None:
        made = found(run, str(models))
        assert list(made) == ["gpu", "settings", "files", "problems"]
        assert made["gpu"]["name"] == "RTX 4080"
        assert made["gpu"]["source"] == "name"
        assert made["settings"] == {
            "ctx_size": 4096, "kv_type": "f16", "parallel": 1, "flash_attn": True, "reserve_bytes": GIB,
            "host_available_bytes": made["settings"]["host_available_bytes"],
        }  # fmt: skip
        assert [list(file) for file in made["files"]] == [KEYS] * len(NAMES)
        llama = made["files"][2]
        assert llama["path"] == str(models / "llama-3.1-8b.gguf")
        assert llama["size_bytes"] == (models / "llama-3.1-8b.gguf").stat().st_size
        assert (llama["architecture"], llama["parameters"], llama["quantization"]) == ("llama", 8030261312, "Q4_K_M")
        assert (llama["context_length"], llama["context"], llama["estimate"]) == (131072, 4096, "exact")
        assert (llama["gpu_layers"], llama["n_layers"], llama["cpu_moe"]) == (33, 33, False)
        assert [list(share) for share in (*llama["memory"]["devices"], llama["memory"]["host"])] == [SHARE] * 2

    def test_the_memory_is_what_is_predicted_for_a_cuda_card(self, run: Commands, models: Path) -> None:
        from modelpipes.fit import predict_memory

        made = found(run, "llama-3.1-8b.gguf", "--ctx-size", "8192", "--kv-type", "q8_0", "--parallel", "2")
        settings = EngineSpec(n_ctx=8192, type_k="q8_0", type_v="q8_0", n_parallel=2, backend="cuda")
        memory = predict_memory(read_model(models / "llama-3.1-8b.gguf"), settings)
        [file] = made["files"]
        assert [share["context_bytes"] for share in file["memory"]["devices"]] == [memory.devices[0].context_bytes]
        assert sum(file["memory"]["devices"][0].values()) == memory.device_bytes

    def test_json_lines_are_the_files_of_json(self, run: Commands, models: Path) -> None:
        ended = run("find", str(models), CARD, "--format", "jsonl")
        assert [json.loads(line) for line in ended.lines] == found(run, str(models))["files"]

    def test_csv_is_rfc_4180_with_a_header(self, run: Commands, models: Path) -> None:
        os.link(models / "qwen3-0.6b.gguf", models / 'a "quoted", name.gguf')
        text = raw(run, "find", str(models), CARD, "--format", "csv").decode()
        assert text.count("\r\n") == text.count("\n") == len(NAMES) + 2
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert rows[0]["name"] == 'a "quoted", name'
        assert list(rows[0]) == [*(key for key in KEYS if key != "memory"), "device_bytes", "host_bytes"]
        for row, file in zip(rows, found(run, str(models))["files"], strict=True):
            assert int(row["device_bytes"]) == sum(file["memory"]["devices"][0].values())
            assert (row["path"], row["cpu_moe"]) == (file["path"], "false")

    def test_sizes_are_said_as_coreutils_says_them(self, run: Commands, models: Path) -> None:
        (models / "tiny.gguf").write_bytes(bytes(File(llama_entries(), llama_tensors())))
        ended = run("find", str(models), CARD, "--sort", "size")
        assert [re.split(r"\s{2,}", line)[4] for line in ended.lines[1:]] == ["11.3G", "6.8G", "4.6G", "604M", "44.2K"]

    @pytest.mark.parametrize(
        ("format_", "said"),
        [
            ("table", "  ".join(HEADERS) + "\n"),
            ("jsonl", ""),
            ("csv", ",".join([*(key for key in KEYS if key != "memory"), "device_bytes", "host_bytes"]) + "\n"),
        ],
    )
    def test_nothing_found_is_an_empty_table_or_a_bare_header_and_a_hint(
        self, run: Commands, format_: str, said: str
    ) -> None:
        ended = run("find", str(run.cwd), CARD, "--format", format_)
        assert (ended.code, ended.stdout) == (0, said)
        hint = f"no GGUF file in {run.cwd}: name one that has models (find-gguf DIR), or set SEARCH_PATH\n"
        assert ended.stderr == hint

    def test_nothing_found_is_json_without_files(self, run: Commands, models: Path) -> None:
        made = found(run, str(run.runtime))
        assert (made["files"], made["problems"], made["gpu"]["name"]) == ([], [], "RTX 4080")

    def test_no_known_folder_is_said(self, run: Commands, models: Path) -> None:
        ended = run("find", CARD)
        assert ended.code == 0
        assert ended.stderr.startswith("no known model folder here: ")


class TestChoice:
    @pytest.mark.parametrize(
        ("key", "order"),
        [
            ("name", "gemma-3-12b gpt-oss-20b llama-3.1-8b qwen3-0.6b"),
            ("size", "gpt-oss-20b gemma-3-12b llama-3.1-8b qwen3-0.6b"),
            ("age", "qwen3-0.6b llama-3.1-8b gpt-oss-20b gemma-3-12b"),
            ("params", "gpt-oss-20b gemma-3-12b llama-3.1-8b qwen3-0.6b"),
            ("memory", "gpt-oss-20b gemma-3-12b llama-3.1-8b qwen3-0.6b"),
            ("fit", "gemma-3-12b llama-3.1-8b qwen3-0.6b gpt-oss-20b"),
            ("context", "qwen3-0.6b llama-3.1-8b gemma-3-12b gpt-oss-20b"),
        ],
    )
    def test_each_order_and_its_reverse(self, run: Commands, models: Path, key: str, order: str) -> None:
        for age, name in enumerate(NAMES):
            os.utime(models / f"{name}.gguf", (0, age))
        arguments = [str(models), "--sort", key, "--vram", "11GB"]
        assert " ".join(names(run("find", *arguments))) == order
        assert " ".join(names(run("find", *arguments, "--reverse"))) == " ".join(reversed(order.split()))

    @pytest.mark.parametrize(
        ("arguments", "chosen"),
        [
            (["--min-size", "5GB"], "gemma-3-12b gpt-oss-20b"),  # llama has 4.91 * 10^9 bytes
            (["--min-size", "4.5G"], "gemma-3-12b gpt-oss-20b llama-3.1-8b"),  # and 4.58 * 2^30
            (["--max-size", "634MB"], "qwen3-0.6b"),  # it has 633,514,528
            (["--max-size", "604MiB"], ""),
            (["--max-size", "605M"], "qwen3-0.6b"),
            (["--min-size", "4912916352", "--max-size", "4912916352"], "llama-3.1-8b"),
            (["--arch", "LLAMA"], "llama-3.1-8b"),
            (["--arch", "q*", "--arch", "gemma3"], "gemma-3-12b qwen3-0.6b"),
            (["--quant", "q4*"], "gemma-3-12b llama-3.1-8b"),
            (["--quant", "Q8_0", "--arch", "llama"], ""),
            (["--fits", "--vram", "9GB"], "llama-3.1-8b qwen3-0.6b"),
            (["--max-age", "1.5"], "gpt-oss-20b"),
        ],
    )
    def test_each_filter(self, run: Commands, models: Path, arguments: list[str], chosen: str) -> None:
        for name in NAMES:
            age_days = 1 if name == "gpt-oss-20b" else 2
            os.utime(models / f"{name}.gguf", (0, time.time() - age_days * 86400))
        ended = run("find", str(models), CARD, *arguments)
        assert (ended.code, " ".join(names(ended))) == (0, chosen)
        assert ended.stderr == ("" if chosen else "none of 4 files is what was asked for\n")

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--min-size", "huge"], "'huge' is not a size: write 14GB"),
            (["--vram", "-1G"], "is not a size"),
            (["--vram", "0"], "--vram 0 leaves no card"),
            (["--gpu", "rtx9999"], "is no card known by name"),
            (["--gpu", "0x rtx4080"], "no number of cards"),
            (["--kv-type", "q3_k"], "'q3_k' is none of f32, f16, bf16, q8_0"),
            (["--ctx-size", "0"], "0 is not in the range"),
            (["--sort", "colour"], "'colour' is not one of"),
            (["--format", "xml"], "'xml' is not one of"),
            (["--max-age", "-1"], "-1"),
            (["--fits", "--no-gpu-fit"], "--fits asks what --no-gpu-fit leaves out"),
            (["--no-flash-attn", "--kv-type", "q8_0"], "needs flash attention"),
        ],
    )
    def test_what_is_wrong_usage_is_one_line(self, run: Commands, arguments: list[str], says: str) -> None:
        ended = run("find", *arguments)
        assert (ended.code, ended.stdout) == (2, "")
        assert says in ended.stderr
        assert ended.stderr.count("\n") == 1


class TestCards:
    def test_a_card_without_room_makes_it_tight_and_says_how(self, run: Commands, models: Path) -> None:
        whole = found(run, "llama-3.1-8b.gguf", "--no-gpu-fit")["files"][0]
        needed = sum(whole["memory"]["devices"][0].values())
        [reserve] = found(run, "llama-3.1-8b.gguf", "--vram", str(needed + GIB // 2))["files"]
        assert (reserve["fit"], reserve["fit_context"], reserve["gpu_layers"]) == ("tight", 4096, 33)
        assert reserve["reason"] == "leaves 512 MiB of the reserve of 1,024 MiB"
        [shorter] = found(run, "llama-3.1-8b.gguf", "--vram", str(needed - (4 << 20)), "--reserve", "0")["files"]
        assert (shorter["fit"], shorter["reason"]) == ("tight", f"at a context of {shorter['max_context']}")
        assert 2048 <= shorter["fit_context"] == shorter["max_context"] < 4096
        for arguments, verdict in ((str(needed + GIB // 2), "tight reserve"), (str(needed + GIB - (4 << 20)), "fits")):
            reserve_bytes = "1GiB" if verdict == "tight reserve" else "512MiB"
            ended = run("find", "llama-3.1-8b.gguf", "--vram", arguments, "--reserve", reserve_bytes)
            assert f"  {verdict}  " in ended.stdout

    def test_a_part_on_the_card_is_told_in_layers(self, run: Commands, models: Path) -> None:
        [file] = found(run, "qwen3-0.6b.gguf", "--vram", "1200MB", "--reserve", "256MiB")["files"]
        assert (file["fit"], file["max_context"], file["n_layers"]) == ("partial", 0, 29)
        assert 0 < file["gpu_layers"] < 29
        assert file["reason"].startswith(f"{file['gpu_layers']} of 29 layers; the rest takes ")
        ended = run("find", "qwen3-0.6b.gguf", "--vram", "1200MB", "--reserve", "256MiB")
        assert f"  partial {file['gpu_layers']}/29  " in ended.stdout

    def test_several_cards_share_a_model(self, run: Commands, models: Path) -> None:
        ended = run("find", "gpt-oss-20b.gguf", "--gpu", "2x rtx3060", "--json")
        made = json.loads(ended.stdout)
        assert (made["gpu"]["name"], len(made["gpu"]["cards"])) == ("2x RTX 3060", 2)
        assert len(made["files"][0]["memory"]["devices"]) == 2
        assert made["files"][0]["fit"] == "fits"

    def test_vram_takes_the_place_of_what_a_card_has(self, run: Commands, models: Path) -> None:
        made = json.loads(run("find", str(models), "--vram", "8GB", "--json").stdout)
        assert made["gpu"]["source"] == "vram"
        assert {card["free_bytes"] for card in made["gpu"]["cards"]} == {8 * 10**9}

    def test_of_a_card_that_nvml_shows_counts_what_is_free_now(self, run: Commands, models: Path) -> None:
        env = {"LD_LIBRARY_PATH": str(build_driver(run.temporary)), "CUDA_VISIBLE_DEVICES": "0"}
        ended = run("find", "gpt-oss-20b.gguf", "--json", **env)
        made = json.loads(ended.stdout)
        assert (ended.code, ended.stderr, made["gpu"]["source"]) == (0, "", "nvml")
        assert (made["gpu"]["total_bytes"], made["gpu"]["free_bytes"]) == (16376 << 20, 14000 << 20)
        rounded = 14000 // 64 * 64  # MiB: what changes from moment to moment is left out
        given = json.loads(run("find", "gpt-oss-20b.gguf", "--json", "--vram", f"{rounded}MiB").stdout)
        assert made["files"][0]["max_context"] == given["files"][0]["max_context"]

    def test_without_a_card_the_stand_in_is_named_with_the_reason(self, run: Commands, models: Path) -> None:
        ended = run("find", "qwen3-0.6b.gguf", CUDA_VISIBLE_DEVICES="none")
        assert ended.code == 0
        assert ended.stderr.count("\n") == 1
        assert "reckoning with an RTX 4080 and its 16.0 GiB" in ended.stderr

    def test_without_rating_only_the_memory_is_told(self, run: Commands, models: Path) -> None:
        ended = run("find", "qwen3-0.6b.gguf", "--no-gpu-fit")
        assert ended.stderr == ""
        assert re.split(r"\s{2,}", ended.lines[0]) == [name for name in HEADERS if name not in ("fit", "max ctx")]
        made = found(run, "qwen3-0.6b.gguf", "--no-gpu-fit")
        [file] = made["files"]
        assert made["gpu"] is None
        assert [file[key] for key in ("fit", "fit_context", "max_context", "gpu_layers", "cpu_moe")] == [None] * 5
        assert file["memory"]["devices"][0]["model_bytes"] > 0


class TestWhatIsNoModel:
    @pytest.mark.parametrize(
        ("kind", "entries"),
        [
            ("projector", [("general.architecture", "string", "clip"), ("general.type", "string", "mmproj")]),
            ("adapter", [("general.architecture", "string", "llama"), ("general.type", "string", "adapter")]),
            ("imatrix", [("general.type", "string", "imatrix")]),
            ("vocabulary", [("general.architecture", "string", "llama"), ("tokenizer.ggml.model", "string", "gpt2")]),
        ],
    )
    def test_other_gguf_files_are_named_for_what_they_are(
        self, run: Commands, kind: str, entries: list[tuple[str, str, str]]
    ) -> None:
        tensors = [] if kind == "vocabulary" else llama_tensors()
        (run.cwd / "other.gguf").write_bytes(bytes(File(entries, tensors)))
        made = found(run, str(run.cwd))
        [file] = made["files"]
        assert (file["kind"], file["fit"], file["memory"], file["reason"]) == (kind, None, None, f"{kind}: not rated")
        ended = run("find", str(run.cwd), CARD)
        assert ended.code == 0
        assert kind in ended.lines[1].split()

    def test_an_unknown_architecture_is_rated_by_the_general_rule_and_marked(self, run: Commands) -> None:
        known = bytes(File(llama_entries(), llama_tensors()))
        (run.cwd / "novel.gguf").write_bytes(known.replace(b"llama", b"novel"))
        [file] = found(run, str(run.cwd))["files"]
        assert (file["architecture"], file["fit"], file["estimate"]) == ("novel", "fits", "generic")
        assert "~  fits" in run("find", str(run.cwd), CARD).stdout

    def test_what_cannot_be_read_is_a_problem_with_reason_and_offset(self, run: Commands, models: Path) -> None:
        with open(models / "llama-3.1-8b.gguf", "rb") as file:
            header = file.read(3000)
        (models / "cut.gguf").write_bytes(header)
        (models / "empty.gguf").touch()
        (models / "text.gguf").write_text("hello, I am no model")
        (models / "dangling.gguf").symlink_to("/nowhere")
        (models / "folder.gguf").mkdir()
        os.mkfifo(models / "pipe.gguf")
        (models / "more.gguf.part").touch()
        expected = {
            "cut.gguf": ("incomplete download: the file ends inside its header", 3000),
            "empty.gguf": ("an empty file", 0),
            "text.gguf": ("not a GGUF file", 0),
            "dangling.gguf": ("a link that leads nowhere", None),
            "folder.gguf": ("a folder, not a file", None),
            "pipe.gguf": ("a pipe, not a file", None),
            "more.gguf.part": ("a download that has not ended", None),
        }
        made = found(run, str(models))
        assert len(made["files"]) == len(NAMES)
        assert {Path(each["path"]).name: (each["reason"], each["offset"]) for each in made["problems"]} == expected
        for format_ in ("table", "jsonl", "csv"):
            ended = run("find", str(models), CARD, "--format", format_)
            assert ended.code == 0
            assert f"{models}/cut.gguf: incomplete download: the file ends inside its header (at byte 3000)\n" in (
                ended.stderr
            )
            assert len(ended.stderr.splitlines()) == len(expected)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_an_unreadable_file_is_a_problem(self, run: Commands, models: Path) -> None:
        (models / "qwen3-0.6b.gguf").chmod(0)
        [problem] = found(run, str(models))["problems"]
        assert problem["reason"] == "cannot be read: Permission denied"

    def test_only_where_nothing_can_be_read_it_fails(self, run: Commands, models: Path) -> None:
        (models / "empty.gguf").touch()
        assert run("find", "empty.gguf", CARD).code == 1
        assert run("find", "/nowhere", CARD).code == 1
        assert run("find", "", CARD).code == 1
        assert run("find", "empty.gguf", "qwen3-0.6b.gguf", CARD).code == 0
        assert run("find", "empty.gguf", "qwen3-0.6b.gguf", CARD, "--max-size", "1M").code == 0
        assert found(run, "empty.gguf", code=1)["problems"][0]["reason"] == "an empty file"

    def test_names_that_cannot_be_printed_are_whole_in_every_format(self, run: Commands, models: Path) -> None:
        folder = models / "strange"
        folder.mkdir()
        strange = [b"new\nline.gguf", b"bad\xff\xfe.gguf", b"esc\x1b[31m.gguf", "日本語 – ü.gguf".encode()]
        for name in strange:
            os.link(models / "qwen3-0.6b.gguf", os.path.join(os.fsencode(folder), name))
        os.symlink("/nowhere", os.path.join(os.fsencode(folder), b"lost\n\xff.gguf"))
        made = found(run, str(folder))
        paths = [base64.b64decode(file["path_bytes"] or "") or os.fsencode(file["path"]) for file in made["files"]]
        assert sorted(paths) == sorted(os.path.join(os.fsencode(folder), name) for name in strange)
        assert base64.b64decode(made["problems"][0]["path_bytes"]).endswith(b"lost\n\xff.gguf")
        assert all(file["path"].isprintable() for file in made["files"])
        text = raw(run, "find", str(folder), CARD, "--format", "csv").decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert [row["path_bytes"] for row in rows] == [file["path_bytes"] or "" for file in made["files"]]
        lines = run("find", str(folder), CARD, "--format", "jsonl").lines
        assert [json.loads(line)["path"] for line in lines] == [file["path"] for file in made["files"]]
        ended = run("find", str(folder), CARD)
        assert len(ended.lines) == 1 + len(strange)
        assert "\x1b" not in ended.stdout + ended.stderr


class TestPlaces:
    def test_without_a_folder_it_looks_in_search_path(self, run: Commands, models: Path) -> None:
        ended = run("find", CARD, SEARCH_PATH=f"{models}:/nowhere")
        assert names(ended) == list(NAMES)
        assert (ended.code, ended.stderr) == (0, "/nowhere: No such file or directory\n")

    def test_without_either_it_looks_where_models_usually_lie(self, run: Commands, models: Path) -> None:
        home = Path(run.env["HOME"])
        (home / "models").symlink_to(models)
        snapshot = home / ".cache/huggingface/hub/models--org--Some-GGUF/snapshots/0123456789"
        snapshot.mkdir(parents=True)
        os.link(models / "qwen3-0.6b.gguf", snapshot / "Some-Q8_0.gguf")
        assert names(run("find", CARD)) == [*NAMES[:3], "org/Some-GGUF", NAMES[3]]

    def test_a_name_that_it_printed_is_a_model_for_other_commands(self, run: Commands, models: Path) -> None:
        found(run, str(models))
        plan = run("fit", "qwen3-0.6b", CARD, "--json")
        assert plan.code == 0, plan.stderr
        assert json.loads(plan.stdout)["models"][0]["path"] == str(models / "qwen3-0.6b.gguf")
        os.mkdir(models / "again")
        write_model(models / "again/qwen3-0.6b.gguf", SHAPES["qwen3-0.6b"]())
        for command in (["fit", "qwen3-0.6b"], ["chat", "--model=a=qwen3-0.6b", "--model=b=tiny-chat"]):
            ended = run(*command)
            assert (ended.code, ended.stdout) == (2, "")
            assert str(models / "qwen3-0.6b.gguf") in ended.stderr
            assert str(models / "again/qwen3-0.6b.gguf") in ended.stderr

    def test_without_the_cache_nothing_is_kept(self, run: Commands, models: Path) -> None:
        assert run("find", str(models), CARD, "--no-cache").code == 0
        assert not Path(run.env["HOME"], ".cache").exists()


class TestCache:
    def read(self, run: Commands, *arguments: str) -> int:
        """How many headers a run has read."""
        ended = run("find", str(run.cwd), "--vram=2TB", "--verbose", *arguments)
        assert (ended.code, len(ended.lines)) == (0, 1 + len(NAMES))
        return int(re.findall(r"(\d+) headers read", ended.stderr)[0])

    def test_the_second_time_no_header_is_read(self, run: Commands, models: Path) -> None:
        assert [self.read(run) for _ in range(2)] == [4, 0]
        assert self.read(run, "--strict") == 4
        assert self.read(run, "--no-cache") == 4
        assert self.read(run, "--ctx-size", "8192") == 4
        assert [self.read(run, "--ctx-size", "8192"), self.read(run)] == [0, 0]

    def test_a_run_from_the_cache_loads_nothing_that_predicts(self, run: Commands, models: Path) -> None:
        self.read(run)
        command = [run.command("find")[0], "-X", "importtime", *run.command("find", str(models), "--vram=2TB")[1:]]
        loaded = run.run(command, limit_s=LIMIT_S).stderr
        assert "modelpipes.fit.survey" in loaded
        assert not {each for each in ("fit.memory", "fit.hparams", "gguf.header", "pynvml") if f".{each}\n" in loaded}

    def test_a_file_that_has_changed_is_read_again(self, run: Commands, models: Path) -> None:
        self.read(run)
        write_model(models / "qwen3-0.6b.gguf", SHAPES["llama-3.2-1b"]())
        assert self.read(run) == 1
        assert found(run, str(models))["files"][3]["architecture"] == "llama"

    @pytest.mark.parametrize("content", [b"", b"\xff" * 1000, b"modelpipes cache 1\n" + bytes(100)])
    def test_a_cache_that_is_none_is_made_again(self, run: Commands, models: Path, content: bytes) -> None:
        cache = Path(run.env["HOME"], ".cache/modelpipes/models.cache")
        cache.parent.mkdir(parents=True)
        cache.write_bytes(content)
        assert [self.read(run) for _ in range(2)] == [4, 0]

    def test_a_cache_that_cannot_be_written_is_done_without(self, run: Commands, models: Path) -> None:
        Path(run.env["HOME"], ".cache").write_text("in the way")
        assert [self.read(run) for _ in range(2)] == [4, 4]

    def test_two_at_once_both_find_everything(self, run: Commands, models: Path) -> None:
        both = [run.start("find", str(models), CARD, "--format", "jsonl") for _ in range(2)]
        said = [process.communicate(timeout=LIMIT_S) for process in both]
        assert [stderr for _, stderr in said] == [b"", b""]
        assert said[0][0] == said[1][0]
        assert self.read(run, CARD) == 4


class TestTelling:
    def test_verbose_tells_where_and_why_on_stderr(self, run: Commands, models: Path) -> None:
        ended = run("find", str(models), "--gpu", "rtx3060", "-v")
        assert f"{models}/gpt-oss-20b.gguf: leaves " in ended.stderr
        assert f"looked in {models}: 4 of 4 files shown, 4 headers read" in ended.stderr
        assert len(ended.lines) == 1 + len(NAMES)

    def test_the_examples_of_the_help_run(self, run: Commands, models: Path) -> None:
        (Path(run.env["HOME"]) / "models").symlink_to(models)
        examples = re.findall(r"^      (find-gguf.*)$", find.command.help or "", re.MULTILINE)
        assert len(examples) == 5
        configuration = Path(run.env["HOME"]) / ".config" / "modelpipes" / "config.toml"
        configuration.parent.mkdir(parents=True)
        configuration.write_text("[use.two]\nmodels = 2\nmemory = '7GB'\n")
        for example in examples:
            words = shlex.split(example.split("|")[0])
            ended = run("find", *(word.replace("~", run.env["HOME"]) for word in words[1:]))
            assert ended.code == 0, ended.stderr
            assert "llama-3.1-8b" in ended.stdout

    def test_a_closed_stdout_ends_it_quietly(self, run: Commands, models: Path) -> None:
        command = " ".join(run.command("find", str(models), CARD))
        ended = run.run(["sh", "-c", f"{command}; echo $? >&2"], limit_s=LIMIT_S)
        assert ended.stderr == "0\n"
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            run.command("find", str(models), CARD), stdout=writer, stderr=subprocess.PIPE, env=run.env, check=False
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")

    def test_on_a_terminal_no_line_is_wider_than_it_is(self, run: Commands, models: Path) -> None:
        os.link(models / "qwen3-0.6b.gguf", models / f"{'a-very-long-name-' * 6}Q8_0.gguf")
        for columns in (60, 80, 120, 200):
            said = on_terminal(run, columns, run.command("find", str(models), CARD))
            lines = said.rpartition(WIPED)[2].splitlines()  # after word of a long scan, on a busy machine
            assert len(lines) == 2 + len(NAMES)
            assert max(map(len, lines)) <= columns
            assert all(line.endswith(".gguf") for line in lines[1:])
            shown = re.split(r"\s{2,}", lines[0])
            assert shown == [name for name in HEADERS if name in shown]
            assert {"name", "memory", "fit", "path"} <= set(shown)
            assert ("trained" in shown) == (columns == 200)
            assert ("max ctx" in shown) or columns == 60

    def test_a_long_scan_tells_how_far_it_is_on_a_terminal_and_wipes_it(self, run: Commands, models: Path) -> None:
        every_scan_is_long = (
            "from modelpipes import commands; from modelpipes.terminal import output; "
            "output.PROGRESS_S = 0; commands.main()"
        )
        python, *_ = run.command("find")
        said = on_terminal(run, 80, [python, "-P", "-c", every_scan_is_long, "find", str(models), CARD])
        assert re.search(r"\r\d+ files, now /.*\x1b\[K", said)
        assert said.rindex(WIPED) < said.index("name  ")

    def test_ctrl_c_during_a_scan_ends_it_and_keeps_what_was_learnt(self, run: Commands) -> None:
        make_slow(run.cwd)
        process = run.start("find", str(run.cwd), CARD, "--strict")
        assert process.stderr and process.stdout
        wait_until_it_has_read_one(process.pid)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, stdout, stderr) == (130, b"", b"")
        assert Path(run.env["HOME"], ".cache/modelpipes/models.cache").exists()


def test_every_key_of_a_file_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    for name in (*Line.__struct_fields__, *SHARE):
        assert f"`{name}`" in page


def make_slow(folder: Path) -> None:
    """Model files that take seconds to walk through (`--strict`), and no disk."""
    content = bytes(File([*llama_entries(), *vocabulary(60_000, 100_000)], llama_tensors()))
    (folder / "0.gguf").write_bytes(content)
    for number in range(1, 500):
        os.link(folder / "0.gguf", folder / f"{number}.gguf")


def raw(run: Commands, *arguments: str) -> bytes:
    """Stdout to the byte: reading a file as text makes newlines of CRLF."""
    return subprocess.run(run.command(*arguments), cwd=run.cwd, env=run.env, stdout=subprocess.PIPE, check=True).stdout


def on_terminal(run: Commands, columns: int, command: list[str]) -> str:
    """What a command writes to a terminal of so many columns."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=run.cwd, env=run.env, stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal
    )
    os.close(terminal)
    said = b""
    try:
        while piece := os.read(controller, 65536):
            said += piece
    except OSError:
        pass  # EIO: nobody has the terminal open any more
    finally:
        os.close(controller)
        process.wait(LIMIT_S)
    return said.decode().replace("\r\n", "\n")


def wait_until_it_has_read_one(pid: int) -> None:
    """Return when a process has had two of the slow files open, one after the other."""
    seen: set[str] = set()

    def has_read_one() -> bool:
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            links = [os.readlink(entry) for entry in Path("/proc", str(pid), "fd").iterdir()]
            seen.update(link for link in links if link.endswith(".gguf"))
        return len(seen) > 1

    eventually(has_read_one, "second file")


def test_dir_is_the_same_as_a_folder_named_bare_and_may_be_repeated(run: Commands, models: Path) -> None:
    folders = ("one", "two", "three")
    for folder, name in zip(folders, NAMES, strict=False):
        (models / folder).mkdir()
        (models / f"{name}.gguf").rename(models / folder / f"{name}.gguf")
    files = found(run, "one", "--dir", "two", "--dir=three")["files"]
    assert [file["name"] for file in files] == list(NAMES[:3])
    assert found(run, *folders)["files"] == files
    assert found(run, *(f"--dir={folder}" for folder in folders))["files"] == files


@pytest.mark.parametrize(
    ("size", "shown"), [("14GB", ["a"]), ("14gb", ["a"]), ("14 GB", ["a"]), ("14G", ["a", "b"]), ("14GiB", ["a", "b"])]
)
def test_a_size_is_taken_as_people_write_it(run: Commands, size: str, shown: list[str]) -> None:
    for name, size_bytes in (("a", 14 * 10**9), ("b", 14 * GIB), ("c", 14 * GIB + 1)):
        path = run.cwd / f"{name}.gguf"
        shutil.copy(TINY_CHAT, path)
        os.truncate(path, size_bytes)
    assert [os.path.basename(file["path"])[0] for file in found(run, ".", f"--max-size={size}")["files"]] == shown
