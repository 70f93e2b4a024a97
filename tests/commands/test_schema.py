"""modelpipes schema: what it prints is JSON Schema, and what is said, written and read is as it prints."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from modelpipes.chat.voices.jsonfilter import Said, Told
from modelpipes.commands.views.engines import Made
from modelpipes.commands.views.schemas import DIALECT, SCHEMAS, schema
from modelpipes.fit.listing import Line
from modelpipes.machine.watch import Gpu
from modelpipes.pipe.message import (
    Bye,
    Cancel,
    Delta,
    Failure,
    Heard,
    Message,
    Ping,
    Pong,
    Progress,
    Reply,
    Say,
    Timing,
)
from tests.commands.conftest import Commands
from tests.shell import CHECKOUT

MESSAGES = [
    Say("1", "hub", "bob", "Hello"),
    Say("1", "hub", "bob", conversation="2", turn=3, after=-1, heard=(Heard(0, "hub", "Hello."),)),
    Progress("1", "bob", "hub", "queued", 2),
    Delta("1", "bob", "hub", "Hi", "Well"),
    Reply("3", "1", "bob", "hub", "Hi", "end", timing=Timing(first_token_ms=1.5), dropped=(0, 2)),
    Failure("bob", "hub", "out-of-step", "knows less", "1", 4),
    Ping("1", "hub", "bob"),
    Pong("1", "bob", "hub"),
    Cancel("1", "hub", "bob"),
    Bye("bob", "hub"),
]
# Which others write or read too.
OPEN = (
    "message",
    "filter-told",
    "filter-said",
    "transcript",
    "chat-models",
    "serve-models",
    "serve-models-load",
)


def validator(name: str) -> Any:
    return jsonschema.Draft202012Validator(schema(name))


def faults(name: str, value: object) -> list[str]:
    return [fault.message for fault in validator(name).iter_errors(value)]


def parts(name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema(name)["$defs"]
    return found


def lines_of(path: Path) -> Iterator[Any]:
    return map(json.loads, path.read_text().splitlines())


def test_what_a_program_is_told_and_says_in_json_is_as_described() -> None:
    told = Told("1", "carol", "bob", "No.", "c", 2, (Heard(0, "hub", "Hi"), Heard(1, "carol", "No.")), ("carol",))
    for value in (told, Told("1", "hub", "bob", "Hi")):
        assert faults("filter-told", json.loads(msgspec.json.encode(value))) == []
    for said in (Said(delta="It"), Said(content="It is 7.", id="1", thinking="3 + 4"), Said(error="no")):
        assert faults("filter-said", json.loads(msgspec.json.encode(said))) == []


def test_without_a_name_it_lists_them(run: Commands) -> None:
    listed = run("schema")
    assert (listed.code, listed.stderr) == (0, "")
    assert [line.split("  ")[0] for line in listed.lines] == list(SCHEMAS)
    assert max(map(len, listed.lines)) <= 80


@pytest.mark.parametrize("name", SCHEMAS)
def test_each_is_a_json_schema(run: Commands, name: str) -> None:
    printed = run("schema", name)
    assert (printed.code, printed.stderr) == (0, "")
    document = json.loads(printed.stdout)
    jsonschema.Draft202012Validator.check_schema(document)
    assert (document["$schema"], document["$id"]) == (DIALECT, f"urn:modelpipes:{name}:1")


@pytest.mark.parametrize(
    ("name", "nearest"), [("ask", "ask-model"), ("find-guff", "find-gguf"), ("Message", "message")]
)
def test_an_unknown_name_is_told_the_nearest(run: Commands, name: str, nearest: str) -> None:
    refused = run("schema", name)
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == f"modelpipes schema: no schema is called '{name}': did you mean {nearest}?\n"


def test_a_name_like_none_is_told_those_there_are(run: Commands) -> None:
    assert run("schema", "xyz").stderr.endswith(f": there are {', '.join(SCHEMAS)}\n")


# -- what it describes


def test_every_message_is_as_it_says() -> None:
    assert {type(message) for message in MESSAGES} == set(get_args(Message))
    for message in MESSAGES:
        assert faults("message", json.loads(msgspec.json.encode(message))) == []


def test_a_message_may_have_fields_that_nobody_knows() -> None:
    ping = {"type": "ping", "id": "1", "from": "hub", "to": "bob"}
    assert faults("message", ping | {"colour": "red"}) == []
    assert faults("message", ping | {"type": "pang"})
    assert faults("message", ping | {"id": 1})


def test_what_a_member_writes_is_as_it_says(run: Commands) -> None:
    run.attach("bob", "--filter", "cat")
    say = {"type": "say", "id": "1", "from": "hub", "to": "bob", "content": "Hello"}
    assert faults("message", say) == []
    # Who speaks has its answer pipe open before, as a member expects it.
    script = 'exec 3<>"$PIPE_DIR/bob_to_hub"; echo "$SAY" >"$PIPE_DIR/hub_to_bob"; timeout 20 sed \'/"reply"/q\' <&3'
    said = [json.loads(line) for line in run.run(["sh", "-c", script], env={"SAY": json.dumps(say)}).lines if line]
    assert (said[-1]["type"], said[-1]["content"]) == ("reply", "Hello")
    assert [fault for message in said for fault in faults("message", message)] == []


def test_every_line_of_a_transcript_is_as_it_says(run: Commands) -> None:
    arguments = ("--model", "alice=tiny-chat", "--filter", "bob=cat", "--rounds", "1", "--transcript", "talk.jsonl")
    assert run("chat", *arguments).code == 0
    lines = list(lines_of(run.cwd / "talk.jsonl"))
    assert [line.get("type", "turn") for line in lines] == ["conversation", "turn", "turn", "turn", "end"]
    assert [fault for line in lines for fault in faults("transcript", line)] == []
    assert faults("transcript", lines[1] | {"turn": "one"})


@pytest.mark.parametrize("path", sorted(CHECKOUT.joinpath("config").glob("*.toml")), ids=lambda path: path.name)
def test_the_example_configurations_are_as_it_says(path: Path) -> None:
    assert faults("config", tomllib.loads(path.read_text())) == []


def test_a_configuration_has_no_other_keys() -> None:
    assert faults("config", {"ask-model": {"timeuot": "30s"}})


def test_what_a_build_reports_is_as_it_says() -> None:
    made = Made("b1-cpu", os.path.join("/engines", "b1-cpu", "bin", "llama-server"), "b1", "cpu", 4726.0)
    assert faults("build-engine", json.loads(msgspec.json.encode(made))) == []


# -- what a script may rely on


def test_keys_that_are_always_written_are_required_and_have_no_default() -> None:
    line, gpu = parts("find-gguf")["Line"], parts("watch-gpu")["Gpu"]
    assert (line["required"], gpu["required"]) == (list(Line.__struct_fields__), list(Gpu.__struct_fields__))
    assert not any("default" in field for part in (line, gpu) for field in part["properties"].values())


def test_keys_that_are_left_out_where_they_say_nothing_are_not_required() -> None:
    assert parts("transcript")["Turn"]["required"] == ["turn", "from", "content"]
    assert "thinking" not in parts("ask-model")["Answered"]["required"]


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name not in OPEN])
def test_what_we_alone_write_has_no_other_keys(name: str) -> None:
    whole = schema(name)
    refs = [whole, *whole.get("anyOf", ())]
    tops = {ref.get("$ref") or ref.get("items", {}).get("$ref") for ref in refs} - {None}
    assert tops
    for top in tops:
        assert parts(name)[top.rpartition("/")[2]]["additionalProperties"] is False


def test_descriptions_are_prose_in_one_line() -> None:
    for name in SCHEMAS:
        for part in parts(name).values():
            assert "  " not in part.get("description", ""), name
            assert "\n" not in part.get("description", ""), name
