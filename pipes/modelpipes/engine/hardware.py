"""What this machine has for compiling and running llama.cpp."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from modelpipes.machine.cards import find_cards
from modelpipes.machine.kernel import read_cpuinfo, read_text
from modelpipes.machine.nvml import find_driver_cuda

Version: TypeAlias = tuple[int, ...]

TOOL_LIMIT_S = 10.0  # to print its version: milliseconds, or seconds where a driver wakes a card first
SYSTEMS = ("debian", "fedora", "arch")  # whose packages we know by name

# Flags of /proc/cpuinfo for which ggml-cpu has code of its own.
_FEATURES = (
    *("avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512vbmi", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"),
)


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


def look() -> Machine:
    """What this machine has. Raises nothing: a tool that hangs or fails counts as missing."""
    cpu, features = parse_cpuinfo(read_cpuinfo())
    found = find_cards().cards
    return Machine(
        system=parse_system(read_text("/etc/os-release")),
        cpu=cpu or os.uname().machine,
        cores=len(os.sched_getaffinity(0)),
        cpu_features=features,
        cards=tuple(
            Card(card.name, card.compute_capability, card.total_bytes) for card in found if card.compute_capability
        ),
        driver_cuda=find_driver_cuda() if found else None,
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
    return next((name for name in names if name in SYSTEMS), names[0])


def parse_rocminfo(text: str) -> tuple[str, ...]:
    """The distinct cards ("gfx1100") in what rocminfo or rocm_agent_enumerator prints."""
    # An agent's name; those of ISAs are longer. gfx000 is the enumerator's CPU.
    names = re.findall(r"^\s*(?:Name:\s+)?(gfx[0-9a-f]+)\s*$", text, re.MULTILINE)
    return tuple(dict.fromkeys(name for name in names if name != "gfx000"))


def parse_vulkaninfo(text: str) -> tuple[str, ...]:
    """The names of the cards in what `vulkaninfo --summary` prints, without CPUs that play one."""
    names: list[str] = []
    for device in re.split(r"^GPU\d+:", text, flags=re.MULTILINE)[1:]:
        name = re.search(r"^\s*deviceName\s*=\s*(.*\S)", device, re.MULTILINE)
        if name and "PHYSICAL_DEVICE_TYPE_CPU" not in device:
            names.append(name[1])
    return tuple(names)


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


def _under(variable: str, path: str) -> str:
    """A path in the folder that an environment variable names; empty where it names none."""
    folder = os.environ.get(variable)
    return os.path.join(folder, path) if folder else ""


def _has_header(name: str) -> bool:
    folders = (_under("VULKAN_SDK", "include"), "/usr/include", "/usr/local/include")
    return any(os.path.isfile(os.path.join(folder, name)) for folder in folders if folder)
