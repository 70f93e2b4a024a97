from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.config import reading
from modelpipes.config.reading import load, read_key
from modelpipes.config.settings import (
    SECTIONS,
    Amount,
    Budget,
    Config,
    Cpus,
    Limit,
    MemoryLimits,
    Model,
    Seconds,
    Server,
    Size,
)
from modelpipes.errors import UsageError
from modelpipes.gguf.types import CACHE_TYPES, CacheType
from modelpipes.terminal.safetext import make_line
from modelpipes.values.units import MAX_SECONDS

EXAMPLES = Path(__file__).parent.parent.parent / "config"
QWEN = "[models.qwen]\nfile = '/q.gguf'\n"


def read(text: str, folder: str) -> Config:
    return reading.read(text, folder).config


def refusal(text: str, folder: str = "/etc") -> str:
    with pytest.raises(UsageError) as refused:
        read_key(read(text, folder).server)
    return str(refused.value)


# What is read


def test_the_shape_of_the_file_is_that_of_the_values(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(
        """
        [server]
        listen = "127.0.0.1:9090"
        max_waiting = 3
        max_lease_s = "2m"
        [memory]
        budget = "16GB"
        host_budget = "auto"
        reserve = "1GiB"
        min_resident_s = 0
        max_wait_s = 1.5
        [models.qwen]
        file = "q.gguf"
        ctx_size = 8192
        kv_type = "q8_0"
        gpu_layers = 20
        cpu_moe = true
        pin = true
        idle_unload_s = 30
        threads = 6
        batch_size = 256
        cpu_affinity = "0-3,8"
        memory_limit = "24GB"
        memory = "7GB"
        draft = "small.gguf"
        load_timeout_s = 60
        stop_timeout_s = "10s"
        drain_timeout_s = "none"
        aliases = ["gpt-4"]
        engine_args = ["--seed", "1"]
        [scan]
        directories = ["models"]
        """
    )
    read = load(str(path)).config
    assert read.server == Server(max_waiting=3, max_lease_s=Limit(120))
    assert read.memory == MemoryLimits(
        budget=Budget(16 * 10**9),
        reserve=Size(1 << 30),
        min_resident_s=Seconds(0),
        max_wait_s=Seconds(1.5),
    )
    assert read.models == {
        "qwen": Model(
            file=str(tmp_path / "q.gguf"),
            ctx_size=8192,
            kv_type="q8_0",
            gpu_layers=20,
            cpu_moe=True,
            pin=True,
            idle_unload_s=Seconds(30),
            threads=6,
            batch_size=256,
            cpu_affinity=Cpus("0-3,8"),
            memory_limit=Amount(24 * 10**9),
            memory=Amount(7 * 10**9),
            draft=str(tmp_path / "small.gguf"),
            load_timeout_s=Limit(60),
            stop_timeout_s=Limit(10),
            drain_timeout_s=Limit(MAX_SECONDS),
            aliases=("gpt-4",),
            engine_args=("--seed", "1"),
        )
    }
    assert read.scan.directories == (str(tmp_path / "models"),)


def test_the_shortest_useful_file_is_read_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    read_config = read(
        """\
[server]
listen = "127.0.0.1:9090"        # or "unix:…"
[memory]
budget = "auto"                  # or "16GB"
reserve = "1GB"
min_resident_s = 5
max_wait_s = 60
[models.qwen]
file = "~/models/qwen2.5-7b-instruct-q4_k_m.gguf"
ctx_size = 8192
parallel = 1
pin = false
""",
        "/etc",
    )
    model = Model(file="/home/someone/models/qwen2.5-7b-instruct-q4_k_m.gguf", ctx_size=8192)
    assert read_config == Config(models={"qwen": model})  # all else is as it is without a word


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xef\xbb\xbf[server]\nmax_waiting = 3\n")
    assert load(str(tmp_path / "s.toml")).config.server.max_waiting == 3


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [("'16GB'", 16 * 10**9), ("'1G'", 1 << 30), ("'1.5GiB'", 3 << 29), ("4096", 4096), ("0", 0)],
)
def test_sizes_are_those_of_the_command_line(written: str, size_bytes: int) -> None:
    assert read(f"[memory]\nbudget = {written}\nreserve = {written}", "/etc").memory == MemoryLimits(
        budget=Budget(size_bytes), reserve=Size(size_bytes)
    )


@pytest.mark.parametrize(
    ("written", "seconds"), [("'30s'", 30), ("'500ms'", 0.5), ("'2m'", 120), ("7", 7), ("1.5", 1.5), ("0", 0)]
)
def test_times_are_those_of_the_command_line_and_a_number_is_seconds(written: str, seconds: float) -> None:
    assert read(f"[memory]\nmin_resident_s = {written}", "/etc").memory.min_resident_s == seconds


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:65535", "[::1]:9090", "::1:9090", "*:80"])
def test_an_address_is_a_host_and_a_port(listen: str) -> None:
    assert read(f"[server]\nlisten = '{listen}'", "/etc").server.listen == listen


def test_a_model_may_name_itself_and_an_alias_twice() -> None:
    assert read(QWEN + "aliases = ['qwen', 'x', 'x']", "/etc").models["qwen"].aliases == ("qwen", "x", "x")


def test_an_empty_file_is_all_defaults() -> None:
    assert read("", "/etc") == Config()


def test_no_limit_is_a_time_that_a_timer_can_take() -> None:
    assert read('[memory]\nmax_wait_s = "none"', "/etc").memory.max_wait_s == MAX_SECONDS


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("~/q.gguf", "/home/someone/q.gguf"),
        ("/models/q.gguf", "/models/q.gguf"),
        ("q.gguf", "/etc/q.gguf"),
        ("../q.gguf", "/q.gguf"),
        ("./q", "/etc/q"),
        ("tiny-chat", "tiny-chat"),
        ("qwen2.5:7b", "qwen2.5:7b"),
    ],
)
def test_files_are_meant_from_the_configurations_folder_and_names_stay(
    given: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert read(f"[models.a]\nfile = '{given}'", "/etc").models["a"].file == file


def test_a_sockets_path_is_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert read('[server]\nlisten = "unix:~/s"', "/etc").server.listen == "unix:/home/someone/s"
    assert read('[server]\nlisten = "unix:s"', "/etc").server.listen == "unix:/etc/s"


def test_a_key_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    assert read_key(read("[server]\nkey_file = 'key'", str(tmp_path)).server) == "s3cret"


def test_the_types_of_caches_are_those_of_llama_cpp() -> None:
    assert set(msgspec.inspect.type_info(CacheType).values) == set(CACHE_TYPES)  # type: ignore[attr-defined]


# What is refused


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (QWEN + "ctx_sise = 1", "models.qwen.ctx_sise is no key: did you mean ctx_size?"),
        ("[sever]", "sever is no key: did you mean server?"),
        ("[server]\nbudget = '1GB'", "server.budget is no key: it belongs to [memory]"),
        ("[ask-model]\ntimeuot = 1", "ask-model.timeuot is no key: did you mean timeout?"),
        ("[ask]\ntimeout = 1", "ask is no key: did you mean ask-model?"),
        ("[ask-model]\ntimeout = 0", "ask-model.timeout: 0 leaves no time at all"),
        (
            "[ask-model]\nctx_size = 9",
            "ask-model.ctx_size is no key: it belongs to [voice] or [find-gguf] or [use.NAME]",
        ),
        ("[voice]\ntemperature = -0.1", "voice.temperature is at least 0, not -0.1"),
        ("[voice]\ntop_p = 'x'", 'voice.top_p: expected a number, got "x"'),
        ("[voice]\ntop_p = 1.5", "voice.top_p is at most 1, not 1.5"),
        ("[chat-models]\npatience = -1", "chat-models.patience: expected a time such as"),
        ("[use.two]\nmemory = 'much'", "use.two.memory: 'much' is not a size"),
        ("[use.two.x]", 'use.two.x is no key: a name with dots is quoted: [use."two.x"]'),
        ("[use.two]", "use.two: it needs the key memory"),
        ("[use.two]\nmemory = 0", "use.two.memory: 0 bytes hold no model"),
        ("[use.two]\nquant = {'9B' = 4}", 'use.two.quant[...]: expected text in "quotes", got a table'),
        ("[use.two]\nquant = 4", "use.two.quant: expected a table such as"),
        (
            "[use.two]\nmemory = '7GB'\nquant = {'big' = 'Q4_K_M'}",
            "use.two.quant: 'big' is no number of parameters: write 9B",
        ),
        ('[voice]\nengine_args = ["a\\u0000"]', "voice.engine_args: no program takes a NUL"),
        ('[watch-gpu]\nexec_on_alert = "a\\u0000"', "watch-gpu.exec_on_alert: no program takes a NUL"),
        ("[watch-gpu]\ninterval = 'none'", "watch-gpu.interval: there would be no second look"),
        ("[find-gguf]\nsearch_path = ['/a:b']", "find-gguf.search_path: a folder with : in its name"),
        ("[room]\ndir = 3", 'room.dir: expected text in "quotes", got 3'),
        ("version = 0", "version: expected a whole number from 1, got 0"),
        ("version = true", "version: expected a whole number from 1, got true"),
        ("version = '1'", 'version: expected a whole number from 1, got "1"'),
        (f"version = 0x{'f' * 9000}", "version: expected a whole number from 1, got a number of very many digits"),
        ("version = 2\nzzz = 1", "a configuration of version 2; this modelpipes ("),
        ("[voice]\nversion = 1", "voice.version is no key: it belongs to the top, before the first [section]"),
        ("zzz = 1", "zzz is no key: there are version, room, voice, list-seats, ask-model, "),
        ("[models.qwen2.5]\nfile = 'q'", 'models.qwen2.5 is no key: a name with dots is quoted: [models."qwen2.5"]'),
        ("[models.qwen]", "models.qwen: it needs the key file"),
        (QWEN + "ctx_size = '8k'", 'models.qwen.ctx_size: expected a whole number, got "8k"'),
        (QWEN + "ctx_size = 8e3", "models.qwen.ctx_size: expected a whole number, got 8000.0"),
        (QWEN + "gpu_layers = true", "models.qwen.gpu_layers: expected a whole number, got true"),
        (QWEN + "pin = 1", "models.qwen.pin: expected true or false, got 1"),
        (QWEN + "pin = 1979-05-27", "models.qwen.pin: expected true or false, got 1979-05-27"),
        (QWEN + "pin = {a = 1}", 'models.qwen.pin is no key: a name with dots is quoted: [models."qwen.pin"]'),
        (
            QWEN + "kv_type = 'q9'",
            'models.qwen.kv_type: expected one of f32, f16, bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1, got "q9"',
        ),
        (QWEN + "kv_type = 8", "models.qwen.kv_type: expected one of f32, f16"),
        (QWEN + "kv_type = 'x` - at `$.pin`'", "models.qwen.kv_type: expected one of f32, f16"),
        (QWEN + "engine = 'ollama'", 'models.qwen.engine: expected one of auto, llama-server, embedded, got "ollama"'),
        (QWEN + "aliases = 'x'", 'models.qwen.aliases: expected a list such as ["a", "b"], got "x"'),
        (QWEN + "engine_args = ['a', 1]", 'models.qwen.engine_args[1]: expected text in "quotes", got 1'),
        (QWEN + 'engine_args = ["a\\u0000"]', "models.qwen.engine_args: no program takes a NUL"),
        ("[models.qwen]\nfile = 3", 'models.qwen.file: expected text in "quotes", got 3'),
        (QWEN + "ctx_size = 1", "models.qwen.ctx_size is at least 64, not 1"),
        (QWEN + "ctx_size = 99999999999", "models.qwen.ctx_size is at most 2147483647, not 99999999999"),
        # tomllib reads it, and Python refuses to print it
        (QWEN + "ctx_size = 0x1" + "0" * 5000, "models.qwen.ctx_size is at most 2147483647, not a number of very many"),
        ("[memory]\nbudget = 0x1" + "0" * 5000, "memory.budget: expected a size such as"),
        ("[memory]\nmax_wait_s = 0x1" + "0" * 5000, "memory.max_wait_s: expected a time such as"),
        (QWEN + "parallel = 0", "models.qwen.parallel is at least 1"),
        (QWEN + "gpu_layers = -1", "models.qwen.gpu_layers is at least 0"),
        (QWEN + "batch_size = 0", "models.qwen.batch_size is at least 1"),
        (QWEN + "cpu_affinity = '3-1'", "models.qwen.cpu_affinity: '3-1' is no list of CPUs"),
        (QWEN + "cpu_affinity = 3", 'models.qwen.cpu_affinity: expected CPUs such as "0-3,8"'),
        (QWEN + "memory_limit = 24", "models.qwen.memory_limit: "),
        (QWEN + "load_timeout_s = 0", "models.qwen.load_timeout_s: "),
        (QWEN + "idle_unload_s = 'soon'", "models.qwen.idle_unload_s: 'soon' is not a duration"),
        (QWEN + "idle_unload_s = nan", "models.qwen.idle_unload_s: expected a time such as 30"),
        (QWEN + "aliases = [1]", 'models.qwen.aliases[0]: expected text in "quotes", got 1'),
        (QWEN + "aliases = ['a b']", 'models.qwen.aliases: "a b": a name is letters'),
        (
            QWEN + "aliases = ['x']\n[models.b]\nfile='/b.gguf'\naliases = ['x']",
            'models.b.aliases: "x" names qwen already',
        ),
        (QWEN + "aliases = ['b']\n[models.b]\nfile='/b.gguf'", 'models.qwen.aliases: "b" names b already'),
        ("[models.'a b']\nfile = 'q'", "models.a b: a name is letters"),
        ("[models.q]\nfile = ''", 'models.q.file: expected a path, got ""'),
        ("[models]\nqwen = 1", "models.qwen is a table: write [models.qwen]"),
        ("models = 1", "models is a table: write [models.NAME]"),
        ("[memory]\nbudget = 'much'", "memory.budget: 'much' is not a size"),
        ("[memory]\nbudget = -1", 'memory.budget: expected a size such as "16GB", got -1'),
        ("[memory]\nbudget = true", "memory.budget: expected a size"),
        ("[memory]\nbudget = 1.5", 'memory.budget: expected a size such as "16GB", got 1.5'),
        ("[memory]\nbudget = [1]", 'memory.budget: expected a size such as "16GB", got a list'),
        ("[memory]\nbudget = 99999999999999999999", "memory.budget: expected a size"),
        ("[memory]\nreserve = 'none'", "memory.reserve: 'none' is not a size"),
        ("[memory]\nmax_wait_s = 1979-05-27", 'memory.max_wait_s: expected a time such as 30 or "30s", got 1979-05-27'),
        ("[memory]\nmax_wait_s = '0s'", "memory.max_wait_s: '0s' leaves no time at all"),
        ("[memory]\nmin_resident_s = 'none'", "memory.min_resident_s: 0 is no least time"),
        ("[memory]\nmax_wait_s = -1", "memory.max_wait_s: expected a time"),
        ("[memory]\nmax_wait_s = inf", "memory.max_wait_s: expected a time"),
        ("[server]\nlisten = '9090'", 'server.listen: expected "HOST:PORT" or "unix:PATH", got "9090"'),
        ("[server]\nlisten = 9090", 'server.listen: expected text in "quotes", got 9090'),
        ("[server]\nlisten = '127.0.0.1:65536'", 'server.listen: expected "HOST:PORT"'),
        ("[server]\nlisten = 'http://127.0.0.1:9090'", 'server.listen: expected "HOST:PORT"'),
        ("[server]\nlisten = 'unix:'", "server.listen: expected"),
        ("[server]\nkey = 'a b'", "server.key: a key is ASCII"),
        ("[server]\nkey = 'a'\nkey_file = 'b'", "server.key_file: there is a server.key already"),
        ("[server]\nmax_waiting = 0", "server.max_waiting is at least 1"),
        ("[server]\nmax_lease_s = 0", "server.max_lease_s: 0 leaves no time at all"),
        ("[server\n", "it is not TOML: "),
        ("a = " + "[" * 5000, "it is no TOML that anybody needs"),
        ("a = " + "9" * 5000, "it is no TOML: a number of more digits"),
    ],
)
def test_what_is_wrong_is_named_by_its_key_with_what_is_expected(text: str, said: str) -> None:
    assert refusal(text).startswith(said)


def test_a_refusal_is_one_line_with_the_file_and_where_in_it(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("[server]\nlisten = \n")
    with pytest.raises(UsageError, match=re.escape(f"{path}: it is not TOML: Invalid value (at line 2, column 10)")):
        load(str(path))
    path.write_text('[server]\n"a\\nb\\u001b[2J" = 1\n')
    with pytest.raises(UsageError) as refused:
        load(str(path))
    assert str(refused.value).isprintable()


def test_an_escape_sequence_in_a_key_takes_nothing_of_the_refusal_with_it() -> None:
    assert refusal('[server]\n"a\\nb\\u001b" = 1').startswith("server.a b␛ is no key: there are listen, ")


@pytest.mark.parametrize(
    "text",
    [
        f"[memory]\nbudget = '{'9' * 100_000}'",
        f"[memory]\nbudget = [{'1,' * 50_000}]",
        f"[server]\n{'k' * 100_000} = 1",
        f"[server]\nlisten = '{'x' * 100_000}'",
        f"[server]\nkey_file = '{'x' * 100_000}'",
        f"[models.{'q' * 100_000}]\nfile = 'q'",
        QWEN + f"aliases = ['{'a' * 100_000}']",
    ],
)
def test_a_value_without_end_is_cut_in_the_refusal(text: str) -> None:
    assert len(refusal(text)) <= reading.MAX_REFUSAL_CHARS + 1


def test_a_key_is_not_printed_where_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3 cret")
    assert "s3" not in refusal("[server]\nkey_file = 'key'", str(tmp_path))
    assert "s3" not in refusal("[server]\nkey = 's3 cret'")
    assert "1234" not in refusal("[server]\nkey = 1234")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("binary", "it is not text"),
        ("empty", "is empty"),
        ("folder", "cannot be read: is a directory"),
        ("nowhere", "cannot be read: no such file or directory"),
    ],
)
def test_a_key_that_cannot_be_read_is_a_reason(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_text("\n")
    assert said in refusal(f"[server]\nkey_file = '{kind}'", str(tmp_path))


@pytest.mark.parametrize("kind", ["missing", "folder", "binary", "no name"])
def test_a_file_that_cannot_be_read_is_a_reason(kind: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError) as refused:
        load("a\0b" if kind == "no name" else str(tmp_path / kind))
    assert ("modelpipes config example" if kind == "missing" else "cannot be read") in str(refused.value)


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="it is no regular file"):
            load(str(path))
        with pytest.raises(UsageError, match="it is no regular file"):
            read_key(Server(key_file=str(path)))
    assert load("/dev/null").config == Config()


def test_a_file_that_nobody_wrote_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="it is larger than"):
        load(str(tmp_path / "huge"))


def read_or_refuse(call: Callable[[], object]) -> None:
    try:
        call()
    except UsageError as error:
        assert str(error) == make_line(str(error))
        assert 0 < len(str(error)) <= reading.MAX_REFUSAL_CHARS + 1
        assert "msgspec" not in str(error) and "`" not in str(error).partition(" is no key")[2]


@given(st.text(st.characters()))  # surrogates as well
def test_no_text_makes_reading_fail_otherwise(text: str) -> None:
    read_or_refuse(lambda: read(text, "/etc"))


KINDS: dict[str, type[msgspec.Struct]] = {heading.partition(".")[0]: kind for heading, kind in SECTIONS.items()}
NAMED: dict[str, dict[str, object]] = {
    "models": {"file": "/a.gguf"},
    "use": {"memory": 10**9},
}  # tables of tables, and what each needs
KEYS = sorted({key for kind in KINDS.values() for key in kind.__struct_fields__})
WORDS = st.sampled_from(["auto", "none", "16GB", "30s", "0", "f16", "q8_0", "unix:s", "127.0.0.1:1", "~/m", "a", "b"])
LEAVES = (
    st.booleans()
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**64), 10**4000])
    | st.floats()
    | WORDS
    | st.text(st.characters(), max_size=9)
    | st.dates()
    | st.times()
    | st.datetimes()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def tables(section: str) -> st.SearchStrategy[Any]:
    """Tables with any values at keys of this section, now and then with one of another."""
    keys = st.sampled_from([*KINDS[section].__struct_fields__] * 4 + KEYS)
    table = st.dictionaries(keys, VALUES, max_size=4)
    if section in NAMED:
        named = st.dictionaries(st.text(st.characters(), max_size=4) | st.sampled_from("ab"), VALUES | table)
        return named | table.map(lambda keys: {"a": {**NAMED[section], **keys}, "b": NAMED[section]})
    return table


@given(st.fixed_dictionaries({}, optional={section: VALUES | tables(section) for section in KINDS}))
def test_no_value_of_any_key_makes_reading_fail_otherwise(given: dict[str, object]) -> None:
    read_or_refuse(lambda: reading.read_tables(given, "/etc"))


@given(st.data())
def test_one_wrong_value_is_refused_under_its_own_key(data: st.DataObject) -> None:
    section = data.draw(st.sampled_from(sorted(KINDS)))
    key = data.draw(st.sampled_from(KINDS[section].__struct_fields__))
    wrong: object = data.draw(st.dates() | st.just([[]]) | st.just(2**70) | st.just(float("nan")))
    path = f"{section}.a.{key}" if section in NAMED else f"{section}.{key}"
    table: dict[str, object] = {key: wrong}
    with pytest.raises(UsageError) as refused:
        tables = {section: {"a": {**NAMED[section], **table}} if section in NAMED else table}
        reading.read_tables(tables, "/etc")
    assert re.match(re.escape(path) + r"(\[0\])?(:| is at (most|least)) ", str(refused.value))


# The examples


def test_the_systemd_unit_is_one(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("no systemd-analyze on this machine")
    unit = (EXAMPLES / "modelpipes-serve.service").read_text()
    assert "ExecStart=%h/.local/bin/serve-models " in unit
    copy = tmp_path / "modelpipes-serve.service"
    copy.write_text(unit.replace("%h/.local/bin/serve-models", sys.executable))  # which must exist
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path), "SYSTEMD_LOG_LEVEL": "warning"}
    done = subprocess.run([tool, "verify", "--user", str(copy)], env=environment, capture_output=True, check=False)
    if b"Failed to initialize manager" in done.stderr:
        pytest.skip(f"systemd-analyze does not work here: {done.stderr.decode()}")
    assert (done.returncode, done.stderr) == (0, b"")
