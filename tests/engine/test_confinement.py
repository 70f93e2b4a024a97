"""What an engine's process may have of the machine, on every engine that this one has."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from modelpipes.engine.confinement import Confinement, check_machine, over_limit, remarks
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice
from modelpipes.errors import Cause, EngineFailure, UsageError
from modelpipes.fit.spec import spec_of
from modelpipes.machine.memory import total_bytes
from modelpipes.values.deadline import Deadline

LIMIT_S = 30.0
MIB = 1 << 20
ROOMY = 1024 * MIB  # for the address space of an engine on a machine of many cores


def cpus_of(pid: int) -> set[str]:
    """The CPUs that the threads of a process may have, as the kernel tells them."""
    lists = [Path(f"/proc/{pid}/task/{task}/status").read_text() for task in os.listdir(f"/proc/{pid}/task")]
    return {re.findall(r"Cpus_allowed_list:\t(\S+)", text)[0] for text in lists}


def data_limit(pid: int) -> str:
    return re.findall(r"Max data size +(\S+)", Path(f"/proc/{pid}/limits").read_text())[0]


def test_all_its_threads_have_the_cpus_that_were_named_and_we_keep_ours(kind: EngineChoice, hello: str) -> None:
    ours = os.sched_getaffinity(0)
    last = max(ours)
    with Engine(hello, engine=kind, cpu_affinity=str(last), parallel=2) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        assert cpus_of(engine.pid) == {str(last)}
    assert os.sched_getaffinity(0) == ours


def test_its_memory_limit_is_kept_by_the_kernel_and_told_once(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, memory_limit=ROOMY) as engine:
        engine.be_ready(Deadline.after(LIMIT_S))
        told = [line for line in engine.logs(1000) if "memory_limit of 1.0 GiB, by the kernel" in line]
        assert len(told) == 1
        if "no control group" in told[0]:
            assert data_limit(engine.pid) == str(ROOMY)


def test_an_engine_that_dies_of_its_limit_says_so_in_one_line(kind: EngineChoice, hello: str) -> None:
    with Confinement(spec_of(hello, memory_limit=ROOMY)) as confinement:
        if confinement.prefix:
            pytest.skip("here a control group limits what is touched, which this engine is small enough for")
    with Engine(hello, engine=kind, memory_limit=20 * MIB) as engine:
        with pytest.raises(EngineFailure, match=r"ended at its memory_limit of 20\.0 MiB") as failed:
            engine.be_ready(Deadline.after(LIMIT_S))
        assert failed.value.cause is Cause.LIMIT
        assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cpu_affinity": "8000"}, "cpu_affinity: 8000 is none of our CPUs"),
        ({"threads": 512 * 8}, "threads: 4096 are more than the"),
        ({"memory_limit": 1 << 60}, "memory_limit: 1.0 EiB is more than the"),
    ],
)
def test_what_the_machine_does_not_have_is_refused_by_its_key(given: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError) as refused:
        check_machine(spec_of("m.gguf", **given))  # type: ignore[typeddict-item]
    assert str(refused.value).startswith(words)


def test_what_the_machine_has_is_let_through() -> None:
    check_machine(spec_of("m.gguf", cpu_affinity=str(min(os.sched_getaffinity(0))), memory_limit=total_bytes()))


def test_an_engine_above_its_own_limit_is_refused_and_one_at_it_is_not() -> None:
    spec = spec_of("m.gguf", memory_limit=10 * MIB)
    assert over_limit(spec, 10 * MIB) == over_limit(spec_of("m.gguf"), 1 << 60) == ""
    assert "needs 11.0 MiB of host memory, and its memory_limit is 10.0 MiB" in over_limit(spec, 11 * MIB)


def test_what_a_person_gave_is_told_with_what_it_covers() -> None:
    own, limit = remarks(spec_of("m.gguf", memory=7 * MIB, memory_limit=ROOMY))
    assert own.startswith("7.0 MiB is your own estimate of its memory")
    assert limit.startswith("memory_limit of 1.0 GiB, by the kernel, covers ")
    assert list(remarks(spec_of("m.gguf"))) == []
