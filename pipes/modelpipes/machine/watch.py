"""One look at the GPUs after another: their figures, and who holds their memory.

Everything that NVML says is optional here: a field that a card or its driver does not have is None, and a GPU
that was there and is not any more is kept, as absent.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import msgspec

from modelpipes.errors import DeadlineError, DriverError, PipesError, UsageError
from modelpipes.machine.nvml import CLOCK_GRAPHICS, CLOCK_MEMORY, TEMPERATURE_GPU, Nvml, Process
from modelpipes.values.units import format_seconds

_T = TypeVar("_T")

# NVML's nvmlClocksEventReasons, bit by bit (nvml.h).
REASONS = (
    "gpu-idle", "applications-clocks", "power-cap", "hw-slowdown", "sync-boost", "sw-thermal", "hw-thermal",
    "hw-power-brake", "display-clocks", "board-limit", "reliability",
)  # fmt: skip
CLOSING_S = 1.0  # nvmlShutdown takes milliseconds; a driver that hangs must not keep us


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
        self._nvml: Nvml | None = None
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

    def _end(self) -> bool:
        if self._nvml:
            self._nvml.close()
            self._nvml = None
        return True

    def _look(self) -> Sample:
        now = time.time()
        problems: tuple[str, ...] = ()
        present: list[Gpu] = []
        failed: dict[int, str] = {}
        try:
            nvml = self._nvml = self._nvml or self._begin()
            present, failed = _read_gpus(nvml)
        except DriverError as error:
            problems = (str(error),)
            self._end()  # it may have been loaded anew: the next look begins afresh
        absent = self._absent({each.key for each in present}, failed, problems)
        gpus = tuple(sorted([*present, *absent], key=lambda each: (each.index, not each.is_present)))
        self._known |= {each.key: each for each in present}
        if not gpus and not problems:
            problems = ("the NVIDIA driver shows no GPU",)
        return Sample(time_s=round(now, 3), driver_version=self._driver_version, gpus=gpus, problems=problems)

    def _begin(self) -> Nvml:
        nvml = Nvml()
        self._driver_version = nvml.ask("nvmlSystemGetDriverVersion")
        return nvml

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


def _read_gpus(nvml: Nvml) -> tuple[list[Gpu], dict[int, str]]:
    """The GPUs that can be read, and by index why others cannot; DriverError where none can even be counted."""
    try:
        count = nvml.need("nvmlDeviceGetCount")
    except DriverError as error:
        raise DriverError(f"the NVIDIA driver does not say which GPUs there are: {error}") from None
    present: list[Gpu] = []
    failed: dict[int, str] = {}
    for index in range(count):
        try:
            present.append(_read_gpu(nvml, index))
        except DriverError as error:
            failed[index] = str(error)
    return present, failed


def _read_gpu(nvml: Nvml, index: int) -> Gpu:
    """Raises DriverError where the GPU is lost."""
    handle = nvml.need("nvmlDeviceGetHandleByIndex", index)
    ask = nvml.ask
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    rates = ask("nvmlDeviceGetUtilizationRates", handle)
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # its name before driver 535
        reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    processes = nvml.read_processes(handle)
    return Gpu(
        index=index,
        name=ask("nvmlDeviceGetName", handle),
        uuid=ask("nvmlDeviceGetUUID", handle),
        temperature_celsius=ask("nvmlDeviceGetTemperature", handle, TEMPERATURE_GPU),
        utilization_percent=rates and rates.gpu,
        memory_total_bytes=memory and memory.total,
        memory_used_bytes=memory and memory.used,
        memory_free_bytes=memory and memory.free,
        memory_used_percent=round(100 * memory.used / memory.total, 1) if memory and memory.total else None,
        power_watts=_watts(ask("nvmlDeviceGetPowerUsage", handle)),
        power_limit_watts=_watts(ask("nvmlDeviceGetEnforcedPowerLimit", handle)),
        graphics_clock_mhz=ask("nvmlDeviceGetClockInfo", handle, CLOCK_GRAPHICS),
        memory_clock_mhz=ask("nvmlDeviceGetClockInfo", handle, CLOCK_MEMORY),
        throttle_reasons=None if reasons is None else _name_reasons(reasons),
        processes=None if processes is None else tuple(map(_share_of, processes)),
    )


def _share_of(process: Process) -> Share:
    return Share(pid=process.pid, program=process.name or None, used_bytes=process.used_bytes)


def _name_reasons(bits: int) -> tuple[str, ...]:
    names = dict(enumerate(REASONS))
    return tuple(names.get(bit, f"bit-{bit}") for bit in range(bits.bit_length()) if bits >> bit & 1)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)
