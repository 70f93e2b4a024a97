"""What a machine has, and which llama.cpp is built for it."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from modelpipes.engine import hardware
from modelpipes.engine.hardware import (
    Card,
    Choice,
    Machine,
    Tool,
    choose,
    look,
    parse_cpuinfo,
    parse_nvcc,
    parse_rocminfo,
    parse_system,
    parse_version,
    parse_vulkaninfo,
)
from modelpipes.errors import EngineError

GIB = 1 << 30
SHORT_S = 0.3  # a tool that hangs is given up after this in tests; a real one answers in milliseconds

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

NVCC_TEXT = """nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2024 NVIDIA Corporation
Built on Thu_Mar_28_02:18:24_PDT_2024
Cuda compilation tools, release 12.4, V12.4.131
Build cuda_12.4.r12.4/compiler.34097967_0
"""
X86_CPUINFO = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 97
model name\t: AMD Ryzen 9 7950X 16-Core Processor
flags\t\t: fpu vme sse sse2 ssse3 fma cx16 sse4_1 avx f16c bmi1 avx2 bmi2 avx512f avx512dq avx512_bf16 avx512_vnni
bugs\t\t: sysret_ss_attrs spectre_v1

processor\t: 1
model name\t: AMD Ryzen 9 7950X 16-Core Processor
flags\t\t: fpu amx_tile
"""
ARM_CPUINFO = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""
ROCMINFO = """ROCk module is loaded
=====================
HSA Agents
=====================
*******
Agent 1
*******
  Name:                    AMD Ryzen 9 7950X 16-Core Processor
  Uuid:                    CPU-XX
  Marketing Name:          AMD Ryzen 9 7950X 16-Core Processor
  Device Type:             CPU
*******
Agent 2
*******
  Name:                    gfx1100
  Uuid:                    GPU-4a3b1c2d5e6f7081
  Marketing Name:          Radeon RX 7900 XTX
  Vendor Name:             AMD
  Device Type:             GPU
  ISA Info:
    ISA 1
      Name:                    amdgcn-amd-amdhsa--gfx1100
    ISA 2
      Name:                    amdgcn-amd-amdhsa--gfx11-generic
*******
Agent 3
*******
  Name:                    gfx1036
  Uuid:                    GPU-XX
  Marketing Name:          AMD Radeon Graphics
*******
Agent 4
*******
  Name:                    gfx1100
  Uuid:                    GPU-4a3b1c2d5e6f7082
*** Done ***
"""
VULKANINFO = """==========
VULKANINFO
==========

Vulkan Instance Version: 1.3.275


Instance Extensions: count = 1
-------------------------------
VK_EXT_debug_utils                     : extension revision 2

Instance Layers:
----------------

Devices:
========
GPU0:
\tapiVersion         = 1.3.274
\tdriverVersion      = 24.0.9
\tvendorID           = 0x1002
\tdeviceID           = 0x744c
\tdeviceType         = PHYSICAL_DEVICE_TYPE_DISCRETE_GPU
\tdeviceName         = AMD Radeon RX 7900 XTX (RADV NAVI31)
\tdriverID           = DRIVER_ID_MESA_RADV
\tdriverName         = radv
GPU1:
\tapiVersion         = 1.3.274
\tdriverVersion      = 0.0.1
\tvendorID           = 0x10005
\tdeviceID           = 0x0000
\tdeviceType         = PHYSICAL_DEVICE_TYPE_CPU
\tdeviceName         = llvmpipe (LLVM 17.0.6, 256 bits)
\tdriverID           = DRIVER_ID_MESA_LLVMPIPE
\tdriverName         = llvmpipe
"""


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


def test_llvmpipe_is_no_card() -> None:
    _, _, llvmpipe = VULKANINFO.partition("GPU1:")
    devices = parse_vulkaninfo(f"Devices:\n========\nGPU0:{llvmpipe}")
    assert devices == ()
    choice = choose(dataclasses.replace(VULKAN_ONLY, vulkan_devices=devices))
    assert choice.variant == "cpu"
    assert any("no card that vulkaninfo shows" in line for line in choice.missing)


def test_the_wanted_variant_beats_a_better_one() -> None:
    choice = choose(ONE_4080, "cpu")
    assert choice.variant == "cpu"
    assert choice.missing == ()
    assert choice.why.endswith("it was asked for")


@pytest.mark.parametrize(("wanted", "says"), [("cuda", "nvcc"), ("rocm", "hipcc"), ("vulkan", "glslc")])
def test_a_wanted_variant_that_cannot_be_built_says_in_one_line_what_is_missing(
    wanted: hardware.Variant, says: str
) -> None:
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


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("cmake version 3.25.1\n\nCMake suite maintained by Kitware", (3, 25, 1)),
        ("c++ (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022", (12, 2, 0)),
        ("g++ (crosstool-NG 1.24.0) 9.3.0", (9, 3, 0)),
        ("g++ (GCC) 14.2.1 20240912 (Red Hat 14.2.1-3)", (14, 2, 1)),
        ("Ubuntu clang version 18.1.3 (1ubuntu1)", (18, 1, 3)),
        ("GNU Make 4.3\nBuilt for x86_64-pc-linux-gnu", (4, 3)),
        ("1.13.0.git.kitware.jobserver-pipe-1", (1, 13, 0)),
        ("shaderc v2023.2 v2023.2\nspirv-tools v2023.1", (2023, 2)),
        ("HIP version: 6.4.43482-0f2d60242\nAMD clang version 19.0.0git", (6, 4, 43482)),
        ("no number here", ()),
        ("", ()),
    ],
)
def test_a_version_is_the_first_dotted_number(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


def test_nvcc_tells_its_version_behind_the_release() -> None:
    assert parse_nvcc(NVCC_TEXT) == (12, 4, 131)
    assert parse_nvcc("nvcc fatal: something 12.4") == ()


def test_cpuinfo_of_x86_is_read() -> None:
    name, features = parse_cpuinfo(X86_CPUINFO)
    assert name == "AMD Ryzen 9 7950X 16-Core Processor"
    assert features == ("avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512_vnni", "avx512_bf16")


def test_cpuinfo_of_arm_is_read() -> None:
    assert parse_cpuinfo(ARM_CPUINFO) == (
        "ARM, implementer 0x41, part 0xd0c",
        ("asimd", "asimdhp", "asimddp"),
    )
    assert parse_cpuinfo(ARM_CPUINFO + "Model\t\t: Raspberry Pi 5 Model B Rev 1.0\n")[0].startswith("Raspberry Pi 5")
    assert parse_cpuinfo("") == ("", ())


def test_rocminfo_names_each_kind_of_card_once() -> None:
    assert parse_rocminfo(ROCMINFO) == ("gfx1100", "gfx1036")


def test_the_enumerator_is_read_without_its_cpu() -> None:
    assert parse_rocminfo("gfx000\ngfx90a\ngfx90a\n") == ("gfx90a",)
    assert parse_rocminfo("") == ()


def test_vulkaninfo_names_the_cards_but_no_cpu() -> None:
    assert parse_vulkaninfo(VULKANINFO) == ("AMD Radeon RX 7900 XTX (RADV NAVI31)",)
    assert parse_vulkaninfo("Cannot create Vulkan instance.") == ()


@pytest.mark.parametrize(
    ("text", "system"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n', "debian"),
        ("ID=ubuntu\nID_LIKE=debian\n", "debian"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ("ID=endeavouros\nID_LIKE='arch'\n", "arch"),
        ("ID=nixos\n", "nixos"),
        ("", ""),
    ],
)
def test_a_system_is_that_whose_packages_it_takes(text: str, system: str) -> None:
    assert parse_system(text) == system


def put(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH, for tools that the test puts there."""
    for variable in ("CUDACXX", "CUDA_HOME", "CXX", "VULKAN_SDK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_a_look_finds_this_machine() -> None:
    machine = look()
    assert machine.cores == len(os.sched_getaffinity(0))
    assert machine.cpu
    for tool in (machine.compiler, machine.cmake, machine.ninja, machine.make, machine.nvcc):
        assert tool is None or (os.path.isabs(tool.path) and tool.version)
    if machine.compiler and machine.cmake and machine.make and machine.cmake.version >= (3, 14):
        assert choose(machine).found[0].startswith(f"cpu: {machine.cpu}, {machine.cores} cores")


def test_a_look_finds_what_is_on_the_path(tools: Path) -> None:
    put(tools, "nvcc", f"cat <<'END'\n{NVCC_TEXT}\nEND")
    put(tools, "cmake", "echo cmake version 3.31.6")
    put(tools, "hipcc", "echo HIP version: 6.4.43482-0f2d60242")
    put(tools, "rocminfo", f"cat <<'END'\n{ROCMINFO}\nEND")
    put(tools, "vulkaninfo", f"test $1 = --summary && cat <<'END'\n{VULKANINFO}\nEND")
    machine = look()
    assert machine.nvcc == Tool(f"{tools}/nvcc", (12, 4, 131))
    assert machine.cmake == Tool(f"{tools}/cmake", (3, 31, 6))
    assert machine.rocm == Tool(f"{tools}/hipcc", (6, 4, 43482))
    assert machine.rocm_targets == ("gfx1100", "gfx1036")
    assert machine.vulkan_devices == ("AMD Radeon RX 7900 XTX (RADV NAVI31)",)


def test_the_environment_names_nvcc_before_the_path_does(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tools, "nvcc", "exit 1")
    put(tools, "my-nvcc", f"cat <<'END'\n{NVCC_TEXT}\nEND")
    monkeypatch.setenv("CUDACXX", f"{tools}/my-nvcc")
    assert look().nvcc == Tool(f"{tools}/my-nvcc", (12, 4, 131))


def test_a_link_to_nvcc_is_followed_and_one_to_another_program_is_not(tools: Path) -> None:
    (tools / "cuda-12.4").mkdir()
    put(tools / "cuda-12.4", "nvcc", f"cat <<'END'\n{NVCC_TEXT}\nEND")
    (tools / "nvcc").symlink_to(tools / "cuda-12.4" / "nvcc")
    assert look().nvcc == Tool(f"{tools}/cuda-12.4/nvcc", (12, 4, 131))
    (tools / "cuda-12.4" / "nvcc").rename(tools / "ccache")
    (tools / "nvcc").unlink()
    (tools / "nvcc").symlink_to("ccache")
    assert look().nvcc == Tool(f"{tools}/nvcc", (12, 4, 131))


def test_headers_of_vulkan_count_with_those_of_spirv_only(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "isfile", lambda path: str(path).startswith(str(tools)) and os.path.exists(path))
    monkeypatch.setenv("VULKAN_SDK", str(tools))
    for header, whole in (("vulkan/vulkan.h", False), ("spirv/unified1/spirv.hpp", True)):
        path = tools / "include" / header
        path.parent.mkdir(parents=True)
        path.touch()
        assert look().vulkan_headers == whole


def test_a_tool_that_fails_counts_as_missing(tools: Path) -> None:
    put(tools, "nvcc", f"cat <<'END'\n{NVCC_TEXT}\nEND\nexit 1")
    assert look().nvcc is None


def test_a_tool_that_hangs_counts_as_missing_and_is_ended_with_what_it_started(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tools, "nvcc", f"sleep 60 & echo $! > {tools}/started; wait")
    monkeypatch.setattr(hardware, "TOOL_LIMIT_S", SHORT_S)
    assert hardware._find_nvcc() is None
    started = int((tools / "started").read_text())
    deadline = time.monotonic() + 5
    while is_running(started):
        assert time.monotonic() < deadline, "the sleep was left behind"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that its new parent has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
