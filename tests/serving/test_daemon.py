"""The daemon as its user has it: a process, its address, its signals, and engines that never outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from modelpipes.engine import admission
from modelpipes.pipe.room import Room
from modelpipes.serving import budget, daemon, sources
from modelpipes.serving.bytes import Bytes
from modelpipes.serving.pool import Pool
from modelpipes.values.deadline import Deadline
from tests.drill.processes import command_line, living
from tests.peers import eventually, eventually_beside
from tests.serving.daemons import KEY, LIMIT_S, NAMES, Refusal, Served, predicted_bytes, words_of, write_models


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def room_for_two(files: dict[str, Path]) -> list[str]:
    """What the command line says for a budget into which two of the three models go."""
    return ["--vram", str(predicted_bytes(files["alpha"]) * 5 // 2)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path / "place") as served:
        yield served


def test_models_are_listed_asked_streamed_and_swapped_within_the_budget(
    served: Served, files: dict[str, Path], room_for_two: list[str]
) -> None:
    served.write(files)
    served.start(*room_for_two)
    listed = served.get("/v1/models")["data"]
    assert {one["id"]: one["state"] for one in listed} == dict.fromkeys(NAMES, "unloaded")
    for name in (*NAMES, *NAMES):
        assert served.ask(name) == f"This is {name}."
        now = served.residency()
        assert 0 < now["used_bytes"] <= now["budget_bytes"] and len(now["resident"]) <= 2
        assert now["used_bytes"] == sum(one["bytes"] for one in now["resident"])
    assert any(one["action"] == "stop" and "needed" in one["reason"] for one in served.residency()["decisions"])
    events = list(served.stream("beta"))
    assert events[-1] == "[DONE]" and words_of(events) == "This is beta."
    with pytest.raises(Refusal, match="404") as unknown:
        served.ask("nix")
    assert unknown.value.code == "model_not_found" and "alpha, beta, gamma" in unknown.value.text


def test_the_openai_library_speaks_to_it_with_the_key_that_others_lack(served: Served, files: dict[str, Path]) -> None:
    served.write(files, server=f'key = "{KEY}"')
    served.start("--vram", "1GB")
    for path in ("/v1/models", "/residency", "/metrics"):
        with pytest.raises(Refusal) as refused:
            served.get(path)
        assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    url = f"http://{served.listen}/v1"
    with openai.OpenAI(base_url=url, api_key="wrong") as wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    with openai.OpenAI(base_url=url, api_key=KEY) as client:
        assert sorted(model.id for model in client.models.list()) == list(NAMES)
        chat = client.chat.completions
        hello: ChatCompletionMessageParam = {"role": "user", "content": "Hello."}
        whole = chat.create(model="alpha", messages=[hello])
        assert whole.choices[0].message.content == "This is alpha."
        stream = chat.create(model="beta", messages=[hello], stream=True)
        assert "".join(piece.choices[0].delta.content or "" for piece in stream if piece.choices) == "This is beta."


def test_it_listens_on_a_unix_socket_that_goes_with_it(served: Served, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    served.listen = f"unix:{path}"
    served.write(files)
    assert served.start("--vram", "1GB") == f"unix:{path}"
    assert served.ask("alpha") == "This is alpha."
    assert path.stat().st_mode & 0o777 == 0o600
    assert served.end() == 128 + signal.SIGTERM
    assert not path.exists()


def test_a_reload_touches_only_what_changed_and_a_wrong_one_nothing(
    served: Served, files: dict[str, Path], tmp_path: Path
) -> None:
    served.write({name: files[name] for name in ("alpha", "beta")})
    served.start("--vram", "1GB")
    served.ask("alpha")
    served.ask("beta")
    before = served.engines()
    served.write(files, {"alpha": 'aliases = ["first"]', "beta": 'engine_args = ["--temp", "0.5"]'})
    served.reload()
    assert served.ask("first") == "This is alpha."
    assert served.ask("gamma") == "This is gamma."
    assert served.ask("beta") == "This is beta."
    after = served.engines()
    assert after["alpha"] == before["alpha"] and after["beta"] != before["beta"]

    served.config.write_text(served.config.read_text().replace("aliases", "alises"))
    assert "nothing was changed" in served.reload("alises is no key: did you mean aliases?")
    assert served.engines() == after
    assert served.ask("first") == "This is alpha."


def test_what_a_models_engine_is_given_reaches_it_is_told_and_restarts_only_that_engine(
    served: Served, files: dict[str, Path]
) -> None:
    cpu = max(os.sched_getaffinity(0))
    limits = f'memory_limit = "1GB"\ncpu_affinity = "{cpu}"\nbatch_size = 48\nthreads = 1'
    served.write(files, {"alpha": limits, "beta": f'memory = "20MB"\ndraft = "{files["beta"]}"'})
    served.start("--vram", "1GB")
    served.said.wait_for("alpha: memory_limit of 953.7 MiB, by the kernel, covers ")
    served.said.wait_for("beta: 19.1 MiB is your own estimate of its memory, and counts in place of the prediction")
    listed = {one["id"]: one for one in served.get("/v1/models")["data"]}
    assert (listed["beta"]["bytes"], listed["beta"]["estimate"]) == (20_000_000, "own")
    assert listed["alpha"]["bytes"] > 1_000_000 and listed["alpha"]["estimate"] == "exact"
    served.ask("alpha")
    question = [{"role": "user", "content": "x"}]
    answer = served.post("/v1/chat/completions", model="beta", messages=question)
    assert answer["timings"]["draft_n"] > 0
    before = served.engines()
    assert os.sched_getaffinity(before["alpha"]) == {cpu}
    words = command_line(before["alpha"])
    assert [words[words.index(flag) + 1] for flag in ("--batch-size", "--ubatch-size")] == ["48", "48"]
    served.write(files, {"alpha": limits.replace("48", "64"), "beta": f'memory = "20MB"\ndraft = "{files["beta"]}"'})
    served.reload()
    served.ask("alpha")
    served.ask("beta")
    after = served.engines()
    assert after["beta"] == before["beta"] and after["alpha"] != before["alpha"]


def test_what_a_model_cannot_be_given_leaves_it_out_in_a_line_that_names_the_key_and_the_model(
    served: Served, files: dict[str, Path]
) -> None:
    served.write(
        files, {"alpha": 'cpu_affinity = "8000"', "beta": 'draft = "/no/such.gguf"', "gamma": 'memory_limit = "2MB"'}
    )
    process, said = served.begin("--vram", "1GB")
    said.wait_for("alpha is left out: cpu_affinity: 8000 is none of our CPUs, which are ")
    said.wait_for(r"beta is left out: draft: no model file /no/such\.gguf")
    said.wait_for(r"gamma is left out: it needs .* of host memory, and its memory_limit is 1\.9 MiB: raise it")
    assert process.wait(LIMIT_S) == 1  # there is no model to serve


def test_an_automatic_budget_is_looked_at_again_while_it_serves(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another program took was seen after the next load had failed for it."""
    config = tmp_path / "models.toml"
    config.write_text(f'[models.alpha]\nfile = "{files["alpha"]}"\n')
    free = [8 << 30]
    monkeypatch.setattr(admission, "available_bytes", lambda: free[0])
    monkeypatch.setattr(budget, "LOOK_S", 0.01)

    async def test() -> None:
        made = daemon._Daemon(str(config), (sources.named,), lambda event: None, (), None, None, True)
        pool = Pool([], Bytes.of(0, 7 << 30))
        looks = asyncio.ensure_future(made._look_out(pool))
        free[0] = 3 << 30
        await eventually_beside(lambda: pool.budget == Bytes.of(0, (3 << 30) - 10**9), "what the other took")
        free[0] = 8 << 30
        await eventually_beside(lambda: pool.budget == Bytes.of(0, (8 << 30) - 10**9), "what the other left")
        looks.cancel()
        await pool.close()

    asyncio.run(asyncio.wait_for(test(), LIMIT_S))


def test_a_pinned_model_that_was_changed_is_loaded_anew(served: Served, files: dict[str, Path]) -> None:
    served.write(files, {"alpha": "pin = true"})
    served.start("--vram", "1GB")
    served.wait_for_states(alpha="ready")
    before = served.engines()["alpha"]
    served.write(files, {"alpha": 'pin = true\nengine_args = ["--temp", "0.5"]'})
    served.reload()
    eventually(lambda: served.engines().get("alpha", before) != before, "new engine")
    served.wait_for_states(alpha="ready")


def test_a_model_that_failed_is_tried_at_once_after_a_reload(
    served: Served, files: dict[str, Path], tmp_path: Path
) -> None:
    broken = {"alpha": 'engine_args = ["--no-such-flag"]'}
    served.write(files, broken)
    served.start("--vram", "1GB")
    for _ in range(2):
        with pytest.raises(Refusal) as failed:
            served.ask("alpha")
        assert (failed.value.status, failed.value.code) == (503, "model_load_failed")
        assert "retry-after" not in failed.value.headers  # it would fail the same way
    assert "by serve-models load" in failed.value.text
    served.write(files)
    served.reload()
    assert served.ask("alpha") == "This is alpha."


def test_sigterm_ends_every_engine_and_exits_143(served: Served, files: dict[str, Path]) -> None:
    served.write(files)
    served.start("--vram", "1GB")
    for name in NAMES:
        served.ask(name)
    family = served.family()
    assert len(served.engines()) == 3
    assert served.end() == 128 + signal.SIGTERM
    assert not living(family)
    assert not any(Path(served.runtime).rglob("*.json")), "its record is left"


def test_sigterm_while_models_are_loading_leaves_nothing(served: Served, files: dict[str, Path]) -> None:
    served.write(files, dict.fromkeys(NAMES, "pin = true"))
    served.start("--vram", "1GB")
    served.said.wait_for("load alpha")
    assert served.end() == 128 + signal.SIGTERM
    assert not any("Traceback" in line for line in served.said.lines)


def test_engines_die_with_a_killed_daemon_and_a_new_one_takes_its_address_at_once(
    served: Served, files: dict[str, Path]
) -> None:
    served.write(files)
    served.start("--vram", "1GB")
    for name in NAMES:
        served.ask(name)
    family, address = served.family(), served.listen
    assert len(served.engines()) == 3
    assert served.end(signal.SIGKILL) == -signal.SIGKILL
    served.restart("--vram", "1GB")
    assert served.listen == address
    eventually(lambda: not living(family), "end of the family")
    assert served.states() == {}
    assert served.ask("alpha") == "This is alpha."


def test_a_second_daemon_on_one_address_says_so_and_leaves_the_first_alone(
    served: Served, files: dict[str, Path], tmp_path: Path
) -> None:
    served.write(files)
    served.start("--vram", "1GB")
    served.ask("alpha")
    first, address = served.process, served.listen
    second, said = served.begin("--listen", address)
    assert second.wait(LIMIT_S) == 2
    said.close()
    (line,) = said.lines
    assert f"another serve-models listens on {address} already: see serve-models status" in line
    assert first.poll() is None
    assert served.ask("alpha") == "This is alpha."


def test_an_address_that_a_stranger_has_is_told_in_one_line(served: Served, files: dict[str, Path]) -> None:
    served.write(files)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        listen = f"127.0.0.1:{stranger.getsockname()[1]}"
        process, said = served.begin("--listen", listen)
        assert process.wait(LIMIT_S) == 1
        said.close()
    assert len(said.lines) == 1 and listen in said.lines[0] and "choose another --listen" in said.lines[0]


def test_a_log_folder_that_cannot_be_written_harms_nothing_but_the_log(served: Served, files: dict[str, Path]) -> None:
    cache = Path(served.env["HOME"]) / ".cache" / "modelpipes"
    cache.mkdir(parents=True)
    (cache / "serve").write_text("in the way")
    served.write(files)
    served.start("--vram", "1GB")
    assert served.ask("alpha") == "This is alpha."


def test_a_lease_is_an_engine_to_speak_to_directly_and_ends_with_its_client(
    served: Served, files: dict[str, Path]
) -> None:
    served.write(files)
    served.start("--vram", "1GB")
    with contextlib.closing(served.connect()) as connection:
        connection.request("POST", "/models/alpha/lease")
        response = connection.getresponse()
        line = response.readline()
        assert b'"port"' in line
        assert [one["busy"] for one in served.residency()["resident"]] == [1]
        response.close()
    eventually(lambda: [one["busy"] for one in served.residency()["resident"]] == [0], "end of the lease")


def test_three_seats_on_two_resident_models_converse_with_a_lease_a_turn(
    served: Served, files: dict[str, Path], room_for_two: list[str]
) -> None:
    served.write(files)
    served.start(*room_for_two)
    seats = dict(zip(("alice", "bob", "carol"), NAMES, strict=True))
    room = Room(str(served.cwd / "room"))
    place = ["-d", room.path]
    assert served.run(served.command("setup", *place, *seats)).code == 0
    for seat, name in seats.items():
        served.spawn("attach", *place, seat, "--server", f"http://{served.listen}", "--model-name", name)
    room.wait_for(list(seats), Deadline.after(LIMIT_S))
    told = served.run(served.command("chat", *place, *seats, "--opening", "Go.", "--rounds", "3", "--json"))
    assert told.code == 0, told.stderr
    turns = [json.loads(line) for line in told.lines]
    assert [(turn["from"], turn["content"]) for turn in turns[1:]] == [
        (seat, f"This is {name}.") for seat, name in seats.items()
    ] * 3
    now = served.residency()
    assert [one["busy"] for one in now["resident"]] == [0, 0] and not now["waiting"]
    assert sum(one["action"] == "load" for one in now["decisions"]) >= 4


def test_a_pinned_model_whose_engine_was_killed_comes_back_unasked(served: Served, files: dict[str, Path]) -> None:
    served.write(files, {"alpha": "pin = true"})
    served.start("--vram", "1GB")
    served.wait_for_states(alpha="ready")
    killed = served.engines()["alpha"]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: served.engines().get("alpha", killed) != killed, "new engine")
    served.wait_for_states(alpha="ready")


def test_many_clients_of_three_models_are_all_answered_in_room_for_two(
    served: Served, files: dict[str, Path], room_for_two: list[str]
) -> None:
    served.write(files)
    served.start(*room_for_two)
    with ThreadPoolExecutor(8) as clients:
        asked = [NAMES[(number * 7) % 5 % 3] for number in range(40)]
        assert list(clients.map(served.ask, asked)) == [f"This is {name}." for name in asked]
    now = served.residency()
    assert not now["waiting"] and now["used_bytes"] == sum(one["bytes"] for one in now["resident"])
    for name in served.states():
        served.post(f"/models/{name}/unload")
    assert served.residency()["used_bytes"] == 0
    assert not served.engines()
