from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from modelpipes.terminal.drawing import DOCUMENTS, draw
from modelpipes.terminal.table import Table, columns, draw_table
from modelpipes.terminal.width import columns_of

HEADERS = ["name", "quant", "size", "path"]
MODELS = Table(
    HEADERS,
    [["llama-3.1-8b", "Q4_K_M", "4.6G", "/models/a_|b|.gguf"], ["<q>", None, 9, ""]],
    right=("size",),
    spare=("quant", "size"),
)
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
SHELL = re.compile(r"(?i)</?(table|thead|tbody|tr|th|td)( style=\"text-align: right;\")?>")

# What has a meaning in one of the documents, or is measured by clusters, comes more often than by chance.
words = st.lists(
    st.sampled_from(
        ["a", "_", "|", "\\", "<b>", "&amp;", "`", "\t", "\n", "\x1b[2J", "\u2028", "日", "👨‍👩‍👧", "ก็", "각"]
    )
    | st.text(max_size=3),
    max_size=6,
).map("".join)
tables = st.integers(1, 4).flatmap(
    lambda n: st.builds(
        Table,
        st.lists(st.text("abc", min_size=1, max_size=9), min_size=n, max_size=n),
        st.lists(st.lists(words, min_size=n, max_size=n), max_size=4),
    )
)


def rows_of(table: Table) -> list[list[str]]:
    """What each cell says once it is safe, the headers first."""
    found = zip(*(column.cells for column in columns(table)), strict=True)
    return [[re.sub("[\u2028\u2029]", " ", cell) for cell in line] for line in found]


@given(tables, st.none() | st.integers(0, 60))
@example(Table(["a", "b"], [["日本語", "x"], ["👨‍👩‍👧", "ᄀ" * 9]]), None)
@example(Table(["state", "check"], [["", ""], ["True", "False"], [" 1", "1,000"]]), None)
@example(Table(["name"], []), 3)
def test_on_a_terminal_it_is_the_table_that_light_commands_draw(table: Table, width: int | None) -> None:
    assert draw(table, width=width) == draw_table(table, width)


@pytest.mark.parametrize("form", DOCUMENTS)
def test_a_document_has_every_column_whole_however_narrow_the_terminal(form: str) -> None:
    long = Table(HEADERS, [["n" * 300, "q", 1, "p" * 300]], spare=HEADERS[1:3])
    drawn = draw(long, form, 20)
    assert "n" * 300 in drawn and "p" * 300 in drawn and "quant" in drawn


def test_github_has_a_table_as_people_write_it() -> None:
    assert draw(MODELS, "github").splitlines()[2:] == [
        r"| llama-3.1-8b | Q4_K_M  |   4.6G | /models/a\_\|b\|.gguf |",
        r"| &lt;q&gt;    |         |      9 |                       |",
    ]


def test_tsv_keeps_the_cells_at_the_end_that_are_empty() -> None:
    assert draw(MODELS, "tsv") == (
        "name\tquant\tsize\tpath\nllama-3.1-8b\tQ4_K_M\t4.6G\t/models/a_|b|.gguf\n<q>\t\t9\t\n"
    )


def test_html_is_ascii_and_says_what_stands_to_the_right() -> None:
    drawn = draw(Table(["name", "temp"], [["日", "5 °C"]], right=("temp",)), "html")
    assert drawn.isascii()
    assert read_in_html(drawn) == [["name", "temp"], ["日", "5 °C"]]
    assert drawn.count('style="text-align: right;"') == 2


@pytest.mark.parametrize("form", DOCUMENTS)
def test_a_table_without_rows_is_its_headers(form: str) -> None:
    drawn = draw(Table(HEADERS, [], right=("size",)), form)
    assert drawn.endswith("\n") and all(header in drawn for header in HEADERS)


@given(tables)
def test_a_row_of_tsv_is_a_line_and_a_cell_is_what_stands_between_tabs(table: Table) -> None:
    drawn = draw(table, "tsv")
    assert [line.split("\t") for line in drawn.removesuffix("\n").split("\n")] == rows_of(table)
    assert len(drawn.splitlines()) == 1 + len(table.rows)


@given(tables)
@example(Table(["a", "b"], [["\\|", "a|b\\"], ["www.a.b", "![x](http://a.b)"]]))
def test_a_reader_of_markdown_reads_the_cells_and_nothing_else(table: Table) -> None:
    tokens = (
        MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"]).parse(draw(table, "github"))
    )
    cells = [token for token in tokens if token.type == "inline"]
    assert [said(cell) for cell in cells] == [cell.strip() for line in rows_of(table) for cell in line]
    assert {token.type.rpartition("_")[0] for token in tokens} <= {"table", "thead", "tbody", "tr", "th", "td", ""}


def said(cell: Token) -> str:
    children = cell.children or []
    assert {child.type for child in children} <= {"text", "text_special"}
    return "".join(child.content for child in children).strip()


@given(tables)
def test_a_browser_shows_the_cells_and_nothing_else(table: Table) -> None:
    drawn = draw(table, "html")
    assert read_in_html(drawn) == [[cell.strip() for cell in line] for line in rows_of(table)]
    assert "<" not in SHELL.sub("", drawn)


@given(tables)
@pytest.mark.parametrize("form", DOCUMENTS)
def test_text_of_others_cannot_command_who_reads_a_document(form: str, table: Table) -> None:
    assert not UNSAFE.search(draw(table, form))


@given(st.lists(st.lists(st.text("abc日本語한글🙂é", max_size=9), min_size=2, max_size=2), min_size=1, max_size=4))
def test_wide_characters_take_their_columns_in_markdown_too(rows: list[list[str]]) -> None:
    assert len({columns_of(line) for line in draw(Table(["a", "b"], rows), "github").splitlines()}) == 1


class Cells(HTMLParser):
    """The text of each cell, by rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.rows[-1][-1] += data


def read_in_html(text: str) -> list[list[str]]:
    """What a browser shows of the cells; blanks around a text are none."""
    return [[cell.strip() for cell in row] for row in Cells(text).rows]
