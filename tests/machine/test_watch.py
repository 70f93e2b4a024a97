from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from modelpipes.errors import UsageError
from modelpipes.machine import watch
from modelpipes.machine.watch import (
    Gpu,
    Sample,
    Share,
    check_named,
    is_named,
)
from tests.machine.driver import build_driver

MIB = 1 << 20
LIMIT_S = 30.0
FIGURES = {"FAKE_TOTAL_MIB": "16000", "FAKE_USED_MIB": "4000"}
PACKAGE = Path(watch.__file__).parent.parent.parent
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
        env=os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(PACKAGE)} | FIGURES | environment,
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
