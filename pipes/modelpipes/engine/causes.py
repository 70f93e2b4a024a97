"""Why an engine has ended: from its exit code and its last words to one of a few causes."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from modelpipes.errors import Cause

# What a fault of the process itself ends with; any other signal was sent by somebody.
FAULTS = frozenset(
    {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS, signal.SIGTRAP}
)

# The words of ggml (ggml_aligned_malloc, ggml_backend_*_alloc_buffer, ggml_gallocr_reserve_n), of the C++
# library and of the kernel. "Failing to fit params to free device memory" is no lack of it.
SAYS_MEMORY = re.compile(
    r"out of memory|insufficient memory|(failed|unable) to allocate|cannot allocate memory|bad_alloc|out-of-memory",
    re.IGNORECASE,
)
# Of the card, which no limit of the process bounds.
SAYS_CARD = re.compile(r"cuda|hip|rocm|vulkan|sycl|metal|on device", re.IGNORECASE)
# What an allocation that was refused looks like elsewhere: Python's own, and threads, whose stacks count too.
SAYS_REFUSED = re.compile(r"MemoryError|resource temporarily unavailable|can't start new thread|cannot map", re.I)
SAYS_PORT = re.compile(r"couldn't bind|address already in use", re.IGNORECASE)
# llama-server's parser (common/arg.cpp) and the embedded engine's (argparse); then a context that is not to be had
# with these settings though there is memory, such as a quantized V cache without flash attention.
SAYS_FLAG = re.compile(
    r"^error: (invalid argument|unknown argument|argument|the following arguments|ambiguous option)\b"
    r"|^error while (handling|parsing) |failed to initialize the context",
    re.MULTILINE,
)
SAYS_FILE = re.compile(r"error loading model|failed to load model|failed to open GGUF|gguf_init_from", re.IGNORECASE)


def cause_of(
    exit_code: int,
    lines: Sequence[str],
    *,
    stopped_by_us: bool = False,
    is_oom_killed: bool = False,
    has_data_limit: bool = False,
    is_over_limit: bool = False,
) -> Cause:
    """Why a server ended with `exit_code` (minus the signal that killed it) after it wrote `lines`.

    `is_oom_killed`: the kernel has killed something for want of memory meanwhile. `is_over_limit`: it has killed this
    server for its own limit; `has_data_limit`: it would have refused this server memory beyond its own limit.
    """
    if stopped_by_us:
        return Cause.STOPPED
    if is_over_limit:
        return Cause.LIMIT
    if exit_code == 0:
        return Cause.ENDED
    if exit_code < 0 and -exit_code not in FAULTS:
        return Cause.MEMORY if exit_code == -signal.SIGKILL and is_oom_killed else Cause.KILLED
    text = "\n".join(lines)
    if has_data_limit and any(_says_refused(line) for line in lines):
        return Cause.LIMIT
    if SAYS_MEMORY.search(text):
        return Cause.MEMORY
    if exit_code < 0:
        return Cause.CRASHED
    for pattern, cause in ((SAYS_PORT, Cause.PORT), (SAYS_FLAG, Cause.FLAG), (SAYS_FILE, Cause.FILE)):
        if pattern.search(text):
            return cause
    return Cause.CRASHED


def _says_refused(line: str) -> bool:
    return bool(SAYS_MEMORY.search(line) or SAYS_REFUSED.search(line)) and not SAYS_CARD.search(line)


def explain(
    name: str, cause: Cause, exit_code: int, lines: Sequence[str], *, pid: int, port: int, limit: str = ""
) -> str:
    """One line that tells how engine `name` ended; `limit` is its memory_limit in words."""
    if cause is Cause.PORT:
        return port_taken(name, port)
    if cause is Cause.LIMIT:
        refused = next(filter(_says_refused, lines), "")
        said = f" ({' '.join(refused.split())})" if refused else ""
        more = "raise it, or lower ctx_size"
        return f"engine {name} (pid {pid}) ended at its memory_limit of {limit}{said}: {more}"
    said = essence(lines)
    shown = f" ({cause.value.replace('-', ' ')})" if cause in (Cause.MEMORY, Cause.FILE, Cause.FLAG) else ""
    if exit_code < 0:
        by = signal.Signals(-exit_code).name if -exit_code in list(signal.Signals) else f"signal {-exit_code}"
        # What it was just doing has nothing to do with a signal from outside.
        why = f": {said}" if said and -exit_code in FAULTS else ""
        return f"engine {name} (pid {pid}) was killed by {by}{shown}{why}"
    return f"engine {name} ended with exit code {exit_code}: {said or 'it said nothing'}{shown}"


def port_taken(name: str, port: int) -> str:
    return f"engine {name}: port {port} is taken: stop its user or choose another --port"


def essence(lines: Sequence[str]) -> str:
    """The line that says why a llama-server died: of memory, else the first logged as an error, else the last."""
    errors: list[str] = []
    for line in lines:
        if line.startswith(("error: ", "error while")):
            errors.append(line.removeprefix("error: ").strip())
        # "0.00.002.386 E srv         start: couldn't bind …": time, level, where, what.
        elif found := re.match(r"[\d.]+ E +(.*)", line):
            errors.append(" ".join(found[1].split()))
    if errors:
        return next(filter(SAYS_MEMORY.search, errors), errors[0])
    said = [line for line in lines if line.strip()]
    for line in said:
        if re.search(r"\b(error|failed|cannot|unable)\b", line, re.IGNORECASE):
            return line.strip()
    return said[-1].strip() if said else ""
