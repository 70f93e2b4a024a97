"""watch-gpu, as it is run."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from modelpipes.gateway import record
from modelpipes.machine.watch import Gpu, GpuProcess
from modelpipes.pipe import fifo
from tests.commands.conftest import LIMIT_S, QUICK_ENGINE, Commands
from tests.engine.conftest import ENGINES
from tests.machine.driver import build_driver
from tests.peers import eventually
from tests.shell import Ended

RUN = """
import sys
from modelpipes import commands
commands.VERBS.setdefault("gpu", ("watch-gpu", ""))
sys.exit(commands.run_verb("gpu", sys.argv[1:], "watch-gpu"))
"""
KEYS = ["time_s", "driver_version", "gpus", "problems", "alarms", "system"]
GPU_KEYS = list(Gpu.__struct_fields__)
HEADERS = ["gpu", "temp", "load", "used", "free", "total", "full", "power", "clocks", "throttled by"]
NO_DRIVER = "no NVIDIA driver: its library cannot be loaded: "


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def driver(run: Commands, library: Path) -> Commands:
    """Where the commands run, with a driver."""
    run.env |= {"LD_LIBRARY_PATH": str(library), "FAKE_TOTAL_MIB": "16000", "FAKE_USED_MIB": "4000"}
    return run


@pytest.fixture
def torn(run: Commands) -> Commands:
    """Where the commands run, with a driver's library that cannot be loaded, whatever the machine has."""
    (run.cwd / "libnvidia-ml.so.1").write_text("torn")
    run.env["LD_LIBRARY_PATH"] = str(run.cwd)
    return run


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-P", "-c", RUN, *arguments]


def watch(run: Commands, *arguments: str, **env: str) -> Ended:
    return run.run(command(*arguments), env=env, limit_s=LIMIT_S)


def start(run: Commands, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(*arguments),
        cwd=run.cwd,
        env=run.env | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def line_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def quick(looks: int) -> list[str]:
    return ["--continuous", "--interval", "10ms", "--count", str(looks)]


def one(run: Commands, *arguments: str, **env: str) -> dict[str, Any]:
    """What `watch-gpu --json` says."""
    ended = watch(run, "--json", *arguments, **env)
    assert (ended.code, ended.stderr) == (0, "")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def rows(table: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in table.splitlines()]


# -- what it reports


def test_one_look_is_a_table_of_the_gpus(driver: Commands) -> None:
    ended = watch(driver, FAKE_CARDS="2")
    assert (ended.code, ended.stderr) == (0, "")
    header, first, second = rows(ended.stdout)
    assert header == HEADERS
    assert first == [
        "0 GeForce RTX 4080", "61 °C", "97%", "3.9 GiB", "11.7 GiB", "15.6 GiB", "25%", "285/320 W",
        "2610/11201 MHz", "power-cap sw-thermal bit-40",
    ]  # fmt: skip
    assert (second[0], second[-1]) == ("1 GeForce RTX 3090", "gpu-idle")


def test_json_has_every_key_always(driver: Commands) -> None:
    for unsupported in ("none", "all"):
        found = one(driver, FAKE_UNSUPPORTED=unsupported)
        assert list(found) == KEYS
        assert [list(each) for each in found["gpus"]] == [GPU_KEYS]


def test_what_nvml_does_not_support_is_a_dash(driver: Commands) -> None:
    ended = watch(driver, "--per-process", FAKE_UNSUPPORTED="all")
    assert (ended.code, ended.stderr) == (0, "")
    assert rows(ended.stdout) == [HEADERS, ["0 -", *["-"] * 9]]


def test_csv_has_a_row_for_each_gpu_and_process(driver: Commands) -> None:
    ended = watch(driver, "--format", "csv", "--per-process", FAKE_CARDS="2", FAKE_PIDS="999997:3000 999999:-1")
    found = list(csv.DictReader(io.StringIO(ended.stdout)))
    assert [(row["index"], row["pid"], row["process_used_bytes"]) for row in found] == [
        ("0", "999997", "3145728000"),
        ("0", "999999", ""),
        ("1", "", ""),
    ]
    assert (found[0]["throttle_reasons"], found[0]["is_present"]) == ("power-cap sw-thermal bit-40", "true")
    assert set(GPU_KEYS) - {"processes"} <= set(found[0])
    assert set(GpuProcess.__struct_fields__) - {"used_bytes"} <= set(found[0])


def test_jsonl_has_a_line_for_each_look(driver: Commands) -> None:
    ended = watch(driver, *quick(3), "--format", "jsonl", FAKE_USED_MIB="1000,2000,3000")
    looks = [json.loads(line) for line in ended.lines]
    assert [look["gpus"][0]["memory_used_bytes"] >> 20 for look in looks] == [1000, 2000, 3000]
    assert looks[0]["time_s"] < looks[1]["time_s"] < looks[2]["time_s"]


def test_the_continuous_view_draws_memory_over_time(driver: Commands) -> None:
    ended = watch(driver, *quick(4), FAKE_CARDS="2", FAKE_LOST="0,0,1,0", FAKE_USED_MIB="1000,8000,12000,12001")
    drawn = [line for line in ended.lines if line.startswith("memory of")]
    assert drawn[-2:] == ["memory of 0  ▁▅▇▇  75%", "memory of 1  ▂▂ ▂  15%"]
    assert drawn[-3] == "memory of 1  ▂▂   -"


def test_on_a_terminal_each_look_is_painted_over_the_last_and_fits_its_width(driver: Commands) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    process = subprocess.Popen(
        command(*quick(2)), cwd=driver.cwd, env=driver.env | {"TERM": "xterm"}, stdin=subprocess.DEVNULL,
        stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    said = b""
    try:
        while piece := os.read(controller, 65536):
            said += piece
    except OSError:
        pass  # EIO: nobody has the terminal open any more
    os.close(controller)
    assert process.wait(LIMIT_S) == 0
    first, second = said.decode().split("\x1b[H")[1:]
    assert first.startswith("\x1b[J")
    assert second.endswith("\x1b[J")
    assert all(line.endswith("\x1b[K") for line in second.split("\r\n")[:-1])
    plain = re.sub(r"\x1b\[[HJK]", "", second).replace("\r\n", "\n")
    assert "0 GeForce RTX 4080" in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_system_adds_the_machines_own_memory(driver: Commands) -> None:
    found = one(driver, "--system")["system"]
    assert list(found) == ["host_total_bytes", "host_available_bytes"]
    assert 0 < found["host_available_bytes"] <= found["host_total_bytes"]
    assert re.search(r"^host memory: [0-9.]+ [KMGT]iB of ", watch(driver, "--system").stdout, re.MULTILINE)


def test_only_the_gpu_that_is_named(driver: Commands) -> None:
    for name in ("1", "GPU-1000"):
        assert [each["index"] for each in one(driver, "--gpu", name, FAKE_CARDS="2")["gpus"]] == [1]


# -- whose memory it is


def test_rows_of_other_columns_are_not_added_to_a_file(driver: Commands) -> None:
    assert watch(driver, "--format", "csv", "--output", "g.csv").code == 0
    ended = watch(driver, "--format", "csv", "--per-process", "--output", "g.csv")
    assert (ended.code, "it has other columns" in ended.stderr) == (1, True)


@pytest.mark.skipif(not ENGINES, reason="no engine here")
def test_an_engines_share_has_the_name_of_its_model_and_of_its_seat(driver: Commands) -> None:
    member = driver.attach("bob", "--model", "tiny-chat", *QUICK_ENGINE)
    [engine] = [
        pid
        for pid in Path(f"/proc/{member.pid}/task/{member.pid}/children").read_text().split()
        if b"--model" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]
    [share] = one(driver, FAKE_PIDS=f"{engine}:3000")["gpus"][0]["processes"]
    assert (share["model"], share["seat"], share["room"]) == ("tiny-chat", "bob", driver.room.path)
    header, found = rows(watch(driver, "--per-process", FAKE_PIDS=f"{engine}:3000").stdout)[-2:]
    assert header == ["program", "pid", "gpu", "memory", "model", "seat or server"]
    assert found == ["llama-server", engine, "0", "2.9 GiB", "tiny-chat", "bob"]


def test_a_share_of_a_server_has_its_address(driver: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(driver.runtime))
    with record.recorded(record.Daemon(os.getpid(), "127.0.0.1:4711")):
        [share] = one(driver, FAKE_PIDS=f"{os.getpid()}:3000")["gpus"][0]["processes"]
    assert (share["server"], share["seat"]) == ("127.0.0.1:4711", None)


def test_a_command_line_cannot_command_the_terminal(driver: Commands) -> None:
    argv = [sys.executable, "-c", "input('runs\\n')", "--model", "\x1b[31mred\r\n\x9b2J"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert line_of(holder) == b"runs\n"
        for arguments in (["--per-process"], ["--per-process", "--format", "csv"]):
            said = watch(driver, *arguments, FAKE_PIDS=f"{holder.pid}:3000").stdout
            assert "red" in said
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)
        holder.communicate(b"\n")


# -- alarms


def test_alarms_are_said_once_and_stand_in_every_record(driver: Commands) -> None:
    ended = watch(driver, *quick(4), "--format", "jsonl", FAKE_USED_MIB="1000,15900,15900,1000")
    assert [[alarm["kind"] for alarm in json.loads(line)["alarms"]] for line in ended.lines] == [
        [],
        *[["vram"]] * 2,
        [],
    ]
    name = "GPU 0 (NVIDIA GeForce RTX 4080)"
    assert ended.stderr.splitlines() == [
        f"{name}: 99.4% of its memory used (--alert-vram 95)",
        f"{name}: 6.2% of its memory used, no alarm any more",
    ]


def test_alarms_stand_in_the_table_and_in_csv(driver: Commands) -> None:
    ended = watch(driver, FAKE_TEMPERATURE="90")
    assert ended.code == 0
    said = "GPU 0 (NVIDIA GeForce RTX 4080): 90 °C hot (--alert-temp 85)"
    assert (ended.lines[-1], ended.stderr) == (f"alarm: {said}", f"{said}\n")
    [row] = csv.DictReader(io.StringIO(watch(driver, "--format", "csv", FAKE_TEMPERATURE="90").stdout))
    assert row["alarms"] == "temperature"


def test_limits_can_be_set_and_alarms_be_off(driver: Commands) -> None:
    ended = watch(driver, "--alert-temp", "60.5", "--alert-vram", "25")
    assert len(ended.stderr.splitlines()) == 2
    assert watch(driver, "--alert-temp", "none", "--alert-vram", "none", FAKE_TEMPERATURE="150").stderr == ""


def test_a_gpu_that_disappears_is_an_alarm_and_the_watch_goes_on(driver: Commands) -> None:
    ended = watch(driver, *quick(3), "--format", "jsonl", FAKE_CARDS="2", FAKE_LOST="0,1,0")
    assert ended.code == 0
    looks = [json.loads(line) for line in ended.lines]
    assert [look["gpus"][1]["is_present"] for look in looks] == [True, False, True]
    assert looks[1]["gpus"][1]["temperature_celsius"] is None
    assert [alarm["kind"] for alarm in looks[1]["alarms"]] == ["lost"]
    name = "GPU 1 (NVIDIA GeForce RTX 3090)"
    assert ended.stderr.splitlines() == [f"{name} is gone: GPU is lost", f"{name} is back"]


def test_a_command_runs_once_for_each_alarm_and_is_told_all(driver: Commands) -> None:
    line = 'echo "$MODELPIPES_ALARM $MODELPIPES_GPU $MODELPIPES_GPU_UUID $MODELPIPES_VALUE $MODELPIPES_LIMIT"'
    ended = watch(driver, *quick(3), "--exec-on-alert", line, FAKE_USED_MIB="1000,15900")
    told = [each for each in ended.stderr.splitlines() if each.startswith("--exec")]
    assert told == ["--exec-on-alert: vram 0 GPU-00000000-aaaa-bbbb-cccc-000000000000 99.4 95.0"]
    assert "--exec" not in ended.stdout


def test_a_command_that_fails_is_said_and_changes_nothing(driver: Commands) -> None:
    ended = watch(driver, "--exec-on-alert", "exit 3", FAKE_TEMPERATURE="90")
    assert ended.code == 0
    assert ended.stderr.endswith("--exec-on-alert: ended with 3\n")


def test_a_command_that_hangs_is_ended_with_the_watch(driver: Commands) -> None:
    with start(driver, "--exec-on-alert", "echo > begun; sleep 1000", FAKE_TEMPERATURE="90") as process:
        eventually((driver.cwd / "begun").exists, "run of the command")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143
    # The fixture finds the processes that are left.


def test_a_command_that_cannot_be_started_is_said(driver: Commands) -> None:
    ended = watch(driver, "--exec-on-alert", "true", FAKE_TEMPERATURE="90", PATH="")
    assert ended.code == 0
    assert ended.stderr.splitlines()[1].startswith("--exec-on-alert")


# -- where it goes


def test_tsv_has_the_rows_of_csv_and_what_is_told_of_the_machine(driver: Commands) -> None:
    given = ["--format", "tsv", "--per-process", "--system"]
    ended = watch(driver, *given, FAKE_CARDS="2", FAKE_PIDS="999997:3000 999999:-1", FAKE_TEMPERATURE="90")
    found = list(csv.DictReader(io.StringIO(ended.stdout), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(row["gpu"][:1], row["pid"], row["memory"]) for row in found][:2] == [
        ("0", "999997", "2.9 GiB"),
        ("0", "999999", "-"),
    ]
    assert "90" in found[0]["alarms"] and all(row["host total"].endswith("iB") for row in found)


def test_tsv_goes_on_row_by_row_under_one_header(driver: Commands) -> None:
    given = ["--continuous", "--count", "2", "--interval", "10ms", "--format", "tsv", "--output", "gpu.tsv"]
    for _ in range(2):
        assert watch(driver, *given).code == 0
    lines = (driver.cwd / "gpu.tsv").read_text().splitlines()
    assert [line.partition("\t")[0] for line in lines].count("time") == 1
    assert len(lines) == 5 and len({line.count("\t") for line in lines}) == 1
    ended = watch(driver, *given, "--system")
    assert ended.code == 1 and "it has other columns" in ended.stderr


def test_without_a_gpu_tsv_has_a_row_for_the_machine(torn: Commands) -> None:
    header, row = watch(torn, "--system", "--format", "tsv").stdout.splitlines()
    found = dict(zip(header.split("\t"), row.split("\t"), strict=True))
    assert found["gpu"] == found["alarms"] == "-" and found["host total"].endswith("iB")


def test_output_appends_to_a_file_with_one_csv_header(driver: Commands) -> None:
    for _ in range(2):
        ended = watch(driver, "--format", "csv", "--output", "gpu.csv")
        assert (ended.code, ended.stdout, ended.stderr) == (0, "", "")
    lines = (driver.cwd / "gpu.csv").read_text().splitlines()
    assert [line.split(",")[0] == "time_s" for line in lines] == [True, False, False]


@pytest.mark.parametrize("file", ["no/such/folder", "/dev/full", "fifo"])
def test_an_output_that_cannot_be_written_is_named(driver: Commands, file: str) -> None:
    fifo.make(str(driver.cwd / "fifo"))  # nobody reads it
    ended = watch(driver, "--output", file)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"watch-gpu: {file}: cannot be ")


def test_a_reader_that_takes_nothing_is_given_up_at_the_deadline(driver: Commands) -> None:
    path = str(driver.cwd / "fifo")
    fifo.make(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    filler = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(filler, bytes(65536))
    ended = watch(driver, "--output", "fifo", "--timeout", "1")
    os.close(filler)
    os.close(reader)
    assert (ended.code, ended.stderr) == (124, "watch-gpu: fifo: its reader takes nothing\n")


def test_a_reader_that_leaves_ends_the_watch_at_once_with_0(driver: Commands) -> None:
    with start(driver, "--continuous", "--interval", "1h", "--format", "jsonl") as process:
        assert json.loads(line_of(process))["gpus"]
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(LIMIT_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_watch_cleanly(driver: Commands, signum: signal.Signals, code: int) -> None:
    with start(driver, "--continuous", "--interval", "1h", "--format", "jsonl") as process:
        line_of(process)
        process.send_signal(signum)
        said = process.communicate(timeout=LIMIT_S)
    # Python tells a death of the signal itself, which a terminal's Ctrl-C ends in, by its negative.
    assert process.returncode in (code, -signum)
    assert said == (b"", b"")


# -- no driver, and a driver that hangs


def test_without_a_driver_it_says_so_once_and_ends_with_1(torn: Commands) -> None:
    for arguments in ([], ["--json"], ["--continuous"]):
        ended = watch(torn, *arguments)
        assert (ended.code, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stderr.startswith(NO_DRIVER)


def test_without_a_driver_the_machines_memory_is_shown_where_it_is_asked_for(torn: Commands) -> None:
    ended = watch(torn, "--system")
    assert (ended.code, len(ended.stderr.splitlines())) == (1, 1)
    assert re.fullmatch(r"host memory: .* available\n", ended.stdout)
    found = json.loads(watch(torn, "--system", "--json").stdout)
    assert (found["gpus"], list(found)) == ([], KEYS)
    assert found["problems"][0].startswith(NO_DRIVER)
    assert found["system"]["host_total_bytes"] > 0
    [row] = csv.DictReader(io.StringIO(watch(torn, "--system", "--format", "csv").stdout))
    assert (row["index"], row["host_total_bytes"]) == ("", str(found["system"]["host_total_bytes"]))


def test_a_driver_that_hangs_ends_with_124(driver: Commands) -> None:
    ended = watch(driver, "--timeout", "200ms", FAKE_HANGS="1")
    assert (ended.code, ended.stdout) == (124, "")
    assert ended.stderr == "watch-gpu: the NVIDIA driver did not answer within 200ms: does nvidia-smi?\n"


def test_a_driver_that_hangs_does_not_keep_a_signal_waiting(driver: Commands) -> None:
    looks = "--continuous", "--interval", "10ms", "--timeout", "none", "--format", "jsonl"
    with start(driver, *looks, FAKE_HANGS="0,1") as process:
        line_of(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 143


def test_a_gpu_that_was_lost_from_the_first_is_a_failure_where_it_is_the_only_one(driver: Commands) -> None:
    ended = watch(driver, "--gpu", "1", FAKE_CARDS="2", FAKE_LOST="1")
    assert (ended.code, ended.stderr) == (1, "GPU 1 is gone: GPU is lost\n")


# -- what is refused


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--continuous", "--json"], "json is one document: write --format jsonl"),
        (["--continuous", "--format", "html"], "html is one document: write --format tsv"),
        (["--count", "2"], "--count is for --continuous"),
        (["--interval", "none", "--continuous"], "there would be no second look"),
        (["--interval", "0"], "leaves no time at all"),
        (["--timeout", "0"], "leaves no time at all"),
        (["--alert-vram", "nan"], "'nan' is no limit"),
        (["--alert-temp", "-1"], "'-1' is no limit"),
        (["--alert-temp", "inf"], "'inf' is no limit"),
        (["--gpu", "7"], "--gpu '7' is none of those here: 0 GPU-0000"),
        (["--format", "xml"], "--format"),
        (["word"], "word"),
    ],
)
def test_nonsense_is_refused(driver: Commands, arguments: list[str], complaint: str) -> None:
    ended = watch(driver, *arguments)
    assert (ended.code, ended.stdout) == (2, "")
    assert complaint in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_room_that_is_not_there_is_named(driver: Commands) -> None:
    ended = watch(driver, "-d", "nowhere")
    assert ended.code == 1
    assert "nowhere: no room there" in ended.stderr


def test_help_fits_80_columns_and_has_examples(driver: Commands) -> None:
    ended = watch(driver, "--help")
    assert ended.code == 0
    assert max(map(len, ended.lines)) <= 80
    assert "Examples:" in ended.stdout
