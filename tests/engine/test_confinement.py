"""What an engine's process may have, on real engines: CPUs, memory, a batch, threads, a model that drafts."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelpipes.engine import locate
from modelpipes.engine.arguments import make_arguments
from modelpipes.engine.confinement import Confinement, check_machine, over_limit, remarks
from modelpipes.engine.lifecycle import Engine
from modelpipes.engine.locate import EngineChoice, find_engine
from modelpipes.errors import Cause, EngineFailure, FileError, UsageError
from modelpipes.fit.prediction import EnginePredictor
from modelpipes.fit.spec import EngineSpec, Given, spec_of
from modelpipes.machine.processes import family
from modelpipes.values.deadline import Deadline
from tests.engine.conftest import START_LIMIT_S

GIB = 1 << 30
OURS = sorted(os.sched_getaffinity(0))


def status_of(pid: int) -> Iterator[str]:
    """The status of every thread of a process and of what it started."""
    for each in family(pid):
        for task in Path(f"/proc/{each}/task").iterdir():
            yield (task / "status").read_text()


def test_all_threads_of_an_engine_run_on_its_cpus(kind: EngineChoice, hello: str) -> None:
    cpu = OURS[-1]
    with Engine(hello, engine=kind, cpu_affinity=str(cpu), threads=2) as engine:
        engine.be_ready(Deadline.after(START_LIMIT_S))
        allowed = [re.findall(r"Cpus_allowed_list:\s*(\S+)", status) for status in status_of(engine.pid)]
    assert len(allowed) > 1 and all(found == [str(cpu)] for found in allowed)
    assert sorted(os.sched_getaffinity(0)) == OURS  # ours are as before


def test_its_batch_and_its_threads_reach_it_and_are_counted(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, batch_size=64, threads=1) as engine:
        engine.be_ready(Deadline.after(START_LIMIT_S))
        words = Path(f"/proc/{engine.pid}/cmdline").read_bytes().decode().split("\0")
    told = {flag: words[words.index(flag) + 1] for flag in ("--batch-size", "--ubatch-size", "--threads")}
    assert told == {"--batch-size": "64", "--ubatch-size": "64", "--threads": "1"}


def test_a_model_that_drafts_is_asked(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, draft=hello) as engine:
        engine.be_ready(Deadline.after(START_LIMIT_S))
        asked = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 8}
        answer = engine.client().post("/v1/chat/completions", asked, START_LIMIT_S)
    assert answer["timings"]["draft_n"] > 0
    assert answer["choices"][0]["message"]["content"].startswith("Hello there")


def test_a_limit_of_memory_is_kept_by_the_kernel_and_said_in_the_log(kind: EngineChoice, hello: str) -> None:
    with Engine(hello, engine=kind, memory_limit=GIB) as engine:
        engine.be_ready(Deadline.after(START_LIMIT_S))
        log = "\n".join(engine.log.last(1000))
        limits = Path(f"/proc/{engine.pid}/limits").read_text()
        group = Path(f"/proc/{engine.pid}/cgroup").read_text()
    assert "memory_limit of 1.0 GiB, by the kernel, covers" in log
    if "control group can be made" in log:
        assert re.search(rf"Max data size\s+{GIB}\s+{GIB}", limits)
    else:
        assert "/modelpipes-" in group


def test_an_engine_that_needs_more_than_its_limit_says_so(kind: EngineChoice, folder: Path) -> None:
    engine = Engine(str(folder / "slow.gguf"), engine=kind, memory_limit=12_000_000, ctx_size=65536)
    with pytest.raises(
        EngineFailure, match=r"ended at its memory_limit of 11\.4 MiB.*raise it, or lower ctx_size"
    ) as told:
        engine.be_ready(Deadline.after(START_LIMIT_S))
    assert told.value.cause is Cause.LIMIT


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"cpu_affinity": "8190"}, "cpu_affinity: 8190 is none of our CPUs"),
        ({"cpu_affinity": "8189-8190"}, "cpu_affinity: 8189-8190 are none of our CPUs"),
        ({"threads": 100_000}, "threads: 100000 are more than the"),
        ({"memory_limit": 1 << 60}, "memory_limit: 1.0 EiB is more than the"),
    ],
)
def test_what_the_machine_does_not_have_is_wrong_usage(hello: str, given: Given, refusal: str) -> None:
    with pytest.raises(UsageError, match=re.escape(refusal)):
        check_machine(spec_of(hello, **given))


def test_a_missing_model_that_drafts_is_named_as_that(kind: EngineChoice, hello: str) -> None:
    with pytest.raises(FileError, match=r"^draft: .*/none/small\.gguf"):
        Engine(hello, engine=kind, draft="/none/small.gguf")


@pytest.mark.parametrize(("name", "flag"), [("draft", "--model-draft"), ("batch_size", "--batch-size")])
def test_an_engine_that_does_not_know_what_was_asked_for_is_not_started_without(
    kind: EngineChoice, hello: str, monkeypatch: pytest.MonkeyPatch, name: str, flag: str
) -> None:
    binary = find_engine(kind)
    listed = binary.flags - {flag}
    monkeypatch.setattr(locate, "_listed_flags", lambda argv: listed)
    with pytest.raises(EngineFailure, match=f"knows no {name} .*does not list {flag}") as told:
        make_arguments(binary, spec_of(hello, draft=hello, batch_size=8), 0, None)
    assert told.value.cause is Cause.FLAG


def test_what_is_predicted_above_its_own_limit_is_not_started() -> None:
    spec = EngineSpec(memory_limit=GIB)
    assert over_limit(spec, GIB) == "" == over_limit(EngineSpec(), 1 << 50)
    assert "needs 2.0 GiB of host memory, and its memory_limit is 1.0 GiB" in over_limit(spec, 2 * GIB)


def test_ones_own_estimate_counts_and_is_said(hello: str) -> None:
    spec = spec_of(hello, memory=5 * GIB)
    memory = EnginePredictor(spec)(replace(spec, n_gpu_layers=0))
    assert (memory.host.total_bytes, memory.estimate) == (5 * GIB, "own")
    card = EnginePredictor(spec)(replace(spec, n_devices=2))
    assert card.device_bytes == 5 * GIB and all(share.total_bytes for share in card.devices)
    assert list(remarks(spec)) == ["5.0 GiB is your own estimate of its memory, and counts in place of the prediction"]


def test_a_limit_that_was_kept_leaves_nothing_behind() -> None:
    with Confinement(EngineSpec(memory_limit=GIB)) as confinement:
        assert "memory_limit of 1.0 GiB" in confinement.words
        assert (confinement.data_limit_bytes is None) == bool(confinement.prefix)
        group = confinement.prefix[-1] if confinement.prefix else ""
        assert not group or stat.S_ISREG(os.stat(group).st_mode)
    assert not group or not os.path.exists(group)
