"""ping-pipes, as it is run."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest

from modelpipes import lockfile
from modelpipes.pipe.pingpeer import PEER
from modelpipes.pipe.room import HUB, Room
from modelpipes.values.deadline import Deadline
from tests.commands.conftest import LIMIT_S, Commands
from tests.peers import eventually
from tests.test_startup import HEAVY, imported

KEYS = ["size_bytes", "count", "lost", "messages_per_second", "round_trip_us", "affinity"]
SPREAD = ["min", "p50", "p90", "p99", "p99_9", "max"]
SWEEP = [64, 256, 1024, 4096, 16384, 65536, 262144, 1048576]
CPUS = sorted(os.sched_getaffinity(0))
PING_BYTES = 200  # encoded, at the most


def bytes_written(process: subprocess.Popen[bytes]) -> int:
    """What a process has written so far, to pipes as well: it tells how far a run is."""
    return int(Path(f"/proc/{process.pid}/io").read_text().split("wchar: ")[1].split()[0])


def is_amid(process: subprocess.Popen[bytes], pings: int = 20) -> None:
    """Return when a run, whose modules are loaded, has sent so many pings; it writes nothing else before its end."""
    began = bytes_written(process)
    eventually(lambda: bytes_written(process) > began + pings * PING_BYTES, "pings")


def the_peer(run: Commands) -> tuple[Room, int]:
    """The room and the pid of the peer of a run with --self."""
    rooms: list[Room] = []

    def is_ready() -> bool:
        rooms[:] = [Room(str(path)) for path in run.runtime.glob("modelpipes/chat-*")]
        return bool(rooms) and rooms[0].sitting(PEER).state == "ready"

    eventually(is_ready, "peer")
    return rooms[0], rooms[0].sitting(PEER).pid or 0


def rows(table: str) -> list[list[str]]:
    return [re.split(r"  +", line.strip()) for line in table.splitlines()]


# -- what it reports


def test_it_works_where_nothing_else_runs_and_leaves_nothing(run: Commands) -> None:
    told = run("ping", "--self", "--count", "100", PIPE_DIR="")
    assert (told.code, told.stderr) == (0, "")
    header, figures, note, ours, peer = rows(told.stdout)
    assert header == ["size", "count", "lost", "msg/s", "min", "p50", "p90", "p99", "p99.9", "max"]
    assert figures[:3] == ["64 B", "100", "0"]
    assert note == ["round trips in µs"]
    assert ours[0].startswith(f"{HUB} (pid ") and peer[0].startswith(f"{PEER} (pid ")
    assert run.left_files() == []


def test_json_has_these_keys_and_figures_to_a_tenth(run: Commands) -> None:
    told = run("ping", "--self", "--count", "200", "--size", "4KiB", "--json")
    assert told.code == 0
    figures = json.loads(told.stdout)
    assert list(figures) == KEYS
    assert list(figures["round_trip_us"]) == SPREAD
    assert (figures["size_bytes"], figures["count"], figures["lost"]) == (4096, 200, 0)
    times = list(figures["round_trip_us"].values())
    assert times == sorted(times)
    assert all(round(each, 1) == each > 0 for each in [*times, figures["messages_per_second"]])
    assert figures["affinity"] == {"ours": CPUS, "peer": CPUS}


def test_a_sweep_is_a_list_of_eight_sizes_and_one_table(run: Commands) -> None:
    told = run("ping", "--self", "--sweep", "--count", "10", "--json")
    assert [each["size_bytes"] for each in json.loads(told.stdout)] == SWEEP
    told = run("ping", "--self", "--sweep", "--count", "10")
    assert [row[0] for row in rows(told.stdout)[1:9]] == [
        "64 B", "256 B", "1.0 KiB", "4.0 KiB", "16.0 KiB", "64.0 KiB", "256.0 KiB", "1.0 MiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pin", "ours", "peers"), [(f"{CPUS[0]}", CPUS[0], CPUS[0]), (f"{CPUS[0]},{CPUS[-1]}", CPUS[0], CPUS[-1])]
)
def test_both_processes_run_where_they_are_pinned(run: Commands, pin: str, ours: int, peers: int) -> None:
    told = run("ping", "--self", "--count", "10", "--json", "--pin", pin)
    assert json.loads(told.stdout)["affinity"] == {"ours": [ours], "peer": [peers]}
    where = run("ping", "--self", "--count", "10", "--pin", pin).lines[-2:]
    assert [line.split(" on ")[1] for line in where] == [f"CPU {ours}", f"CPU {peers}"]


def test_a_member_answers_pings_while_it_works_for_somebody_else(run: Commands) -> None:
    assert run("setup", "alice", "bob", "--mesh").code == 0
    run.attach("bob", "--exec", "sleep 60")
    run.start("ask", "bob", "--from", "alice", "Hello")
    eventually(lambda: run.room.sitting("bob").state == "busy", "work")
    told = run("ping", "bob", "--count", "50", "--pin", str(CPUS[0]), "--json")
    assert told.code == 0
    figures = json.loads(told.stdout)
    assert (figures["count"], figures["lost"]) == (50, 0)
    assert figures["affinity"] == {"ours": CPUS[:1], "peer": CPUS}
    assert run.room.sitting("bob").state == "busy"


def test_the_only_seat_needs_no_name_and_of_several_one_must_be_named(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    assert run("ping", "--count", "10").lines[-1].startswith("bob (pid ")
    run("setup", "alice")
    told = run("ping", "--count", "10")
    assert (told.code, told.stdout) == (2, "")
    assert told.stderr.endswith(f"name the seat to ping, or --self; {run.room.path}: its seats are alice, bob\n")


def test_it_imports_nothing_heavy(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    for args in (["--self", "--count", "1"], ["bob", "-d", run.room.path, "--count", "1", "--histogram"]):
        assert not imported("ping", *args) & HEAVY


# -- the histogram


def drawn(text: str) -> tuple[list[str], list[str]]:
    """The table, and the lines of the histogram."""
    table, _, histogram = text.partition("\n\n")
    return table.splitlines(), histogram.splitlines()


def on_a_terminal(run: Commands, columns: int, *arguments: str) -> str:
    """What a command writes to a terminal so wide."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = run.command("ping", *arguments)
    process = subprocess.Popen(command, env=run.env, cwd=run.cwd, stdin=theirs, stdout=theirs, start_new_session=True)
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:
        pass  # the terminal's last writer has gone
    finally:
        os.close(ours)
    assert process.wait(LIMIT_S) == 0
    return written.decode().replace("\r\n", "\n")


def test_a_histogram_counts_every_round_trip(run: Commands) -> None:
    table, (size, header, *lines) = drawn(run("ping", "--self", "--count", "300", "--histogram").stdout)
    assert (size, header.split()) == ("64 B", ["≥", "µs", "count"])
    buckets = [line.split() for line in lines if "⋮" not in line]
    assert sum(int(count) for _, count, _ in buckets) == 300
    assert all(set(bar) <= set("█▏▎▍▌▋▊▉") for _, _, bar in buckets)
    lows = [float(low) for low, _, _ in buckets]
    assert lows == sorted(set(lows))
    assert lows[0] <= float(table[1].split()[5]) <= float(table[1].split()[-1])


def test_without_a_terminal_a_histogram_is_80_columns_wide(run: Commands) -> None:
    _, lines = drawn(run("ping", "--self", "--count", "300", "--histogram").stdout)
    assert max(map(len, lines)) == 80


@pytest.mark.parametrize("columns", [40, 200])
def test_table_and_histogram_fit_the_terminal(run: Commands, columns: int) -> None:
    table, lines = drawn(on_a_terminal(run, columns, "--self", "--sweep", "--count", "50", "--histogram"))
    assert max(map(len, table)) <= columns
    assert max(map(len, lines)) == columns
    assert {"size", "lost", "p50", "p99", "max"} <= set(table[0].split())


# -- losses, deadlines, ends


def test_a_stopped_member_loses_every_ping_and_the_run_ends_with_124(run: Commands) -> None:
    bob = run.attach("bob", "--filter", "cat")
    bob.send_signal(signal.SIGSTOP)
    told = run("ping", "bob", "--count", "3", "--warmup", "0", "--timeout", "50ms")
    assert told.code == 124
    assert rows(told.stdout)[1] == ["64 B", "3", "3", "0", *["-"] * 6]
    assert re.fullmatch(rf"modelpipes ping: bob \(pid {bob.pid}, .*\) did not answer a ping in time .*\n", told.stderr)
    told = run("ping", "bob", "--count", "3", "--warmup", "0", "--timeout", "50ms", "--json")
    assert (told.code, json.loads(told.stdout)["lost"], json.loads(told.stdout)["round_trip_us"]) == (124, 3, None)
    told = run("ping", "bob", "--timeout", "50ms")  # already the first of the warm-up tells
    assert (told.code, told.stdout) == (124, "")
    told = run("ping", "bob", "--timeout", "50ms", "--flood", "--seconds", "50ms", "--json")
    assert told.code == 124
    assert json.loads(told.stdout)["lost"] == json.loads(told.stdout)["sent"] > 0
    bob.send_signal(signal.SIGCONT)
    assert run("ping", "bob", "--count", "10").code == 0


def test_a_seat_that_nobody_takes_ends_at_the_deadline(run: Commands) -> None:
    run("setup", "bob")
    told = run("ping", "bob", "--timeout", "100ms")
    assert (told.code, told.stdout) == (124, "")
    assert told.stderr == "modelpipes ping: bob: nobody took the seat before the deadline\n"


def test_it_waits_its_turn_behind_another_asker(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    with lockfile.Lock.take(run.room.asker_lock(HUB, "bob"), Deadline.after(LIMIT_S)):
        told = run("ping", "bob", "--timeout", "100ms")
    assert (told.code, told.stdout) == (124, "")
    assert "held by another process" in told.stderr
    assert run("ping", "bob", "--count", "10").code == 0


def test_a_member_killed_amid_leaves_the_summary_and_is_named(run: Commands) -> None:
    bob = run.attach("bob", "--filter", "cat")
    ping = run.start("ping", "bob", "--warmup", "0", "--count", "1000000", "--interval", "1ms")
    eventually(lambda: run.room.is_asked(HUB, "bob"), "asker")
    is_amid(ping)
    bob.kill()
    stdout, stderr = ping.communicate(timeout=LIMIT_S)
    assert ping.returncode == 1
    assert int(rows(stdout.decode())[1][1]) > 0
    assert re.fullmatch(rf"modelpipes ping: bob \(pid {bob.pid}, .*\) died; .*\n", stderr.decode())


def test_a_peer_of_our_own_killed_amid_leaves_the_summary_and_is_named(run: Commands) -> None:
    ping = run.start("ping", "--self", "--warmup", "0", "--count", "1000000", "--interval", "1ms")
    room, pid = the_peer(run)
    is_amid(ping)
    os.kill(pid, signal.SIGKILL)
    stdout, stderr = ping.communicate(timeout=LIMIT_S)
    assert ping.returncode == 1
    assert int(rows(stdout.decode())[1][1]) > 0
    assert stderr.decode() == f"modelpipes ping: the peer that we started (pid {pid}) died; try again\n"
    assert not os.path.exists(room.path)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", [["--interval", "1ms"], ["--flood", "--seconds", "none"]])
def test_a_signal_ends_it_with_the_summary_so_far(run: Commands, signum: signal.Signals, kind: list[str]) -> None:
    ping = run.start("ping", "--self", "--seconds", "none", *kind)
    room, pid = the_peer(run)
    is_amid(ping, pings=150)  # a hundred to warm up
    ping.send_signal(signum)
    stdout, stderr = ping.communicate(timeout=LIMIT_S)
    assert (ping.returncode, stderr) == (128 + signum, b"")
    assert rows(stdout.decode())[1][0] == "64 B"
    assert stdout.decode().splitlines()[-1].startswith(f"{PEER} (pid {pid}) on CPU ")
    assert not os.path.exists(room.path)


def test_killed_with_sigkill_it_leaves_no_process_and_the_next_run_removes_its_room(run: Commands) -> None:
    ping = run.start("ping", "--self", "--interval", "1ms", "--count", "1000000")
    room, pid = the_peer(run)
    is_amid(ping)
    ping.kill()
    ping.wait(LIMIT_S)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "end of the peer")
    assert run("ping", "--self", "--count", "1").code == 0
    assert not os.path.exists(room.path)
    assert run.left_files() == []


def test_a_closed_stdout_ends_it_quietly(run: Commands) -> None:
    command = " ".join(run.command("ping", "--self", "--sweep", "--count", "10"))
    ended = run.run(["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"])
    assert (ended.stdout, ended.stderr) == ("0\n", "")
    assert run.left_files() == []


# -- floods


def test_a_flood_to_ourselves_is_counted_at_both_ends(run: Commands) -> None:
    told = run("ping", "--self", "--flood", "--seconds", "200ms", "--size", "1KiB", "--json")
    assert told.code == 0
    flood: dict[str, Any] = json.loads(told.stdout)
    assert list(flood) == [
        "size_bytes", "sent", "received", "lost", "seconds", "messages_per_second", "bytes_per_second", "receiver",
        "affinity",
    ]  # fmt: skip
    assert flood["sent"] == flood["received"] > 0 == flood["lost"]
    assert list(flood["receiver"]) == ["seconds", "messages_per_second", "bytes_per_second"]
    for end in (flood, flood["receiver"]):
        assert end["bytes_per_second"] == pytest.approx(end["messages_per_second"] * 1024, rel=1e-3)


def test_a_flood_to_a_seat_comes_back_whole(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    told = run("ping", "bob", "--flood", "--seconds", "200ms")
    assert (told.code, told.stderr) == (0, "")
    header, sent, received = rows(told.stdout)[:3]
    assert header == ["size", "end", "messages", "lost", "seconds", "msg/s", "bytes/s"]
    assert (sent[:2], received[:2]) == (["64 B", "sent"], ["64 B", "received"])
    assert sent[2] == received[2] and sent[3] == received[3] == "0"


def test_floods_may_be_swept_as_well(run: Commands) -> None:
    told = run("ping", "--self", "--flood", "--sweep", "--seconds", "20ms", "--json")
    assert [flood["size_bytes"] for flood in json.loads(told.stdout)] == SWEEP
    assert all(flood["lost"] == 0 < flood["received"] for flood in json.loads(told.stdout))


# -- wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--self", "bob"], "give neither a seat nor -d with it"),
        (["--self", "-d", "x"], "give neither a seat nor -d with it"),
        (["--self", "--sweep", "--size", "1"], "give no --size with it"),
        (["--self", "--size", "17MB"], "--size 17000000: at most 16776192 bytes can travel"),
        (["--self", "--count", "0"], "--count"),
        (["--self", "--timeout", "0"], "--timeout"),
        (["--self", "--interval", "none"], "--interval none"),
        (["--self", "--json", "--histogram"], "give no --json or --format with it"),
        (["--self", "--flood", "--count", "5"], "--count is for pings one by one"),
        (["--self", "--flood", "--histogram"], "--histogram is for pings one by one"),
        (["--self", "--pin", "4711"], f"those are {CPUS[0]}"),
        (["--self", "--pin", "x"], f"those are {CPUS[0]}"),
        (["--self", "--pin", ""], f"those are {CPUS[0]}"),
        (["--self", "--pin", "0,0,0"], "give one CPU, or two"),
        (["bob", "--pin", "0,0"], "the seat is not ours to pin"),
    ],
)
def test_wrong_usage_is_one_line_and_makes_nothing(run: Commands, arguments: list[str], said: str) -> None:
    told = run("ping", *arguments)
    assert (told.code, told.stdout) == (2, "")
    assert told.stderr.count("\n") == 1
    assert said in told.stderr
    assert run.left_files() == []


@pytest.mark.parametrize("arguments", [[], ["bob"]])
def test_without_a_room_it_says_how_to_make_one(run: Commands, arguments: list[str]) -> None:
    told = run("ping", *arguments)
    assert (told.code, told.stdout) == (1, "")
    assert "no room there; run setup-pipes first" in told.stderr


def test_a_seat_that_is_not_there_is_named_with_those_that_are(run: Commands) -> None:
    run("setup", "bob")
    told = run("ping", "carol")
    assert (told.code, told.stdout) == (1, "")
    assert "no seat 'carol'; its seats are bob, hub" in told.stderr
