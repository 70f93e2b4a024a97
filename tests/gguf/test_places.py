from __future__ import annotations

from pathlib import Path

import pytest

from modelpipes.gguf import places
from modelpipes.gguf.places import default_places, known_places, remember, remembered


def made(*folders: Path) -> list[str]:
    for folder in folders:
        folder.mkdir(parents=True)
    return [str(folder) for folder in folders]


def test_search_path_stands_for_all_known_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(home / "models")
    monkeypatch.setenv("SEARCH_PATH", "/one::~/two:")
    assert default_places() == ["/one", str(home / "two")]


def test_without_it_the_known_places_that_exist(home: Path) -> None:
    here = made(home / "models", home / ".lmstudio/models", home / ".cache/huggingface/hub", home / ".ollama/models")
    assert [place for place in default_places() if place.startswith(str(home))] == here


@pytest.mark.parametrize(
    ("variable", "value", "place"),
    [
        ("XDG_CACHE_HOME", "/x", "/x/llama.cpp"),
        ("HF_HOME", "/hf", "/hf/hub"),
        ("HF_HUB_CACHE", "/hub", "/hub"),
        ("LLAMA_CACHE", "/llama", "/llama"),
        ("OLLAMA_MODELS", "~/ollama", "~/ollama"),
    ],
)
def test_programs_that_were_told_to_keep_models_elsewhere_are_followed(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, place: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert place.replace("~", str(home)) in known_places()


def test_what_was_looked_in_is_remembered_the_last_first(home: Path) -> None:
    one, two, three = made(*(home / name for name in ("one", "two\n\udcff", "three")))
    remember([one, two])
    remember([three, one])
    assert remembered() == [three, one, two]


def test_what_is_not_there_is_not_remembered(home: Path) -> None:
    remember(["", "/nowhere"])
    assert remembered() == []
    assert not (home / ".cache").exists()


def test_not_more_is_remembered_than_is_looked_through_in_a_moment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "MAX_REMEMBERED", 2)
    folders = made(*(home / str(number) for number in range(3)))
    for folder in folders:
        remember([folder])
    assert remembered() == folders[:0:-1]


def test_a_memory_that_cannot_be_kept_is_done_without(home: Path) -> None:
    (home / ".cache").write_text("in the way")
    remember(made(home / "one"))
    assert remembered() == []
