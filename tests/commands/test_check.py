"""check-system: what it makes of recorded machines, and what it says of this one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from modelpipes.commands.checkup.engines import Engine, judge_engines
from modelpipes.commands.checkup.folders import Folder, judge_folders
from modelpipes.commands.checkup.rooms import Runtime, judge_default_room, judge_rooms, judge_runtime
from modelpipes.commands.checkup.serving import EXTRAS, judge_extra, judge_port
from modelpipes.commands.checkup.whole import BUILD_BYTES, can_talk
from modelpipes.commands.views.check import draw_screen
from modelpipes.engine.build import NEEDED_BYTES
from modelpipes.engine.locate import GET_ONE
from modelpipes.gateway.record import Daemon, recorded
from modelpipes.machine.cards import Card, Cards
from modelpipes.machine.checks import Check, judge_cards, judge_kernel
from modelpipes.machine.ports import Holder
from modelpipes.pipe.room import HUB, Room, star
from tests.commands.conftest import LIMIT_S, Commands
from tests.machine.driver import build_driver
from tests.shell import CHECKOUT, TINY_CHAT, Ended

GIB = 1 << 30
CODE = """\
import sys
from modelpipes import commands
from modelpipes.commands.checkup import whole
whole.DEFAULT_LISTEN = {listen!r}
sys.exit(commands.run_verb("check", sys.argv[1:], "check-system"))
"""
# As llama-server answers, which is what matters here.
ENGINE = """\
#!/bin/sh
case $1 in
--help) echo '-m,    --model FNAME    model path' ;;
--list-devices) echo 'Available devices:'; {devices} ;;
--version) echo 'version: 11434 (1a2b3c4)' ;;
esac
"""
CUDA = "echo '  CUDA0: NVIDIA GeForce RTX 4080 (16376 MiB, 15000 MiB free)'"


# -- pure: what is said of what was read


def test_an_old_kernel_or_another_system_cannot_run_the_main_job() -> None:
    for system, release in (("Linux", "5.2.14"), ("Linux", "4.19.0-amd64"), ("Darwin", "23.1.0"), ("Linux", "odd")):
        check = judge_kernel(system, release)
        assert (check.state, can_talk([check])) == ("missing", False)
        assert check.advice
    assert judge_kernel("Linux", "5.3").state == "ok"
    assert judge_kernel("Linux", "5.15.167.4-microsoft-standard-WSL2").state == "ok"


def runtime(base: str, mode: int | None = 0o700, owner: int | None = 1000, **more: Any) -> Check:
    seen = None if mode is None else stat.S_IFDIR | mode
    known: dict[str, Any] = {"user": 1000, "login_dir": "/run/user/1000", "lingers": False} | more
    return judge_runtime(Runtime(base=base, mode=seen, owner=owner, **known))


def test_a_runtime_folder_that_goes_at_logout_is_a_warning_unless_the_user_lingers() -> None:
    goes = runtime("/run/user/1000")
    assert (goes.state, "last logout" in goes.found, "loginctl enable-linger" in goes.advice) == ("warning", True, True)
    stays = runtime("/run/user/1000", lingers=True)
    assert (stays.state, stays.found) == ("ok", "/run/user/1000, mode 0700, stays after logout")
    assert runtime("/run/user/1000", lingers=None).state == "ok", "nobody is there who would remove it"
    assert runtime("/home/ann/run").state == "ok"
    assert runtime("/run/user/10001").state == "ok", "its name only begins like the one that goes"


@pytest.mark.parametrize(
    ("mode", "owner", "base", "says"),
    [
        (None, None, "/run/user/1000", "is not there"),
        (0o700, 0, "/run/user/0", "belongs to user 0"),
        (0o777, 1000, "/run/user/1000", "others can write"),
        (0o700, 1000, "run", "no absolute path"),
        (None, None, "", "not set"),
    ],
)
def test_a_runtime_folder_that_is_not_used_is_a_warning(mode: int | None, owner: int, base: str, says: str) -> None:
    check = runtime(base, mode, owner)
    assert check.state == "warning"
    assert says in check.found
    assert check.advice


def test_without_a_login_folder_no_runtime_folder_is_expected() -> None:
    assert runtime("", None, None, login_dir="", lingers=None).state == "ok"
    assert runtime("/run/user/1000", None, None, login_dir="").advice == "unset XDG_RUNTIME_DIR"


def test_no_place_for_rooms_and_no_engine_are_what_stops_two_models() -> None:
    rooms = judge_rooms("", 0, "/tmp/modelpipes-1000: others can write there; chmod go-w it")
    engine = judge_engines([], [], None, "", GET_ONE)
    assert not can_talk([rooms])
    assert not can_talk(engine)
    assert "modelpipes build-engine" in engine[0].advice
    assert can_talk([judge_extra("serve", ["uvicorn"]), *judge_folders([], [])])


def test_seats_whose_members_were_killed_are_named() -> None:
    check = judge_default_room("/r", [("alice", "ready"), ("bob", "died"), ("hub", "free")], "")
    assert (check.state, check.found) == ("warning", "/r: 3 seats, 1 taken; killed were bob")
    assert "cleanup-pipes -d /r" in check.advice
    assert judge_default_room("/r", [("alice", "busy")], "").state == "ok"
    assert judge_default_room("/r", None, "").state == "ok"
    assert judge_default_room("/r", None, "/r: not a directory").state == "warning"


CARD = Card(index=0, name="NVIDIA GeForce RTX 4080", total_bytes=16 * GIB, free_bytes=15 * GIB, driver_version="580.95")


def test_a_first_engine_that_leaves_the_card_unused_is_a_warning() -> None:
    names = [("PATH", "/usr/bin/llama-server"), ("embedded", "")]
    said = [Engine("b1", "cpu"), Engine("xllamacpp 1", "cpu")]
    with_card = judge_engines(names, said, Cards((CARD,)), "", GET_ONE)
    assert [check.state for check in with_card] == ["warning", "ok"]
    assert "build-engine" in with_card[0].advice
    assert [check.state for check in judge_engines(names, said, Cards(), "", GET_ONE)] == ["ok", "ok"]


def test_only_the_engine_that_would_be_used_stops_the_main_job_and_a_late_one_does_not() -> None:
    names = [("PATH", "/usr/bin/llama-server"), ("embedded", "")]
    broken, well = Engine(error="/usr/bin/llama-server is no llama-server"), Engine("b1", "cuda")
    first = judge_engines(names, [broken, well], None, "", GET_ONE)
    assert ([check.state for check in first], can_talk(first)) == (["missing", "ok"], False)
    assert first[0].found == "PATH: /usr/bin/llama-server is no llama-server"
    second = judge_engines(names, [well, broken], None, "", GET_ONE)
    assert ([check.state for check in second], can_talk(second)) == (["ok", "warning"], True)
    late = judge_engines(names, [None, well], None, "", GET_ONE)
    assert ([check.state for check in late], can_talk(late)) == (["warning", "ok"], True)


def test_a_driver_and_a_folder_that_do_not_answer_are_said_to_be_late() -> None:
    assert judge_cards(None, frozenset())[0].state == "warning"
    (late,) = judge_folders(["/mnt/models"], [None])
    assert (late.state, "--timeout" in late.advice) == ("warning", True)


def test_folders_are_counted_and_a_machine_without_models_is_told_where_to_put_them() -> None:
    (full,) = judge_folders(["/m"], [Folder(1, 2 * GIB, 0)])
    assert (full.state, full.found) == ("ok", "/m: 1 model file, 2.0 GiB")
    (odd,) = judge_folders(["/m"], [Folder(2, 2 * GIB, 1)])
    assert (odd.state, odd.found) == ("warning", "/m: 2 model files, 2.0 GiB; 1 file cannot be read")
    gone, none = judge_folders(["/gone"], [Folder(is_there=False)])
    assert (gone.state, none.state) == ("missing", "missing")
    assert "~/models" in none.advice


def test_a_port_that_is_taken_is_told_with_the_process_or_at_least_its_user() -> None:
    where, why = "127.0.0.1:9090", "address already in use"
    assert judge_port(where, "", Holder(), []).state == "ok"
    assert judge_port(where, why, Holder(7, "python3", 0), [(7, where)]).state == "ok"
    found = [judge_port(where, why, holder, []) for holder in (Holder(7, "nginx", 0), Holder(user=33), Holder())]
    assert [check.state for check in found] == ["warning"] * 3
    assert [check.found for check in found] == [
        f"{where} is taken by nginx (pid 7)",
        f"{where} is taken by a process of user 33",
        f"{where}: address already in use",
    ]


def test_an_extra_that_is_missing_is_told_with_its_pip_command() -> None:
    check = judge_extra("serve", ["uvicorn", "starlette"])
    assert (check.state, check.found) == ("missing", "serve (serve-models): no starlette, uvicorn")
    assert check.advice == "install modelpipes with its extra serve: pip install '.[serve]'"


def test_the_extras_and_the_room_of_a_build_are_those_of_the_house() -> None:
    declared = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        assert [line.partition(">")[0].replace("-", "_") for line in declared[extra]] == list(modules)
    assert BUILD_BYTES == NEEDED_BYTES


def test_a_table_for_a_terminal_is_no_wider_and_says_all_that_a_pipe_gets() -> None:
    found = [Check("rooms", "missing", "one two three four " * 5, "five six seven eight " * 5), Check("a", "ok", "b")]
    narrow, wide = draw_screen(found, 60), draw_screen(found, None)
    assert max(map(len, narrow.splitlines())) <= 60
    assert len(wide.splitlines()) == 4
    assert narrow.split() == wide.split()


# -- the command, in a home of its own


@pytest.fixture
def engine(run: Commands) -> Path:
    """A llama-server in the place of all others."""
    path = run.cwd / "llama-server"
    path.write_text(ENGINE.format(devices=CUDA))
    path.chmod(0o700)
    run.env |= {"LLAMA_SERVER": str(path), "SEARCH_PATH": ""}
    del run.env["PIPE_DIR"]
    return path


def check_system(run: Commands, *arguments: str, listen: str = "127.0.0.1:0", **env: str) -> Ended:
    """Run it; it looks for this port, and any is free unless told."""
    argv = [sys.executable, "-P", "-c", CODE.format(listen=listen), *arguments]
    return run.run(argv, env=env, limit_s=LIMIT_S)


def found_by(run: Commands, name: str, *arguments: str, code: int = 0, **env: Any) -> list[dict[str, str]]:
    """What it says under this name."""
    ended = check_system(run, "--json", *arguments, **env)
    assert ended.code == code, ended.stderr
    return [check for check in json.loads(ended.stdout)["checks"] if check["name"] == name]


def test_it_tells_of_this_machine_and_leaves_nothing_behind(run: Commands, engine: Path) -> None:
    ended = check_system(run)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.lines[0].split() == ["state", "check", "found"]
    assert {line.split()[0] for line in ended.lines[1:]} <= {"ok", "warning", "missing", "→"}
    for name in ("python", "kernel", "pipe-size", "pipe-pages", "runtime", "rooms", "room", "stale-rooms", "data",
                 "cache", "memory", "engine", "gpu", "models", "daemon", "port", "extra", "folder"):  # fmt: skip
        assert any(line.split()[1] == name for line in ended.lines), name
    assert run.left_files() == []
    assert os.listdir(run.runtime) == []


def test_as_json_every_check_has_the_same_keys_and_the_whole_is_ok(run: Commands, engine: Path) -> None:
    report = json.loads(check_system(run, "--json").stdout)
    assert list(report) == ["checks", "ok", "folders"]
    assert report["ok"] is True
    assert {tuple(check) for check in report["checks"]} == {("name", "state", "found", "advice")}
    assert all(check["advice"] for check in report["checks"] if check["state"] != "ok")


def test_engines_are_told_with_version_and_backend(run: Commands, engine: Path) -> None:
    check, *_ = found_by(run, "engine")
    assert check["state"] == "ok"
    assert check["found"] == f"$LLAMA_SERVER: {engine}, 11434 (1a2b3c4), cuda"


def test_an_engine_that_never_answers_is_given_up_and_ended(run: Commands, engine: Path) -> None:
    engine.write_text(ENGINE.format(devices="sleep 1000"))
    check, *_ = found_by(run, "engine", "--timeout", "1s")
    assert (check["state"], "did not answer in time" in check["found"]) == ("warning", True)
    assert run.left_processes() == []


def test_an_engine_that_takes_the_asking_process_with_it_costs_no_more_than_its_line(
    run: Commands, engine: Path
) -> None:
    engine.write_text("#!/bin/sh\nkill -9 $PPID\n")
    ended = check_system(run, "--timeout", "none")
    assert ended.code == 0
    assert "has died" in ended.stderr
    assert any(line.split()[:2] == ["warning", "engine"] for line in ended.lines)


def test_ended_by_a_signal_it_ends_the_engine_that_it_asks(run: Commands, engine: Path) -> None:
    os.mkfifo(run.cwd / "asked")
    engine.write_text(ENGINE.format(devices=f"echo > {run.cwd}/asked; exec sleep 1000"))
    argv = [sys.executable, "-P", "-c", CODE.format(listen="127.0.0.1:0"), "--timeout", "none"]
    with subprocess.Popen(argv, cwd=run.cwd, env=run.env, stdout=subprocess.PIPE) as process:
        try:
            (run.cwd / "asked").read_text()  # ends when the engine was asked
            process.terminate()
            assert process.wait(LIMIT_S) == 143
        finally:
            process.kill()
    assert run.left_processes() == []
    assert run.left_files() == []


def test_a_stdout_that_is_closed_ends_it_quietly(run: Commands, engine: Path) -> None:
    argv = [sys.executable, "-P", "-c", CODE.format(listen="127.0.0.1:0")]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        done = subprocess.run(
            argv, cwd=run.cwd, env=run.env, stdout=stdout, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_an_engine_it_exits_1_and_says_what_to_do(run: Commands, engine: Path) -> None:
    ended = check_system(run, LLAMA_SERVER="/nowhere/llama-server")
    assert ended.code == 1
    assert ended.stderr.count("\n") == 1
    assert "two models could not talk here" in ended.stderr
    assert "unset it" in ended.stderr
    assert found_by(run, "engine", code=1, LLAMA_SERVER="/nowhere/llama-server")[0]["state"] == "missing"


def test_a_program_that_is_no_engine_is_found_out(run: Commands, engine: Path) -> None:
    engine.write_text("#!/bin/sh\necho 'error while loading shared libraries' >&2; exit 127\n")
    check, *_ = found_by(run, "engine", code=1)
    assert (check["state"], "no llama-server" in check["found"]) == ("missing", True)


def test_without_a_place_for_rooms_it_exits_1(run: Commands, engine: Path) -> None:
    (rooms,) = found_by(run, "rooms", code=1, XDG_RUNTIME_DIR="", TMPDIR="/proc")
    assert rooms["state"] == "missing"
    assert "cannot be made" in rooms["found"]


def test_a_runtime_folder_that_others_can_write_is_told_with_its_mode(run: Commands, engine: Path) -> None:
    run.runtime.chmod(0o770)
    (check,) = found_by(run, "runtime")
    assert (check["state"], "mode 0770" in check["found"]) == ("warning", True)
    assert check["advice"] == f"chmod 0700 {run.runtime}"


def test_rooms_of_killed_leaders_are_told_and_kept(run: Commands, engine: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    room = Room.make(str(run.runtime / "modelpipes" / f"chat-{gone.pid}-0badcafe"))
    room.make_pipes(star(HUB, ["alice"]))
    (check,) = found_by(run, "stale-rooms")
    assert (check["state"], room.path in check["found"]) == ("warning", True)
    assert f"cleanup-pipes -d {room.path}" in check["advice"]
    assert room.pipes()


def test_the_default_room_is_told_with_its_seats(run: Commands, engine: Path) -> None:
    assert run("setup", "alice").code == 0
    (check,) = found_by(run, "room")
    assert (check["state"], check["found"].endswith(": 2 seats, 0 taken")) == ("ok", True)
    (elsewhere,) = found_by(run, "room", PIPE_DIR=str(engine))
    assert (elsewhere["state"], "not a directory" in elsewhere["found"]) == ("warning", True)


def test_daemons_that_run_are_told(run: Commands, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run.runtime))
    with recorded(Daemon(os.getpid(), "127.0.0.1:9099")):
        (check,) = found_by(run, "daemon")
    assert (check["state"], check["found"]) == ("ok", f"serve-models on 127.0.0.1:9099 (pid {os.getpid()})")


def test_who_has_the_port_of_serve_models_is_named(run: Commands, engine: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        listen = f"127.0.0.1:{server.getsockname()[1]}"
        (check,) = found_by(run, "port", listen=listen)
    assert check["state"] == "warning"
    assert check["found"].startswith(f"{listen} is taken by ")
    assert check["found"].endswith(f"(pid {os.getpid()})")
    assert "--listen" in check["advice"]


def test_model_folders_are_counted_and_one_that_is_not_there_is_missing(run: Commands, engine: Path) -> None:
    models = run.cwd / "models"
    models.mkdir()
    shutil.copy(TINY_CHAT, models / "small.gguf")
    here, gone = found_by(run, "models", SEARCH_PATH=f"{models}:{models}-gone")
    assert (here["state"], here["found"]) == ("ok", f"{models}: 1 model file, 1.6 MiB")
    assert (gone["state"], gone["found"]) == ("missing", f"{models}-gone: not there")


def test_a_folder_whose_name_is_no_unicode_is_counted(run: Commands, engine: Path) -> None:
    models = os.fsencode(run.cwd) + b"/mod\xe8les"
    os.mkdir(models)
    shutil.copy(os.fsencode(TINY_CHAT), models + b"/small.gguf")
    (here,) = found_by(run, "models", SEARCH_PATH=os.fsdecode(models))
    assert os.fsencode(here["found"]) == models + b": 1 model file, 1.6 MiB"


def test_cards_are_asked_of_the_driver(run: Commands, engine: Path) -> None:
    driver: dict[str, Any] = {"LD_LIBRARY_PATH": str(build_driver(run.temporary)), "CUDA_VISIBLE_DEVICES": "0"}
    (card,) = found_by(run, "gpu", **driver)
    assert (card["state"], card["found"].endswith(", driver 580.95.05")) == ("ok", True)
    engine.write_text(ENGINE.format(devices="echo '  (none)'"))
    check, *_ = found_by(run, "engine", **driver)
    assert (check["state"], "leaves the card unused" in check["found"]) == ("warning", True)


def test_control_characters_of_a_name_do_not_reach_the_terminal(run: Commands, engine: Path) -> None:
    ended = check_system(run, LLAMA_SERVER="/nowhere/\x1b[31mred")
    assert ended.code == 1
    assert "\x1b" not in ended.stdout + ended.stderr


def test_no_time_at_all_is_refused(run: Commands, engine: Path) -> None:
    ended = check_system(run, "--timeout", "0")
    assert (ended.code, ended.stdout) == (2, "")
