from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.config.reading import read
from modelpipes.config.settings import Limit, Seconds, Size
from modelpipes.config.writing import schema, write_value
from modelpipes.errors import UsageError
from modelpipes.values.units import MAX_SECONDS

FOLDER = Path(__file__).parent.parent.parent / "config"
TEXT = st.text(st.characters(codec="utf-8"))


@given(st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT | st.lists(TEXT) | st.dictionaries(TEXT, TEXT))
def test_what_is_written_is_read_again(value: Any) -> None:
    assert tomllib.loads(f"key = {write_value(value)}")["key"] == value


WHOLE_UNITS = st.integers(0, 999).map(lambda n: n * 10**8) | st.integers(0, 99).map(lambda n: n << 30)


@given(st.integers(0, 2**63 - 1) | WHOLE_UNITS)
def test_a_size_is_written_so_that_no_byte_is_lost(size: int) -> None:
    assert read(f"[card]\nreserve = {write_value(Size(size))}", "/").config.card.reserve == size


@given(st.floats(1e-9, MAX_SECONDS))
def test_a_time_is_written_to_fifteen_digits(seconds: float) -> None:
    limit = read(f"[ask-model]\ntimeout = {write_value(Limit(seconds))}", "/").config.ask_model.timeout
    assert limit == pytest.approx(seconds, rel=1e-14)


def test_no_limit_and_no_time_at_all_are_written_as_such() -> None:
    assert write_value(Seconds(MAX_SECONDS)) == '"none"'
    assert not read(f"[chat-models]\npatience = {write_value(Seconds(0))}", "/").config.chat_models.patience


# The schema


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema_rs.validator_for(schema())


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.name)
def test_the_schema_describes_every_file_of_ours(validator: Any, path: Path) -> None:
    validator.validate(tomllib.loads(path.read_text()))


WRONG = [
    "[ask-model]\ntimeuot = 1",
    "[ask-model]\ntimeout = 0",
    "[ask-model]\ntimeout = 'soon'",
    "[voice]\nctx_size = 1",
    "[voice]\nkv_type = 'q9'",
    "[card]\nreserve = -1",
    "[card]\nreserve = 'auto'",
    "[models.a]\nctx_size = 4096",
    "[models.a]\nfile = 'a.gguf'\naliases = 'b'",
    "[use.two]\nmemory = '7GB'\nquant = {'9B' = 4}",
    "[use.two]\nmemory = 0",
    "[use.two]",
    "[watch-gpu]\nalert_vram = 'never'",
    "[zzz]",
]
RIGHT = [
    "[ask-model]\ntimeout = 'none'",
    "[ask-model]\ntimeout = 1.5",
    "[card]\nreserve = '1.5GiB'",
    "[memory]\nbudget = 'auto'",
    "[memory]\nbudget = 5",
    "[chat-models]\npatience = 0",
    "[watch-gpu]\nalert_vram = 'none'",
    "[use.two]\nmemory = '7GB'\nquant = {'9B' = 'Q4_K_M'}",
]


@pytest.mark.parametrize("text", WRONG)
def test_the_schema_refuses_what_we_refuse(validator: Any, text: str) -> None:
    with pytest.raises(UsageError):
        read(text, "/")
    assert not validator.is_valid(tomllib.loads(text))


@pytest.mark.parametrize("text", RIGHT)
def test_the_schema_takes_what_we_take(validator: Any, text: str) -> None:
    read(text, "/")
    assert validator.is_valid(tomllib.loads(text))


def test_every_key_of_the_schema_is_described() -> None:
    for name, part in schema()["$defs"].items():
        if name == "Config":
            continue
        for key, hint in part["properties"].items():
            inner = [hint, *hint.get("anyOf", [])]
            assert any("description" in each for each in inner), f"{name}.{key}"
