"""What this machine has for compiling and running llama.cpp, and which variant of it to build.

The options are those of llama.cpp b11434 (CMakeLists.txt, ggml/CMakeLists.txt and ggml/src/ggml-*/CMakeLists.txt).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from modelpipes import gpu
from modelpipes.errors import EngineError
from modelpipes.units import format_bytes

Variant: TypeAlias = Literal["cpu", "cuda", "vulkan", "rocm"]
Version: TypeAlias = tuple[int, ...]

TOOL_LIMIT_S = 10.0  # to print its version: milliseconds, or seconds where a driver wakes a card first
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

# Flags of /proc/cpuinfo for which ggml-cpu has code of its own.
_FEATURES = (
    *("avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512vbmi", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)

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
class Card:
    """An NVIDIA card that the driver shows."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True)
class Tool:
    """A program that runs; `version` is () where it does not say."""

    path: str
    version: Version


@dataclass(frozen=True)
class Machine:
    """What a machine has for compiling and running llama.cpp."""

    system: str  # "debian", "fedora" or "arch" for these and what is made of them, else ID of /etc/os-release
    cpu: str
    cores: int  # that this process may use
    cpu_features: tuple[str, ...]  # as /proc/cpuinfo spells them, those that matter
    cards: tuple[Card, ...]
    driver_cuda: tuple[int, int] | None  # the newest CUDA that the NVIDIA driver runs
    nvcc: Tool | None
    compiler: Tool | None  # of C++
    cmake: Tool | None
    ninja: Tool | None
    make: Tool | None
    rocm: Tool | None  # hipcc, else hipconfig
    rocm_targets: tuple[str, ...]  # AMD cards as compilers call them: "gfx1100"
    glslc: Tool | None
    vulkan_headers: bool  # those of Vulkan and those of SPIR-V
    vulkan_devices: tuple[str, ...]  # by name; CPUs that play a card, such as llvmpipe, are left out


@dataclass(frozen=True)
class Choice:
    """Which llama.cpp to build, and why."""

    variant: Variant
    options: tuple[str, ...]  # for cmake
    found: tuple[str, ...]  # lines: what this machine has
    why: str  # one line
    missing: tuple[str, ...]  # lines: what a better variant, or a card left out, would need


def look() -> Machine:
    """What this machine has. Raises nothing: a tool that hangs or fails counts as missing."""
    cpu, features = parse_cpuinfo(_read("/proc/cpuinfo"))
    found = gpu.find_cards().cards
    return Machine(
        system=parse_system(_read("/etc/os-release")),
        cpu=cpu or os.uname().machine,
        cores=len(os.sched_getaffinity(0)),
        cpu_features=features,
        cards=tuple(
            Card(card.name, card.compute_capability, card.total_bytes) for card in found if card.compute_capability
        ),
        driver_cuda=_ask_driver_cuda() if found else None,
        nvcc=_find_nvcc(),
        compiler=_find_tool((os.environ.get("CXX", ""), "c++", "g++", "clang++")),
        cmake=_find_tool(("cmake", _beside_python("cmake"))),
        ninja=_find_tool(("ninja", "ninja-build", _beside_python("ninja"))),
        make=_find_tool(("make", "gmake")),
        rocm=_find_tool(("hipcc", "/opt/rocm/bin/hipcc", "hipconfig", "/opt/rocm/bin/hipconfig")),
        rocm_targets=_find_rocm_targets(),
        glslc=_find_tool(("glslc", _under("VULKAN_SDK", "bin/glslc"))),
        vulkan_headers=_has_header("vulkan/vulkan.h") and _has_header("spirv/unified1/spirv.hpp"),
        vulkan_devices=parse_vulkaninfo(_output(("vulkaninfo",), "--summary") or ""),
    )


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
        options=_common_options() + _variant_options(machine, variant),
        found=_tell(machine),
        why=_why(machine, variant) + (", and it was asked for" if wanted != "auto" else ""),
        missing=tuple(missing),
    )


def parse_version(text: str) -> Version:
    """The first dotted number of what a program prints for --version, but for those in parentheses; else ()."""
    number = re.search(r"\d+(?:\.\d+)+", re.sub(r"\([^()]*\)", "", text))
    return tuple(int(part) for part in number[0].split(".")) if number else ()


def parse_nvcc(text: str) -> Version:
    """The version in what `nvcc --version` prints: (12, 4, 131); () if there is none."""
    number = re.search(r"\brelease [\d.]+, V([\d.]+\d)", text)
    return parse_version(number[1]) if number else ()


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """The CPU's name (empty where there is none) and its features of interest, of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())  # x86 and ARM
    name = fields.get("model name") or fields.get("Model") or ""
    if not name and "CPU part" in fields:
        name = f"ARM, implementer {fields.get('CPU implementer', '?')}, part {fields['CPU part']}"
    return name, tuple(feature for feature in _FEATURES if feature in flags)


def parse_system(text: str) -> str:
    """Whose packages the system of this /etc/os-release takes: "debian", "fedora" or "arch"; else its ID."""
    fields: dict[str, str] = dict(re.findall(r"""^(ID|ID_LIKE)=["']?([^"'\n]*)""", text, re.MULTILINE))
    names = [fields.get("ID", ""), *fields.get("ID_LIKE", "").split()]
    return next((name for name in names if name in _INSTALL), names[0])


def parse_rocminfo(text: str) -> tuple[str, ...]:
    """The distinct cards ("gfx1100") in what rocminfo or rocm_agent_enumerator prints."""
    # An agent's name; those of ISAs are longer. gfx000 is the enumerator's CPU.
    names = re.findall(r"^\s*(?:Name:\s+)?(gfx[0-9a-f]+)\s*$", text, re.MULTILINE)
    return _distinct(name for name in names if name != "gfx000")


def parse_vulkaninfo(text: str) -> tuple[str, ...]:
    """The names of the cards in what `vulkaninfo --summary` prints, without CPUs that play one."""
    names: list[str] = []
    for device in re.split(r"^GPU\d+:", text, flags=re.MULTILINE)[1:]:
        name = re.search(r"^\s*deviceName\s*=\s*(.*\S)", device, re.MULTILINE)
        if name and "PHYSICAL_DEVICE_TYPE_CPU" not in device:
            names.append(name[1])
    return tuple(names)


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


def _find_nvcc() -> Tool | None:
    places = (os.environ.get("CUDACXX", ""), "nvcc", _under("CUDA_HOME", "bin/nvcc"), "/usr/local/cuda/bin/nvcc")
    found = _find_tool(places, parse_nvcc)
    if found is None:
        return None
    # /usr/local/cuda is a link: whom it leads to may change, and the libraries must stay those of this nvcc.
    # One that leads to another name, as ccache's does, is not resolved.
    path = os.path.realpath(found.path)
    return Tool(path, found.version) if os.path.basename(path) == "nvcc" else found


def _find_rocm_targets() -> tuple[str, ...]:
    for name in ("rocminfo", "rocm_agent_enumerator"):
        if targets := parse_rocminfo(_output((name, f"/opt/rocm/bin/{name}")) or ""):
            return targets
    return ()


def _beside_python(name: str) -> str:
    """Where `pip install` puts a program, on PATH or not."""
    return os.path.join(os.path.dirname(sys.executable), name)


def _find_tool(places: Iterable[str], parse: Callable[[str], Version] = parse_version) -> Tool | None:
    """The first program of these names or paths, if it can print its version."""
    path = _which(places)
    text = None if path is None else _output((path,), "--version")
    return None if path is None or text is None else Tool(path, parse(text))


def _which(places: Iterable[str]) -> str | None:
    found = next(filter(None, (shutil.which(place) for place in places if place)), None)
    return None if found is None else os.path.abspath(found)


def _output(places: Iterable[str], *arguments: str) -> str | None:
    """What the first program of these names or paths prints; None if there is none, it fails or it hangs."""
    path = _which(places)
    if path is None:
        return None
    try:
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a group of its own: hipcc and its like are scripts that start others
        )
    except OSError:
        return None
    with process:
        try:
            text, _ = process.communicate(timeout=TOOL_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.returncode is None:  # not yet waited for, so that its group is still its own
                os.killpg(process.pid, signal.SIGKILL)
    return text.decode("utf-8", "replace") if process.returncode == 0 else None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _under(variable: str, path: str) -> str:
    """A path in the folder that an environment variable names; empty where it names none."""
    folder = os.environ.get(variable)
    return os.path.join(folder, path) if folder else ""


def _has_header(name: str) -> bool:
    folders = (_under("VULKAN_SDK", "include"), "/usr/include", "/usr/local/include")
    return any(os.path.isfile(os.path.join(folder, name)) for folder in folders if folder)


def _ask_driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver runs; None where it does not say."""
    import pynvml  # once gpu.find_cards has found its library

    failures = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError)
    try:
        pynvml.nvmlInit()
        try:
            number: int = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        finally:
            pynvml.nvmlShutdown()
    except failures:
        return None
    return number // 1000, number % 1000 // 10  # 12040 is 12.4 (NVML_CUDA_DRIVER_VERSION_MAJOR of nvml.h)
