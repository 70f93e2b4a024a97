"""What a machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelpipes.engine import hardware
from modelpipes.engine.hardware import (
    Tool,
    look,
    parse_cpuinfo,
    parse_nvcc,
    parse_rocminfo,
    parse_system,
    parse_version,
    parse_vulkaninfo,
)
from tests.peers import eventually

SHORT_S = 2.0  # a tool that hangs is given up after this in tests; on a busy machine it has begun by then

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
    eventually(lambda: not is_running(started), "end of the sleep")


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie that its new parent has not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
