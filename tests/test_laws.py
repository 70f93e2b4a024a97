"""What every command keeps, as docs/reference.md has it, on the real commands: tests/laws_table.py has the lines."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jsonschema
import pytest

from modelpipes import __version__
from modelpipes.commands import VERBS, load
from modelpipes.commands.views.schemas import SCHEMAS
from modelpipes.terminal.drawing import DOCUMENTS
from tests.gguf.make import File, llama_entries, llama_tensors
from tests.laws_table import CASES, HOSTILE, MEMBERS, UNSAFE, Case, Failure, Line, Report
from tests.machine.driver import build_driver
from tests.peers import eventually
from tests.shell import BIN, CHECKOUT, TINY_CHAT, Ended, Home

LIMIT_S = 60.0  # of one line; a busy machine starts an engine in less
WIDTH = 80
CASE_OF = {case.verb: case for case in CASES}
BOUNDS = ("--timeout", "--max-seconds")
MODELS = ("a", "b", "llama-3.1-8b", "qwen2.5-7b")
SERVED = ("qwen", "gemma", "phi", "evil")
# Where the machine has none.
STUBS = {"git": "echo a change", "jq": "cat >/dev/null", "man": "cat", "mandoc": "cat", "notify-send": ":"}
TALK = """\
{"type":"conversation","version":1,"id":"1","members":["alice","bob"],"voices":{},"settings":{}}
{"turn":0,"from":"hub","content":"Hello."}
{"turn":1,"from":"alice","content":"Hi.","stop":"end","timing":{"queued_ms":1.0,"first_token_ms":2.0,"total_ms":9.0}}
{"type":"end","why":"rounds"}
"""


def name_of(verb: str) -> str:
    """How a command is called: by its own name, where it has one."""
    return (VERBS[verb][0] or f"modelpipes {verb}") if verb else "modelpipes"


def lines(kind: str) -> list[Any]:
    """What the cases have of a kind, each under its command's name."""
    found = [(case, line) for case in CASES for line in getattr(case, kind)]
    return [pytest.param(case, line, id=f"{case.verb}-{number}") for number, (case, line) in enumerate(found)]


every_command = pytest.mark.parametrize("case", CASES, ids=[case.verb or "modelpipes" for case in CASES])
every_verb = pytest.mark.parametrize("case", CASES[1:], ids=[case.verb for case in CASES[1:]])


class Place(Home):
    """A home with model files, transcripts and configurations; each line runs in a new folder of it."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._base = base
        self._numbers = itertools.count()
        self._started: list[subprocess.Popen[bytes]] = []
        stubs = base / "stubs"
        stubs.mkdir()
        for name, script in STUBS.items():
            (stubs / name).write_text(f"#!/bin/sh\n{script}\n")
            (stubs / name).chmod(0o755)
        self.env |= {"PATH": f"{BIN}:{os.environ['PATH']}:{stubs}", "HOSTILE": HOSTILE, "COLUMNS": str(WIDTH)}
        self.home = Path(self.env["HOME"])
        hostile = self.home / "hostile"
        for folder in (hostile, self.home / "models"):
            folder.mkdir()
        (self.home / "models" / "a.gguf").symlink_to(TINY_CHAT)
        self._evil = hostile / f"evil{HOSTILE}.gguf"
        shutil.copy(TINY_CHAT, self._evil)
        entries = [*llama_entries()[1:], ("general.architecture", "string", HOSTILE)]
        (hostile / "strange.gguf").write_bytes(bytes(File(entries, llama_tensors())))
        (self.home / "talk.jsonl").write_text(TALK)
        (hostile / "talk.jsonl").write_text(TALK.replace("Hi.", json.dumps(HOSTILE)[1:-1], 1))

    def folder(self) -> Path:
        """A new folder with what lines need."""
        folder = self.cwd / str(next(self._numbers))
        folder.mkdir()
        for name in MODELS:
            (folder / f"{name}.gguf").symlink_to(TINY_CHAT)
        (folder / "config").symlink_to(CHECKOUT / "config")
        (folder / "questions.txt").write_text("What is 3 and 4?\nWhat is 5 and 6?\n")
        (folder / "torn.toml").write_text("[ask-model]\ntimeuot = 1\n")
        text = '[server]\nlisten = "127.0.0.1:0"\n'
        for name in SERVED:
            file = json.dumps(str(self._evil)).replace("\x7f", "\\u007f") if name == "evil" else '"tiny-chat"'
            text += f"[models.{name}]\nfile = {file}\nctx_size = 512\n"
        (folder / "models.toml").write_text(text)
        return folder

    def start(
        self,
        line: Line,
        *,
        is_one: bool = False,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Run a line in a new folder, its output in files there; one that is one command takes the shell's place."""
        folder = self.folder()
        before = f"{{ {line.before}\n}} >before.log 2>&1 || exit 99\n" if line.before else ""
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            process = subprocess.Popen(
                [line.shell, "-c", f"{before}{'exec ' if is_one else ''}{line.text}"],
                cwd=folder,
                env=self.env,
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err,
                start_new_session=True,
            )
        self._started.append(process)
        self._folder = folder
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> Ended:
        """How the line that was started last has ended."""
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        out, err = ((self._folder / name).read_bytes().decode() for name in ("stdout", "stderr"))
        return Ended(128 - code if code < 0 else code, out, err)

    def __call__(self, line: Line | str, **streams: Any) -> Ended:
        """Run a line to its end; where it has none, to the moment until which it is to run."""
        line = Line(line) if isinstance(line, str) else line
        process = self.start(line, is_one=bool(line.until), **streams)
        if line.until:
            self.wait_until(process, line)
            process.terminate()
        return self.ended(process)

    def wait_until(self, process: subprocess.Popen[bytes], line: Line) -> None:
        """Return when a line that was started is as far as it is to come."""
        if line.until:
            watcher = subprocess.Popen(
                ["sh", "-c", line.until], cwd=self._folder, env=self.env, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                eventually(lambda: watcher.poll() is not None or process.poll() is not None, line.until, LIMIT_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(watcher.pid, signal.SIGKILL)
                watcher.wait()
        eventually(lambda: process.poll() is not None or _catches(process.pid), f"{line.text} catches signals", LIMIT_S)
        assert process.poll() is None, (self._folder / "stderr").read_text()

    def man(self) -> None:
        """Seat the members."""
        seats = " ".join(MEMBERS)
        assert self(f"setup-pipes {seats} carol").code == 0
        for seat, voice in MEMBERS.items():
            self.start(Line(f"attach-model {seat} {voice}"), is_one=True)
        assert self(f"list-seats --wait {seats} --timeout 60").code == 0

    def serve(self) -> None:
        """Start a serve-models."""
        self.start(Line("serve-models models.toml"), is_one=True)
        assert self("serve-models status --wait 60").code == 0

    def processes(self) -> set[int]:
        return set(self._pids())

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
            process.wait(LIMIT_S)


def _catches(pid: int) -> bool:
    """Has it come to where a signal is taken for a wish? What ends it before has nothing to clean up."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                caught = int(line.split()[1], 16)
                return all(caught >> signum - 1 & 1 for signum in (signal.SIGTERM, signal.SIGINT))
    return False


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Line], Place]]:
    """The home that a line needs, with what it needs there."""
    made: dict[str, Place] = {}
    done: set[str] = set()

    def find(line: Line) -> Place:
        kind = "manned" if line.is_manned else "card" if line.needs == "driver" else "plain"
        if kind not in made:
            made[kind] = Place(tmp_path_factory.mktemp(kind))
            if kind == "manned":
                made[kind].man()
            if kind == "card":
                made[kind].env["LD_LIBRARY_PATH"] = str(build_driver(tmp_path_factory.mktemp("driver")))
        if line.needs == "daemon" and "daemon" not in done:
            done.add("daemon")
            made[kind].serve()
        return made[kind]

    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where we run under nohup, what we start must not
    yield find
    signal.signal(signal.SIGHUP, inherited)
    for place in made.values():
        place.close()
    assert [left for place in made.values() for left in place.left_processes()] == []


@pytest.fixture
def run(places: Callable[[Line], Place]) -> Callable[..., Ended]:
    """Run a line, in the home that it needs."""

    def run(line: Line | str, **streams: Any) -> Ended:
        line = Line(line) if isinstance(line, str) else line
        return places(line)(line, **streams)

    return run


Run = Callable[..., Ended]


def one_line(ended: Ended) -> str:
    """What was said, which is one line, and no traceback."""
    assert ended.stderr.count("\n") == 1 and ended.stderr.endswith("\n"), ended.stderr
    return ended.stderr


# -- every command is there, and explains itself


def test_every_command_is_in_the_table() -> None:
    assert [case.verb for case in CASES] == ["", *VERBS]


def test_every_command_fails_and_meets_control_characters() -> None:
    assert all(case.failures and case.hostile for case in CASES)


def test_every_command_that_reports_does_so_as_json() -> None:
    silent = {case.verb for case in CASES if not case.reports}
    assert silent == {
        "",
        "setup",
        "cleanup",
        "attach",
        "hold",
        "schema",
        "completion",
        "man",
    }  # paths, nothing, text, JSON


@every_command
def test_a_command_has_its_link_and_its_script(case: Case) -> None:
    name = name_of(case.verb).split()[0]
    assert (BIN / name).resolve() == BIN / "modelpipes"
    assert f'\n{name} = "modelpipes.__main__:main"\n' in (CHECKOUT / "pyproject.toml").read_text()


@every_command
def test_help_goes_to_stdout_and_fits_a_terminal(run: Run, case: Case) -> None:
    told = run(f"{name_of(case.verb)} --help")
    assert (told.code, told.stderr) == (0, "")
    assert max(map(len, told.lines)) <= WIDTH


@every_command
def test_the_version_is_told(run: Run, case: Case) -> None:
    assert run(f"{name_of(case.verb)} --version") == Ended(0, f"{name_of(case.verb)} {__version__}\n", "")


@every_command
def test_an_unknown_option_is_wrong_usage(run: Run, case: Case) -> None:
    ended = run(f"{name_of(case.verb)} {case.arguments} --nonsense")
    assert (ended.code, ended.stdout) == (2, "")
    assert one_line(ended).startswith(f"{name_of(case.verb)}: ") and "--nonsense" in ended.stderr


@every_verb
def test_every_name_of_it_has_a_manual_page(run: Run, case: Case) -> None:
    for name in filter(None, (case.verb, VERBS[case.verb][0])):
        page = run(f"modelpipes man {name}")
        assert (page.code, page.stderr) == (0, "")
        assert page.stdout.startswith(".TH ")


def test_shells_complete_every_command_and_every_verb(run: Run) -> None:
    script = run("modelpipes completion bash").stdout
    assert {command for command, _ in VERBS.values() if command} <= set(script.split())
    offered = run("COMP_WORDS='modelpipes ' COMP_CWORD= _MODELPIPES_COMPLETE=bash_complete modelpipes").lines
    assert {line.rpartition(",")[2] for line in offered} >= set(VERBS)


# -- examples


@every_verb
def test_the_examples_of_the_help_are_those_of_the_table(run: Run, case: Case) -> None:
    _, _, rest = run(f"{name_of(case.verb)} --help").stdout.partition("\n  Examples:\n")
    told = [line.strip() for line in rest.partition("\n\n")[0].splitlines()]
    assert told == [line.text for line in case.examples]
    assert all(name_of(case.verb) in example for example in told)
    assert any(not line.unrun for line in case.examples)


@pytest.mark.parametrize(("case", "line"), lines("examples"))
def test_an_example_does_what_it_says(run: Run, case: Case, line: Line) -> None:
    if line.unrun:
        words = shlex.split(line.text)[len(name_of(case.verb).split()) :]
        load(case.verb).make_context(name_of(case.verb), words).close()
    else:
        ended = run(line)
        assert ended.code == line.code, ended.stderr
        assert "Traceback" not in ended.stderr


# -- stdout and stderr


@pytest.mark.parametrize(("case", "report"), lines("reports"))
def test_json_is_as_its_schema_says(run: Run, schemas: Callable[[str], Any], case: Case, report: Report) -> None:
    ended = run(report.line)
    assert ended.code == report.line.code, ended.stderr
    documents = ended.lines if report.is_lines else [ended.stdout]
    assert documents
    for document in documents:
        schemas(report.schema).validate(json.loads(document))


def tables() -> list[Any]:
    """Of each command whose report can be a document, the first line that reports JSON."""
    found = []
    for case in CASES[1:]:
        for parameter in load(case.verb).params:
            if parameter.name == "format_" and set(DOCUMENTS) <= set(getattr(parameter.type, "choices", ())):
                report = next(each for each in case.reports if " --json" in each.line.text)
                found.append(pytest.param(report.line, id=case.verb))
    return found


def test_every_command_that_reports_figures_does_so_as_a_document() -> None:
    others = {"ask", "chat", "run", "show"}  # what was said, turn by turn
    assert {each.id for each in tables()} == {case.verb for case in CASES if case.reports} - others


@pytest.mark.parametrize("line", tables())
@pytest.mark.parametrize("form", DOCUMENTS)
def test_a_document_is_whole_and_of_its_form(run: Run, line: Line, form: str) -> None:
    ended = run(dataclasses.replace(line, text=line.text.replace("--json", f"--format {form}")))
    assert ended.code == line.code, ended.stderr
    first, second, *rest = ended.lines
    match form:
        case "github":
            assert first.startswith("| ") and set(second) == {"|", "-"} and rest
            assert all(row.startswith("| ") and row.endswith(" |") for row in rest)
        case "tsv":
            assert "\t" in first and {row.count("\t") for row in [second, *rest]} == {first.count("\t")}
        case "html":
            assert (first, second, rest[-1]) == ("<table>", "<thead>", "</table>")
            assert "<td" in ended.stdout


@pytest.fixture(scope="module")
def schemas(places: Callable[[Line], Place]) -> Callable[[str], Any]:
    """The validator of a schema that `modelpipes schema` prints."""
    found: dict[str, Any] = {}

    def find(name: str) -> Any:
        if name not in found:
            line = Line(f"modelpipes schema {name}")
            found[name] = jsonschema.Draft202012Validator(json.loads(places(line)(line).stdout))
        return found[name]

    return find


def test_every_report_with_a_schema_is_tried() -> None:
    tried = {report.schema for case in CASES for report in case.reports}
    untried = {
        "message",
        "transcript",
        "config",
        "build-engine",
        "filter-told",
        "filter-said",
    }  # in tests/commands/test_schema.py
    assert tried | untried == set(SCHEMAS)


@pytest.mark.parametrize(("case", "failure"), lines("failures"))
def test_a_failure_is_one_line_on_stderr(run: Run, case: Case, failure: Failure) -> None:
    ended = run(failure.line)
    assert ended.code == failure.code, ended
    assert failure.names in one_line(ended)
    assert bool(ended.stdout) == failure.has_data


def printing(case: Case) -> Line:
    return case.prints or Line(f"{name_of(case.verb)} --help")


@every_command
def test_a_reader_who_has_gone_is_no_failure(run: Run, case: Case) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = run(printing(case), stdout=writer)
    os.close(writer)
    assert (ended.code, ended.stderr) == (0, "")


@every_command
def test_a_full_disk_is_said(run: Run, case: Case) -> None:
    with open("/dev/full", "wb") as full:
        ended = run(printing(case), stdout=full)
    assert ended.code == 1
    assert "No space left on device" in one_line(ended)


@every_command
def test_stdin_is_untouched_and_nobodys_descriptors_change(run: Run, case: Case, tmp_path: Path) -> None:
    (tmp_path / "stdin").write_text("nobody reads this\n")
    reader, writer = os.pipe()
    with open(tmp_path / "stdin", "rb") as stdin, open(reader, "rb") as out, open(writer, "wb") as into:
        assert run(printing(case), stdin=stdin, stdout=into).code == 0
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 0
        assert not any(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_NONBLOCK for file in (stdin, out, into))


@pytest.mark.parametrize(("case", "line"), lines("hostile"))
def test_control_characters_of_others_never_come_out(run: Run, case: Case, line: Line) -> None:
    ended = run(line)
    said = (ended.stdout + ended.stderr).replace("\r\n", "\n")  # as RFC 4180 ends lines
    assert "red" in said or "next" in said  # words of it
    assert not UNSAFE.search(said), ascii(said)
    assert "Traceback" not in said


# -- bounds and settings


def bounds() -> Sequence[tuple[Case, str]]:
    return [
        (case, option)
        for case in CASES[1:]
        for parameter in load(case.verb).params
        for option in parameter.opts
        if option in BOUNDS
    ]


@pytest.mark.parametrize(("case", "option"), bounds(), ids=lambda value: getattr(value, "verb", value))
def test_no_time_at_all_is_refused_and_none_is_taken(run: Run, case: Case, option: str) -> None:
    name = name_of(case.verb)
    ended = run(f"{name} {case.arguments} {option} 0")
    assert (ended.code, ended.stdout) == (2, "")
    assert option in one_line(ended)
    load(case.verb).make_context(name, [*shlex.split(case.arguments), option, "none"]).close()


@every_verb
def test_an_unknown_key_of_the_configuration_is_named_with_the_nearest(run: Run, case: Case) -> None:
    ended = run(f"{name_of(case.verb)} {case.arguments} --config torn.toml")
    assert (ended.code, ended.stdout) == (2, "")
    assert "timeuot" in one_line(ended) and "did you mean timeout" in ended.stderr


# -- signals


def endings() -> list[Any]:
    return [
        pytest.param(line, name, code, id=f"{case.verb}-{number}-{name}")
        for case in CASES
        for number, line in enumerate(case.waits)
        for name, code in case.endings.items()
    ]


@pytest.mark.parametrize(("line", "name", "code"), endings())
def test_a_signal_ends_what_waits_and_nothing_is_left(
    places: Callable[[Line], Place], line: Line, name: str, code: int, tmp_path: Path
) -> None:
    place = places(line)
    processes, files = place.processes(), rooms_and_files(place)
    (tmp_path / "stdin").write_text("nobody reads this\n")
    with open(tmp_path / "stdin", "rb") as stdin:
        process = place.start(line, is_one=True, stdin=stdin)
        place.wait_until(process, line)
        process.send_signal(signal.Signals[f"SIG{name}"])
        ended = place.ended(process)
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 0
    assert ended.code == code, ended
    assert "Traceback" not in ended.stderr
    eventually(lambda: place.processes() <= processes, "the processes to end")
    assert rooms_and_files(place) == files


@pytest.mark.parametrize("line", [pytest.param(*each.values[1:], id=each.id) for each in lines("waits")])
def test_a_hangup_ignored_at_the_start_stays_so_and_an_interrupt_does_not(
    places: Callable[[Line], Place], line: Line
) -> None:
    place = places(line)
    line = dataclasses.replace(line, before=f"{line.before}\ntrap '' HUP INT")
    process = place.start(line, is_one=True)
    place.wait_until(process, line)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)  # the kernel delivers it after the other
    assert place.ended(process).code == 130


def rooms_and_files(place: Place) -> set[str]:
    """What is in the runtime and temporary folders, but for the room that stays."""
    return {file for file in place.left_files() if "/default/" not in file}
