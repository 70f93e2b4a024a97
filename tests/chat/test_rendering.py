"""A transcript's lines made into text, Markdown, HTML and JSON, whatever the turns say."""

from __future__ import annotations

import json
import re
import unicodedata
from html.parser import HTMLParser
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from modelpipes.chat.contents import Contents, Ended, read
from modelpipes.chat.rendering.exact import to_json
from modelpipes.chat.rendering.markdown import to_markdown
from modelpipes.chat.rendering.page import to_html
from modelpipes.chat.rendering.text import to_text
from modelpipes.chat.rendering.words import LIMIT_CHARS
from modelpipes.chat.transcript import VERSION, End, Header, Turn
from modelpipes.pipe.message import Stop, Timing, Usage
from modelpipes.terminal.safetext import make_safe
from modelpipes.terminal.width import columns_of

HEADER = Header(VERSION, "0" * 32, ("alice", "bob"), {"alice": "model tiny-chat"}, {"rounds": 4, "stop_word": None})
OPENING = Turn(0, "hub", "Hello.")
ANSWER = Turn(
    1, "alice", "Hi there.", "end", Usage(6, 17), Timing(1000.0, 500.0, 3000.0, 11.3), thinking="Be brief.\nBe kind."
)
TALK = Contents(HEADER, (OPENING, ANSWER), (Ended(1, "rounds"),))
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

MARKUP = "<>&\"'/=!-+*_`#[](){}|~$:;.\\ \n\t\r\x1b\x9b\x00\u202e\u2028ws1h日e\u0301🙂"
WORDS = st.text() | st.text(MARKUP) | st.sampled_from(
    ["</div><script>alert(1)</script>", "<!-- ", "]]>", "&lt;b&gt;", "```\n# no", "    code", "[a](b)", "![a](b)",
     "http://a.b/", "www.a.b", "1. one\n2. two", "a\n===", "a\n---", "|a|\n|-|", "a|b\n-|-", "***", "> quoted",
     "\x1b]0;title\x07", "\x1b[2J", "  1 bob", "\n1 bob", "a\\", "a\\\nb", "- [ ] x", "<https://a.b>", "~~a~~"]
)  # fmt: skip
NUMBERS = st.floats(0, allow_nan=False, allow_infinity=False) | st.floats(0, 1e5)
TIMINGS = st.builds(Timing, NUMBERS, st.none() | NUMBERS, NUMBERS, st.none() | NUMBERS)
USAGES = st.builds(Usage, st.integers(), st.integers())
STOPS = st.sampled_from(get_args(Stop))
HEADERS = st.builds(
    Header,
    st.integers(1, 9),
    st.just("0" * 32),
    st.lists(WORDS, max_size=3).map(tuple),
    st.dictionaries(WORDS, WORDS, max_size=2),
    st.dictionaries(WORDS, WORDS | st.integers() | st.none() | st.lists(WORDS), min_size=1, max_size=2),
)


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    """A conversation in which anything may be said, by anybody."""
    turns = []
    for number in range(draw(st.integers(0, 4))):
        dropped = draw(st.none() | st.just((0, number)))
        usage, timing, stop = draw(st.none() | USAGES), draw(st.none() | TIMINGS), draw(st.none() | STOPS)
        turns.append(Turn(number, draw(WORDS), draw(WORDS), stop, usage, timing, dropped, draw(WORDS)))
    ends = draw(st.lists(st.builds(Ended, st.integers(-1, 3), WORDS), max_size=2))
    return Contents(draw(st.none() | HEADERS), tuple(turns), tuple(ends))


def tamed(wild: Contents) -> Contents:
    """The same conversation of the same speakers, in which nothing is said but `x`."""
    names = {name: f"s{number}" for number, name in enumerate(dict.fromkeys(turn.sender for turn in wild.turns))}
    header = wild.header
    if header:
        has_settings = any(value is not None for value in header.settings.values())
        voices = {f"x{number}": "x" for number, _ in enumerate(header.voices)}
        header = Header(header.version, header.id, ("x",), voices, {"x": "x"} if has_settings else {})
    turns = (
        msgspec.structs.replace(t, sender=names[t.sender], content="x", thinking="x" if t.thinking else "")
        for t in wild.turns
    )
    return Contents(header, tuple(turns), tuple(Ended(end.after, "x") for end in wild.ends))


def shown(text: str) -> str:
    """What a page or a terminal shows of words: made safe, Unicode's line ends as newlines, tabs as spaces."""
    return make_safe(text).replace("\u2028", "\n").replace("\u2029", "\n").expandtabs(4)


EMPTY_TAGS = {"br", "hr"}
SHOWN_TAGS = {
    *EMPTY_TAGS, "p", "h3", "h4", "h5", "h6", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li",
    "table", "thead", "tbody", "tr", "th", "td", "a", "figure", "figcaption",
}  # fmt: skip


class Page(HTMLParser):
    """The tags of a page, those within words apart, and the words in it."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.ends: list[str] = []
        self.inside: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []  # of what was opened within words
        self.others: list[str] = []
        self.words: list[str] = []
        self.text = ""
        self._is_in_words = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._is_in_words:
            self.inside.append((tag, dict(attrs)))
            if tag not in EMPTY_TAGS:
                self.open.append(tag)
            return
        self.tags.append((tag, attrs))
        if tag == "div" and (dict(attrs).get("class") or "").startswith("words"):
            self.words.append("")
            self._is_in_words = True

    def handle_endtag(self, tag: str) -> None:
        if self.open:
            assert self.open.pop() == tag, "what is opened last is closed first"
            return
        self.ends.append(tag)
        self._is_in_words = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._is_in_words:
            self.words[-1] += data

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    def handle_pi(self, data: str) -> None:
        self.others.append(data)

    def unknown_decl(self, data: str) -> None:
        self.others.append(data)


def by(voice: str, wild: Contents) -> Contents:
    """The same conversation, in which all who speak have a voice of this kind; "": there is no header."""
    if not voice:
        return msgspec.structs.replace(wild, header=None)
    names = tuple(dict.fromkeys(turn.sender for turn in wild.turns))
    return msgspec.structs.replace(wild, header=Header(VERSION, "0" * 32, names, dict.fromkeys(names, voice)))


@pytest.mark.parametrize("voice", ["exec cat", "filter tr a b", "the terminal"])
@given(wild=contents(), show_thinking=st.booleans())
def test_what_a_program_or_a_person_said_stands_on_the_page_as_it_was_said(
    voice: str, wild: Contents, show_thinking: bool
) -> None:
    page = Page(to_html(by(voice, wild), show_thinking=show_thinking))
    tame = Page(to_html(by(voice, tamed(wild)), show_thinking=show_thinking))
    assert (page.tags, page.ends, page.inside, page.others) == (tame.tags, tame.ends, [], [])
    said = []
    for turn in wild.turns:
        said += [shown(turn.thinking)] * bool(show_thinking and turn.thinking)
        said.append(shown(turn.content))
    assert page.words == said
    for end in wild.ends:
        assert shown(end.why).replace("\n", " ") in page.text


@pytest.mark.parametrize("voice", ["model tiny-chat", ""])
@given(wild=contents(), show_thinking=st.booleans())
def test_nothing_that_a_model_says_breaks_out_of_its_words_or_does_more_than_show(
    voice: str, wild: Contents, show_thinking: bool
) -> None:
    page = Page(to_html(by(voice, wild), show_thinking=show_thinking))
    tame = Page(to_html(by(voice, tamed(wild)), show_thinking=show_thinking))
    assert (page.tags, page.ends, page.others, page.open) == (tame.tags, tame.ends, [], [])
    for tag, attrs in page.inside:
        assert tag in SHOWN_TAGS
        if tag == "a":
            assert (attrs["href"] or "").startswith(("http://", "https://", "mailto:"))
            assert attrs["rel"] == "noopener noreferrer nofollow"
        assert set(attrs) <= {"a": {"href", "rel"}, "ol": {"start"}, "th": {"style"}, "td": {"style"}}.get(tag, set())
        assert re.fullmatch(r"(text-align:(left|center|right))?", attrs.get("style") or "")


@given(st.text("aé日 .,!?", min_size=1))
def test_plain_words_of_a_model_are_all_on_the_page(words: str) -> None:
    page = Page(to_html(Contents(None, (Turn(0, "bob", words),))))
    assert "".join(page.words).split() == words.split()


def page_of(words: str) -> Page:
    return Page(to_html(Contents(None, (Turn(1, "alice", words),))))


def hrefs(page: Page) -> list[str | None]:
    return [attrs["href"] for tag, attrs in page.inside if tag == "a"]


@pytest.mark.parametrize(
    "words",
    [
        "[go](javascript:alert(1))",
        "[go](JaVaScRiPt&colon;alert(1))",
        "[go](java&Tab;script:alert(1))",
        "[go](&#106;avascript:alert(1))",
        "[go](<javascript:alert(1)>)",
        "[go](vbscript:msgbox)",
        "[go](data:text/html;base64,PHNjcmlwdD4=)",
        "![go](data:image/png;base64,iVBORw0KGgo=)",
        "[go](file:///etc/passwd)",
        "[go](//a.b/c)",
        "[go](/etc/passwd)",
        "[go](#turn-1)",
        "[go](http:)",
        "[go](ftp://a.b)",
        "<javascript:alert(1)>",
        "<data:text/html,x>",
        "[go][x]\n\n[x]: javascript:alert(1)",
        "![go](javascript:alert(1))",
        "[go](http:a.b)",
    ],
)
def test_a_link_that_leads_neither_to_the_web_nor_to_mail_is_none(words: str) -> None:
    page = page_of(words)
    assert not hrefs(page)
    assert not {tag for tag, _ in page.inside} & {"img", "script"}


@pytest.mark.parametrize(
    ("words", "address", "text"),
    [
        ("[go](http://a.b/c)", "http://a.b/c", "go"),
        ("[go](HTTPS://a.b 'a title')", "HTTPS://a.b", "go"),
        ("<https://a.b>", "https://a.b", "https://a.b"),
        ("<ann@a.b>", "mailto:ann@a.b", "ann@a.b"),
        ('[go](http://a.b/"onclick=x)', "http://a.b/%22onclick=x", "go"),
        ("![a cat](http://a.b/cat.png)", "http://a.b/cat.png", "a cat"),
        ("![](http://a.b/cat.png)", "http://a.b/cat.png", "picture"),
        ("[![a cat](http://a.b/cat.png)](http://c.d)", "http://c.d", "a cat"),
    ],
)
def test_a_link_is_one_that_tells_nobody_and_a_picture_is_a_link(words: str, address: str, text: str) -> None:
    page = page_of(words)
    assert hrefs(page) == [address]
    assert page.words[0].strip() == text
    assert "img" not in {tag for tag, _ in page.inside}


@pytest.mark.parametrize(
    "words",
    ["<b>no</b>", "<script>alert(1)</script>", "a <img src=x onerror=alert(1)> b", "<!-- a", "<?php x ?>",
     "<!DOCTYPE x>", "<![CDATA[x]]>", "</div></article>", "> </div>", "- <style>", "`</code>`", "```\n</pre>\n```",
     "    </pre>", "```</figcaption>\nx\n```", "|<b>|\n|-|\n|</table>|", "&lt;b&gt;", "<details open>", "[<b>](http://a.b)"],
)  # fmt: skip
def test_raw_html_of_a_model_is_text(words: str) -> None:
    page = page_of(words)
    assert {tag for tag, _ in page.inside} <= SHOWN_TAGS
    assert not page.others


def test_an_entity_brings_back_no_control_character() -> None:
    page = to_html(Contents(None, (Turn(1, "alice", "a&#x202e;b `&#27;` &#155; [c&#x2066;](http://a.b/&#x202e;)"),)))
    assert not BIDI & set(page)
    assert not {c for c in page if unicodedata.category(c) == "Cc"} - {"\n"}


def test_the_markdown_of_a_model_is_rendered() -> None:
    words = "# Pipes\n\nA *FIFO* has **two** `ends`:\n\n1. one\n2. two\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\n> quoted"
    tags = [tag for tag, _ in page_of(words).inside]
    assert tags[:6] == ["h3", "p", "em", "strong", "code", "ol"]
    assert {"li", "table", "td", "blockquote"} <= set(tags)


def test_each_line_of_a_model_stays_a_line() -> None:
    assert [tag for tag, _ in page_of("Roses are red\nViolets are blue").inside] == ["p", "br"]


def test_code_stands_in_a_fixed_face_under_its_language() -> None:
    words = "```python title=x\nif a < b:\n    print('*hi*')\n```\n\n    plain"
    page = to_html(Contents(None, (Turn(1, "alice", words),)))
    assert (
        "<figure><figcaption>python</figcaption>"
        "<pre><code>if a &lt; b:\n    print(&#x27;*hi*&#x27;)\n</code></pre></figure>\n"
        "<pre><code>plain\n</code></pre>\n"
    ) in page
    assert "monospace" in page


def test_headings_of_a_model_stand_below_those_of_the_page() -> None:
    tags = [tag for tag, _ in page_of("# a\n\n## b\n\n###### c\n\nd\n===").inside]
    assert tags == ["h3", "h4", "h6", "h3"]


@pytest.mark.parametrize("part", ["*", "[", "> ", "![a](b", "|a|\n|-|\n", "<a", "a `` b ", "- "])
def test_words_that_are_very_long_stand_as_they_are(part: str) -> None:
    words = part * (LIMIT_CHARS // len(part) + 1)
    page = page_of(words)
    assert [tag for tag, _ in page.inside] == ["pre"]
    assert page.words == [shown(words)]


@given(contents(), st.booleans())
def test_no_format_but_json_lets_a_control_character_through(wild: Contents, show_thinking: bool) -> None:
    for text in (
        to_text(wild, 60, show_thinking=show_thinking),
        to_text(wild, show_thinking=show_thinking),
        to_markdown(wild, show_thinking=show_thinking),
        to_html(wild, show_thinking=show_thinking),
    ):
        assert not {c for c in text if unicodedata.category(c) in ("Cc", "Cs")} - {"\n"}
        assert not BIDI & set(text)


@given(contents(), st.integers(6, 90), st.booleans())
def test_text_is_never_wider_than_the_terminal_and_loses_no_word(
    wild: Contents, columns: int, show_thinking: bool
) -> None:
    text = to_text(wild, columns, show_thinking=show_thinking)
    assert all(columns_of(line) <= columns for line in text.split("\n"))
    narrow, wide = (re.sub(r"[ \n]", "", said) for said in (to_text(wild, columns), to_text(wild)))
    assert narrow == wide


@given(contents(), st.none() | st.integers(12, 90))
def test_nothing_that_is_said_can_pass_for_the_heading_of_a_turn(wild: Contents, columns: int | None) -> None:
    wild = msgspec.structs.replace(wild, header=None, ends=())
    tame = tuple(msgspec.structs.replace(turn, content="x", thinking="x") for turn in wild.turns)
    said, other = (
        [line for line in to_text(each, columns, show_thinking=True).split("\n") if line and not line.startswith("  ")]
        for each in (wild, msgspec.structs.replace(wild, turns=tame))
    )
    assert said == other


def flat(tokens: list[Token]) -> list[Token]:
    return [each for token in tokens for each in (token, *flat(token.children or []))]


def parsed(markdown: str) -> list[Token]:
    return flat(MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown))


@given(contents(), st.booleans())
def test_markdown_has_the_same_markup_whatever_is_said(wild: Contents, show_thinking: bool) -> None:
    wild_markup, tame_markup = (
        [(token.type, token.tag, token.info) for token in parsed(to_markdown(each, show_thinking=show_thinking))
         if token.type not in ("text", "softbreak")]
        for each in (by("model x", wild), by("model x", tamed(wild)))
    )  # fmt: skip
    assert wild_markup == tame_markup


@given(contents(), st.booleans())
def test_a_reader_of_markdown_reads_what_was_said_to_the_letter(wild: Contents, show_thinking: bool) -> None:
    quoted = [
        token.content for token in parsed(to_markdown(wild, show_thinking=show_thinking)) if token.type == "fence"
    ]
    said = []
    for turn in wild.turns:
        said += [shown(turn.thinking)] * bool(show_thinking and turn.thinking)
        said.append(shown(turn.content))
    assert quoted == [f"{words}\n" for words in said]


@given(st.binary() | st.lists(st.sampled_from([b'{"turn":', b'0', b',"from":"a"', b',"content":"b"', b"}", b"\n", b"[",
       b'{"type":"conversation"', b',"version":1', b'{"type":"end","why":"x"}\n', b"\xff"])).map(b"".join))  # fmt: skip
def test_whatever_a_file_holds_can_be_shown(data: bytes) -> None:
    found = read(data)
    for text in (to_text(found, 40), to_markdown(found), to_html(found), "".join(found.complaints())):
        text.encode()
    msgspec.json.encode(to_json(found))


def lines_of(*values: object) -> bytes:
    return b"".join(msgspec.json.encode(value) + b"\n" for value in values)


WHOLE = lines_of(HEADER, OPENING, ANSWER, End("rounds"))


def test_a_whole_transcript_is_read_as_it_was_written_and_there_is_nothing_to_complain_of() -> None:
    assert read(WHOLE) == TALK
    assert TALK.complaints() == []


@given(st.integers(0, len(WHOLE)))
def test_a_transcript_cut_at_any_byte_shows_every_whole_line(cut: int) -> None:
    found = read(WHOLE[:cut])
    whole = read(WHOLE[: WHOLE.rfind(b"\n", 0, cut) + 1])
    longer = read(WHOLE[:cut] + b"\n")
    assert found.is_transcript
    assert found.turns in (whole.turns, longer.turns)
    assert found.unreadable_lines == ()
    if found.is_cut_off:
        assert "its last line is half written" in found.complaints()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"rubbish\n", "cannot be read, left out: line 3"),
        (b'{"turn":1,"from":"al\n', "cannot be read, left out: line 3"),
        (b'{"turn":1e99,"from":"a","content":"x"}\n', "cannot be read, left out: line 3"),
        (b'{"turn":' + b"9" * 99 + b',"from":"a","content":"x"}\n', "cannot be read, left out: line 3"),
        (b"[" * 9999 + b"\n", "cannot be read, left out: line 3"),
        (b"?\n" * 7, "cannot be read, left out: lines 3, 4, 5, 6 and 3 more"),
        (b'{"type":"vote"}\n', "of a kind unknown here, left out: line 3"),
        (lines_of(HEADER), "of a kind unknown here, left out: line 3"),
    ],
)
def test_a_line_that_says_nothing_is_named_and_the_others_are_shown(line: bytes, complaint: str) -> None:
    found = read(lines_of(HEADER, OPENING) + line + lines_of(ANSWER))
    assert found.turns == (OPENING, ANSWER)
    assert found.complaints() == [complaint]


@pytest.mark.parametrize(
    ("line", "content"),
    [
        (b'{"turn":1,"from":"a","content":"Hi","stop":"bored"}\n', "Hi"),
        (b'{"turn":1,"from":"a","content":"Hi","timing":7}\n', "Hi"),
        (b'{"turn":1,"from":"a","content":"H\xff"}\n', "H\ufffd"),
    ],
)
def test_of_a_turn_read_in_part_the_words_are_shown(line: bytes, content: str) -> None:
    found = read(lines_of(HEADER, OPENING) + line)
    assert found.turns == (OPENING, Turn(1, "a", content))
    assert found.complaints() == ["shown in part: line 3"]


def test_a_transcript_of_a_version_to_come_is_refused_whatever_else_its_header_has() -> None:
    newer = lines_of(msgspec.structs.replace(HEADER, version=VERSION + 1), OPENING)
    assert f" of version {VERSION + 1}; this modelpipes " in read(newer).refusal
    strange = b'{"type":"conversation","version":9,"id":{},"members":"all"}\n' + lines_of(OPENING)
    assert " of version 9; this modelpipes " in read(strange).refusal
    assert read(lines_of(HEADER, OPENING)).refusal == read(lines_of(OPENING)).refusal == ""


def test_a_missing_turn_a_missing_header_and_an_empty_file_are_told() -> None:
    assert read(lines_of(HEADER, OPENING, msgspec.structs.replace(ANSWER, turn=3))).complaints() == [
        "turn 1 is not where it should be"
    ]
    assert read(lines_of(OPENING)).complaints() == ["has no header"]
    assert read(b"").complaints() == read(b"\n \n").complaints() == ["is empty"]


@pytest.mark.parametrize("data", [b"dear diary", b"dear diary\n", b"{}", b"[1]\n", b"\0" * 99, b'{"type":"x"}\n'])
def test_a_file_of_something_else_is_no_transcript(data: bytes) -> None:
    assert not read(data).is_transcript


def test_text_has_speakers_facts_words_and_a_bar_for_each_turn() -> None:
    turns = (OPENING, ANSWER, Turn(2, "bob", "a" * 30, "length", timing=Timing(0, None, 1500), dropped=(0, 1)))
    assert to_text(Contents(HEADER, turns, (Ended(1, "rounds"), Ended(2, "hub"))), 80) == (
        "alice, bob\n"
        "2 turns, 17 tokens, 4.5 s in all\n"
        "alice: model tiny-chat\n"
        "rounds 4\n"
        f"{'0' * 32}\n"
        "░ queue  ▒ first token  █ generation  (a whole bar: 3.0 s)\n"
        "\n"
        "0 hub\n"
        "  Hello.\n"
        "\n"
        "1 alice, 17 tokens, 11 tokens/s\n"
        "  Hi there.\n"
        "░░░░░░░░▒▒▒▒████████████ queue 1.0 s, first token 500 ms, generation 1.5 s\n"
        "\n"
        "ended by: rounds\n"
        "\n"
        "2 bob, stopped by: length, was not shown turns 0 to 1\n"
        f"  {'a' * 30}\n"
        "▒▒▒▒▒▒▒▒▒▒▒▒ queue 0 ms, 1.5 s with no first token\n"
        "\n"
        "ended by: hub\n"
    )


def test_text_breaks_at_spaces_and_keeps_indentation_and_wide_characters_whole() -> None:
    said = to_text(Contents(None, (Turn(0, "hub", "one two three\n    if\n日本語日本語"),)), 10)
    assert said.split("\n\n")[1] == "0 hub\n  one two\n  three\n      if\n  日本語日\n  本語\n"


@pytest.mark.parametrize(
    ("words", "fence"),
    [
        ("# no\n\n* a_b `c`\n1. <b>\n    if x:\nhttp://a.b", "```"),
        ("See:\n```python\nprint(1)\n```", "````"),
        ("````\n```\nnever closed", "`````"),
        ("</details>\n\n[x]: http://a.b", "```"),
        ("~~~\nx", "```"),
    ],
)
def test_markdown_quotes_words_in_a_fence_that_is_longer_than_any_of_theirs(words: str, fence: str) -> None:
    said = to_markdown(Contents(None, (Turn(1, "alice", words),)))
    assert said.endswith(f"\n\n{fence}markdown\n{words}\n{fence}\n")


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = to_html(TALK, show_thinking=True)
    tags = Page(page).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not {name for _, attrs in tags for name, _ in attrs} & {"src", "href", "srcset", "action", "onclick"}
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_thoughts_are_in_no_format_unless_they_are_wanted() -> None:
    for render in (to_text, to_markdown, to_html):
        assert "Be brief." not in render(TALK)
        assert "Be brief." in render(TALK, show_thinking=True)
    assert b"thinking" not in msgspec.json.encode(to_json(TALK))
    assert to_json(TALK, show_thinking=True) == TALK


def test_json_is_the_header_and_the_turns_as_the_transcript_has_them() -> None:
    lines = [json.loads(line) for line in WHOLE.splitlines()]
    assert json.loads(msgspec.json.encode(to_json(read(WHOLE), show_thinking=True))) == {
        "header": lines[0],
        "turns": lines[1:3],
        "ends": [{"after": 1, "why": "rounds"}],
        "unreadable_lines": [],
        "unknown_lines": [],
        "partial_lines": [],
        "is_cut_off": False,
        "choices": [],
    }


def test_numbers_that_nobody_measured_break_nothing() -> None:
    mad = Turn(1, "a", "x", "end", Usage(0, 10**4000), Timing(-5.0, 1e300, 1e308, -1e300), dropped=(-(10**99), 10**99))
    for render in (to_text, to_markdown, to_html):
        assert len(render(Contents(None, (mad, mad)))) < 9000
