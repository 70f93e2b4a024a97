"""Completion as a person meets it: real shells on a terminal, the TAB key, and what then stands on the line."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpipes.commands import COMPLETION, VERBS, load
from modelpipes.commands.cli import share, values
from modelpipes.commands.cli.completion import SHELLS
from modelpipes.values.deadline import Deadline
from tests.commands.conftest import LIMIT_S, Commands
from tests.shell import Ended

SCRIPTS = Path(sys.executable).parent
TAB, SHOW_LINE = "\t", "\x18\x0c"
CONTROL = re.compile(r"\x1b(\[[0-9;?>=]*[a-zA-Z]|\][^\a]*\a|[()].|.)|[\r\a\b]")
TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
# How each shell starts bare, and how SHOW_LINE is made to print what stands on the line, between marks.
START = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"], "fish": ["--no-config", "-i"]}
PREPARE = {
    "bash": r"""bind -x '"\C-x\C-l": printf "«%s»\n" "$READLINE_LINE"' """,
    "zsh": r"""autoload -U compinit; compinit -u -D
        show() { print -r -- "«$BUFFER»" }; zle -N show; bindkey '^X^L' show""",
    "fish": r"""bind \cx\cl 'printf "«%s»\n" (commandline)'""",
}
LOAD = {shell: f'eval "$(modelpipes completion {shell})"' for shell in SHELLS} | {
    "fish": "modelpipes completion fish | source"
}


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self, run: Commands, shell: str, load: str = "") -> None:
        self._keyboard, screen = pty.openpty()
        env = run.env | {"PATH": f"{SCRIPTS}:{os.environ['PATH']}", "TERM": "xterm", "PS1": "$ ", "LC_ALL": "C.UTF-8"}
        command = [sys.executable, "-c", TAKE_TERMINAL, shell, *START[shell]]
        self._process = subprocess.Popen(
            command, cwd=run.cwd, env=env, stdin=screen, stdout=screen, stderr=screen, start_new_session=True
        )
        os.close(screen)
        self._shown = ""
        for line in (PREPARE[shell], load or LOAD[shell], "printf 'rea%s\\n' dy"):
            self.press(f"{line}\n")
        self.wait_for(r"ready")

    def press(self, keys: str) -> None:
        os.write(self._keyboard, keys.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What the screen shows of this pattern, once it does; all that was shown up to there is done with."""
        deadline = Deadline.after(LIMIT_S)
        poll = select.poll()
        poll.register(self._keyboard, select.POLLIN)
        while not (found := re.search(pattern, CONTROL.sub("", self._shown), re.DOTALL)):
            assert poll.poll(deadline.poll_ms()), f"no {pattern!r} in {self._shown!r}"
            self._shown += os.read(self._keyboard, 65536).decode("utf-8", "replace")
        self._shown = ""
        return found

    def complete(self, typed: str) -> str:
        """The line that stands there when this was typed and TAB pressed."""
        self.press(f"{typed}{TAB}{SHOW_LINE}")
        line = self.wait_for("«(.*?)»")[1]
        self.press("\x15")  # ^U: an empty line for the next
        return line

    def close(self) -> None:
        self._process.kill()
        self._process.wait(LIMIT_S)
        os.close(self._keyboard)


@pytest.fixture(params=sorted(SHELLS))
def shell(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if not shutil.which(name):
        pytest.skip(f"{name} is not on this machine")
    return name


@pytest.fixture
def terminal(run: Commands, shell: str) -> Iterator[Terminal]:
    opened = Terminal(run, shell)
    yield opened
    opened.close()


# What is typed, and what stands there after TAB, where all shells agree.
LINES = {
    "modelpipes ser": "modelpipes serve ",
    "modelpipes --ver": "modelpipes --version ",
    "modelpipes ask --tr": "modelpipes ask --transcript ",
    "modelpipes completion z": "modelpipes completion zsh ",
    "modelpipes man build": "modelpipes man build-engine ",
    "modelpipes nonsense a": "modelpipes nonsense a",
    "ask-model --tr": "ask-model --transcript ",
    "ask-model ali": "ask-model alice ",
    'ask-model "ali': 'ask-model "alice" ',
    "ask-model bob ali": "ask-model bob ali",
    "ask-model --from ali": "ask-model --from alice ",
    "ask-model --from=ali": "ask-model --from=alice ",
    "ask-model --nonsense ali": "ask-model --nonsense alice ",
    "ask-model -d mod": "ask-model -d models/",
    "ask-model --dir=mod": "ask-model --dir=models/",
    "ask-model --dir other car": "ask-model --dir other carol ",
    "ask-model bob <mod": "ask-model bob <models/",
    "echo x | ask-model ali": "echo x | ask-model alice ",
    "attach-model bob --model mod": "attach-model bob --model models/",
    "attach-model bob --model models/l": "attach-model bob --model models/llama.gguf ",
    "attach-model bob --model=models/l": "attach-model bob --model=models/llama.gguf ",
    "attach-model bob --model big": r"attach-model bob --model big\ model.gguf ",
    r"attach-model bob --model big\ mo": r"attach-model bob --model big\ model.gguf ",
    "attach-model bob --model fi": "attach-model bob --model fifo.gguf ",
    "attach-model bob --log models/llama.t": "attach-model bob --log models/llama.txt ",
    "attach-model bob --log ~/no": "attach-model bob --log ~/notes.log ",
    "attach-model bob --engine emb": "attach-model bob --engine embedded ",
    "chat-models ali": "chat-models alice ",
    "chat-models --model carol=tiny": "chat-models --model carol=tiny-chat ",
    "chat-models --model carol=qw": "chat-models --model carol=qwen ",
    "chat-models --model carol=sea": r"chat-models --model carol=sea\ lion ",
    "fit-models sea": r"fit-models sea\ lion ",
    "chat-models --model=carol=tiny": "chat-models --model=carol=tiny-chat ",
    'chat-models --model "carol=tiny': 'chat-models --model "carol=tiny-chat" ',
    "chat-models --model carol=models/l": "chat-models --model carol=models/llama.gguf ",
    "chat-models --model carol=x --system car": "chat-models --model carol=x --system carol=",
    "chat-models --model carol=x --engine carol=emb": "chat-models --model carol=x --engine carol=embedded ",
    "chat-models --engine emb": "chat-models --engine embedded ",
    "chat-models --api-key-file carol=models/llama.t": "chat-models --api-key-file carol=models/llama.txt ",
    "find-gguf mod": "find-gguf models/",
    "find-gguf --gpu rtx4080s": "find-gguf --gpu rtx4080super ",
    "find-gguf --gpu 2xrtx4080s": "find-gguf --gpu 2xrtx4080super ",
    "find-gguf --kv-type q5_1": "find-gguf --kv-type q5_1 ",
    "fit-models qw": "fit-models qwen ",
    "serve-models rel": "serve-models reload ",
}


def prepare(run: Commands) -> None:
    """Rooms with seats, files, folders, and a FIFO by a model's name, which who opens it would wait at."""
    run("setup", "alice", "bob")
    run("setup", "carol", "-d", "other")
    for folder in ("models", "other"):
        (run.cwd / folder).mkdir(exist_ok=True)
    for file in ("big model.gguf", "models/llama.gguf", "models/llama.txt"):
        (run.cwd / file).touch()
    os.mkfifo(run.cwd / "fifo.gguf")
    known = Path(run.env["HOME"], "models")
    known.mkdir()
    (known / "qwen.gguf").touch()
    (known / "sea lion.gguf").touch()
    os.mkfifo(known / "fifo.gguf")
    Path(run.env["HOME"], "notes.log").touch()


def ask(run: Commands, line: str, shell: str = "bash", **env: str) -> Ended:
    """What a shell's script asks and gets, of a line that ends at the cursor."""
    name = line.split(" ", 1)[0]
    word = line.rpartition(" ")[2]
    asked = {COMPLETION: f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": word}
    return run.run([SCRIPTS / name], env=asked | env, limit_s=LIMIT_S)


def offered(run: Commands, line: str, **env: str) -> list[str]:
    return [text.split(",")[-1] for text in ask(run, line, **env).lines if text]


def test_tab_completes_commands_options_and_their_values(run: Commands, terminal: Terminal) -> None:
    prepare(run)
    assert {typed: terminal.complete(typed) for typed in LINES} == LINES


@pytest.mark.parametrize("shell", ["bash"], indirect=True)
def test_bash_keeps_its_hands_off_what_it_takes_for_another_word(run: Commands, terminal: Terminal) -> None:
    (run.cwd / "a:b").mkdir()
    (run.cwd / "a:b" / "model.gguf").touch()
    lines = {
        "find-gguf ./a:b/": "find-gguf ./a:b/model.gguf ",
        "chat-models --model alice=a:b/": "chat-models --model alice=a:b/model.gguf ",
    }
    assert {typed: terminal.complete(typed) for typed in lines} == lines


def test_use_cases_are_those_of_the_configuration_on_the_line(run: Commands) -> None:
    (run.cwd / "c.toml").write_text("[use.twins]\nmemory = '1GB'\n")
    assert offered(run, "find-gguf --config c.toml --use t") == ["twins"]


@pytest.mark.parametrize("shell", ["zsh", "fish"], indirect=True)
def test_where_the_shell_can_it_shows_what_each_choice_means(run: Commands, terminal: Terminal) -> None:
    run("setup", "bob")
    terminal.press(f"ask-model --from{TAB}{TAB}")
    terminal.wait_for("The seat that asks.*The FIFO to read from|The FIFO to read from.*The seat that asks")
    terminal.press("\x15")
    terminal.press(f"modelpipes se{TAB}{TAB}")
    terminal.wait_for("Who sits where")


def test_the_script_is_one_that_its_shell_can_read(run: Commands, shell: str) -> None:
    script = run.cwd / "script"
    script.write_text(run("completion", shell).stdout)
    assert run.run([shell, "-n", script]) == Ended(0, "", "")


# Where a package's files lie, from a folder that the shell is told of.
INSTALLED = {
    "bash": ("bash-completion/completions/ask-model", ". share/bash-completion/completions/ask-model"),
    "zsh": ("zsh/site-functions/_modelpipes", "fpath=($PWD/share/zsh/site-functions $fpath); compinit -u -D"),
    "fish": (
        "fish/vendor_completions.d/ask-model.fish",
        "set -p fish_complete_path $PWD/share/fish/vendor_completions.d",
    ),
}


def test_from_the_files_of_a_package_it_is_loaded_when_it_is_needed(run: Commands, shell: str) -> None:
    run("setup", "alice")
    path, load = INSTALLED[shell]
    file = run.cwd / "share" / path
    file.parent.mkdir(parents=True)
    file.write_text(share.files()[path])
    terminal = Terminal(run, shell, load)
    try:
        assert terminal.complete("ask-model ali") == "ask-model alice "
    finally:
        terminal.close()


def test_without_an_argument_it_is_for_the_shell_that_is_used(run: Commands) -> None:
    assert run("completion", SHELL="/usr/bin/fish").stdout == run("completion", "fish").stdout
    for shell in ("/bin/sh", ""):
        told = run("completion", SHELL=shell)
        assert (told.code, told.stdout) == (2, "")
        assert (
            told.stderr
            == "modelpipes completion: $SHELL names no shell that can be served: give one of bash, zsh, fish\n"
        )


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_every_command_is_offered(run: Commands, verb: str) -> None:
    shown = [param for param in load(verb).params if not getattr(param, "hidden", False)]
    known = {name for param in shown for name in (*param.opts, *param.secondary_opts) if name[0] == "-"}
    assert known <= {*offered(run, f"modelpipes {verb} -")}


def test_every_file_folder_and_seat_can_be_completed() -> None:
    for verb in VERBS:
        for param in load(verb).params:
            if re.search("FILE|DIR|SEAT|PATH", param.metavar or ""):
                assert isinstance(param.type, values.Text) or param.name == "seats", f"{verb} {param.opts}"


def test_seats_are_those_of_the_room_in_force(run: Commands) -> None:
    prepare(run)
    assert offered(run, "ask-model ") == ["alice", "bob"]
    assert offered(run, "ask-model ", PIPE_DIR=str(run.cwd / "other")) == ["carol"]
    assert offered(run, "list-seats -d other bob ") == ["carol"]
    (run.cwd / "config.toml").write_text('[room]\ndir = "other"\n')
    assert offered(run, "ask-model ", PIPE_DIR="", MODELPIPES_CONFIG="config.toml") == ["carol"]
    assert offered(run, "ask-model ", PIPE_DIR=str(run.cwd / "nowhere")) == []


def test_a_seat_that_is_taken_shows_what_sits_there(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    assert ask(run, "ask-model b", "fish").stdout == "plain\tbob\tready, filter cat\n"


def test_who_was_told_something_is_a_member_of_the_transcript(run: Commands) -> None:
    talk = run("chat", "--filter", "alice=cat", "--filter", "bob=cat", "--rounds", "1", "--transcript", "talk.jsonl")
    assert talk.code == 0
    assert offered(run, "modelpipes show talk.jsonl --as ") == ["alice", "bob"]
    assert offered(run, "modelpipes show none.jsonl --as ") == []


def test_no_pipe_is_opened(run: Commands) -> None:
    prepare(run)
    fifos = [path for path in run.cwd.parent.rglob("*") if path.is_fifo()]
    assert len(fifos) > 2
    readers = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for path in fifos]
    poll = select.poll()
    for reader in readers:
        poll.register(reader, 0)
    for line in ("ask-model ", "attach-model ", "attach-model bob --model ", "fit-models ", "find-gguf "):
        assert offered(run, line)
    assert poll.poll(0) == []  # a writer that had come and gone would show as a hang-up
    for reader in readers:
        os.close(reader)


@pytest.mark.parametrize(
    "instruction", ["bash_complete", "zsh_complete", "fish_complete", "bash", "tcsh_complete", "1"]
)
@pytest.mark.parametrize(
    "line", ["", " ", "ask-model", "ask-model \"a 'b", "ask-model --from= \\", "chat-models --model == --x="]
)
def test_what_makes_no_sense_is_answered_by_silence(run: Commands, instruction: str, line: str) -> None:
    for name in ("ask-model", "modelpipes", "cleanup-pipes"):
        told = run.run([SCRIPTS / name, "-f"], env={COMPLETION: instruction, "COMP_WORDS": line, "COMP_CWORD": "x"})
        assert told.stderr == ""


def test_where_it_is_asked_a_command_does_nothing_else(run: Commands) -> None:
    run("setup", "bob")
    for env in ({COMPLETION: "nonsense"}, {COMPLETION: "bash_complete"}):  # without the line
        told = run.run([SCRIPTS / "cleanup-pipes", "-f"], env=env)
        assert (told.code, told.stdout, told.stderr) == (1, "", "")
    assert run.room.seats() == ["bob", "hub"]


def test_a_configuration_that_is_wrong_is_not_told_here(run: Commands) -> None:
    run("setup", "bob")
    (run.cwd / "config.toml").write_text("[nonsense\n")
    told = ask(run, "ask-model ", MODELPIPES_CONFIG="config.toml")
    assert (told.code, told.stdout, told.stderr) == (0, "plain,,0,,bob\n", "")


def test_a_command_that_is_not_asked_loads_none_of_it(run: Commands) -> None:
    told = run.run([sys.executable, "-X", "importtime", "-P", "-m", "modelpipes", "cleanup"])
    assert told.code == 0
    assert "modelpipes.commands.cli.values" in told.stderr
    assert "commands.completion" not in told.stderr and "shell_completion" not in told.stderr
