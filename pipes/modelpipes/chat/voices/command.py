"""A command as a person writes it: its words, and what in it only a shell would understand."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterator

from msgspec import Struct

from modelpipes.errors import ProgramError, UsageError

# POSIX.1-2024, Shell Command Language, 2.4 and 2.6. $1 and $/ are let pass: awk and sed have them between double
# quotes, which to us are as good as single ones.
_OPERATOR = re.compile(r"\|\|?|&&?|;;?|<<?|>>?")
_EXPANSION = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*|\$\{[^}]*\}?|\$\(|`")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
_BETWEEN_WORDS = " \t\r\n"  # as shlex has it
_FOR_A_SHELL = frozenset('"$`\\!')  # what a person's own shell would read between double quotes


class _Word(Struct, frozen=True):
    """One word as it was written; then without what is quoted, and without what is in single quotes: a NUL each."""

    written: str
    unquoted: str
    expanded: str


def split_command(command: str) -> list[str]:
    """The words of a command, as a shell would split them; no shell runs.

    UsageError where they cannot be told, and where a shell would do more than split them: with the way to have one.
    """
    try:
        words = shlex.split(command)
    except ValueError as e:
        raise UsageError(f"cannot read the command '{command}': {e}") from None
    if not words:
        raise UsageError("the command is empty")
    if sign := shell_sign(command):
        raise UsageError(
            f"no shell runs '{command}', so its {sign} has no meaning: "
            f"give it a shell, {_with_a_shell(command)}, or put what is meant to the letter in single quotes"
        )
    return words


def shell_sign(command: str) -> str:
    """The first sign in a command by which a shell would do more than split it; empty where there is none.

    A pattern of file names counts where a file has such a name: else a shell leaves it as it is, and so do we.
    """
    for index, word in enumerate(_words(command)):
        bare = word.unquoted
        if index == 0 and (found := _ASSIGNMENT.match(bare) or re.match(r"\(", bare)):
            return found[0]
        if bare.startswith("~") and (index == 0 or bare.partition("/")[0] == "~"):
            return "~"
        if found := _OPERATOR.search(bare) or _EXPANSION.search(word.expanded):
            return found[0]
        if "\0" not in bare and re.search(r"[*?]", bare) and glob.glob(bare):
            return word.written
    return ""


def _words(command: str) -> Iterator[_Word]:
    """The words as shlex splits them, quotes and all."""
    written = unquoted = expanded = quote = ""
    is_escaped = False
    for char in command:
        if not quote and not is_escaped and char in _BETWEEN_WORDS:
            if written:
                yield _Word(written, unquoted, expanded)
            written = unquoted = expanded = ""
            continue
        written += char
        has_meaning = not is_escaped and char not in "\\'\""
        unquoted += char if has_meaning and not quote else "\0"
        expanded += char if has_meaning and quote != "'" else "\0"
        if is_escaped:
            is_escaped = False
        elif char == "\\" and quote != "'":
            is_escaped = True
        elif char == quote:
            quote = ""
        elif char in "'\"" and not quote:
            quote = char
    if written:
        yield _Word(written, unquoted, expanded)


def _with_a_shell(command: str) -> str:
    """The same command run by a shell, quoted so that it can be pasted as an option's value."""
    whole = f"sh -c {shlex.quote(command)}"
    return shlex.quote(whole) if _FOR_A_SHELL.intersection(whole) else f'"{whole}"'


def require_program(program: str) -> None:
    """Raise ProgramError unless there is such a program."""
    import shutil

    if not shutil.which(program):
        raise ProgramError(f"{program or 'the empty name'}: no such program on PATH")
