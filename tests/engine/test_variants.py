"""Which llama.cpp is built for which machine."""

from __future__ import annotations

import dataclasses

import pytest

from modelpipes.engine.hardware import Card, Machine, Tool, look
from modelpipes.engine.variants import Choice, Variant, choose
from modelpipes.errors import EngineError

GIB = 1 << 30

NO_CARD = Machine(
    system="debian",
    cpu="AMD EPYC",
    cores=4,
    cpu_features=("avx", "avx2", "fma", "f16c"),
    cards=(),
    driver_cuda=None,
    nvcc=None,
    compiler=Tool("/usr/bin/c++", (12, 2, 0)),
    cmake=Tool("/usr/bin/cmake", (3, 25, 1)),
    ninja=Tool("/usr/bin/ninja", (1, 11, 1)),
    make=Tool("/usr/bin/make", (4, 3)),
    rocm=None,
    rocm_targets=(),
    glslc=None,
    vulkan_headers=False,
    vulkan_devices=(),
)
RTX_4080 = Card("NVIDIA GeForce RTX 4080", (8, 9), 16 * GIB)
RTX_3090 = Card("NVIDIA GeForce RTX 3090", (8, 6), 24 * GIB)
RTX_5090 = Card("NVIDIA GeForce RTX 5090", (12, 0), 32 * GIB)
GTX_1080 = Card("NVIDIA GeForce GTX 1080", (6, 1), 8 * GIB)
NVCC_12 = Tool("/usr/local/cuda-12.4/bin/nvcc", (12, 4, 131))
NVCC_13 = Tool("/usr/local/cuda/bin/nvcc", (13, 0, 88))

ONE_4080 = dataclasses.replace(NO_CARD, cards=(RTX_4080,), driver_cuda=(12, 4), nvcc=NVCC_12)
RADEON = dataclasses.replace(NO_CARD, rocm=Tool("/opt/rocm/bin/hipcc", (6, 4, 43482)), rocm_targets=("gfx1100",))
VULKAN_ONLY = dataclasses.replace(
    NO_CARD,
    glslc=Tool("/usr/bin/glslc", (2023, 2)),
    vulkan_headers=True,
    vulkan_devices=("AMD Radeon RX 7900 XTX (RADV NAVI31)",),
)


def options(choice: Choice) -> dict[str, str]:
    """The options by name; each must be -DNAME=VALUE."""
    assert all(option.startswith("-D") and "=" in option for option in choice.options)
    named = dict(option[2:].split("=", 1) for option in choice.options)
    assert len(named) == len(choice.options)
    return named


def test_without_a_card_the_cpu_variant_is_built_and_nothing_is_missing() -> None:
    choice = choose(NO_CARD)
    assert choice.variant == "cpu"
    assert choice.missing == ()
    assert "AMD EPYC" in choice.why
    named = options(choice)
    assert named["CMAKE_BUILD_TYPE"] == "Release"
    assert named["BUILD_SHARED_LIBS"] == "OFF"
    assert named["GGML_RPC"] == named["GGML_NATIVE"] == named["LLAMA_BUILD_SERVER"] == "ON"
    assert named["LLAMA_BUILD_TESTS"] == named["LLAMA_BUILD_EXAMPLES"] == "OFF"
    assert not {"GGML_CUDA", "GGML_HIP", "GGML_VULKAN"} & set(named)


def test_a_cpu_with_amx_is_built_for_without_it_because_llama_cpp_crashes_there() -> None:
    named = options(choose(dataclasses.replace(NO_CARD, cpu_features=("avx2", "amx_int8"))))
    for language in ("C", "CXX"):
        assert named[f"CMAKE_{language}_FLAGS_RELEASE"].split() == [
            "-O3", "-DNDEBUG", "-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16",
        ]  # fmt: skip
    assert not any("FLAGS" in name for name in options(choose(NO_CARD)))


def test_nothing_is_downloaded_while_it_builds() -> None:
    named = options(choose(NO_CARD))
    assert named["LLAMA_BUILD_UI"] == named["LLAMA_USE_PREBUILT_UI"] == named["LLAMA_OPENSSL"] == "OFF"


def test_a_card_with_a_fitting_nvcc_is_built_for() -> None:
    choice = choose(ONE_4080)
    assert choice.variant == "cuda"
    assert choice.missing == ()
    named = options(choice)
    assert named["GGML_CUDA"] == "ON"
    assert named["CMAKE_CUDA_ARCHITECTURES"] == "89-real"
    assert named["CMAKE_CUDA_COMPILER"] == NVCC_12.path
    assert named["CMAKE_BUILD_RPATH"] == "/usr/local/cuda-12.4/lib64"
    assert "RTX 4080" in choice.why
    assert "card: NVIDIA GeForce RTX 4080, 16.0 GiB, compute capability 8.9" in choice.found
    assert "nvcc: /usr/local/cuda-12.4/bin/nvcc, 12.4.131" in choice.found
    assert "NVIDIA driver: runs CUDA 12.4" in choice.found


def test_an_nvcc_too_new_for_the_driver_is_told_with_both_ways_out() -> None:
    choice = choose(dataclasses.replace(ONE_4080, nvcc=NVCC_13))
    assert choice.variant == "cpu"
    (line,) = choice.missing
    assert line.startswith("cuda: nvcc 13.0 is too new for the driver, which runs CUDA 12.4")
    assert "update the driver to R580 or newer" in line
    assert "install a CUDA 12 toolkit" in line


def test_a_newer_nvcc_of_the_same_major_version_fits_the_driver() -> None:
    newer = dataclasses.replace(ONE_4080, driver_cuda=(12, 0), nvcc=Tool("/usr/bin/nvcc", (12, 9, 86)))
    assert choose(newer).variant == "cuda"


def test_an_older_nvcc_fits_a_newer_driver() -> None:
    assert choose(dataclasses.replace(ONE_4080, driver_cuda=(13, 0))).variant == "cuda"


def test_a_driver_that_does_not_tell_its_cuda_is_taken_to_fit() -> None:
    assert choose(dataclasses.replace(ONE_4080, driver_cuda=None)).variant == "cuda"


def test_two_different_cards_are_both_built_for() -> None:
    several = dataclasses.replace(ONE_4080, cards=(RTX_4080, RTX_3090, RTX_4080))
    assert options(choose(several))["CMAKE_CUDA_ARCHITECTURES"] == "86-real;89-real"


def test_a_card_without_nvcc_names_the_package_and_the_versions_that_fit() -> None:
    choice = choose(dataclasses.replace(ONE_4080, nvcc=None))
    assert choice.variant == "cpu"
    (line,) = choice.missing
    assert "no nvcc: sudo apt install nvidia-cuda-toolkit" in line
    assert "CUDA 11.8 or newer, and none above CUDA 12" in line


@pytest.mark.parametrize(
    ("card", "version", "knows"),
    [
        (RTX_4080, (11, 7), False),
        (RTX_4080, (11, 8), True),
        (Card("NVIDIA H100", (9, 0), 80 * GIB), (11, 8), True),
        (RTX_5090, (12, 6), False),
        (RTX_5090, (12, 8), True),
        (Card("NVIDIA GB10", (12, 1), 128 * GIB), (12, 8), False),
        (Card("NVIDIA B200", (10, 0), 180 * GIB), (12, 8), True),
        (Card("NVIDIA T4", (7, 5), 16 * GIB), (13, 0), True),
        (GTX_1080, (12, 9), True),
        (GTX_1080, (13, 0), False),
        (RTX_3090, (10, 2), False),
        (Card("GeForce GT 710", (3, 5), 2 * GIB), (11, 4), False),
    ],
)
def test_nvcc_must_know_the_card(card: Card, version: tuple[int, ...], knows: bool) -> None:
    machine = dataclasses.replace(ONE_4080, cards=(card,), driver_cuda=(13, 0), nvcc=Tool("/usr/bin/nvcc", version))
    choice = choose(machine)
    assert choice.variant == ("cuda" if knows else "cpu")
    assert bool(choice.missing) != knows
    assert all(card.name in line for line in choice.missing)


def test_a_card_that_nvcc_does_not_know_is_left_out_and_told() -> None:
    mixed = dataclasses.replace(ONE_4080, cards=(RTX_4080, GTX_1080), driver_cuda=(13, 0), nvcc=NVCC_13)
    choice = choose(mixed)
    assert choice.variant == "cuda"
    assert options(choice)["CMAKE_CUDA_ARCHITECTURES"] == "89-real"
    (line,) = choice.missing
    assert "GTX 1080 (compute capability 6.1)" in line
    assert "CUDA 12 toolkit" in line
    assert "CUDA_VISIBLE_DEVICES" in line


def test_a_radeon_with_rocm_is_built_for() -> None:
    choice = choose(dataclasses.replace(RADEON, rocm_targets=("gfx1100", "gfx1036")))
    assert choice.variant == "rocm"
    assert choice.missing == ()
    named = options(choice)
    assert named["GGML_HIP"] == "ON"
    assert named["GPU_TARGETS"] == "gfx1100;gfx1036"
    assert named["CMAKE_BUILD_RPATH"] == "/opt/rocm/lib"


def test_a_packaged_nvcc_needs_no_path_to_its_libraries() -> None:
    packaged = dataclasses.replace(ONE_4080, nvcc=Tool("/usr/bin/nvcc", (12, 4, 131)))
    assert "CMAKE_BUILD_RPATH" not in options(choose(packaged))


def test_a_radeon_without_hipcc_names_the_packages() -> None:
    choice = choose(dataclasses.replace(RADEON, rocm=None))
    assert choice.variant == "cpu"
    assert choice.missing == ("rocm: no hipcc: sudo apt install hipcc libhipblas-dev librocblas-dev",)


def test_a_rocm_older_than_llama_cpp_asks_for_is_told() -> None:
    choice = choose(dataclasses.replace(RADEON, rocm=Tool("/usr/bin/hipcc", (5, 2, 3))))
    assert choice.missing == ("rocm: ROCm 5.2.3 is older than 6.1: update ROCm",)


def test_vulkan_is_built_where_there_is_nothing_better() -> None:
    choice = choose(VULKAN_ONLY)
    assert choice.variant == "vulkan"
    assert choice.missing == ()
    assert options(choice)["GGML_VULKAN"] == "ON"
    assert "RADV NAVI31" in choice.why


def test_vulkan_stands_in_for_cuda_and_the_choice_tells_what_cuda_needs() -> None:
    choice = choose(dataclasses.replace(VULKAN_ONLY, cards=(RTX_4080,), driver_cuda=(12, 4)))
    assert choice.variant == "vulkan"
    assert [line.split(":")[0] for line in choice.missing] == ["cuda"]


def test_a_vulkan_card_without_headers_names_their_packages() -> None:
    choice = choose(dataclasses.replace(VULKAN_ONLY, vulkan_headers=False, glslc=None, system="arch"))
    assert choice.variant == "cpu"
    assert "vulkan: no glslc: sudo pacman -S shaderc" in choice.missing
    assert any(line.endswith("vulkan-headers vulkan-icd-loader spirv-headers") for line in choice.missing)


def test_without_a_vulkan_card_the_cpu_variant_is_built() -> None:
    choice = choose(dataclasses.replace(VULKAN_ONLY, vulkan_devices=()))
    assert choice.variant == "cpu"
    assert any("no card that vulkaninfo shows" in line for line in choice.missing)


def test_the_wanted_variant_beats_a_better_one() -> None:
    choice = choose(ONE_4080, "cpu")
    assert choice.variant == "cpu"
    assert choice.missing == ()
    assert choice.why.endswith("it was asked for")


@pytest.mark.parametrize(("wanted", "says"), [("cuda", "nvcc"), ("rocm", "hipcc"), ("vulkan", "glslc")])
def test_a_wanted_variant_that_cannot_be_built_says_in_one_line_what_is_missing(wanted: Variant, says: str) -> None:
    with pytest.raises(EngineError, match=f"cannot be built for {wanted} here: .*no {says}") as caught:
        choose(NO_CARD, wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("system", "says"),
    [
        ("debian", r"sudo apt install g\+\+ cmake make$"),
        ("fedora", r"sudo dnf install gcc-c\+\+ cmake make$"),
        ("arch", "sudo pacman -S gcc cmake make$"),
        ("nixos", r"install a C\+\+ compiler and cmake and make$"),
    ],
)
def test_without_tools_the_error_names_the_packages_of_the_system(system: str, says: str) -> None:
    bare = dataclasses.replace(NO_CARD, system=system, compiler=None, cmake=None, ninja=None, make=None)
    with pytest.raises(EngineError, match=says):
        choose(bare)


def test_without_a_compiler_not_even_the_cpu_variant_is_built() -> None:
    with pytest.raises(EngineError, match=r"\(no C\+\+ compiler\): sudo apt install g\+\+$"):
        choose(dataclasses.replace(NO_CARD, compiler=None), "cpu")


@pytest.mark.parametrize("missing", ["make", "ninja"])
def test_one_of_make_and_ninja_is_enough(missing: str) -> None:
    without = dataclasses.replace(NO_CARD, make=None) if missing == "make" else dataclasses.replace(NO_CARD, ninja=None)
    assert choose(without).variant == "cpu"


@pytest.mark.parametrize("version", [(3, 13, 4), ()])
def test_an_old_cmake_is_told(version: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"cmake .* is older than 3\.14"):
        choose(dataclasses.replace(NO_CARD, cmake=Tool("/usr/bin/cmake", version)))


def test_a_cmake_too_old_for_the_better_variant_only_is_told() -> None:
    choice = choose(dataclasses.replace(ONE_4080, cmake=Tool("/usr/bin/cmake", (3, 16, 3))))
    assert choice.variant == "cpu"
    assert choice.missing == ("cuda: cmake 3.16.3 is older than 3.18: update cmake",)


def test_what_was_found_begins_with_the_cpu() -> None:
    machine = look()
    if machine.compiler and machine.cmake and machine.make and machine.cmake.version >= (3, 14):
        assert choose(machine).found[0].startswith(f"cpu: {machine.cpu}, {machine.cores} cores")
