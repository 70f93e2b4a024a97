from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import UsageError
from modelpipes.machine import watch as gpuwatch
from modelpipes.machine.watch import (
    BARS,
    Alarm,
    Alarms,
    Gpu,
    Keeper,
    Sample,
    Share,
    check_named,
    is_named,
    model_of,
    name_shares,
    sparkline,
)
from tests.nvml.driver import build_driver

MIB = 1 << 20
LIMIT_S = 30.0
PACKAGE = Path(gpuwatch.__file__).parent.parent.parent
LOOK = """
import sys, msgspec
from modelpipes.errors import DeadlineError
from modelpipes.machine.watch import Watch
samples = []
with Watch(float(sys.argv[2])) as watch:
    try:
        for _ in range(int(sys.argv[1])):
            samples.append(watch.read())
    except DeadlineError as error:
        sys.exit(str(error))
sys.stdout.buffer.write(msgspec.json.encode(samples))
"""


def ask(folder: Path, looks: int, timeout_s: float, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", LOOK, str(looks), str(timeout_s)],
        env=os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(PACKAGE)} | environment,
        capture_output=True,
        check=False,
        timeout=LIMIT_S,
    )


def look(folder: Path, looks: int = 1, /, **environment: str) -> list[Sample]:
    """What so many looks show where the driver's library is the one in this folder."""
    done = ask(folder, looks, LIMIT_S, environment)
    assert (done.returncode, done.stderr) == (0, b"")
    return msgspec.json.decode(done.stdout, type=list[Sample])


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("old_driver"), "-DOLD_DRIVER")


# What NVML shows


def test_a_gpu_tells_everything_that_nvml_has(driver: Path) -> None:
    [sample] = look(driver, FAKE_PIDS="999998:100 999999:-1 999997:3000")
    assert (sample.driver_version, sample.problems) == ("580.95.05", ())
    assert sample.gpus == (
        Gpu(
            index=0,
            name="NVIDIA GeForce RTX 4080",
            uuid="GPU-00000000-aaaa-bbbb-cccc-000000000000",
            temperature_celsius=61,
            utilization_percent=97,
            memory_total_bytes=16000 * MIB,
            memory_used_bytes=4000 * MIB,
            memory_free_bytes=12000 * MIB,
            memory_used_percent=25.0,
            power_watts=285.4,
            power_limit_watts=320.0,
            graphics_clock_mhz=2610,
            memory_clock_mhz=11201,
            throttle_reasons=("power-cap", "sw-thermal", "bit-40"),
            processes=(
                Share(pid=999997, program="llama-server", used_bytes=3000 * MIB),
                Share(pid=999998, program=None, used_bytes=100 * MIB),  # its name is no UTF-8
                Share(pid=999999, program=None, used_bytes=None),  # NVML knows neither name nor size
            ),
        ),
    )


def test_a_gpu_that_supports_nothing_is_a_gpu_all_the_same(driver: Path) -> None:
    [sample] = look(driver, FAKE_UNSUPPORTED="all")
    assert sample.gpus == (Gpu(index=0),)
    assert (sample.driver_version, sample.problems) == (None, ())


@pytest.mark.parametrize(
    ("function", "absent"),
    [
        ("nvmlDeviceGetName", ["name"]),
        ("nvmlDeviceGetTemperature", ["temperature_celsius"]),
        ("nvmlDeviceGetUtilizationRates", ["utilization_percent"]),
        (
            "nvmlDeviceGetMemoryInfo",
            ["memory_total_bytes", "memory_used_bytes", "memory_free_bytes", "memory_used_percent"],
        ),
        ("nvmlDeviceGetPowerUsage", ["power_watts"]),
        ("nvmlDeviceGetEnforcedPowerLimit", ["power_limit_watts"]),
        ("nvmlDeviceGetClockInfo", ["graphics_clock_mhz", "memory_clock_mhz"]),
        ("nvmlDeviceGetCurrentClocksEventReasons", ["throttle_reasons"]),
        ("nvmlDeviceGetComputeRunningProcesses_v3", ["processes"]),
    ],
)
def test_a_field_that_nvml_does_not_support_is_none_and_the_others_stay(
    driver: Path, function: str, absent: list[str]
) -> None:
    [sample] = look(driver, FAKE_UNSUPPORTED=function)
    fields = msgspec.structs.asdict(sample.gpus[0])
    assert {name for name, value in fields.items() if value is None} == {"problem", *absent}


def test_an_old_driver_names_throttle_reasons_otherwise_and_cannot_list_processes(old_driver: Path) -> None:
    [sample] = look(old_driver)
    [card] = sample.gpus
    assert (card.throttle_reasons, card.processes, card.temperature_celsius) == (
        ("power-cap", "sw-thermal", "bit-40"),
        None,
        61,
    )


@pytest.mark.parametrize("way", ["FAKE_LOST", "FAKE_FADING"])
def test_a_gpu_that_disappears_is_kept_as_absent_and_comes_back(driver: Path, way: str) -> None:
    before, between, after = look(driver, 3, **{"FAKE_CARDS": "2", way: "0,1,0"})
    assert [each.is_present for each in before.gpus] == [True, True]
    assert between.gpus[0].is_present
    assert between.gpus[1] == Gpu(
        index=1, name=before.gpus[1].name, uuid=before.gpus[1].uuid, is_present=False, problem="GPU is lost"
    )
    assert after.gpus == before.gpus


def test_a_gpu_that_was_lost_before_the_first_look_is_shown_as_absent(driver: Path) -> None:
    [sample] = look(driver, FAKE_CARDS="2", FAKE_LOST="1")
    assert sample.gpus[1] == Gpu(index=1, is_present=False, problem="GPU is lost")


def test_a_gpu_that_the_driver_lists_no_more_is_absent(driver: Path) -> None:
    _, sample = look(driver, 2, FAKE_CARDS="2,1")
    assert [(each.index, each.is_present) for each in sample.gpus] == [(0, True), (1, False)]
    assert sample.gpus[1].problem == "the driver lists it no more"


def test_a_driver_that_breaks_between_looks_is_opened_afresh(driver: Path) -> None:
    before, between, after = look(driver, 3, FAKE_BROKEN="0,1,0")
    why = "the NVIDIA driver does not say which GPUs there are: Uninitialized"
    assert between.problems == (why,)
    assert [(each.is_present, each.problem) for each in between.gpus] == [(False, why)]
    assert (after.gpus, after.problems) == (before.gpus, ())


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FAKE_INIT": "9"}, "the NVIDIA driver cannot be asked (Driver Not Loaded): does nvidia-smi run?"),
        ({"FAKE_CARDS": "0"}, "the NVIDIA driver shows no GPU"),
        ({"FAKE_BROKEN": "1"}, "the NVIDIA driver does not say which GPUs there are: Uninitialized"),
    ],
)
def test_a_driver_that_fails_means_no_gpu_and_a_reason(driver: Path, environment: dict[str, str], reason: str) -> None:
    [sample] = look(driver, **environment)
    assert (sample.gpus, sample.problems) == ((), (reason,))


def test_a_library_that_is_no_library_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("torn")
    [sample] = look(tmp_path)
    assert sample.gpus == ()
    assert sample.problems[0].startswith("no NVIDIA driver: its library cannot be loaded: ")


def test_a_driver_that_never_answers_is_left_at_the_deadline(driver: Path) -> None:
    done = ask(driver, 2, 0.2, {"FAKE_HANGS": "1"})
    assert done.returncode == 1
    assert done.stderr == b"the NVIDIA driver did not answer within 200ms: does nvidia-smi?\n"


# Which of them is meant

CARDS = (Gpu(index=0, uuid="GPU-aaaa-0"), Gpu(index=1, uuid="GPU-aabb-1"), Gpu(index=2))


@pytest.mark.parametrize(
    ("wanted", "named"),
    [([], [0, 1, 2]), (["2"], [2]), (["1", "0"], [0, 1]), (["GPU-aab"], [1]), (["gpu-AABB-1"], [1])],
)
def test_a_gpu_is_named_by_its_index_or_the_beginning_of_its_uuid(wanted: list[str], named: list[int]) -> None:
    check_named(CARDS, wanted)
    assert [each.index for each in CARDS if is_named(each, wanted)] == named


@pytest.mark.parametrize("wanted", ["3", "", "-1", "GPU-x", "GPU-aa", "aaaa", "01"])
def test_a_name_that_means_no_gpu_or_several_is_refused_with_those_there_are(wanted: str) -> None:
    with pytest.raises(UsageError, match=r"0 GPU-aaaa-0, 1 GPU-aabb-1, 2$"):
        check_named(CARDS, [wanted])


# Alarms


def card(percent: float | None = 10, celsius: int | None = 40) -> Gpu:
    return Gpu(index=0, uuid="GPU-a", name="RTX", memory_used_percent=percent, temperature_celsius=celsius)


def test_an_alarm_begins_once_lasts_while_the_figure_flutters_and_is_over_once() -> None:
    alarms = Alarms(95, 85)
    percents = [94.9, 95.0, 94.0, 96.0, 93.0, 92.9, 94.9]
    seen = []
    for percent in percents:
        on, begun, over = alarms.judge([card(percent)])
        seen.append((len(on), len(begun), len(over)))
    assert seen == [(0, 0, 0), (1, 1, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0)]


def test_an_alarm_tells_which_gpu_what_is_too_much_and_the_limit() -> None:
    on, begun, _ = Alarms(95, 85).judge([card(99.5, 90)])
    assert on == begun == [
        Alarm(0, "GPU-a", "vram", 99.5, 95, "GPU 0 (RTX): 99.5% of its memory used (--alert-vram 95)"),
        Alarm(0, "GPU-a", "temperature", 90, 85, "GPU 0 (RTX): 90 °C hot (--alert-temp 85)"),
    ]  # fmt: skip


def test_a_figure_that_is_absent_is_no_alarm_and_ends_none_aloud() -> None:
    alarms = Alarms(0, 0)
    assert len(alarms.judge([card()])[0]) == 2
    assert alarms.judge([card(None, None)]) == ([], [], [])


def test_a_gpu_that_is_gone_is_an_alarm_and_its_return_is_said() -> None:
    alarms = Alarms(95, 85)
    gone = Gpu(index=0, uuid="GPU-a", is_present=False, problem="GPU is lost")
    alarms.judge([card(99)])
    [on], [begun], over = alarms.judge([gone])
    assert (on.kind, on.message, begun, over) == ("lost", "GPU 0 is gone: GPU is lost", on, [])
    assert alarms.judge([card()]) == ([], [], ["GPU 0 (RTX) is back"])


def test_a_limit_of_infinity_alarms_nobody() -> None:
    assert Alarms(float("inf"), float("inf")).judge([card(100, 200)])[0] == []


@given(st.lists(st.none() | st.floats(0, 100)), st.floats(0, 100))
def test_alarms_begin_and_end_in_turn(percents: list[float | None], limit: float) -> None:
    alarms = Alarms(limit, 1000)
    was_on = False
    for percent in percents:
        on, begun, over = alarms.judge([card(percent)])
        assert bool(begun) == (bool(on) and not was_on)
        assert not (over and on)
        assert bool(over) <= was_on
        was_on = bool(on)


# Memory over time


def test_a_sparkline_has_a_bar_for_each_value_and_a_blank_for_none() -> None:
    assert sparkline([0, 12.4, 12.5, 50, None, 87.5, 100], 80) == "▁▁▂▅ ██"
    assert sparkline([0, 50, 100], 2) == "▅█"
    assert sparkline([0, 50, 100], 0) == ""


@given(st.lists(st.none() | st.floats(0, 100)), st.integers(-2, 20))
def test_a_sparkline_is_never_wider_than_it_may_be(percents: list[float | None], width: int) -> None:
    drawn = sparkline(percents, width)
    assert len(drawn) == min(len(percents), max(width, 0))
    assert set(drawn) <= {" ", *BARS}


# Whose memory it is


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/opt/llama-server --model /models/Qwen3-8B-Q4_K_M.gguf --port 1", "Qwen3-8B-Q4_K_M"),
        ("llama-server -m a.gguf", "a"),
        ("llama-server --model=a.gguf --model b.GGUF", "b"),
        ("llama-server --model big-00001-of-00003.gguf", "big"),
        ("llama-server --model a.gguf --alias fast", "fast"),
        ("python -P -m modelpipes.engine.embedded --model /x/tiny-chat.gguf", "tiny-chat"),
        ("vllm serve --model meta/llama/", "llama"),
        ("python -m modelpipes.engine.embedded", None),
        ("llama-server --model", None),
        ("llama-server --model /", None),
        ("Xorg :0", None),
        ("", None),
    ],
)
def test_a_model_is_named_by_the_command_line_of_its_server(command: str, name: str | None) -> None:
    assert model_of(command.split()) == name


@given(st.lists(st.text()))
def test_no_command_line_makes_naming_fail(argv: list[str]) -> None:
    model_of(argv)


def test_a_process_below_a_keeper_is_its_and_others_are_nobodys() -> None:
    holder = [sys.executable, "-c", "input('runs\\n')", "--model", "solo.gguf"]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"  # amid its exec, a process has no command line
        gpus = [
            Gpu(
                index=0,
                processes=(
                    Share(pid=child.pid, program="python", used_bytes=7),
                    Share(pid=os.getppid(), program=None, used_bytes=None),
                    Share(pid=2**22 + 1, program=None, used_bytes=None),  # above the kernel's greatest
                ),
            ),
            Gpu(index=1),
        ]
        first, second = name_shares(gpus, {os.getpid(): Keeper(seat="bob", room="/r")})
        child.communicate(b"\n")
    assert second.processes is None
    ours, above, ended = first.processes or ()
    assert (ours.model, ours.seat, ours.room, ours.server, ours.used_bytes) == ("solo", "bob", "/r", None, 7)
    assert (above.seat, ended.model, ended.seat) == (None, None, None)
