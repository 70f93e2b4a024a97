"""Commands as people write them: the words, and what only a shell would understand."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.chat.voices import Voice
from modelpipes.chat.voices.command import shell_sign, split_command
from modelpipes.chat.voices.filter import FilterVoice
from modelpipes.chat.voices.jsonfilter import JsonFilterVoice
from modelpipes.chat.voices.program import ExecVoice
from modelpipes.errors import ProgramError, UsageError
from modelpipes.values.deadline import Deadline

PROGRAMS = [ExecVoice, FilterVoice, JsonFilterVoice]


@pytest.mark.parametrize("make", PROGRAMS)
def test_a_missing_program_is_told_before_the_seat_is_ready(make: type[ExecVoice | FilterVoice]) -> None:
    with pytest.raises(ProgramError, match="no-such-program: no such program on PATH"):
        make("no-such-program x").prepare(Deadline.never())


@pytest.mark.parametrize("command", ["", "  ", "echo 'open"])
def test_a_command_that_is_none_is_wrong_usage(command: str) -> None:
    with pytest.raises(UsageError):
        split_command(command)


@pytest.mark.parametrize(
    ("command", "sign"),
    [
        ("tr a-z A-Z | rev", "|"),
        ("sort|uniq", "|"),
        ("make || true", "||"),
        ("wc -w > /dev/null", ">"),
        ("wc -w >>log", ">>"),
        ("tool 2>&1", ">"),
        ("wc < file", "<"),
        ("cat <<END", "<<"),
        ("cd /tmp && ls", "&&"),
        ("sleep 1 &", "&"),
        ("read x; echo $x", ";"),
        ("(cd /tmp)", "("),
        ("~/bin/tool", "~"),
        ("~bob/bin/tool", "~"),
        ("cat ~/notes", "~"),
        ("cat ~", "~"),
        ("LANG=C wc -w", "LANG="),
        ("A= B=2 wc", "A="),
        ('KEY="a b" tool', "KEY="),
        ("echo $HOME", "$HOME"),
        ('echo "$HOME"', "$HOME"),
        ("echo ${HOME:-x} y", "${HOME:-x}"),
        ('echo "$(date)"', "$("),
        ("echo `date`", "`"),
        ('echo "`date`"', "`"),
        ("'echo' \"it's\" $X", "$X"),
    ],
)
@pytest.mark.parametrize("make", PROGRAMS)
def test_what_only_a_shell_understands_is_told_with_the_way_to_have_one(
    make: type[ExecVoice | FilterVoice], command: str, sign: str
) -> None:
    # The program was given it as an argument, and its answer was the last line of its usage.
    with pytest.raises(UsageError) as told:
        make(command)
    said = str(told.value)
    assert f"no shell runs '{command}', so its {sign} has no meaning: give it a shell, " in said
    offered = said.split("give it a shell, ")[1].split(", or put what")[0]
    pasted = subprocess.run(["sh", "-c", f"printf %s {offered}"], capture_output=True, text=True, check=True).stdout
    assert split_command(pasted) == ["sh", "-c", command]


@pytest.mark.parametrize(
    "command",
    [
        "grep '|'",
        "grep \\|",
        "sed 's/a|b/c/'",
        "sed s/a/b/",
        "sed 's/ & / and /g'",
        'python3 -c "print(1 > 0)"',
        "python3 -c print(1)",
        "awk '{ print $1 }'",
        'awk "{ print $1 }"',
        "sh -c 'a | b && c > $HOME/x; ~/y *'",
        "env LANG=C wc -w",
        "tool --key=value",
        "./a=b",
        "sed 2~3p",
        "echo '$HOME' '~' '*' '`id`'",
        "echo \\$HOME \\~ \\*",
        "grep foo$",
        'grep "foo$"',
        "date +%F",
        "tr [a-z] [A-Z]",
        "curl -s http://127.0.0.1/ask?x=1",
        "find . -name *.nosuchname",
        "echo a#b # c",
        "echo {a,b} !x",
    ],
)
def test_what_means_the_same_without_a_shell_is_let_pass(command: str) -> None:
    assert shell_sign(command) == ""


def test_a_pattern_counts_where_files_have_such_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell_sign("wc -c *.txt") == ""
    (tmp_path / "a.txt").touch()
    assert shell_sign("wc -c *.txt") == "*.txt"
    assert shell_sign("wc -c '*.txt' \\*.txt") == ""
    assert shell_sign("wc -c ?.txt") == "?.txt"


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1))
def test_words_that_were_quoted_pass_whatever_they_are(words: list[str]) -> None:
    assert split_command(shlex.join(words)) == words


def test_no_shell_reads_what_is_quoted(tmp_path: Path) -> None:
    from tests.chat.voices.conftest import Asked

    voice: Voice = ExecVoice(f"echo '$HOME' '*' ';' '>' {tmp_path}/x '`id`' \\|")
    assert Asked(voice, "x").content == f"$HOME * ; > {tmp_path}/x `id` |"
    assert list(tmp_path.iterdir()) == []
