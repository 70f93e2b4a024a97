"""Which variant of llama.cpp to build on a machine, with which options, and what a better one would need.

The options are those of llama.cpp b11434 (CMakeLists.txt, ggml/CMakeLists.txt and ggml/src/ggml-*/CMakeLists.txt).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from modelpipes.engine.hardware import Card, Machine, Tool, Version
from modelpipes.errors import EngineError
from modelpipes.values.units import format_bytes

Variant: TypeAlias = Literal["cpu", "cuda", "vulkan", "rocm"]

BEST_FIRST: tuple[Variant, ...] = ("cuda", "rocm", "vulkan")

# What cmake_minimum_required and ggml-hip's check of hip_VERSION ask for.
_CMAKE: dict[Variant, Version] = {"cpu": (3, 14), "cuda": (3, 18), "vulkan": (3, 19), "rocm": (3, 21)}
_ROCM = (6, 1)

# The first CUDA whose nvcc compiles for a compute capability (nvcc --list-gpu-arch). A capability that is not
# here came with the one before it. llama.cpp is C++17, which nvcc knows from 11.0 on.
_FIRST_CUDA = (
    ((5, 0), (11, 0)),
    ((8, 6), (11, 1)),
    ((8, 7), (11, 4)),
    ((8, 8), (13, 0)),
    ((8, 9), (11, 8)),
    ((10, 0), (12, 8)),
    ((10, 3), (12, 9)),
    ((11, 0), (13, 0)),
    ((12, 0), (12, 8)),
    ((12, 1), (12, 9)),
)
_OLDEST = (5, 0)  # Maxwell: the oldest that llama.cpp has kernels for
_OLDEST_OF_13 = (7, 5)  # Turing: CUDA 13 dropped what came before

# The first driver of each CUDA; within a major version every driver runs every toolkit's programs ("Minor
# Version Compatibility" of NVIDIA's CUDA Compatibility).
_FIRST_DRIVER = {11: "R450", 12: "R525", 13: "R580"}
_NVIDIA = "developer.nvidia.com/cuda-downloads"

_INSTALL = {"debian": "sudo apt install", "fedora": "sudo dnf install", "arch": "sudo pacman -S"}
_PACKAGES = {  # of each system, and in plain words for any other
    "compiler": {"debian": "g++", "fedora": "gcc-c++", "arch": "gcc", "": "a C++ compiler"},
    "cmake": {"": "cmake"},
    "make": {"": "make"},
    "nvcc": {"debian": "nvidia-cuda-toolkit", "fedora": "cuda-toolkit", "arch": "cuda", "": "NVIDIA's CUDA toolkit"},
    "hipcc": {
        "debian": "hipcc libhipblas-dev librocblas-dev",
        "fedora": "hipcc rocm-hip-devel hipblas-devel rocblas-devel",
        "arch": "rocm-hip-sdk",
        "": "AMD's ROCm with hipBLAS",
    },
    "rocminfo": {"": "rocminfo"},
    "glslc": {"arch": "shaderc", "": "glslc"},
    "vulkan": {
        "debian": "libvulkan-dev spirv-headers",
        "fedora": "vulkan-headers vulkan-loader-devel spirv-headers-devel",
        "arch": "vulkan-headers vulkan-icd-loader spirv-headers",
        "": "the headers of Vulkan and SPIR-V",
    },
    "vulkaninfo": {"": "vulkan-tools"},
}


@dataclass(frozen=True)
class Choice:
    """Which llama.cpp to build, and why."""

    variant: Variant
    options: tuple[str, ...]  # for cmake
    found: tuple[str, ...]  # lines: what this machine has
    why: str  # one line
    missing: tuple[str, ...]  # lines: what a better variant, or a card left out, would need


def choose(machine: Machine, wanted: Variant | Literal["auto"] = "auto") -> Choice:
    """The best variant that this machine can build and run, or the wanted one. Pure.

    Raises EngineError, with the packages to install, where it cannot be built.
    """
    _check_tools(machine)
    missing: list[str] = []
    variant: Variant = "cpu"
    if wanted != "auto":
        variant = wanted
        if lacks := _lacks(machine, wanted):
            raise EngineError(f"llama.cpp cannot be built for {wanted} here: {'; '.join(lacks)}")
    else:
        for better in BEST_FIRST:
            lacks = _lacks(machine, better)
            if not lacks:
                variant = better
                break
            if _is_close(machine, better):
                missing += [f"{better}: {line}" for line in lacks]
    if variant == "cuda":
        missing += [f"cuda: {line}" for line in _left_out(machine)]
    return Choice(
        variant=variant,
        options=_common_options() + _cpu_options(machine) + _variant_options(machine, variant),
        found=_tell(machine),
        why=_why(machine, variant) + (", and it was asked for" if wanted != "auto" else ""),
        missing=tuple(missing),
    )


def _check_tools(machine: Machine) -> None:
    """EngineError where llama.cpp cannot be compiled at all."""
    lacks = [] if machine.compiler else [("no C++ compiler", "compiler")]
    if machine.cmake is None:
        lacks.append(("no cmake", "cmake"))
    elif machine.cmake.version < _CMAKE["cpu"]:
        lacks.append((_old_cmake(machine.cmake, "cpu"), "cmake"))
    if not (machine.ninja or machine.make):
        lacks.append(("neither make nor ninja", "make"))
    if lacks:
        problems = ", ".join(problem for problem, _ in lacks)
        raise EngineError(f"llama.cpp cannot be compiled here ({problems}): {_install(machine, *dict(lacks).values())}")


def _lacks(machine: Machine, variant: Variant) -> list[str]:
    """What keeps this machine from building and running a variant, each with what to do about it."""
    if variant == "cuda":
        lacks = _lacks_for_cuda(machine)
    elif variant == "rocm":
        lacks = _lacks_for_rocm(machine)
    elif variant == "vulkan":
        lacks = _lacks_for_vulkan(machine)
    else:
        lacks = []
    if machine.cmake and machine.cmake.version < _CMAKE[variant]:
        lacks.append(f"{_old_cmake(machine.cmake, variant)}: update cmake")
    return lacks


def _lacks_for_cuda(machine: Machine) -> list[str]:
    lacks: list[str] = []
    if not machine.cards:
        lacks.append("no NVIDIA card: nvidia-smi, of the driver, must list one")
    nvcc, driver = machine.nvcc, machine.driver_cuda
    if nvcc is None:
        first = max((_first_cuda(card.compute_capability) for card in machine.cards), default=(11, 0))
        newest = f", and none above CUDA {driver[0]}" if driver else ""
        lacks.append(
            f"no nvcc: {_install(machine, 'nvcc')}, or take it from {_NVIDIA} (CUDA {_dotted(first)} or newer{newest})"
        )
        return lacks
    if not nvcc.version:
        lacks.append(f"{nvcc.path} does not say its version: install it anew from {_NVIDIA}")
        return lacks
    if driver and nvcc.version[0] > driver[0]:
        lacks.append(
            f"nvcc {_dotted(nvcc.version[:2])} is too new for the driver, which runs CUDA {_dotted(driver)}: update "
            f"the driver{_to_driver(nvcc.version[0])}, or install a CUDA {driver[0]} toolkit ({_NVIDIA})"
        )
    if machine.cards and not _usable(machine):
        lacks += _left_out(machine)
    return lacks


def _lacks_for_rocm(machine: Machine) -> list[str]:
    lacks: list[str] = []
    if not machine.rocm_targets:
        lacks.append(f"no AMD card that rocminfo shows: {_install(machine, 'rocminfo')}")
    if machine.rocm is None:
        lacks.append(f"no hipcc: {_install(machine, 'hipcc')}")
    elif machine.rocm.version < _ROCM:
        lacks.append(f"ROCm {_dotted(machine.rocm.version)} is older than {_dotted(_ROCM)}: update ROCm")
    return lacks


def _lacks_for_vulkan(machine: Machine) -> list[str]:
    lacks: list[str] = []
    if not machine.vulkan_devices:
        lacks.append(f"no card that vulkaninfo shows: {_install(machine, 'vulkaninfo')}, and the card's Vulkan driver")
    if machine.glslc is None:
        lacks.append(f"no glslc: {_install(machine, 'glslc')}")
    if not machine.vulkan_headers:
        lacks.append(f"no headers of Vulkan and SPIR-V: {_install(machine, 'vulkan')}")
    return lacks


def _is_close(machine: Machine, variant: Variant) -> bool:
    """Whether to tell what a variant lacks: its card is there, or somebody prepared to build for one."""
    if variant == "cuda":
        return bool(machine.cards)
    if variant == "rocm":
        return bool(machine.rocm_targets or machine.rocm)
    return bool(machine.vulkan_devices or (machine.glslc and machine.vulkan_headers))


def _usable(machine: Machine) -> tuple[Card, ...]:
    """The cards that nvcc compiles for."""
    return tuple(card for card in machine.cards if machine.nvcc and not _unknown(machine.nvcc, card))


def _left_out(machine: Machine) -> list[str]:
    """A line for each kind of card that nvcc does not compile for."""
    lines = [_unknown(machine.nvcc, card) for card in machine.cards] if machine.nvcc else []
    some = ", and until then hide this card with CUDA_VISIBLE_DEVICES" if _usable(machine) else ""
    return [line + some for line in _distinct(lines) if line]


def _unknown(nvcc: Tool, card: Card) -> str:
    """Why nvcc does not compile for a card; empty if it does."""
    capability, first = card.compute_capability, _first_cuda(card.compute_capability)
    shown = f"{card.name} (compute capability {_dotted(capability)})"
    tool = f"nvcc {_dotted(nvcc.version[:2])}"
    if capability < _OLDEST:
        return f"{shown} is older than llama.cpp's kernels, which begin at {_dotted(_OLDEST)}: use another card"
    if nvcc.version[:2] < first:
        return f"{tool} does not know {shown}: install CUDA {_dotted(first)} or newer ({_NVIDIA})"
    if nvcc.version[0] >= 13 and capability < _OLDEST_OF_13:
        return f"{tool} no longer knows {shown}: install a CUDA 12 toolkit ({_NVIDIA})"
    return ""


def _first_cuda(capability: tuple[int, int]) -> tuple[int, int]:
    return next((cuda for known, cuda in reversed(_FIRST_CUDA) if known <= capability), _FIRST_CUDA[0][1])


def _to_driver(cuda_major: int) -> str:
    first = _FIRST_DRIVER.get(cuda_major)
    return f" to {first} or newer" if first else ""


def _common_options() -> tuple[str, ...]:
    """Static, for this machine's CPU, llama-server and rpc-server; nothing is fetched while it builds."""
    return (
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=OFF",
        "-DGGML_NATIVE=ON",
        "-DGGML_RPC=ON",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_APP=OFF",
        "-DLLAMA_BUILD_TOOLS=ON",
        "-DLLAMA_BUILD_SERVER=ON",
        "-DLLAMA_BUILD_UI=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",  # it would be downloaded
        "-DLLAMA_OPENSSL=OFF",  # we speak with it on this machine only, and it downloads no model for us
    )


def _cpu_options(machine: Machine) -> tuple[str, ...]:
    """Without AMX, where the CPU has it: llama.cpp's kernels for it crash.

    Compilers may drop what is to be loaded into the tiles' configuration (b11434, ggml-cpu/amx/mmq.cpp; g++ 12 does),
    and the kernel's leave to use tiles is asked for one thread only.
    """
    if "amx_int8" not in machine.cpu_features:
        return ()
    # Beside cmake's own -O3 -DNDEBUG, and so also beside what CFLAGS and CXXFLAGS say.
    without = "-O3 -DNDEBUG -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    return f"-DCMAKE_C_FLAGS_RELEASE={without}", f"-DCMAKE_CXX_FLAGS_RELEASE={without}"


def _variant_options(machine: Machine, variant: Variant) -> tuple[str, ...]:
    if variant == "cuda" and machine.nvcc:
        capabilities = sorted({card.compute_capability for card in _usable(machine)})
        # -real: machine code for these cards, no PTX to compile for others. ggml-cuda makes 120 into 120a itself.
        architectures = ";".join(f"{major}{minor}-real" for major, minor in capabilities)
        return (
            "-DGGML_CUDA=ON",
            f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
            f"-DCMAKE_CUDA_COMPILER={machine.nvcc.path}",
            *_library_path(machine.nvcc, "lib64"),
        )
    if variant == "rocm" and machine.rocm:
        targets = ";".join(machine.rocm_targets)
        return "-DGGML_HIP=ON", f"-DGPU_TARGETS={targets}", *_library_path(machine.rocm, "lib")
    if variant == "vulkan":
        return ("-DGGML_VULKAN=ON",)
    return ()


def _library_path(compiler: Tool, folder: str) -> tuple[str, ...]:
    """The option that lets the program find the compiler's libraries when it runs.

    cmake leaves them out as a compiler's own, and the loader knows only those of a packaged toolkit.
    """
    root = os.path.dirname(os.path.dirname(compiler.path))
    return () if root in ("/usr", "/usr/local") else (f"-DCMAKE_BUILD_RPATH={os.path.join(root, folder)}",)


def _why(machine: Machine, variant: Variant) -> str:
    if variant == "cuda" and machine.nvcc:
        names = ", ".join(_distinct(card.name for card in _usable(machine)))
        driver = f" and the driver runs CUDA {_dotted(machine.driver_cuda)}" if machine.driver_cuda else ""
        return f"cuda for {names}: nvcc {_dotted(machine.nvcc.version[:2])} compiles for it{driver}"
    if variant == "rocm" and machine.rocm:
        return f"rocm for {', '.join(machine.rocm_targets)}: hipcc {_dotted(machine.rocm.version)} compiles for it"
    if variant == "vulkan":
        return f"vulkan for {', '.join(machine.vulkan_devices)}: its driver, glslc and the headers are here"
    return f"cpu for {machine.cpu}: this can always be built"


def _tell(machine: Machine) -> tuple[str, ...]:
    """A line for each thing that this machine has."""
    lines = [f"cpu: {machine.cpu}, {machine.cores} cores, {' '.join(machine.cpu_features) or 'no vector features'}"]
    for card in machine.cards:
        capability = _dotted(card.compute_capability)
        lines.append(f"card: {card.name}, {format_bytes(card.memory_bytes)}, compute capability {capability}")
    if machine.driver_cuda:
        lines.append(f"NVIDIA driver: runs CUDA {_dotted(machine.driver_cuda)}")
    lines += [f"AMD card: {target}" for target in machine.rocm_targets]
    lines += [f"Vulkan card: {name}" for name in machine.vulkan_devices]
    tools = {
        "C++ compiler": machine.compiler,
        "cmake": machine.cmake,
        "ninja": machine.ninja,
        "make": machine.make,
        "nvcc": machine.nvcc,
        "ROCm": machine.rocm,
        "glslc": machine.glslc,
    }
    lines += [f"{name}: {tool.path}, {_dotted(tool.version)}" for name, tool in tools.items() if tool]
    if machine.vulkan_headers:
        lines.append("headers: Vulkan, SPIR-V")
    return tuple(lines)


def _old_cmake(cmake: Tool, variant: Variant) -> str:
    return f"cmake {_dotted(cmake.version)} is older than {_dotted(_CMAKE[variant])}"


def _install(machine: Machine, *needs: str) -> str:
    packages = [_PACKAGES[need].get(machine.system) or _PACKAGES[need][""] for need in needs]
    if machine.system in _INSTALL:
        return f"{_INSTALL[machine.system]} {' '.join(packages)}"
    return f"install {' and '.join(packages)}"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version)) or "of unknown version"


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
