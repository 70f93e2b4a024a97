"""What a model said, which is Markdown, as HTML that shows it and does nothing else. Pure.

Only page.py imports it: markdown-it takes 40 ms to load.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

from modelpipes.terminal.safetext import make_line, make_lines

LIMIT_CHARS = 262_144  # some 0.6 s of parsing, 4 s for what is made to be slow; nobody reads more as one answer
LINKED = ("http", "https", "mailto")  # to follow only where the reader asks for it; all else stays text
OUR_LEVELS = 2  # the page's own headings: those of a turn stand below them
LOWEST_LEVEL = 6
LANGUAGE_CHARS = 24  # the longest name of a language that is one
_NO_WORD = re.compile(r"[^\w.+#-]")  # in the name of a language: `python`, `c++`, `objective-c`, `.net`


class _Inert(RendererHTML):
    """Renders tokens so that the page fetches nothing, leads nowhere by itself, and keeps its outline."""

    def text(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return _escape(tokens[idx].content)  # an entity may have said what no character of the text did

    def code_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"<code>{_escape(tokens[idx].content)}</code>"

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"<pre><code>{_escape(tokens[idx].content)}</code></pre>\n"

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        language = _language(tokens[idx].info)
        shown = f"<figcaption>{_escape(language)}</figcaption>" if language else ""
        return f"<figure>{shown}<pre><code>{_escape(tokens[idx].content)}</code></pre></figure>\n"

    def heading_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"<{_lowered(tokens[idx].tag)}>"

    def heading_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return f"</{_lowered(tokens[idx].tag)}>\n"

    def link_open(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        env["is_in_link"] = True
        return _link(str(tokens[idx].attrGet("href")))

    def link_close(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        env["is_in_link"] = False
        return "</a>"

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        """A link to it, never itself: to show it would tell its server who reads this page, and when."""
        words = _escape(self.renderInlineAsText(tokens[idx].children, options, env).strip() or "picture")
        return words if env.get("is_in_link") else f"{_link(str(tokens[idx].attrGet('src')))}{words}</a>"


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        """May it be linked? An address of another kind stays in the text as it was written."""
        try:
            parts = urlsplit(url)
        except ValueError:
            return False
        return parts.scheme in LINKED and bool(parts.netloc or parts.scheme == "mailto")


@functools.cache
def _parser() -> MarkdownIt:
    parser = _Parser("commonmark", {"html": False, "breaks": True, "xhtmlOut": False}, renderer_cls=_Inert)
    return parser.enable(["table", "strikethrough"])


def words_to_html(text: str) -> str:
    """Untrusted Markdown (CommonMark, tables and ~~strikethrough~~) as HTML; plain where it is very long.

    Raw HTML in it is text; each of its lines stays a line. Its links lead to the web or to mail.
    """
    safe = "\n".join(make_lines(text))
    if len(safe) > LIMIT_CHARS:
        return f"<pre>{_escape(safe)}</pre>"
    made: str = _parser().render(safe)
    return made


def _link(address: str) -> str:
    return f'<a href="{_escape(address)}" rel="noopener noreferrer nofollow">'


def _language(info: str) -> str:
    """The language that a fence names, as one short word; "" where it names none."""
    words = make_line(info).split()
    return _NO_WORD.sub("", words[0])[:LANGUAGE_CHARS] if words else ""


def _lowered(tag: str) -> str:
    return f"h{min(int(tag[1:]) + OUR_LEVELS, LOWEST_LEVEL)}"


def _escape(text: str) -> str:
    return html.escape("\n".join(make_lines(text)), quote=True)
