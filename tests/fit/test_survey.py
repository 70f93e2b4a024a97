from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from modelpipes.errors import Ended, ModelFileError
from modelpipes.fit.rating import Rating, Space, rate
from modelpipes.fit.settings import Settings
from modelpipes.fit.survey import Answer, Facts, Survey
from modelpipes.gguf.header import Header
from modelpipes.gguf.modelfile import Candidate, ModelFile, model_of
from tests.fit.shapes import SHAPES, encode_header, write_model
from tests.gguf.make import File, TensorSpec, llama_entries, llama_tensors

GIB = 1 << 30
ROOM = Space((16 * GIB,), 8 * GIB)
SETTINGS = Settings(backend="cuda")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/modelpipes/models.cache"


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    return written(tmp_path / "model.gguf", "qwen3-0.6b")


def written(path: Path, shape: str) -> ModelFile:
    write_model(path, SHAPES[shape]())
    return seen(path)


def seen(path: Path) -> ModelFile:
    return model_of(path.stem, [Candidate(str(path), path.stat())])


def asked(
    file: ModelFile, space: Space | None = ROOM, settings: Settings = SETTINGS, *, cached: bool = True
) -> tuple[Facts, Answer, int]:
    """A file's facts, the answer, and how many headers were read for it."""
    with Survey(settings, space, cached=cached) as survey:
        facts, answer = survey.ask(file)
        return facts, answer, survey.n_read


def test_facts_are_what_the_header_says(model: ModelFile) -> None:
    facts, answer, _ = asked(model)
    assert facts == Facts("model", "qwen3", 596049920, "Q8_0", 40960)
    assert answer.rating and answer.rating.fit == "fits"


def test_an_answer_is_the_same_from_the_cache(model: ModelFile) -> None:
    first, second = asked(model), asked(model)
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == (1, 0)


@pytest.mark.parametrize(
    ("space", "settings"),
    [
        (Space((8 * GIB,), 8 * GIB), SETTINGS),
        (Space((16 * GIB, 16 * GIB), 8 * GIB), SETTINGS),
        (Space((16 * GIB,), 8 * GIB, 0), SETTINGS),
        (None, SETTINGS),
        (ROOM, Settings(backend="cuda", n_ctx=8192)),
        (ROOM, Settings(backend="cuda", type_k="q8_0")),
        (ROOM, Settings(backend="cuda", n_parallel=2)),
    ],
)
def test_another_question_is_answered_anew_and_then_known(
    model: ModelFile, space: Space | None, settings: Settings
) -> None:
    before = asked(model)
    other = asked(model, space, settings)
    assert other[2] == 1
    assert other[:2] == asked(model, space, settings, cached=False)[:2]
    assert asked(model, space, settings) == (*other[:2], 0)
    assert asked(model) == (*before[:2], 0)


def test_the_last_questions_are_remembered_and_no_more(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [1024, 2048, 4096, 8192, 16384]
    for n_ctx in contexts:
        asked(model, settings=Settings(n_ctx=n_ctx))
    assert [asked(model, settings=Settings(n_ctx=n_ctx))[2] for n_ctx in reversed(contexts)] == [0, 0, 0, 0, 1]


def test_a_file_that_has_changed_is_read_again(tmp_path: Path, model: ModelFile) -> None:
    asked(model)
    facts, _, n_read = asked(written(tmp_path / "model.gguf", "llama-3.2-1b"))
    assert (facts.architecture, n_read) == ("llama", 1)


def test_strict_reads_what_is_known_and_leaves_the_cache_right(model: ModelFile) -> None:
    known = asked(model)
    with Survey(SETTINGS, ROOM, strict=True) as survey:
        assert survey.ask(model) == known[:2]
        assert survey.n_read == 1
    assert asked(model) == (*known[:2], 0)


def test_other_code_makes_the_cache_worthless(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(model)
    monkeypatch.setattr("modelpipes.fit.survey._version", lambda: "another")
    assert asked(model)[2] == 1


def test_less_host_memory_counts_only_where_it_makes_a_difference(tmp_path: Path, model: ModelFile) -> None:
    large = written(tmp_path / "large.gguf", "qwen3-30b-a3b")
    plenty = Space((12 * GIB,), 64 * GIB)
    for file in (model, large):
        asked(file, plenty)
    more, less = Space((12 * GIB,), 65 * GIB), Space((12 * GIB,), 16 * GIB)
    assert [asked(file, space)[2] for file in (model, large) for space in (more, less)] == [0, 0, 0, 0]
    none = Space((12 * GIB,), GIB)
    _, answer, n_read = asked(large, none)
    assert n_read == 1
    assert answer.rating and answer.rating.fit == "no"
    _, answer, n_read = asked(large, plenty)
    assert n_read == 1
    assert answer.rating and answer.rating.fit == "partial"


def test_equal_models_are_rated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Header] = []

    def counted(header: Header, settings: Settings, space: Space | None) -> Rating:
        calls.append(header)
        return rate(header, settings, space)

    monkeypatch.setattr("modelpipes.fit.survey.rate", counted)
    files = [written(tmp_path / f"{number}.gguf", "qwen3-0.6b") for number in range(3)]
    with Survey(SETTINGS, ROOM, cached=False) as survey:
        answers = [survey.ask(file) for file in files]
    assert answers[0] == answers[1] == answers[2]
    assert (survey.n_read, len(calls)) == (3, 1)


def test_what_cannot_be_read_raises_and_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "empty.gguf"
    path.touch()
    with Survey(SETTINGS, ROOM) as survey, pytest.raises(ModelFileError, match="an empty file"):
        survey.ask(seen(path))
    assert not cache.exists()


def test_what_llama_cpp_would_refuse_is_said_and_not_rated(model: ModelFile) -> None:
    facts, answer, _ = asked(model, settings=Settings(flash_attn=False, type_v="q8_0"))
    assert (facts.kind, answer) == ("model", Answer(None, "a V cache of type q8_0 needs flash attention"))


@pytest.mark.parametrize(
    ("file_type", "quantization"), [(15, "Q4_K_M"), (15 + 1024, "Q4_K_M"), (999, "unknown"), (None, "F16")]
)
def test_without_a_file_type_the_type_of_most_bytes_counts(
    tmp_path: Path, file_type: int | None, quantization: str
) -> None:
    entries = [each for each in llama_entries() if each[0] != "general.file_type"]
    if file_type is not None:
        entries.append(("general.file_type", "u32", file_type))
    tensors = [*llama_tensors(), TensorSpec("large.weight", (64, 10_000), 1)]
    (tmp_path / "m.gguf").write_bytes(bytes(File(entries, tensors)))
    assert asked(seen(tmp_path / "m.gguf"))[0].quantization == quantization


def test_numbers_beyond_all_measure_harm_neither_answer_nor_cache(tmp_path: Path) -> None:
    unknown = TensorSpec("strange.weight", (1 << 62, 1 << 62), 250)
    for name, entries in (
        ("context", {"llama.context_length": 0xFFFFFFFF}),
        ("heads", {"llama.attention.head_count": 0}),
        ("width", {"llama.attention.key_length": 0xFFFFFFFF}),
    ):
        own = [each for each in llama_entries(**entries) if each[0] not in entries or each[2] == entries[each[0]]]
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(bytes(File(own, [*llama_tensors(), unknown])))
        try:
            first = asked(seen(path))
        except ModelFileError:
            continue
        assert first[0].parameters == (1 << 63) - 1
        assert asked(seen(path))[:2] == first[:2]


@pytest.mark.parametrize("error", [ZeroDivisionError, IndexError, KeyError])
def test_a_header_that_contradicts_itself_ends_no_scan(
    model: ModelFile, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> None:
        raise error("here")

    monkeypatch.setattr("modelpipes.fit.memory.place", fail)
    _, answer, _ = asked(model)
    assert answer.rating is None
    assert answer.why_not.startswith("its numbers contradict each other (")


def test_a_signal_is_no_reason_why_a_file_is_not_rated(model: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended is a PipesError: caught with those of a file, Ctrl-C did not end a long scan."""

    def end(*given: object) -> None:
        raise Ended(2)

    monkeypatch.setattr("modelpipes.fit.survey.rate", end)
    with Survey(SETTINGS, ROOM) as survey, pytest.raises(Ended):
        survey.ask(model)


def test_what_was_learnt_before_an_end_is_kept(model: ModelFile) -> None:
    with pytest.raises(Ended), Survey(SETTINGS, ROOM) as survey:
        survey.ask(model)
        raise Ended(2)
    assert asked(model)[2] == 0


def test_no_mutation_of_a_header_ends_a_scan(tmp_path: Path) -> None:
    rng = random.Random(7)
    path = tmp_path / "m.gguf"
    for _ in range(400):
        shape = SHAPES[rng.choice(["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "falcon-mamba-7b"])]()
        header = bytearray(encode_header(shape))
        for _ in range(rng.randint(1, 4)):
            # Most of the hyper-parameters stand in the first kilobytes.
            header[rng.randrange(24, min(len(header), 3000))] = rng.choice([0, 1, 2, 64, 127, 255, rng.randrange(256)])
        path.write_bytes(header)
        os.truncate(path, len(header) + shape.n_bytes)
        try:
            asked(seen(path), cached=False)
        except ModelFileError:
            pass
