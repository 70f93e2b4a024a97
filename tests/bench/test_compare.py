from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from modelpipes.errors import FileError
from tests.bench import commands, compare, conversation, fairness, promises, results, tables, transport
from tests.bench.results import Figure, Machine, Promise, Results, Skipped, figure

HERE = Machine("a CPU", 2, 1 << 30, "6.1", "3.11.7", "abc", (0.0, 0.1, 0.2), {"msgspec": "0.22"})
ELSEWHERE = msgspec.structs.replace(HERE, cpu="another CPU")
ROUND_TRIP = f"{transport.TABLES['round_trip']}, {transport.ONE_CORE}"
ONE_WAY = f"{transport.TABLES['one_way']}, {transport.ONE_CORE}"
C_RUNS = [4.9, 5.0, 5.1]


def results_of(*figures: Figure, machine: Machine = HERE, judged: Sequence[Promise] = ()) -> Results:
    skipped = [Skipped("pyzmq ipc", "pyzmq is not installed")]
    return Results(1, "2025-01-01T00:00:00+0000", False, 3, machine, list(figures), list(judged), skipped)


def round_trip(times: float, row: str = transport.OURS, column: str = "64 B", *, is_ours: bool = True) -> Figure:
    runs = [run * times for run in C_RUNS]
    base = transport.C_BLOCKING, C_RUNS
    return figure("transport", ROUND_TRIP, row, column, "us", runs, base=base, is_ours=is_ours, p99_runs=[9, 8, 7])


def rate(*runs: float, column: str = "64 B") -> Figure:
    return figure("transport", ONE_WAY, transport.OURS, column, "per_second", runs, lower_is_better=False, is_ours=True)


def memory(slope: float, error: float) -> Figure:
    flat = figure(conversation.PART, "a talk", conversation.LEADER, "median", "KiB", [99, 100, 101], is_ours=True)
    return msgspec.structs.replace(flat, slope=slope, slope_error=error)


class TestFigure:
    def test_values_and_ratios_are_medians_and_ratios_are_taken_round_by_round(self) -> None:
        found = figure("p", "t", "r", "c", "us", [10, 30, 80], base=("C", [10, 10, 20]), p99_runs=[1, 9, 2])
        assert (found.value, found.ratio, found.ratio_runs, found.p99) == (30, 3, (1, 3, 4), 2)

    def test_a_file_gives_back_what_was_written(self, tmp_path: Path) -> None:
        kept = results_of(round_trip(2.0), memory(1.0, 0.5), judged=[Promise("a", "b", "c", True)])
        path = str(tmp_path / "results.json")
        results.write(path, kept)
        assert results.read(path) == kept

    @pytest.mark.parametrize("text", ["", "{}", "[1]", '{"version": 1}', "\udcff"])
    def test_another_file_is_refused_by_name(self, text: str, tmp_path: Path) -> None:
        path = tmp_path / "other.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(FileError, match=r"other\.json"):
            results.read(str(path))

    def test_a_file_that_is_not_there_and_one_of_another_version_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="cannot be read"):
            results.read(str(tmp_path / "missing.json"))
        path = tmp_path / "later.json"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(results_of(), version=2)))
        with pytest.raises(FileError, match="version 2"):
            results.read(str(path))

    def test_this_machine_has_a_name(self) -> None:
        machine = Machine.here()
        assert machine.cpu and machine.cores >= 1 and machine.versions["msgspec"]
        assert machine.is_like(machine)
        assert machine.cpu in machine.name()


class TestCompare:
    def verdicts(self, old: Results, new: Results) -> list[str]:
        return [change.verdict for change in compare.compare(old, new)]

    def test_of_two_runs_alike_nothing_changed(self) -> None:
        run = results_of(round_trip(2.0), rate(1e5, 1.01e5, 0.99e5))
        assert self.verdicts(run, run) == ["same", "same"]
        assert "nothing changed" in compare.report(run, run, compare.compare(run, run))

    def test_a_longer_round_trip_is_worse_and_a_higher_rate_is_better(self) -> None:
        old = results_of(round_trip(2.0), rate(1e5, 1.01e5, 0.99e5))
        new = results_of(round_trip(3.0), rate(2e5, 2.01e5, 1.99e5))
        assert self.verdicts(old, new) == ["worse", "better"]
        assert self.verdicts(new, old) == ["better", "worse"]
        said = compare.report(old, new, compare.compare(old, new))
        assert "worse: transport, round trip" in said
        assert "(+50 %)" in said and compare.RULE in said

    def test_a_machine_that_was_slower_throughout_is_no_change(self) -> None:
        slow = round_trip(2.0)
        slow = msgspec.structs.replace(slow, value=slow.value * 2, runs=tuple(run * 2 for run in slow.runs))
        assert self.verdicts(results_of(round_trip(2.0)), results_of(slow)) == ["same"]

    def test_against_another_machine_only_ratios_count(self) -> None:
        old = results_of(round_trip(2.0), rate(1e5, 1e5, 1e5), machine=ELSEWHERE)
        new = results_of(round_trip(4.0), rate(1e3, 1e3, 1e3))
        assert self.verdicts(old, new) == ["worse"]
        assert "Another machine" in compare.report(old, new, compare.compare(old, new))

    def test_a_machine_that_was_busy_is_told_of(self) -> None:
        busy = results_of(machine=msgspec.structs.replace(HERE, load_before=(4.0, 1.0, 1.0)))
        assert "load 4.0 and 0.0" in compare.report(busy, results_of(), [])
        assert "load" not in compare.report(results_of(), results_of(), [])

    def test_rivals_and_figures_that_only_one_run_has_do_not_count(self) -> None:
        old = results_of(round_trip(2.0, transport.ZMQ, is_ours=False), round_trip(2.0, column="1 MiB"))
        new = results_of(round_trip(9.0, transport.ZMQ, is_ours=False), round_trip(9.0, column="64 B"))
        assert self.verdicts(old, new) == []

    def test_one_run_alone_tells_nothing(self) -> None:
        assert self.verdicts(results_of(rate(1e5)), results_of(rate(1e3))) == ["unknown"]


class TestPromises:
    def held(self, *figures: Figure) -> list[bool]:
        return [promise.holds for promise in promises.judge(figures)]

    def test_round_trips_are_held_against_c(self) -> None:
        assert self.held(round_trip(2.4), round_trip(3.4, column="4 KiB")) == [True, True]
        assert self.held(round_trip(2.6), round_trip(8.1, column="1 MiB")) == [False, False]

    def test_rates_have_a_least(self) -> None:
        assert self.held(rate(250_000), rate(100_000, column=transport.SINGLE)) == [True, True]
        assert self.held(rate(249_000), rate(99_000, column=transport.SINGLE)) == [False, False]

    def test_commands_that_only_touch_fifos_start_within_twice_click(self) -> None:
        def start(ms: float) -> Figure:
            base = (commands.CLICK, [10.0] * 3)
            return results.figure(commands.START_UP, commands.PROCESSOR, "ask-model", "", "ms", [ms] * 3, base=base)

        assert self.held(start(20.0), start(20.1)) == [True, False]

    def test_we_are_to_be_ahead_of_what_others_use(self) -> None:
        theirs = round_trip(2.2, transport.ZMQ, is_ours=False)
        assert self.held(round_trip(2.0), theirs) == [True, True]
        assert self.held(round_trip(2.3), theirs) == [True, False]

    @pytest.mark.parametrize(
        ("slope", "error", "holds"),
        [(0, 0, True), (100, 40, True), (100, 10, False), (5, 0.1, True), (-100, 1, True)],
    )
    def test_memory_is_not_to_grow_beyond_noise_and_an_allocators_step(
        self, slope: float, error: float, holds: bool
    ) -> None:
        assert self.held(memory(slope, error)) == [holds]

    def test_nothing_is_lost_and_nobody_is_passed_over(self) -> None:
        def row(column: str, *runs: float) -> Figure:
            return figure(fairness.PART, "many", "64 seats", column, "times", runs, is_ours=True)

        assert self.held(row(fairness.LOST, 0, 0), row(fairness.SERVED, 1.9), row(fairness.P99, 99)) == [True, True]
        assert self.held(row(fairness.LOST, 0, 1), row(fairness.SLOWEST, 2.1)) == [False, False]


class TestTables:
    def test_the_ratio_stands_first(self) -> None:
        found = tables.terminal(results_of(round_trip(2.0), round_trip(1.0, transport.C_BLOCKING, is_ours=False)))
        lines = found.splitlines()
        assert lines[0] == f"{ROUND_TRIP}; ratio to C, blocking"
        assert lines[2] == "modelpipes   2.00 (10 µs / 8 µs)"
        assert "skipped pyzmq ipc: pyzmq is not installed" in lines
        assert "a CPU, 2 cores, Linux 6.1, Python 3.11.7, commit abc" in lines[-1]

    def test_markdown_has_a_table_for_each_and_what_must_hold(self) -> None:
        judged = [Promise("fast", "at most 2", "3", False)]
        found = tables.markdown(
            results_of(round_trip(2.0), round_trip(2.0, column="1 MiB"), memory(1, 0.5), judged=judged)
        )
        assert f"| {ROUND_TRIP}; ratio to C, blocking | 64 B | 1 MiB |\n| --- | --- | --- |\n| modelpipes |" in found
        assert "| fast | at most 2 | 3 | **no** |" in found
        assert "100 KiB, +1 ± 0.5 per 1000 turns" in found

    @pytest.mark.parametrize(
        ("value", "unit", "text"),
        [
            (9.444, "us", "9.44 µs"),
            (1234.5, "us", "1.23 ms"),
            (250_123, "per_second", "250k/s"),
            (12.0, "per_second", "12/s"),
            (0, "count", "0"),
            (123_456, "KiB", "123,456 KiB"),
            (0.3521, "ms", "0.352 ms"),
        ],
    )
    def test_quantities_have_three_figures_and_their_unit(self, value: float, unit: str, text: str) -> None:
        assert tables.quantity(value, unit) == text


def test_the_parts_of_the_bench_have_names_of_their_own() -> None:
    parts = [transport.PART, commands.START_UP, commands.OVERHEAD, conversation.PART, fairness.PART]
    assert len(set(parts)) == len(parts)
