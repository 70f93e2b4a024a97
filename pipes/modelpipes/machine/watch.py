"""One look at the GPUs after another: their figures, whose memory it is, and what is alarming.

Everything that NVML says is optional here: a field that a card or its driver does not have is None, and a GPU
that was there and is not any more is kept, as absent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec

from modelpipes.errors import DeadlineError, PipesError, UsageError
from modelpipes.machine import cards as gpu
from modelpipes.values.units import format_seconds

if TYPE_CHECKING:
    from types import ModuleType

_T = TypeVar("_T")

AlarmKind: TypeAlias = Literal["vram", "temperature", "lost"]

# NVML's nvmlClocksEventReasons, bit by bit (nvml.h).
REASONS = (
    "gpu-idle", "applications-clocks", "power-cap", "hw-slowdown", "sync-boost", "sw-thermal", "hw-thermal",
    "hw-power-brake", "display-clocks", "board-limit", "reliability",
)  # fmt: skip
CALM_BY = 2.0  # an alarm is over so many points or degrees below its limit: figures at the limit flutter
CLOSING_S = 1.0  # nvmlShutdown takes milliseconds; a driver that hangs must not keep us
MAX_ANCESTORS = 64  # of a process, on the way up to its seat; an engine is two steps away from it
BARS = "▁▂▃▄▅▆▇█"
_SHARD = r"(?i)(-[0-9]{5}-of-[0-9]{5})?\.gguf$"


class Keeper(msgspec.Struct, frozen=True):
    """Which of our processes keeps an engine: the member in a seat, or the serve-models that listens somewhere."""

    seat: str | None = None
    room: str | None = None
    server: str | None = None


class Share(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process that holds memory of a GPU, and what it is to us, as far as that is known."""

    pid: int
    program: str | None
    used_bytes: int | None
    model: str | None = None
    seat: str | None = None
    room: str | None = None
    server: str | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU now. `problem` says why it is absent; whatever NVML did not tell is null."""

    index: int
    name: str | None = None
    uuid: str | None = None
    is_present: bool = True
    problem: str | None = None
    temperature_celsius: int | None = None
    utilization_percent: int | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_used_percent: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    graphics_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    processes: tuple[Share, ...] | None = None

    @property
    def key(self) -> str:
        """What is the same from one look to the next."""
        return self.uuid or str(self.index)

    @property
    def label(self) -> str:
        return f"GPU {self.index}" + (f" ({self.name})" if self.name else "")


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """All GPUs at one moment, and a line for each reason why there are none."""

    time_s: float
    driver_version: str | None = None
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[str, ...] = ()


class Watch:
    """The GPUs of this machine, looked at again and again through NVML.

    NVML is asked in a thread of its own: a driver that hangs does so inside the kernel, where neither a
    deadline nor Ctrl-C reaches.
    """

    def __init__(self, timeout_s: float | None) -> None:
        """`timeout_s` is how long the driver may take for one look."""
        self._timeout_s = timeout_s
        self._nvml: ModuleType | None = None
        self._driver_version: str | None = None
        self._known: dict[str, Gpu] = {}
        self._is_stuck = False

    def read(self) -> Sample:
        """Every GPU now. DeadlineError where the driver does not answer in time; all else is a problem."""
        return self._within(self._timeout_s, self._look)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_stuck:
            with contextlib.suppress(DeadlineError):
                self._within(CLOSING_S, self._end)

    def _within(self, limit_s: float | None, work: Callable[[], _T]) -> _T:
        answers: queue.SimpleQueue[_T | None] = queue.SimpleQueue()

        def answer() -> None:
            result: _T | None = None
            try:
                result = work()
            finally:
                answers.put(result)

        self._is_stuck = True  # until it has answered; a signal may end the waiting too
        threading.Thread(target=answer, name="nvml", daemon=True).start()
        try:
            result = answers.get(timeout=limit_s)
        except queue.Empty:
            waited = format_seconds(limit_s)
            raise DeadlineError(f"the NVIDIA driver did not answer within {waited}: does nvidia-smi?") from None
        self._is_stuck = False
        if result is None:
            raise PipesError("the GPUs could not be read: the reason stands above")
        return result

    def _begin(self) -> tuple[str, ...]:
        """Open NVML; the problems if that cannot be."""
        import pynvml

        try:
            pynvml.nvmlInit()
        except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError) as error:
            return gpu.find_cards().problems or (f"the NVIDIA driver cannot be asked: {error}",)
        self._nvml = pynvml
        self._driver_version = _ask(pynvml, pynvml.nvmlSystemGetDriverVersion)
        return ()

    def _end(self) -> bool:
        if self._nvml:
            _ask(self._nvml, self._nvml.nvmlShutdown)
            self._nvml = None
        return True

    def _look(self) -> Sample:
        now = time.time()
        problems = () if self._nvml else self._begin()
        nvml = self._nvml
        present: list[Gpu] = []
        failed: dict[int, str] = {}
        if nvml:
            try:
                for index in range(nvml.nvmlDeviceGetCount()):
                    try:
                        present.append(_read_gpu(nvml, index))
                    except nvml.NVMLError as error:
                        failed[index] = str(error)
            except nvml.NVMLError as error:
                problems = (f"the NVIDIA driver does not say which GPUs there are: {error}",)
                self._end()  # it may have been loaded anew: the next look begins afresh
        absent = self._absent({each.key for each in present}, failed, problems)
        gpus = tuple(sorted([*present, *absent], key=lambda each: (each.index, not each.is_present)))
        self._known |= {each.key: each for each in present}
        if not gpus and not problems:
            problems = ("the NVIDIA driver shows no GPU",)
        return Sample(time_s=round(now, 3), driver_version=self._driver_version, gpus=gpus, problems=problems)

    def _absent(self, present: set[str], failed: dict[int, str], problems: Sequence[str]) -> list[Gpu]:
        """The GPUs that were seen and are not, and those that could not be read at all."""
        gone: list[Gpu] = []
        for key, old in self._known.items():
            if key not in present:
                why = failed.pop(old.index, None) or "; ".join(problems) or "the driver lists it no more"
                gone.append(Gpu(index=old.index, name=old.name, uuid=old.uuid, is_present=False, problem=why))
        return gone + [Gpu(index=index, is_present=False, problem=why) for index, why in failed.items()]


def is_named(each: Gpu, wanted: Sequence[str]) -> bool:
    """Is it named by its index or by the beginning of its UUID? Without any name, each is. Pure."""
    uuid = (each.uuid or "").lower()
    return not wanted or any(
        item == str(each.index) or (item.lower().startswith("gpu-") and uuid.startswith(item.lower()))
        for item in wanted
    )


def check_named(gpus: Sequence[Gpu], wanted: Sequence[str]) -> None:
    """Raise UsageError, telling what is here, for a name that means none of the GPUs, or several. Pure."""
    for item in wanted:
        number = sum(is_named(each, [item]) for each in gpus)
        if number != 1:
            there = ", ".join(f"{each.index} {each.uuid}" if each.uuid else str(each.index) for each in gpus)
            raise UsageError(f"--gpu {item!r} is {'several' if number else 'none'} of those here: {there}")


# -- alarms


class Alarm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is too much of a GPU, or that it is gone; `value` and `limit` in percent or degrees Celsius."""

    index: int
    uuid: str | None
    kind: AlarmKind
    value: float | None
    limit: float | None
    message: str


class Alarms:
    """Which alarms are on; each begins once and is over once, however long it lasts. Pure but for its memory."""

    def __init__(self, vram_percent: float, temperature_celsius: float) -> None:
        self._limits: dict[AlarmKind, float] = {"vram": vram_percent, "temperature": temperature_celsius}
        self._on: dict[tuple[str, AlarmKind], Alarm] = {}

    def judge(self, gpus: Iterable[Gpu]) -> tuple[list[Alarm], list[Alarm], list[str]]:
        """The alarms that are on, those of them that have just begun, and a line for each that is over."""
        before, self._on = self._on, {}
        over: list[str] = []
        for each in gpus:
            if not each.is_present:
                message = f"{each.label} is gone: {each.problem}"
                self._on[each.key, "lost"] = Alarm(each.index, each.uuid, "lost", None, None, message)
                continue
            if (each.key, "lost") in before:
                over.append(f"{each.label} is back")
            for kind, (value, unit, what) in _measures(each).items():
                limit, was_on = self._limits[kind], (each.key, kind) in before
                if value is not None and value >= limit - was_on * CALM_BY:
                    message = f"{each.label}: {value:g}{unit} {what} (--alert-{OPTIONS[kind]} {limit:g})"
                    self._on[each.key, kind] = Alarm(each.index, each.uuid, kind, value, limit, message)
                elif value is not None and was_on:
                    over.append(f"{each.label}: {value:g}{unit} {what}, no alarm any more")
        return list(self._on.values()), [alarm for key, alarm in self._on.items() if key not in before], over


OPTIONS: dict[AlarmKind, str] = {"vram": "vram", "temperature": "temp"}


def _measures(each: Gpu) -> dict[AlarmKind, tuple[float | None, str, str]]:
    return {
        "vram": (each.memory_used_percent, "%", "of its memory used"),
        "temperature": (each.temperature_celsius, " °C", "hot"),
    }


def sparkline(percents: Sequence[float | None], width: int) -> str:
    """The last `width` values, 0 to 100, a character each; a blank where there was none. Pure."""
    shown = percents[-width:] if width > 0 else ()
    top = len(BARS) - 1
    return "".join(" " if each is None else BARS[min(max(int(each * len(BARS) / 100), 0), top)] for each in shown)


# -- whose memory it is


def name_shares(gpus: Iterable[Gpu], keepers: Mapping[int, Keeper]) -> tuple[Gpu, ...]:
    """The GPUs with the processes named: the model by the command line, seat or server by the nearest keeper above.

    `keepers` has our members and servers by pid.
    """
    return tuple(
        msgspec.structs.replace(
            each,
            processes=None
            if each.processes is None
            else tuple(_name_share(share, keepers) for share in each.processes),
        )
        for each in gpus
    )


def model_of(argv: Sequence[str]) -> str | None:
    """The name of the model that a server's command line tells: its alias, else its file's name. Pure."""
    is_llama = bool(argv) and os.path.basename(argv[0]).startswith("llama-")  # elsewhere -m and -a are something else
    told: dict[str, str] = {}
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        flag = {"-m": "--model", "-a": "--alias"}.get(flag, flag) if is_llama else flag
        if flag in ("--model", "--alias") and (value if equals else following):
            told[flag] = value if equals else following  # llama.cpp takes the last of two
    if "--alias" in told:
        return told["--alias"]
    return re.sub(_SHARD, "", os.path.basename(told["--model"].rstrip("/"))) or None if "--model" in told else None


def _name_share(share: Share, keepers: Mapping[int, Keeper]) -> Share:
    keeper = Keeper()
    pid: int | None = share.pid
    for _ in range(MAX_ANCESTORS):
        if pid is None or pid <= 1:
            break
        if pid in keepers:
            keeper = keepers[pid]
            break
        pid = _parent_of(pid)
    return msgspec.structs.replace(
        share, model=model_of(_command_of(share.pid)), seat=keeper.seat, room=keeper.room, server=keeper.server
    )


def _parent_of(pid: int) -> int | None:
    """None where it has ended. proc_pid_stat(5): the name in parentheses may itself have some."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _command_of(pid: int) -> list[str]:
    """Empty where it has ended, or is a kernel's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return []


# -- NVML


def _read_gpu(nvml: ModuleType, index: int) -> Gpu:
    """Raises NVMLError where the GPU is lost."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def ask(question: Callable[..., Any], *arguments: object) -> Any:
        return _ask(nvml, question, handle, *arguments)

    memory = ask(nvml.nvmlDeviceGetMemoryInfo)
    rates = ask(nvml.nvmlDeviceGetUtilizationRates)
    reasons = ask(nvml.nvmlDeviceGetCurrentClocksEventReasons)
    if reasons is None:  # its name before driver 535
        reasons = ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
    return Gpu(
        index=index,
        name=ask(nvml.nvmlDeviceGetName),
        uuid=ask(nvml.nvmlDeviceGetUUID),
        temperature_celsius=ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        utilization_percent=rates and rates.gpu,
        memory_total_bytes=memory and memory.total,
        memory_used_bytes=memory and memory.used,
        memory_free_bytes=memory and memory.free,
        memory_used_percent=round(100 * memory.used / memory.total, 1) if memory and memory.total else None,
        power_watts=_watts(ask(nvml.nvmlDeviceGetPowerUsage)),
        power_limit_watts=_watts(ask(nvml.nvmlDeviceGetEnforcedPowerLimit)),
        graphics_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_GRAPHICS),
        memory_clock_mhz=ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
        throttle_reasons=None if reasons is None else _name_reasons(reasons),
        processes=_read_shares(nvml, handle),
    )


def _read_shares(nvml: ModuleType, handle: object) -> tuple[Share, ...] | None:
    """Who holds memory, most first; one that computes and draws is in both lists. None where NVML has neither."""
    lists = [
        _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle),
        _ask(nvml, nvml.nvmlDeviceGetGraphicsRunningProcesses, handle),
    ]
    if lists == [None, None]:
        return None
    used: dict[int, int | None] = {}
    for entry in (entry for entries in lists for entry in entries or ()):
        sizes = [size for size in (used.get(entry.pid), entry.usedGpuMemory) if size is not None]
        used[entry.pid] = max(sizes, default=None)
    shares = [
        Share(pid=pid, program=os.path.basename(_ask(nvml, nvml.nvmlSystemGetProcessName, pid) or "") or None,
              used_bytes=size)
        for pid, size in used.items()
    ]  # fmt: skip
    return tuple(sorted(shares, key=lambda share: (-(share.used_bytes or 0), share.pid)))


def _name_reasons(bits: int) -> tuple[str, ...]:
    names = dict(enumerate(REASONS))
    return tuple(names.get(bit, f"bit-{bit}") for bit in range(bits.bit_length()) if bits >> bit & 1)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)


def _ask(nvml: ModuleType, question: Callable[..., Any], *arguments: object) -> Any:
    """NVML's answer, None where this driver or this card does not have it; NVMLError where the GPU is lost."""
    try:
        return question(*arguments)
    except nvml.NVMLError as error:
        if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
            raise
    except (nvml.NVMLLibraryMismatchError, UnicodeDecodeError):
        pass  # a driver older than the question, a name that is no UTF-8
    return None
