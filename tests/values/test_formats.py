"""Which versions of a format are read, and what is said of the others."""

from __future__ import annotations

import re

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.values.formats import FORMATS, Format, format_of
from modelpipes.values.version import __version__
from tests.shell import CHECKOUT

VERSIONS = st.integers(1, 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.dictionaries(st.text(), JSON, max_size=3)


@given(VERSIONS, VERSIONS)
def test_what_is_not_newer_is_read_and_what_is_newer_refused_in_a_line_with_both_versions(
    known: int, found: int
) -> None:
    refusal = Format("a letter", known).refusal(found)
    assert bool(refusal) == (found > known)
    if refusal:
        reads = "version 1" if known == 1 else f"versions 1 to {known}"
        assert refusal == (
            f"a letter of version {found}; this modelpipes ({__version__}) reads {reads}: use a newer modelpipes"
        )


@given(st.integers(max_value=0))
def test_a_version_that_never_was_is_refused_without_advice_to_wait_for_it(version: int) -> None:
    assert Format("a letter", 1).refusal(version).endswith(f" of version {version}; this modelpipes ({__version__}) "
                                                           "reads version 1")  # fmt: skip


@given(VERSIONS, RECORDS)
def test_a_record_is_of_the_version_that_it_states_wherever_that_stands(
    version: int, others: dict[str, object]
) -> None:
    first, last = {"format": version} | others, others | {"format": version}
    for record in (first | {"format": version}, last):
        assert format_of(msgspec.json.encode(record)) == version


@given(RECORDS.filter(lambda record: "format" not in record) | st.lists(JSON, max_size=3))
def test_a_record_that_states_none_is_of_version_1(record: object) -> None:
    assert format_of(msgspec.json.encode(record)) == 1


@given(st.binary())
def test_what_is_no_record_is_left_to_who_reads_it(data: bytes) -> None:
    assert isinstance(format_of(data), int)
    assert format_of(b"[" * 100_000) == 1


def test_each_format_has_a_name_of_its_own() -> None:
    assert len({each.name for each in FORMATS}) == len(FORMATS)


def test_the_reference_has_a_row_for_each_with_its_version() -> None:
    table = (
        (CHECKOUT / "docs" / "reference.md")
        .read_text("utf-8")
        .partition("\n## What is kept\n")[2]
        .partition("\n## ")[0]
    )
    assert re.findall(r"^\| (an? [^|]*) \| [^|]* \| (\d+)", table, re.MULTILINE) == [
        (each.name, str(each.version)) for each in FORMATS
    ]
