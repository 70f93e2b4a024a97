from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.errors import UsageError
from modelpipes.machine import cards
from modelpipes.machine.cards import MAX_CARDS, Card, Cards, choose_visible, known_cards, parse_gpu
from modelpipes.machine.nvml import LIBRARY, Process
from tests.machine.driver import build_driver

MIB = 1 << 20
PACKAGE = Path(cards.__file__).parent.parent.parent
LOOK = """
import sys, msgspec
from modelpipes.machine.cards import find_cards, parse_gpu
found = parse_gpu("auto") if sys.argv[1] == "auto" else find_cards()
sys.stdout.buffer.write(msgspec.json.encode(found))
"""


def look(library_folder: Path, question: str = "all", **environment: str) -> Cards:
    """What `modelpipes.machine.cards` finds where the driver's library is the one in this folder."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES",)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK, question],
        env=kept | {"LD_LIBRARY_PATH": str(library_folder), "PYTHONPATH": str(PACKAGE)} | environment,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return msgspec.json.decode(done.stdout, type=Cards)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library that answers as NVML does."""
    return build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_driver(tmp_path_factory.mktemp("old_driver"), "-DOLD_DRIVER")


# What NVML shows


def test_a_card_tells_its_name_its_memory_and_who_holds_it(driver: Path) -> None:
    found = look(driver)
    assert found.problems == ()
    (card,) = found.cards
    assert card == Card(
        index=0,
        name="NVIDIA GeForce RTX 4080",
        total_bytes=16376 * MIB,
        free_bytes=14000 * MIB,
        uuid="GPU-00000000-aaaa-bbbb-cccc-000000000000",
        compute_capability=(8, 9),
        driver_version="580.95.05",
        processes=card.processes,
    )
    assert card.used_bytes == 2376 * MIB


def test_a_process_that_computes_and_draws_is_counted_once_and_the_largest_comes_first(driver: Path) -> None:
    (card,) = look(driver).cards
    assert card.processes == (
        Process(200, "llama-server", 1500 * MIB),
        Process(100, "Xorg", 300 * MIB),
        Process(400, "", 64 * MIB),  # its name is no UTF-8
        Process(300, "", None),  # NVML knows neither name nor size
    )


def test_a_card_that_answers_nothing_optional_is_a_card_with_memory(driver: Path) -> None:
    found = look(driver, FAKE_UNSUPPORTED="optional")
    assert found == Cards((Card(index=0, name="card 0", total_bytes=16376 * MIB, free_bytes=14000 * MIB),))


def test_an_old_driver_that_cannot_list_processes_still_tells_the_memory(old_driver: Path) -> None:
    (card,) = look(old_driver).cards
    assert (card.total_bytes, card.processes) == (16376 * MIB, ())


def test_a_card_that_is_lost_leaves_the_others(driver: Path) -> None:
    found = look(driver, FAKE_CARDS="3", FAKE_LOST="1")
    assert [card.index for card in found.cards] == [0, 2]
    assert found.problems == ("card 1 does not tell its memory (GPU is lost): left out",)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"FAKE_INIT": "9"}, "the NVIDIA driver cannot be asked (Driver Not Loaded): does nvidia-smi run?"),
        (
            {"FAKE_INIT": "18"},
            "the NVIDIA driver cannot be asked (RM has detected an NVML/RM version mismatch.): does nvidia-smi run?",
        ),
        ({"FAKE_INIT": "77"}, "an error that pynvml does not know"),
        ({"FAKE_BROKEN": "999"}, "the NVIDIA driver does not say which cards there are: Unknown Error"),
        ({"FAKE_CARDS": "0"}, "the NVIDIA driver shows no card"),
        ({"FAKE_UNSUPPORTED": "nvmlDeviceGetMemoryInfo"}, "card 0 does not tell its memory (Not Supported): left out"),
    ],
)
def test_a_driver_that_fails_means_no_card_and_a_reason(driver: Path, environment: dict[str, str], reason: str) -> None:
    found = look(driver, **environment)
    assert found.cards == ()
    assert reason in found.problems[0]


def test_a_machine_without_the_drivers_library_has_no_card_and_imports_no_pynvml(tmp_path: Path) -> None:
    if ctypes.util.find_library("nvidia-ml"):
        pytest.skip("this machine has an NVIDIA driver")
    assert look(tmp_path).problems == (f"no NVIDIA driver: {LIBRARY} is not on this machine",)
    probe = (
        "import sys; from modelpipes.machine.cards import find_cards; find_cards(); assert 'pynvml' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", probe], env=os.environ | {"PYTHONPATH": str(PACKAGE)}, check=True)


def test_a_library_that_is_no_library_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_text("torn")
    (reason,) = look(tmp_path).problems
    assert reason.startswith("no NVIDIA driver: its library cannot be loaded: ")


def test_a_library_that_is_not_nvml_is_a_reason(tmp_path: Path) -> None:
    math = next((name for name in Path("/").glob("lib*/**/libm.so.6")), None)
    if math is None:
        pytest.skip("no shared library to put in its place")
    (tmp_path / LIBRARY).symlink_to(math)
    (reason,) = look(tmp_path).problems
    assert "Function Not Found" in reason


# Which of them a program may use


def card(index: int, uuid: str | None = None) -> Card:
    return Card(index=index, name="RTX 4080", total_bytes=MIB, free_bytes=MIB, uuid=uuid)


CARDS = (card(0, "GPU-aaaa-0"), card(1, "GPU-aabb-1"), card(2, "GPU-cccc-2"))


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("0,1,2", [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("", []),
        ("-1", []),
        ("0,-1,1", [0]),  # what follows an invalid one is hidden too
        ("7", []),
        ("GPU-cccc-2", [2]),
        ("GPU-aab,GPU-c", [1, 2]),
        ("GPU-aa", []),  # two begin so
        ("0,0", [0]),
        ("MIG-1234", []),
        ("9" * 5000, []),
    ],
)
def test_cuda_visible_devices_chooses_and_orders_the_cards(wanted: str, chosen: list[int]) -> None:
    assert [each.index for each in choose_visible(CARDS, wanted)] == chosen


@given(st.text())
def test_whatever_cuda_visible_devices_says_no_card_is_chosen_twice(wanted: str) -> None:
    chosen = choose_visible(CARDS, wanted)
    assert len({each.index for each in chosen}) == len(chosen)


def test_auto_means_the_visible_cards_with_what_is_free_now(driver: Path) -> None:
    found = look(driver, "auto", FAKE_CARDS="3", CUDA_VISIBLE_DEVICES="2,0")
    assert [(each.index, each.free_bytes) for each in found.cards] == [(2, 13998 * MIB), (0, 14000 * MIB)]


def test_auto_without_a_card_means_the_stand_in_and_says_why(driver: Path) -> None:
    for environment, reason in (
        ({"FAKE_INIT": "9"}, "Driver Not Loaded"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides every card"),
    ):
        found = look(driver, "auto", **environment)
        (stand_in,) = found.cards
        assert (stand_in.name, stand_in.total_bytes, stand_in.stand_in) == ("RTX 4080", 16376 * MIB, True)
        assert reason in found.problems[0]


# Cards known by name


@pytest.mark.parametrize(
    ("text", "name", "mib"),
    [
        ("rtx4080", "RTX 4080", 16376),
        ("rtx 4080", "RTX 4080", 16376),
        ("RTX-4090", "RTX 4090", 24564),
        ("4090", "RTX 4090", 24564),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER", 16376),
        ("RTX 3060 12GB", "RTX 3060", 12288),
        ("rtx4060ti-16gb", "RTX 4060 Ti 16GB", 16380),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop", 16376),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 49140),
        ("a6000", "RTX A6000", 49140),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB", 81920),
        ("NVIDIA H100 80GB HBM3", "H100", 81559),
        ("Tesla T4", "T4", 15360),
        ("h200", "H200", 143771),
    ],
)
def test_a_card_is_known_by_the_ways_people_write_its_name(text: str, name: str, mib: int) -> None:
    (found,) = parse_gpu(text).cards
    assert (found.name, found.total_bytes, found.free_bytes) == (name, mib * MIB, mib * MIB)
    assert not found.stand_in


@given(st.sampled_from(sorted(known_cards())), st.integers(1, MAX_CARDS))
def test_every_known_card_is_found_by_its_name_in_any_number(name: str, number: int) -> None:
    squeezed = name.lower().replace(" ", "")
    for text in (f"{number}x {name}", f"{number}x{squeezed}", f" {number} × {name.replace(' ', '-')}"):
        cards = parse_gpu(text).cards
        assert [each.index for each in cards] == list(range(number))
        assert {(each.name, each.total_bytes) for each in cards} == {(name, known_cards()[name])}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("rtx4o80", "did you mean 'RTX 4080'"),
        ("rtx4060ti", "did you mean 'RTX 4060 Ti 16GB' or 'RTX 4060 Ti 8GB'?"),
        ("A100", "did you mean 'A100 80GB' or 'A100 40GB'?"),
        ("RTX 3060 8GB", "did you mean 'RTX 3060'"),  # another card than the one of 12 GB
        ("bananas", "name one as 'rtx4080'"),
        ("", "name one as 'rtx4080'"),
        ("0x rtx4090", "write 1 to 16"),
        ("17x rtx4090", "write 1 to 16"),
        (f"{'9' * 5000}x rtx4090", "write 1 to 16"),
        ("x rtx4090", "is no card known by name"),
        ("2x auto", "is no card known by name"),
    ],
)
def test_nonsense_is_refused_with_the_nearest_names(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_gpu(text)
    assert hint in str(refused.value)


@given(st.text())
def test_no_text_makes_parsing_fail_otherwise(text: str) -> None:
    try:
        cards = parse_gpu(f"x{text}").cards  # never "auto"
    except UsageError:
        return
    assert 1 <= len(cards) <= MAX_CARDS
