"""NVML, the library of the NVIDIA driver: loaded, asked, and what it does not tell named.

It is asked through nvidia-ml-py, the `pynvml` module, which is imported only once the driver's library loads: where
there is none, looking costs 2 ms, and not 30.
"""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Any

import msgspec

from modelpipes.errors import DriverError

LIBRARY = "libnvidia-ml.so.1"
# Of nvml.h: nvmlReturn_t, nvmlTemperatureSensors_t, nvmlClockType_t.
GPU_IS_LOST, TEMPERATURE_GPU, CLOCK_GRAPHICS, CLOCK_MEMORY = 15, 0, 0, 2
NO_DRIVER = "no NVIDIA driver"  # so begins the reason where there is none


class Process(msgspec.Struct, frozen=True):
    """A process that holds memory of a card; `used_bytes` is null where NVML does not say how much."""

    pid: int
    name: str  # of the program; empty where NVML does not say
    used_bytes: int | None


class Nvml:
    """NVML, open until `close`.

    A question is the name of a function of NVML; what it is about, a handle of a card or the like, comes after it.
    """

    def __init__(self) -> None:
        """DriverError where there is no driver, or it cannot be asked."""
        import ctypes

        try:
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            is_absent = str(error).startswith(LIBRARY) and "No such file" in str(error)
            why = f"{LIBRARY} is not on this machine" if is_absent else f"its library cannot be loaded: {error}"
            raise DriverError(f"{NO_DRIVER}: {why}") from None
        import pynvml

        self._nvml = pynvml
        try:
            self.need("nvmlInit")
        except DriverError as error:
            raise DriverError(f"the NVIDIA driver cannot be asked ({error}): does nvidia-smi run?") from None

    def need(self, question: str, *about: object) -> Any:
        """NVML's answer; DriverError, with its own words, where it has none."""
        try:
            return getattr(self._nvml, question)(*about)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError) as error:
            is_lost = getattr(error, "value", None) == GPU_IS_LOST
            raise DriverError(str(error), is_lost=is_lost) from None

    def ask(self, question: str, *about: object) -> Any:
        """NVML's answer; None where this driver or this card does not have it. DriverError where the card is lost."""
        try:
            return self.need(question, *about)
        except DriverError as error:
            if error.is_lost:
                raise
        except UnicodeDecodeError:
            pass  # a name that is no UTF-8
        return None

    def read_processes(self, handle: object) -> tuple[Process, ...] | None:
        """Who holds memory of a card, most first; None where NVML does not say.

        NVML has a list of those that compute and one of those that draw; who does both is in both, and counts once.
        """
        lists = [
            self.ask("nvmlDeviceGetComputeRunningProcesses", handle),
            self.ask("nvmlDeviceGetGraphicsRunningProcesses", handle),
        ]
        if lists == [None, None]:
            return None
        used: dict[int, int | None] = {}
        for entry in (entry for entries in lists for entry in entries or ()):
            known = [size for size in (used.get(entry.pid), entry.usedGpuMemory) if size is not None]
            used[entry.pid] = max(known, default=None)
        processes = [
            Process(pid, os.path.basename(self.ask("nvmlSystemGetProcessName", pid) or ""), size)
            for pid, size in used.items()
        ]
        return tuple(sorted(processes, key=lambda process: (-(process.used_bytes or 0), process.pid)))

    def close(self) -> None:
        """Be done with it."""
        with contextlib.suppress(DriverError):
            self.need("nvmlShutdown")

    def __enter__(self) -> Nvml:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver runs; None where it does not say."""
    try:
        with Nvml() as nvml:
            number: int | None = nvml.ask("nvmlSystemGetCudaDriverVersion_v2")
    except DriverError:
        return None
    # 12040 is 12.4 (NVML_CUDA_DRIVER_VERSION_MAJOR of nvml.h).
    return None if number is None else (number // 1000, number % 1000 // 10)
