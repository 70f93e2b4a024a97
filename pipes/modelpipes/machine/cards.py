"""Graphics cards: those that NVML shows, and those known by name."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

import msgspec

from modelpipes.errors import DriverError, UsageError
from modelpipes.machine.nvml import Nvml, Process

MAX_CARDS = 16  # GGML_CUDA_MAX_DEVICES of llama.cpp's ggml-cuda.h
MIB = 1 << 20
STAND_IN = "RTX 4080"

# Total memory in MiB as NVML reports it (nvidia-smi's `memory.total`, ECC as delivered), which is less than
# the name says where ECC or the firmware keeps a part. The figures stand in nvidia-smi output that people
# published in repositories and issue threads (RTX 5090: noonghunna/club-3090, issue 1229; RTX 5060 Ti:
# akash-network/provider-configs, pull request 87); those of A2 and RTX A5500 were found once only. Drivers of
# some years ago report 1 to 2 % less (V100: 32510).
_TOTAL_MIB = {
    "RTX 5090": 32607,
    "RTX 5080": 16303,
    "RTX 5070 Ti": 16303,
    "RTX 5070": 12227,
    "RTX 5060 Ti 16GB": 16311,
    "RTX 5060 Ti 8GB": 8151,
    "RTX 5060": 8151,
    "RTX 5090 Laptop": 24463,
    "RTX 5080 Laptop": 16303,
    "RTX 5070 Ti Laptop": 12227,
    "RTX 5070 Laptop": 8151,
    "RTX 5060 Laptop": 8151,
    "RTX 4090": 24564,
    "RTX 4080 SUPER": 16376,
    "RTX 4080": 16376,
    "RTX 4070 Ti SUPER": 16376,
    "RTX 4070 Ti": 12282,
    "RTX 4070 SUPER": 12282,
    "RTX 4070": 12282,
    "RTX 4060 Ti 16GB": 16380,
    "RTX 4060 Ti 8GB": 8188,
    "RTX 4060": 8188,
    "RTX 4090 Laptop": 16376,
    "RTX 4080 Laptop": 12282,
    "RTX 4070 Laptop": 8188,
    "RTX 4060 Laptop": 8188,
    "RTX 3090 Ti": 24564,
    "RTX 3090": 24576,
    "RTX 3080 Ti": 12288,
    "RTX 3080 12GB": 12288,
    "RTX 3080 10GB": 10240,
    "RTX 3080 Ti Laptop": 16384,
    "RTX 3070 Ti": 8192,
    "RTX 3070": 8192,
    "RTX 3060 Ti": 8192,
    "RTX 3060": 12288,
    "RTX 3070 Laptop": 8192,
    "TITAN RTX": 24576,
    "RTX 2080 Ti": 11264,
    "RTX 2080 SUPER": 8192,
    "RTX 2080": 8192,
    "RTX 2070 SUPER": 8192,
    "RTX 2070": 8192,
    "GTX 1080 Ti": 11264,
    "GTX 1080": 8192,
    "GTX 1070": 8192,
    "RTX PRO 6000 Blackwell": 97887,
    "RTX PRO 5000 Blackwell": 48935,
    "RTX PRO 4500 Blackwell": 32623,
    "RTX PRO 4000 Blackwell": 24467,
    "RTX 6000 Ada": 49140,
    "RTX 5000 Ada": 32760,
    "RTX 4500 Ada": 24570,
    "RTX 4000 Ada": 20475,
    "RTX 2000 Ada": 16380,
    "RTX A6000": 49140,
    "RTX A5500": 24564,
    "RTX A5000": 24564,
    "RTX A4500": 20470,
    "RTX A4000": 16376,
    "RTX A2000 12GB": 12282,
    "B200": 183359,
    "H200": 143771,
    "H20": 97871,
    "GH200": 97871,
    "H100 NVL": 95830,
    "H100": 81559,
    "A100 80GB": 81920,
    "A100 40GB": 40960,
    "A30": 24576,
    "A40": 46068,
    "A16": 15356,
    "A10": 23028,
    "A10G": 23028,
    "A2": 15356,
    "L40S": 46068,
    "L40": 46068,
    "L4": 23034,
    "T4": 15360,
    "V100 32GB": 32768,
    "V100 16GB": 16384,
    "P40": 23040,
    "P100": 16384,
}
# What a card's full name says and a person leaves out.
_DECORATION = (
    "nvidia|geforce|quadro|tesla|generation|(workstation|server)? ?edition|gpu|sff|sxm[0-9]|pcie|hbm[0-9]e?|[^a-z0-9]"
)
_SIZE = "(?i)[ _-]([0-9]{1,3}) ?gi?b"
_SEVERAL = r"(?is)\s*([0-9]+)\s*[x×*]\s*(.+)"


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A graphics card with its memory, present or known by name.

    Of a card known by name all memory counts as free; `stand_in` marks the one that is reckoned with because
    no card was seen. `index` is NVML's (the bus order, as nvidia-smi counts), or the place among the named.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    uuid: str | None = None
    compute_capability: tuple[int, int] | None = None
    driver_version: str | None = None
    processes: tuple[Process, ...] = ()
    stand_in: bool = False

    @property
    def used_bytes(self) -> int:
        """Memory that is not free: what processes hold, and what the driver keeps for itself."""
        return self.total_bytes - self.free_bytes


class Cards(msgspec.Struct, frozen=True):
    """Cards, and a line for each reason why others, or all, are missing."""

    cards: tuple[Card, ...] = ()
    problems: tuple[str, ...] = ()


def find_cards() -> Cards:
    """Every card that NVML shows, with its memory now. Raises nothing: what fails is a problem."""
    try:
        with Nvml() as nvml:
            return _ask_all(nvml)
    except DriverError as error:
        return Cards(problems=(str(error),))


def find_visible_cards() -> Cards:
    """The cards of `find_cards` that $CUDA_VISIBLE_DEVICES leaves to a program, in its order.

    A number counts as nvidia-smi does: CUDA's own order, fastest first, is the same with cards of one kind.
    """
    found = find_cards()
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None or not found.cards:
        return found
    visible = choose_visible(found.cards, wanted)
    hidden = "" if visible else f"CUDA_VISIBLE_DEVICES={wanted!r} hides every card"
    return Cards(visible, found.problems + ((hidden,) if hidden else ()))


def card_bytes(pids: Collection[int]) -> int | None:
    """Bytes that these processes hold on the visible cards; None where the driver does not say."""
    used = [
        process.used_bytes
        for card in find_visible_cards().cards
        for process in card.processes
        if process.pid in pids and process.used_bytes is not None
    ]
    return sum(used) if used else None


def choose_visible(cards: tuple[Card, ...], wanted: str) -> tuple[Card, ...]:
    """What CUDA leaves of the cards under CUDA_VISIBLE_DEVICES=`wanted`.

    As the CUDA programming guide has it: numbers, or beginnings of UUIDs; the first that names no card ends
    the list. Pure.
    """
    chosen: list[Card] = []
    for item in (part.strip() for part in wanted.split(",")):
        is_uuid = item.startswith("GPU-")
        named = [
            card
            for card in cards
            if item == str(card.index) or (is_uuid and card.uuid is not None and card.uuid.startswith(item))
        ]
        if len(named) != 1 or named[0] in chosen:
            break
        chosen.append(named[0])
    return tuple(chosen)


def parse_gpu(text: str) -> Cards:
    """The cards that `--gpu` names: "auto", a known card such as "rtx4080" or "RTX 4090", or "2x rtx3090".

    "auto" is every visible card that NVML shows; without any, the stand-in, and the problems say why. Raises
    UsageError for a name that is not known.
    """
    if text.strip().lower() == "auto":
        found = find_visible_cards()
        return found if found.cards else Cards((_known_card(STAND_IN, 0, stand_in=True),), found.problems)
    several = re.fullmatch(_SEVERAL, text)
    number, name = (several[1], several[2]) if several else ("1", text)
    known = _find_known(name)
    if len(number) > len(str(MAX_CARDS)) or not 1 <= int(number) <= MAX_CARDS:
        raise UsageError(f"{text!r} is no number of cards that llama.cpp can use: write 1 to {MAX_CARDS}")
    return Cards(tuple(_known_card(known, index) for index in range(int(number))))


def known_cards() -> dict[str, int]:
    """Every card known by name, with its total memory in bytes."""
    return {name: mib * MIB for name, mib in _TOTAL_MIB.items()}


def _known_card(name: str, index: int, *, stand_in: bool = False) -> Card:
    total_bytes = _TOTAL_MIB[name] * MIB
    return Card(index=index, name=name, total_bytes=total_bytes, free_bytes=total_bytes, stand_in=stand_in)


def _find_known(text: str) -> str:
    names = {_squeezed(name): name for name in _TOTAL_MIB}
    wanted = _squeezed(text)
    for key in _spellings(wanted):
        if key in names:
            return names[key]
    size = re.search(_SIZE, text)
    for key in _spellings(_squeezed(re.sub(_SIZE, "", text))):  # "H100 80GB": there is no other, and the size agrees
        if size and key in names and abs(_TOTAL_MIB[names[key]] / 1024 - int(size[1])) <= int(size[1]) / 10:
            return names[key]
    import difflib

    # A name that stands for several ("A100", "RTX 4060 Ti") comes before those that only look like it.
    near = [key for key in names if wanted and key.startswith(_spellings(wanted))]
    near = near[:6] or difflib.get_close_matches(wanted, names, n=4)
    hint = f"did you mean {' or '.join(repr(names[key]) for key in near)}?" if near else "name one as 'rtx4080'"
    raise UsageError(f"{text!r} is no card known by name: {hint} (or give its memory with --vram)")


def _spellings(wanted: str) -> tuple[str, ...]:
    return wanted, f"rtx{wanted}", f"gtx{wanted}"  # "4090" is nothing else


def _squeezed(name: str) -> str:
    return re.sub(_DECORATION, "", name.lower())


def _ask_all(nvml: Nvml) -> Cards:
    try:
        count = nvml.need("nvmlDeviceGetCount")
    except DriverError as error:
        return Cards(problems=(f"the NVIDIA driver does not say which cards there are: {error}",))
    driver_version = nvml.ask("nvmlSystemGetDriverVersion")
    cards: list[Card] = []
    problems: list[str] = []
    for index in range(count):
        try:
            cards.append(_read_card(nvml, index, driver_version))
        except DriverError as error:
            problems.append(f"card {index} does not tell its memory ({error}): left out")
    if not cards and not problems:
        problems.append("the NVIDIA driver shows no card")
    return Cards(tuple(cards), tuple(problems))


def _read_card(nvml: Nvml, index: int, driver_version: str | None) -> Card:
    handle = nvml.need("nvmlDeviceGetHandleByIndex", index)
    memory = nvml.need("nvmlDeviceGetMemoryInfo", handle)
    return Card(
        index=index,
        name=nvml.ask("nvmlDeviceGetName", handle) or f"card {index}",
        total_bytes=memory.total,
        free_bytes=memory.free,
        uuid=nvml.ask("nvmlDeviceGetUUID", handle),
        compute_capability=nvml.ask("nvmlDeviceGetCudaComputeCapability", handle),
        driver_version=driver_version,
        processes=nvml.read_processes(handle) or (),
    )
