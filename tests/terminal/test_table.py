from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelpipes.terminal.table import Table, draw_table
from modelpipes.terminal.width import columns_of

HEADERS = ["name", "arch", "size", "path"]
MODELS = [["llama-3.1-8b", "llama", "4.6G", "/models/llama-3.1-8b.gguf"], ["q", "qwen3", "604M", "/models/q.gguf"]]


def test_without_a_width_every_cell_is_whole() -> None:
    assert draw_table(Table(HEADERS, MODELS, right=("size",))) == (
        "name          arch   size  path\n"
        "llama-3.1-8b  llama  4.6G  /models/llama-3.1-8b.gguf\n"
        "q             qwen3  604M  /models/q.gguf\n"
    )


def test_numbers_and_what_is_named_go_to_the_right() -> None:
    assert draw_table(Table(["n", "count", "size"], [["a", 5, "9G"], ["b", 1000, "12G"]], right=("size",))) == (
        "n  count  size\na      5    9G\nb   1000   12G\n"
    )


def test_a_narrow_terminal_does_without_what_is_named_first() -> None:
    drawn = draw_table(Table(HEADERS, MODELS, spare=("arch", "size")), 25)
    assert drawn.splitlines()[0].split() == ["name", "size", "path"]


def test_columns_are_left_out_only_as_far_as_needed() -> None:
    assert draw_table(Table(HEADERS, MODELS, spare=("arch", "size")), 60) == draw_table(Table(HEADERS, MODELS))


def test_a_path_loses_its_beginning_and_a_name_its_middle() -> None:
    rows = [["a-model-with-a-long-name-Q4_K_M", "/some/folder/of/models/a-model-with-a-long-name-Q4_K_M.gguf"]]
    assert draw_table(Table(["name", "path"], rows), 40).splitlines()[1] == "a-model-with-a…ong-name-Q4_K_M  …_M.gguf"


def test_a_terminal_of_next_to_no_columns_is_no_reason_to_go_on_for_ever() -> None:
    for width in range(4):
        assert draw_table(Table(["name", "path"], [["abcdef", "x"]]), width) == "…  …\n…  …\n"


def test_wide_characters_count_as_what_they_take() -> None:
    drawn = draw_table(Table(["name", "path"], [["日本語", "x"], ["abc", "y"]]))
    assert drawn == "name    path\n日本語  x\nabc     y\n"


def test_a_cell_cannot_command_the_terminal_nor_begin_a_line() -> None:
    assert draw_table(Table(["name", "note"], [["a\x1b[2J\nb", None]])) == "name  note\na b\n"


def test_columns_of_one_name_are_columns_all_the_same() -> None:
    assert draw_table(Table(["times", "times"], [[1, "a"]])) == "times  times\n    1  a\n"


def test_a_table_without_rows_is_its_headers() -> None:
    assert draw_table(Table(HEADERS, [], spare=("arch",)), 80) == "name  arch  size  path\n"


@given(st.lists(st.tuples(*[st.text(max_size=60)] * 4), max_size=5), st.integers(40, 200))
def test_a_table_is_never_wider_than_a_terminal_if_its_columns_can_go(rows: list[tuple[str, ...]], width: int) -> None:
    lines = draw_table(Table(HEADERS, rows, spare=("arch", "size")), width).split("\n")
    assert len(lines) == 1 + len(rows) + 1
    assert max(map(columns_of, lines)) <= width


@given(st.lists(st.tuples(*[st.text(max_size=60)] * 4), max_size=5))
def test_a_terminal_that_is_wide_enough_changes_nothing(rows: list[tuple[str, ...]]) -> None:
    assert draw_table(Table(HEADERS, rows, spare=("arch", "size")), 1000) == draw_table(Table(HEADERS, rows))
