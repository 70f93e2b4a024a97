"""A transcript's contents as one HTML page that needs nothing else. Pure.

A model's words are Markdown, and rendered; those of a person, of a program and of the hub stand as they were said.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence

from modelpipes.chat.contents import Contents
from modelpipes.chat.rendering.facts import (
    PHASES,
    Spent,
    as_line,
    chosen_in,
    describe,
    facts_of,
    format_ms,
    in_order,
    longest_ms,
    speakers,
    writes_markdown,
)
from modelpipes.chat.rendering.words import words_to_html
from modelpipes.chat.transcript import Turn
from modelpipes.terminal.safetext import make_lines

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
.markdown { white-space: normal; }
.markdown :is(p, li, h3, h4, h5, h6, td, th) { unicode-bidi: plaintext; }
.markdown > :first-child { margin-top: 0; }
.markdown > :last-child { margin-bottom: 0; }
.markdown :is(h3, h4, h5, h6) { font-size: 1rem; margin: .75rem 0 .25rem; }
.markdown :is(p, ul, ol, blockquote, table, figure) { margin: .5rem 0; }
.markdown blockquote { border-left: .2rem solid var(--track); padding-left: .75rem; color: var(--faint); }
.markdown table { border-collapse: collapse; display: block; overflow-x: auto; }
.markdown :is(th, td) { border: 1px solid var(--track); padding: .15rem .5rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; background: var(--back); border-radius: .2rem; }
code { padding: .1em .25em; }
pre { padding: .5rem .75rem; margin: .5rem 0; overflow-x: auto; overflow-wrap: normal; direction: ltr; }
pre code { padding: 0; font-size: 1em; }
figcaption { color: var(--faint); font-size: .8rem; margin-bottom: -.35rem; }
a { color: var(--first); }
details { color: var(--faint); margin: .25rem 0; }
summary { cursor: pointer; }
.bar { display: flex; height: .45rem; margin: .5rem 0 .2rem; background: var(--track); border-radius: .2rem;
  overflow: hidden; }
.bar i { background: var(--kind); flex: none; }
.q { --kind: var(--queue); }
.f { --kind: var(--first); }
.g { --kind: var(--made); }
.end { text-align: center; }
@media print { article { break-inside: avoid; } pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
"""


def to_html(contents: Contents, *, show_thinking: bool = False) -> str:
    """One page that needs nothing else: no script, no picture, no font, nothing fetched."""
    whole_ms, choices = longest_ms(contents), chosen_in(contents)
    title, *about = describe(contents)
    hues = {name: number * HUE_STEP % 360 for number, name in enumerate(speakers(contents))}
    parts = [_PAGE_BEGINS.format(title=_escape(title), style=_STYLE)]
    parts += [f"<h1>{_escape(title)}</h1>\n", *(f'<p class="about">{_escape(line)}</p>\n' for line in about)]
    if whole_ms:
        key = "".join(f'<span class="{kind}">{name}</span> ' for kind, name in zip("qfg", PHASES, strict=True))
        parts.append(f'<p class="key">{key}a whole bar: {_escape(format_ms(whole_ms))}</p>\n')
    for turn, ended in in_order(contents):
        if ended:
            parts.append(f'<p class="end">ended by: {_escape(as_line(ended.why))}</p>\n')
        if turn:
            show = words_to_html if writes_markdown(contents, turn.sender) else _words
            facts = facts_of(turn, choices.get(turn.turn))
            parts += _article(turn, facts, hues[turn.sender], whole_ms, show_thinking, show)
    return "".join([*parts, "</main>\n</body>\n</html>\n"])


def _article(
    turn: Turn, known: Sequence[str], hue: int, whole_ms: float, show_thinking: bool, show: Callable[[str], str]
) -> Iterator[str]:
    """A turn in HTML, its words as `show` makes them."""
    kind = "words markdown" if show is words_to_html else "words"
    facts = f' <span class="facts">{_escape(", ".join(known))}</span>'
    yield f'<article id="turn-{turn.turn}" style="--hue:{hue}">\n'
    yield f'<h2><span class="number">{turn.turn}</span> <bdi>{_escape(as_line(turn.sender))}</bdi>{facts}</h2>\n'
    if show_thinking and turn.thinking:
        yield f'<details><summary>thoughts</summary><div class="{kind}" dir="auto">{show(turn.thinking)}</div>'
        yield "</details>\n"
    yield f'<div class="{kind}" dir="auto">{show(turn.content)}</div>\n'
    if turn.timing:
        spent = Spent.of(turn.timing)
        yield '<div class="bar" aria-hidden="true">'
        for kind, ms in zip("qfg", spent.phases, strict=True):
            yield f'<i class="{kind}" style="width:{100 * ms / whole_ms if whole_ms else 0:.2f}%"></i>'
        captions = ", ".join(f"<span>{caption}</span>" for caption in spent.captions)
        yield f'</div>\n<p class="times">{captions}</p>\n'
    yield "</article>\n"


def _words(text: str) -> str:
    return _escape("\n".join(make_lines(text)))


def _escape(line: str) -> str:
    return html.escape(line, quote=True)
