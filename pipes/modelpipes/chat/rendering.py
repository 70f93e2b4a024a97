"""A transcript's contents made into text for a terminal, Markdown, one HTML page or one JSON object. Pure.

Every word of a transcript is untrusted: what would command a terminal is made harmless in all but JSON, and
what would be markup is escaped. A turn's words stand indented in text, so that none can pass for a heading.
"""

from __future__ import annotations

import html
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unicodedata import category, east_asian_width

import msgspec

from modelpipes.chat.contents import LARGEST, Contents, Ended
from modelpipes.chat.transcript import Turn
from modelpipes.pipe.message import Timing
from modelpipes.terminal.safetext import make_safe

BAR_COLUMNS = 24  # beside the longest caption it fits 80 columns
LEAST_COLUMNS = 2  # a wide character is never cut
PHASES = ("queue", "first token", "generation")
_MARKS = "░▒█"
_INDENT = "  "
_THOUGHTS = "  | "
TAB_COLUMNS = 4
HUE_STEP = 137  # the golden angle: neighbours differ much, and it is long before two are alike

_PAGE_BEGINS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
"""
# `anywhere` breaks a word that is wider than the page; nothing may make a phone scroll sideways.
_STYLE = """
:root { color-scheme: light dark; --back: #f6f6f4; --card: #fff; --ink: #1c1c1a; --faint: #66665f; --track: #e4e4de;
  --queue: #b8860b; --first: #2a6fb0; --made: #2e8b57; --lightness: 30%; }
@media (prefers-color-scheme: dark) { :root { --back: #141413; --card: #1f1f1d; --ink: #ececE6; --faint: #a3a39a;
  --track: #383835; --queue: #e0b040; --first: #6cabe8; --made: #5dbb85; --lightness: 74%; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  -webkit-text-size-adjust: 100%; overflow-wrap: anywhere; }
main { max-width: 46rem; margin: 0 auto; padding: 1rem .75rem 3rem; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: .25rem 0 .5rem; }
.about, .key, .end, .times, .facts { color: var(--faint); font-size: .85rem; margin: .1rem 0; }
.key { margin: .75rem 0 0; }
.key span, .times span { white-space: nowrap; }
.key span { margin-right: .75rem; }
.key span::before { content: ""; display: inline-block; width: .75em; height: .75em; margin-right: .35em;
  background: var(--kind); }
article { background: var(--card); border-left: .25rem solid hsl(var(--hue) 55% var(--lightness)); border-radius: .4rem;
  margin: .75rem 0; padding: .6rem .8rem; }
h2 { font-size: 1rem; margin: 0 0 .25rem; color: hsl(var(--hue) 55% var(--lightness)); }
.number, .facts { font-weight: normal; }
.number { color: var(--faint); }
.facts { margin-left: .5rem; }
.words { white-space: pre-wrap; unicode-bidi: plaintext; }
details { color: var(--faint); margin: .25rem 0; }
summary { cursor: pointer; }
.bar { display: flex; height: .45rem; margin: .5rem 0 .2rem; background: var(--track); border-radius: .2rem;
  overflow: hidden; }
.bar i { background: var(--kind); flex: none; }
.q { --kind: var(--queue); }
.f { --kind: var(--first); }
.g { --kind: var(--made); }
.end { text-align: center; }
@media print { article { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class _Spent:
    """Where the time of a turn went, in ms."""

    phases: tuple[float, float, float]
    has_first_token: bool  # a program's answer has none, nor one that timed out before it

    @property
    def total_ms(self) -> float:
        return sum(self.phases)

    @property
    def captions(self) -> list[str]:
        queue, first, made = map(_duration, self.phases)
        if self.has_first_token:
            return [f"queue {queue}", f"first token {first}", f"generation {made}"]
        return [f"queue {queue}", f"{first} with no first token"]

    @classmethod
    def of(cls, timing: Timing) -> _Spent:
        """A member counts the first token from the end of its queue, the total from the arrival."""
        queue = _bounded(timing.queued_ms)
        rest = max(0.0, _bounded(timing.total_ms) - queue)
        first = rest if timing.first_token_ms is None else min(rest, _bounded(timing.first_token_ms))
        return cls((queue, first, rest - first), timing.first_token_ms is not None)


def to_json(contents: Contents, *, show_thinking: bool = False) -> Contents:
    """What is to be printed as one JSON object: exact, and without thoughts unless they are wanted."""
    if show_thinking:
        return contents
    turns = tuple(msgspec.structs.replace(turn, thinking="") for turn in contents.turns)
    return msgspec.structs.replace(contents, turns=turns)


def to_text(contents: Contents, columns: int | None = None, *, show_thinking: bool = False) -> str:
    """Text for a terminal so many columns wide; None: as wide as it is."""
    longest_ms = _longest_ms(contents)
    lines = [("", line) for line in _about(contents)]
    if longest_ms:
        key = "  ".join(f"{mark} {name}" for mark, name in zip(_MARKS, PHASES, strict=True))
        lines.append(("", f"{key}  (a whole bar: {_duration(longest_ms)})"))
    for turn, ended in _in_order(contents):
        lines.append(("", ""))
        if ended:
            lines.append(("", f"ended by: {_line(ended.why)}"))
        if not turn:
            continue
        lines.append(("", ", ".join([f"{turn.turn} {_line(turn.sender)}", *_facts(turn)])))
        if show_thinking and turn.thinking:
            lines += ((_THOUGHTS, line) for line in _lines(turn.thinking))
        lines += ((_INDENT, line) for line in _lines(turn.content))
        if turn.timing:
            spent = _Spent.of(turn.timing)
            lines.append(("", f"{_bar(spent, longest_ms)} {', '.join(spent.captions)}".lstrip()))
    return "".join(_fit(lines, columns))


def to_markdown(contents: Contents, *, show_thinking: bool = False) -> str:
    """Markdown (CommonMark, and what GitHub adds to it), in which what was said is text and nothing else."""
    longest_ms = _longest_ms(contents)
    title, *about = _about(contents)
    parts = [f"# {_escape_markdown(title)}"]
    if about:
        parts.append("\n".join(f"- {_escape_markdown(line)}" for line in about))
    for turn, ended in _in_order(contents):
        if ended:
            parts.append(f"*ended by: {_escape_markdown(_line(ended.why)).strip() or 'nothing'}*")
        if not turn:
            continue
        parts.append(f"## {turn.turn} {_escape_markdown(_line(turn.sender))}")
        if facts := _facts(turn):
            parts.append(_escape_markdown(", ".join(facts)))
        if show_thinking and turn.thinking:
            parts.append("\n".join(f"> {line}" for line in _markdown_of(turn.thinking).split("\n")))
        parts.append(_markdown_of(turn.content))
        if turn.timing:
            spent = _Spent.of(turn.timing)
            bar = f"`{bar}` " if (bar := _bar(spent, longest_ms)) else ""
            parts.append(f"{bar}{', '.join(spent.captions)}")
    return "\n\n".join(part for part in parts if part.strip()) + "\n"


def to_html(contents: Contents, *, show_thinking: bool = False) -> str:
    """One page that needs nothing else: no script, no picture, no font, nothing fetched."""
    longest_ms = _longest_ms(contents)
    title, *about = _about(contents)
    hues = {name: number * HUE_STEP % 360 for number, name in enumerate(_speakers(contents))}
    parts = [_PAGE_BEGINS.format(title=_escape(title), style=_STYLE)]
    parts += [f"<h1>{_escape(title)}</h1>\n", *(f'<p class="about">{_escape(line)}</p>\n' for line in about)]
    if longest_ms:
        key = "".join(f'<span class="{kind}">{name}</span> ' for kind, name in zip("qfg", PHASES, strict=True))
        parts.append(f'<p class="key">{key}a whole bar: {_escape(_duration(longest_ms))}</p>\n')
    for turn, ended in _in_order(contents):
        if ended:
            parts.append(f'<p class="end">ended by: {_escape(_line(ended.why))}</p>\n')
        if turn:
            parts += _article(turn, hues[turn.sender], longest_ms, show_thinking)
    return "".join([*parts, "</main>\n</body>\n</html>\n"])


def _in_order(contents: Contents) -> Iterator[tuple[Turn | None, Ended | None]]:
    """Turns and ends as they stand in the file, one of the two at a time."""
    ends = deque(contents.ends)
    while ends and ends[0].after < 0:
        yield None, ends.popleft()
    for turn in contents.turns:
        yield turn, None
        while ends and ends[0].after == turn.turn:
            yield None, ends.popleft()
    for ended in ends:
        yield None, ended


def _speakers(contents: Contents) -> list[str]:
    """All who spoke, in the order in which they first did."""
    return list(dict.fromkeys(turn.sender for turn in contents.turns))


def _about(contents: Contents) -> list[str]:
    """The conversation in a few safe lines: who, how much, how it was led, whose voices; the first is a title."""
    header = contents.header
    members = (header.members if header else ()) or _speakers(contents)
    count = sum(turn.turn > 0 for turn in contents.turns)
    numbers = [f"{count} turn{'s' * (count != 1)}"]
    if tokens := sum(_count(turn.usage.completion_tokens) for turn in contents.turns if turn.usage):
        numbers.append(f"{tokens} tokens")
    if total_ms := sum(_Spent.of(turn.timing).total_ms for turn in contents.turns if turn.timing):
        numbers.append(f"{_duration(total_ms)} in all")
    lines = [", ".join(name for name in map(_line, members) if name.strip()) or "A conversation", ", ".join(numbers)]
    if header:
        lines += [_line(f"{name}: {voice}") for name, voice in header.voices.items()]
        settings = ", ".join(
            f"{name} {_setting(value)}" for name, value in header.settings.items() if value is not None
        )
        lines += [_line(line) for line in (settings, header.id) if line]
    return lines


def _setting(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _facts(turn: Turn) -> list[str]:
    """What is known of a turn beside its words and its times."""
    facts = []
    if turn.usage:
        facts.append(f"{_count(turn.usage.completion_tokens)} tokens")
    if turn.timing and turn.timing.tokens_per_second is not None:
        facts.append(f"{_bounded(turn.timing.tokens_per_second):.0f} tokens/s")
    if turn.stop not in (None, "end"):
        facts.append(f"stopped by: {turn.stop}")
    if turn.dropped:
        first, last = map(_count, turn.dropped)
        facts.append(f"was not shown turns {first} to {last}")
    return facts


def _longest_ms(contents: Contents) -> float:
    """What a whole bar stands for; 0 where nothing was measured."""
    return max((_Spent.of(turn.timing).total_ms for turn in contents.turns if turn.timing), default=0.0)


def _bounded(number: float) -> float:
    return min(max(0.0, number), LARGEST)


def _count(number: int) -> int:
    return min(max(0, number), int(LARGEST))


def _duration(ms: float) -> str:
    if ms < 0.05:
        return "0 ms"
    if ms < 9.95:
        return f"{ms:.1f} ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 59_950:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    return f"{minutes} min {seconds} s"


def _bar(spent: _Spent, longest_ms: float) -> str:
    """Marks in proportion to the longest turn; one at least for a turn that took any time."""
    if not spent.total_ms:
        return ""
    whole = max(1, round(BAR_COLUMNS * spent.total_ms / longest_ms))
    ends = [round(whole * sum(spent.phases[: phase + 1]) / spent.total_ms) for phase in range(len(PHASES))]
    begins = [0, *ends]
    return "".join(mark * (end - begin) for mark, begin, end in zip(_MARKS, begins, ends, strict=False))


def _lines(text: str) -> list[str]:
    """The lines of untrusted text made safe; those that only Unicode calls lines are lines as well."""
    return make_safe(text).replace("\u2028", "\n").replace("\u2029", "\n").expandtabs(TAB_COLUMNS).split("\n")


def _line(text: str) -> str:
    """Untrusted text as one safe line."""
    return " ".join(_lines(text))


def _fit(lines: Iterable[tuple[str, str]], columns: int | None) -> Iterator[str]:
    """Lines, each after its prefix, ended; folded to fit, and then none begins where only a whole line does."""
    for prefix, line in lines:
        free = None if columns is None else columns - len(prefix or _INDENT)
        pieces = [line] if free is None else _fold(line, max(LEAST_COLUMNS, free))
        for number, piece in enumerate(pieces):
            yield f"{prefix or _INDENT * (number > 0)}{piece}".rstrip(" ") + "\n"


def _fold(line: str, columns: int) -> Iterator[str]:
    """The pieces of a line, none wider; broken at a space where there is one, but not in its indentation."""
    start = 0
    while (end := _end_of_piece(line, start, columns)) < len(line):
        space = line.rfind(" ", start, end + 1)
        if space > start and not line[start:space].isspace():
            yield line[start:space]
            start = space + 1
        else:
            yield line[start:end]
            start = end
    yield line[start:]


def _end_of_piece(line: str, start: int, columns: int) -> int:
    """Where a piece from `start` ends that fills the columns, spaces not considered."""
    for end in range(start, len(line)):
        columns -= _columns(line[end])
        if columns < 0:
            return max(end, start + 1)
    return len(line)


def _columns(char: str) -> int:
    """Columns of the terminal that a character takes."""
    if char.isascii():
        return 1
    return 0 if category(char) in ("Mn", "Me") else 2 if east_asian_width(char) in "WF" else 1


def _markdown_of(text: str) -> str:
    """Untrusted text as Markdown of nothing but text, its lines and paragraphs kept."""
    lines = [_escape_markdown(line) for line in _lines(text)]
    # A backslash before a newline is a line break; at the end of a paragraph it would be a backslash.
    followers = [*lines[1:], ""]
    return "\n".join(f"{line}\\" if line and after else line for line, after in zip(lines, followers, strict=True))


def _escape_markdown(line: str) -> str:
    """A safe line as Markdown that says it and does nothing else."""
    text = line.strip(" ")
    indent = len(line.rstrip(" ")) - len(text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])", r"\1\\\2", text)  # a numbered list
    text = re.sub(r"^([-+=:])", r"\\\1", text)  # a list, a rule, an underlined heading, a table's second row
    text = re.sub(r"(?i)(?::(?=//)|(?<=www)\.)", r"\\\g<0>", text)  # GitHub makes links of bare addresses
    return "&nbsp;" * indent + text if text else ""


def _escape(line: str) -> str:
    return html.escape(line, quote=True)


def _article(turn: Turn, hue: int, longest_ms: float, show_thinking: bool) -> Iterator[str]:
    """A turn in HTML."""
    facts = f' <span class="facts">{_escape(", ".join(_facts(turn)))}</span>'
    yield f'<article id="turn-{turn.turn}" style="--hue:{hue}">\n'
    yield f'<h2><span class="number">{turn.turn}</span> <bdi>{_escape(_line(turn.sender))}</bdi>{facts}</h2>\n'
    if show_thinking and turn.thinking:
        yield f'<details><summary>thoughts</summary><div class="words" dir="auto">{_words(turn.thinking)}</div>'
        yield "</details>\n"
    yield f'<div class="words" dir="auto">{_words(turn.content)}</div>\n'
    if turn.timing:
        spent = _Spent.of(turn.timing)
        yield '<div class="bar" aria-hidden="true">'
        for kind, ms in zip("qfg", spent.phases, strict=True):
            yield f'<i class="{kind}" style="width:{100 * ms / longest_ms if longest_ms else 0:.2f}%"></i>'
        captions = ", ".join(f"<span>{caption}</span>" for caption in spent.captions)
        yield f'</div>\n<p class="times">{captions}</p>\n'
    yield "</article>\n"


def _words(text: str) -> str:
    return _escape("\n".join(_lines(text)))
