"""How close we are to what the kernel allows, measured on this machine in one run; run as bin/bench.

bin/bench                            everything, some ten minutes; a table, ratios first
bin/bench --only transport           one part
bin/bench --beside PATH              round trips only, those of another checkout and C in the same run
bin/bench --quick                    does it run? Seconds; the figures prove nothing
bin/bench --output NEW.json          keep the figures (results.py has their shape)
bin/bench --markdown                 the table as Markdown
bin/bench --compare OLD.json         what got better or worse; exit code 1 where something got worse
bin/bench --from NEW.json …          the same of figures that were kept, measuring nothing
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from modelpipes.commands.cli.signals import ended_by_signals
from modelpipes.errors import Ended, PipesError
from tests.bench import beside, commands, compare, conversation, fairness, promises, results, tables, transport
from tests.bench.record import Record

PARTS: dict[str, Callable[[Record], None]] = {
    transport.PART: transport.measure,
    commands.START_UP: commands.measure_start_up,
    commands.OVERHEAD: commands.measure_overhead,
    conversation.PART: conversation.measure,
    fairness.PART: fairness.measure,
}
NOT_QUICK = (commands.OVERHEAD,)  # an engine loads for longer than a quick run may take
ROUNDS, QUICK_ROUNDS = 9, 1


def main() -> int:
    # It is there for us to be found; the commands that are measured must not search it.
    os.environ.pop("PYTHONPATH", None)
    given = _arguments()
    try:
        with ended_by_signals():
            return _run(given)
    except Ended as e:
        return e.exit_code
    except PipesError as e:
        print(f"bench: {e}", file=sys.stderr)
        return e.exit_code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--beside", metavar="PATH", help="instead: round trips of the checkout there and of this one")
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"each rival in turn, N times [{ROUNDS}]")
    parser.add_argument("--cpu", type=int, metavar="N", help="the one core, where it is one [the last we may use]")
    parser.add_argument("--output", metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--compare", metavar="OLD", help="against the figures of an earlier run")
    parser.add_argument("--from", dest="kept", metavar="FILE", help="take these figures instead of measuring")
    given = parser.parse_args()
    cpus = os.sched_getaffinity(0)
    if given.cpu is not None and given.cpu not in cpus:
        parser.error(f"--cpu {given.cpu}: we may use {', '.join(map(str, sorted(cpus)))}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds: at least 1")
    return given


def _run(given: argparse.Namespace) -> int:
    old = results.read(given.compare) if given.compare else None  # before minutes of work
    found = results.read(given.kept) if given.kept else _measure(given)
    if given.output:
        results.write(given.output, found)
    sys.stdout.write(tables.markdown(found) if given.markdown else tables.terminal(found))
    if old is None:
        return 0
    changes = compare.compare(old, found)
    sys.stdout.write("\n" + compare.report(old, found, changes))
    return int(any(change.verdict == "worse" for change in changes))


def _measure(given: argparse.Namespace) -> results.Results:
    machine, began = results.Machine.here(), results.now()  # the load before we make some
    usual = beside.ROUNDS if given.beside else ROUNDS
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else usual)
    record = Record(rounds, given.quick, max(os.sched_getaffinity(0)) if given.cpu is None else given.cpu)
    if given.beside:
        beside.measure(record, given.beside)
    for name in [] if given.beside else given.only or PARTS:
        if given.quick and name in NOT_QUICK and not given.only:
            record.skip(name, "a quick run; ask for it with --only")
        else:
            PARTS[name](record)
    return results.Results(
        version=results.VERSION,
        began=began,
        quick=given.quick,
        rounds=rounds,
        machine=machine,
        figures=record.figures,
        promises=[] if given.quick else promises.judge(record.figures),
        skipped=record.skipped,
    )


if __name__ == "__main__":
    sys.exit(main())
