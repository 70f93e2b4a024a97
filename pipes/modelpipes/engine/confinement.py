"""What an engine's process may have of the machine: which CPUs, how much host memory; kept by the kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

from modelpipes.errors import UsageError
from modelpipes.fit.spec import EngineSpec
from modelpipes.machine.cgroups import MemoryGroup, make_memory_group
from modelpipes.machine.memory import read_memory
from modelpipes.values.units import format_bytes, format_cpus

# A process that says where it belongs, and then becomes the engine: what it takes counts from its first byte.
JOIN = 'echo $$ > "$0" && exec "$@"'
OF_GROUP = "all that it has in RAM"
# setrlimit(2): what is mapped privately and may be written. Address space counts that is never touched, such as the
# stacks of threads: 120 MB in an engine with tiny-chat that has 35 MB in RAM.
OF_RLIMIT = (
    "what it allocates, touched or not; the model file that it maps is left out (no control group can be made here)"
)


def check_machine(spec: EngineSpec) -> None:
    """Raise UsageError, with the key's name, for what this machine does not have."""
    ours = os.sched_getaffinity(0)
    if missing := set(spec.cpu_affinity) - ours:
        few = "is" if len(missing) == 1 else "are"
        raise UsageError(f"cpu_affinity: {format_cpus(missing)} {few} none of our CPUs, which are {format_cpus(ours)}")
    # Not by what we may use: a container's share of the CPUs may be given out in time, not by number.
    if spec.threads and spec.threads > (cores := os.cpu_count() or spec.threads):
        raise UsageError(f"threads: {spec.threads} are more than the {cores} CPUs of this machine")
    if spec.memory_limit and spec.memory_limit > (there := read_memory().total_bytes):
        limit = format_bytes(spec.memory_limit)
        raise UsageError(f"memory_limit: {limit} is more than the {format_bytes(there)} of this machine")


def over_limit(spec: EngineSpec, host_bytes: int) -> str:
    """Why an engine that is predicted to take so much host memory cannot start under its own limit; "" if it can."""
    if spec.memory_limit is None or host_bytes <= spec.memory_limit:
        return ""
    needs, limit = format_bytes(host_bytes), format_bytes(spec.memory_limit)
    return f"it needs {needs} of host memory, and its memory_limit is {limit}: raise it, or lower ctx_size"


def remarks(spec: EngineSpec) -> Iterator[str]:
    """What a person is to know of what they gave an engine."""
    if spec.memory is not None:
        yield f"{format_bytes(spec.memory)} is your own estimate of its memory, and counts in place of the prediction"
    if spec.memory_limit is not None:
        with Confinement(spec) as confinement:
            yield confinement.words


class Confinement:
    """Where one start of an engine lives; `close` once it has ended."""

    def __init__(self, spec: EngineSpec) -> None:
        self.cpus = spec.cpu_affinity
        self._limit_bytes = spec.memory_limit
        self._group: MemoryGroup | None = None
        self._oom_kills = 0
        if spec.memory_limit is not None:
            self._group = make_memory_group(spec.memory_limit)

    @property
    def prefix(self) -> list[str]:
        """What stands before the engine's own command."""
        return ["/bin/sh", "-c", JOIN, self._group.processes] if self._group else []

    @property
    def data_limit_bytes(self) -> int | None:
        """Its RLIMIT_DATA; None where it has none, or a control group."""
        return None if self._group else self._limit_bytes

    @property
    def limit(self) -> str:
        """The limit in words; "" without one."""
        return "" if self._limit_bytes is None else format_bytes(self._limit_bytes)

    @property
    def words(self) -> str:
        """The limit and what it covers, in a line; "" without one."""
        covers = OF_GROUP if self._group else OF_RLIMIT
        return self.limit and f"memory_limit of {self.limit}, by the kernel, covers {covers}"

    def has_killed(self) -> bool:
        """Whether the kernel has killed it for its limit."""
        return self._group is not None and self._group.oom_kills() > 0

    def close(self) -> None:
        """Take the control group away, if there is one."""
        if self._group:
            self._group.remove()

    def __enter__(self) -> Confinement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
