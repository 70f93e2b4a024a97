from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.fit.listing import SORTS, Filter, Line, describe, list_files, sort_lines
from modelpipes.fit.rating import Rating, Space
from modelpipes.fit.shares import Memory, Share
from modelpipes.fit.spec import EngineSpec
from modelpipes.fit.survey import Answer, Facts, Survey
from modelpipes.gguf.modelfile import ModelFile
from tests.gguf.make import File, llama_entries, llama_tensors

GIB = 1 << 30
FACTS = Facts("model", "llama", 8_000_000_000, "Q4_K_M", 131072)
RATING = Rating(
    Memory((Share(4, 3, 2, 1), Share(40, 30, 20, 10)), Share(1000), "exact"),
    n_ctx=4096, n_layers=33, fit="partial", fit_context=4096, max_context=0, gpu_layers=20, cpu_moe=True,
    reason="20 of 33 layers",
)  # fmt: skip
FILE = ModelFile("llama", ("/m/llama.gguf",), (1, 7, 5 * GIB, 1_700_000_000_500_000_000, 1_700_000_000_500_000_000))


def line(name: str = "llama", **changes: Any) -> Line:
    return msgspec.structs.replace(describe(FILE, FACTS, Answer(RATING)), name=name, **changes)


def ordered(lines: list[Line], by: str, *, reverse: bool = False) -> list[str]:
    lines = list(lines)
    sort_lines(lines, by, reverse=reverse)
    return [each.name for each in lines]


def test_a_line_says_what_file_facts_and_rating_say() -> None:
    made = line()
    assert (made.path, made.path_bytes, made.size_bytes, made.modified_s) == (
        "/m/llama.gguf",
        None,
        5 * GIB,
        1.7e9 + 0.5,
    )
    assert (made.parameters, made.quantization, made.context_length) == (8_000_000_000, "Q4_K_M", 131072)
    assert (made.fit, made.gpu_layers, made.n_layers, made.cpu_moe) == ("partial", 20, 33, True)
    assert (made.device_bytes, made.host_bytes, made.estimate) == (110, 1000, "exact")


def test_what_is_not_rated_has_nulls_and_the_reason() -> None:
    made = describe(FILE, msgspec.structs.replace(FACTS, context_length=0), Answer(None, "an adapter: not rated"))
    assert made.reason == "an adapter: not rated"
    assert [made.fit, made.memory, made.device_bytes, made.max_context, made.context_length] == [None] * 5


def test_memory_that_was_only_predicted_is_no_rating() -> None:
    made = describe(FILE, FACTS, Answer(Rating(RATING.memory, 4096, 33)))
    assert (made.device_bytes, made.context) == (110, 4096)
    assert [made.fit, made.max_context, made.gpu_layers, made.cpu_moe] == [None] * 4


def test_a_path_that_cannot_be_printed_is_there_twice() -> None:
    made = describe(ModelFile("x", ("/m/a\nb\udcff.gguf",), (1, 1, 1, 1, 1)), FACTS, Answer(None))
    assert made.path.isprintable()
    assert made.path_bytes == "L20vYQpi/y5nZ3Vm"
    assert msgspec.json.decode(msgspec.json.encode(made))["path"] == made.path


@pytest.mark.parametrize(
    ("wanted", "is_wanted"),
    [
        (Filter(), True),
        (Filter(min_bytes=5 * GIB, max_bytes=5 * GIB), True),
        (Filter(min_bytes=5 * GIB + 1), False),
        (Filter(max_bytes=5 * GIB - 1), False),
        (Filter(modified_after_s=1.7e9), True),
        (Filter(modified_after_s=1.7e9 + 1), False),
    ],
)
def test_a_file_is_chosen_by_size_and_age_without_its_header(wanted: Filter, is_wanted: bool) -> None:
    assert wanted.wants_file(FILE) == is_wanted


@pytest.mark.parametrize(
    ("wanted", "is_wanted"),
    [
        (Filter(), True),
        (Filter(fits=True), False),
        (Filter(architectures=("LLAMA",)), True),
        (Filter(architectures=("qwen*", "ll*")), True),
        (Filter(architectures=("llam",)), False),
        (Filter(quantizations=("q4_k_m",)), True),
        (Filter(quantizations=("q4*", "q8_0")), True),
        (Filter(architectures=("llama",), quantizations=("q8_0",)), False),
    ],
)
def test_a_line_is_chosen_by_fit_architecture_and_quantisation(wanted: Filter, is_wanted: bool) -> None:
    assert wanted.wants(line()) == is_wanted


def test_the_best_fit_comes_first_and_what_has_none_last() -> None:
    fits = ["no", None, "tight", "fits", "partial"]
    lines = [line(str(fit), fit=fit) for fit in fits]
    assert ordered(lines, "fit") == ["fits", "tight", "partial", "no", "None"]
    assert ordered(lines, "fit", reverse=True) == ["None", "no", "partial", "tight", "fits"]


@pytest.mark.parametrize(
    ("by", "field"),
    [("size", "size_bytes"), ("age", "modified_s"), ("params", "parameters"), ("context", "max_context")],
)
def test_the_largest_and_the_newest_come_first(by: str, field: str) -> None:
    lines = [line(str(number), **{field: number}) for number in (2, 30, 4)]
    assert ordered(lines, by) == ["30", "4", "2"]


def test_of_equal_lines_the_name_decides_in_any_capitals_then_the_path() -> None:
    lines = [line("b"), line("C"), line("a", path="/2"), line("a", path="/1")]
    sort_lines(lines, "size")
    assert [(each.name, each.path[:2]) for each in lines] == [("a", "/1"), ("a", "/2"), ("b", "/m"), ("C", "/m")]


@given(st.lists(st.builds(line, st.text(), size_bytes=st.integers(), max_context=st.none() | st.integers(0),
                          memory=st.none() | st.just(RATING.memory), fit=st.sampled_from(["fits", "no", None]))),
       st.sampled_from(list(SORTS)))  # fmt: skip
def test_every_order_is_total_and_reverse_is_its_reverse(lines: list[Line], by: str) -> None:
    assert ordered(lines, by, reverse=True) == ordered(lines, by)[::-1]


def test_a_listing_counts_what_could_be_read_asked_for_or_not(tmp_path: Path) -> None:
    good = bytes(File(llama_entries(), llama_tensors()))
    (tmp_path / "a.gguf").write_bytes(good)
    (tmp_path / "b.gguf").write_bytes(good + bytes(1000))
    (tmp_path / "damaged.gguf").write_bytes(good[:100])
    os.mkfifo(tmp_path / "pipe.gguf")
    told: list[str] = []
    with Survey(EngineSpec(), Space((16 * GIB,), GIB), cached=False) as survey:
        listing = list_files([str(tmp_path)], survey, Filter(max_bytes=len(good)), told.append)
    assert [each.name for each in listing.lines] == ["a"]
    assert sorted(os.path.basename(each.path) for each in listing.problems) == ["damaged.gguf", "pipe.gguf"]
    assert listing.n_files == 2
    assert told[0] == f"0 files, now {tmp_path}"
