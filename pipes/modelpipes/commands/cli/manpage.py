"""Manual pages, made of what the commands say of themselves: roff with the macros of man(7), in ASCII.

No clock, no terminal and no setting of the person has a part in a page: it is the same wherever it is made.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator

import click

from modelpipes.commands import VERBS, load
from modelpipes.values.version import __version__

DATE = "2026-11-20"  # of this version; man(7) wants one
EXAMPLES = "Examples:\n"
LITERAL = "\b\n"  # how click is told to leave a paragraph as it is

# What roff would take for its own, or set as another character than the one that a shell knows.
_ESCAPES = str.maketrans(
    {"\\": r"\(rs", "-": r"\-", "'": r"\(aq", '"': r"\(dq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
)

# What concerns a command: where it has this option, or is this verb; a variable also where its help names it.
ENVIRONMENT: dict[str, tuple[str, tuple[str, ...]]] = {
    "PIPE_DIR": ("The room, as -d.", ("-d",)),
    "PIPE_PREFIX": ("Beginning of the seat names that setup-pipes makes up.", ()),
    "PIPE_TIMEOUT": ("Longest silence of the member, as --timeout.", ()),
    "LOG_FILE": ("A line for each thing done goes there, as --log.", ()),
    "LOG_CONTENT": ("1: with the words, as --log-content.", ()),
    "PIPE_TO_SEAT": ("The pipe to a seat, as setup-pipes --print-env prints it.", ("--print-env", "--to-pipe")),
    "PIPE_FROM_SEAT": ("The pipe from a seat.", ("--print-env", "--from-pipe")),
    "MODELPIPES_CONFIG": ("The configuration, as --config.", ()),
    "XDG_CONFIG_HOME": ("Where the configuration is looked for, in place of ~/.config.", ("--config",)),
    "LLAMA_SERVER": ("The engine to use.", ("--engine", "build-engine", "check", "serve")),
    "SEARCH_PATH": ("Folders with model files, a colon between them.", ("--model", "find", "fit", "check", "serve")),
    "OPENAI_API_KEY": ("The key for --server.", ()),
    "XDG_CACHE_HOME": ("What can be made again, in place of ~/.cache.", ("--model", "find", "fit", "serve")),
    "XDG_DATA_HOME": ("What build-engine made, in place of ~/.local/share.", ("--engine", "build-engine", "serve")),
    "XDG_STATE_HOME": ("What you typed as me, in place of ~/.local/state.", ("chat", "run", "check")),
    "NO_COLOR": ("Plain text on terminals too, as in a pipe; TERM=dumb does the same.", ("ask", "chat", "run")),
    "XDG_RUNTIME_DIR": ("What lives until logout: rooms, in modelpipes/default.", ("-d", "check", "serve")),
    "TMPDIR": ("The same where there is no XDG_RUNTIME_DIR: in modelpipes-UID/default.", ("-d", "check")),
    "SHELL": ("The shell to complete for.", ()),
}
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "$XDG_RUNTIME_DIR/modelpipes/default": ("The default room.", ("-d",)),
    "~/.config/modelpipes/config.toml": ("The configuration.", ("--config",)),
    "~/.cache/modelpipes": ("What was read of model files, and where they were found.", ("--model", "find", "fit")),
    "~/.local/state/modelpipes/typed.jsonl": ("What you typed as me.", ("chat", "run")),
    "~/.local/share/modelpipes/engines": ("What modelpipes build-engine made.", ("--engine", "build-engine")),
}
EXIT_STATUS = {
    "0": "Done; also when the reader of stdout went away.",
    "1": "The peer, the engine or a file failed.",
    "2": "Wrong usage.",
    "124": "A deadline passed.",
    "129, 130, 143": "Ended by SIGHUP, SIGINT, SIGTERM.",
}


def pages() -> dict[str, str]:
    """Every page there is, by the name that man(1) is asked for."""
    return {"modelpipes": overview()} | {page_name(verb): page(verb) for verb in VERBS}


def page_name(verb: str) -> str:
    return VERBS[verb][0] or f"modelpipes-{verb}"


def page(verb: str) -> str:
    """The page of a command."""
    command = load(verb)
    called = VERBS[verb][0] or f"modelpipes {verb}"
    context = command.make_context(called, [], resilient_parsing=True)
    text, _, examples = inspect.cleandoc(command.help or "").partition(LITERAL + EXAMPLES)
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    records = [record for each in options if (record := each.get_help_record(context))]
    return _roff(
        _head(page_name(verb), VERBS[verb][1]),
        _section("SYNOPSIS", [f"{_bold(called)} {_usage(' '.join(command.collect_usage_pieces(context)))}"]),
        _section("DESCRIPTION", _paragraphs(text)),
        _section("OPTIONS", _entries((_option(names), text) for names, text in records)),
        _section("EXAMPLES", _literal(inspect.cleandoc(examples))),
        *_tail(page_name(verb), {verb, *_marks(options)}, " ".join([text, *(text for _, text in records)])),
    )


def overview() -> str:
    """The page of all commands together."""
    verbs = ((f"{_bold(VERBS[verb][0])}, " if VERBS[verb][0] else "") + _bold(f"modelpipes {verb}") for verb in VERBS)
    marks = {*ENVIRONMENT, *(mark for _, marks in FILES.values() for mark in marks)}
    return _roff(
        _head("modelpipes", "Models that talk to each other, and to any Unix program, through named pipes."),
        _section("SYNOPSIS", [f"{_bold('modelpipes')} {_usage('VERB [OPTIONS] …')}"]),
        _section("DESCRIPTION", [escape("Verbs with a second name are also commands of that name.")]),
        _section("COMMANDS", _entries(zip(verbs, (text for _, text in VERBS.values()), strict=True))),
        *_tail("modelpipes", marks, ""),
    )


def escape(text: str) -> str:
    """One line of text as roff that prints just that."""
    text = text.translate(_ESCAPES)
    if text.startswith("."):  # else a request; an apostrophe, which would be one too, is escaped wherever it stands
        text = rf"\&{text}"
    return "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in text)


def _roff(*parts: Iterable[str]) -> str:
    return "".join(f"{line}\n" for part in parts for line in part)


def _head(name: str, text: str) -> Iterator[str]:
    yield f'.TH {escape(name.upper())} 1 {DATE} "modelpipes {__version__}" "User Commands"'
    # No word is broken and no line stretched: what is read can be typed. The register is for .EE, which restores it.
    yield from (".nh", ".nr HY 0", ".ad l")
    yield from _section("NAME", [escape(f"{name} - {text[0].lower()}{text[1:].rstrip('.')}")])


def _section(title: str, body: Iterable[str]) -> Iterator[str]:
    """A section, unless it says nothing."""
    lines = list(body)
    if lines:
        yield f".SH {title}"
        yield from lines


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.strip().split("\n\n")):
        if number:
            yield ".PP"
        if paragraph.startswith(LITERAL):
            yield from _literal(paragraph.removeprefix(LITERAL))
        else:
            yield from (escape(line.strip()) for line in paragraph.splitlines())


def _literal(text: str) -> Iterator[str]:
    if text:
        yield ".EX"
        yield from (escape(line) for line in text.splitlines())
        yield ".EE"


def _entries(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Terms, which are roff already, each with what it means."""
    for term, text in entries:
        yield from (".TP", term, escape(" ".join(text.split())))


def _option(names: str) -> str:
    """Of "-d, --dir DIR" the names bold, the value's italic."""
    words = (re.fullmatch(r"(--?[\w-]+)?(.*?)(,?)", word) for word in names.split())
    return " ".join(
        (_bold(word[1]) if word[1] else "") + (_italic(word[2]) if word[2] else "") + word[3] for word in words if word
    )


def _usage(text: str) -> str:
    """What is replaced italic, brackets and dots as they are."""
    parts = re.split(r"([A-Z][A-Z]+)", text)
    return "".join(_italic(part) if index % 2 else escape(part) for index, part in enumerate(parts))


def _bold(text: str) -> str:
    return rf"\fB{escape(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{escape(text)}\fR"


def _marks(options: Iterable[click.Option]) -> Iterator[str]:
    """What `ENVIRONMENT` and `FILES` know options by: their names and variables."""
    for option in options:
        yield from option.opts
        if isinstance(option.envvar, str):
            yield option.envvar


def _tail(name: str, marks: set[str], text: str) -> Iterator[Iterator[str]]:
    """The sections after what the command says of itself: of what bears one of these marks, or is named in the text."""
    named = {each: meaning for each, (meaning, of) in ENVIRONMENT.items() if marks & {*of, each} or f"${each}" in text}
    files = {each: meaning for each, (meaning, of) in FILES.items() if marks & {*of}}
    yield _section("EXIT STATUS", _entries((_bold(code), meaning) for code, meaning in EXIT_STATUS.items()))
    yield _section("ENVIRONMENT", _entries((_bold(each), meaning) for each, meaning in named.items()))
    yield _section("FILES", _entries((_italic(each), meaning) for each, meaning in files.items()))
    others = [each for each in ("modelpipes", *map(page_name, VERBS)) if each != name]
    yield _section("SEE ALSO", [f".BR {escape(each)} (1){',' if each != others[-1] else ''}" for each in others])
