"""config, and --config of every command, as they are run."""

from __future__ import annotations

import importlib
import json
import os
import signal
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from modelpipes.commands import VERBS
from modelpipes.commands.cli.configured import Option, origin
from modelpipes.commands.config import VARIABLES
from modelpipes.config.settings import SECTIONS, Config, keys
from modelpipes.values.units import MAX_SECONDS
from tests.commands.conftest import LIMIT_S, QUICK_ENGINE, Commands
from tests.shell import TINY_CHAT

RTX_4080 = str(Path(__file__).parent.parent.parent / "config" / "rtx4080.toml")


def write(run: Commands, text: str) -> Path:
    """The user's own configuration."""
    path = Path(run.env["HOME"]) / ".config" / "modelpipes" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def shown(run: Commands, *arguments: str, **env: str) -> dict[str, tuple[Any, str]]:
    """What is in force, and where from, by key."""
    return {
        one["key"]: (one["value"], one["source"])
        for one in json.loads(run("config", "show", "--json", *arguments, **env).stdout)
    }


# What is in force


def test_every_key_is_shown_with_its_default_where_nothing_is_configured(run: Commands) -> None:
    found = shown(run, PIPE_DIR="")
    plain = {f"{heading}.{key.name}" for heading, kind in SECTIONS.items() if "." not in heading for key in keys(kind)}
    assert set(found) == plain | {"version"}
    assert {source for _, source in found.values()} == {"default"}
    assert found["ask-model.timeout"] == ("30s", "default")
    assert found["voice.max_tokens"] == (None, "default")


def test_the_file_beats_the_default_and_the_environment_the_file(run: Commands) -> None:
    path = write(
        run, "[room]\nprefix = 'm'\ndir = 'r'\n[ask-model]\ntimeout = 7\n[find-gguf]\nsearch_path = ['~/m', '/n']\n"
    )
    found = shown(run, PIPE_PREFIX="p", PIPE_DIR="")
    assert found["room.prefix"] == ("p", "$PIPE_PREFIX")
    assert found["ask-model.timeout"] == ("7s", str(path))
    assert found["room.dir"] == (str(path.parent / "r"), str(path))
    assert found["find-gguf.search_path"] == ([f"{run.env['HOME']}/m", "/n"], str(path))
    assert shown(run, SEARCH_PATH="/a:/b")["find-gguf.search_path"] == (["/a", "/b"], "$SEARCH_PATH")


def test_a_flag_beats_them_all(run: Commands) -> None:
    write(run, "[room]\nprefix = 'file'\n")
    made = [run("setup", "-n", "1", *flag, **env).lines[0] for flag, env in FLAGS_AND_VARIABLES]
    assert [path.rpartition("_")[2] for path in made] == ["file1", "variable1", "flag1"]


FLAGS_AND_VARIABLES: list[tuple[list[str], dict[str, str]]] = [
    ([], {}),
    ([], {"PIPE_PREFIX": "variable"}),
    (["-p", "flag"], {"PIPE_PREFIX": "variable"}),
]


def test_what_is_shown_is_a_configuration_that_says_the_same(run: Commands, tmp_path: Path) -> None:
    text = run("config", "show", "--config", RTX_4080, PIPE_DIR="").stdout
    assert text.startswith(f"# {RTX_4080}\n")
    (tmp_path / "again.toml").write_text(text)
    first, again = (shown(run, "--config", path, PIPE_DIR="") for path in (RTX_4080, str(tmp_path / "again.toml")))
    assert {key: value for key, (value, _) in first.items()} == {key: value for key, (value, _) in again.items()}


def test_the_gateways_key_is_not_shown(run: Commands) -> None:
    write(run, "[server]\nkey = 's3cret'\n")
    assert "s3cret" not in run("config", "show").stdout + run("config", "show", "--json").stdout


def test_a_models_table_is_shown_under_its_name(run: Commands) -> None:
    path = write(run, "[models.'qwen2.5']\nfile = '/q.gguf'\n")
    assert shown(run)['models."qwen2.5".file'] == ("/q.gguf", str(path))
    assert tomllib.loads(run("config", "show").stdout)["models"]["qwen2.5"]["file"] == "/q.gguf"


# The example


def test_the_example_for_any_card_is_a_configuration(run: Commands, tmp_path: Path) -> None:
    text = run("config", "example", "--gpu", "RTX 5090").stdout
    (tmp_path / "c.toml").write_text(text)
    assert shown(run, "--config", str(tmp_path / "c.toml"))["use.two.memory"][0] == "15GB"


@pytest.mark.parametrize("card", ["voodoo", "2x rtx3060"])
def test_a_card_that_is_not_known_or_two_are_refused(run: Commands, card: str) -> None:
    done = run("config", "example", "--gpu", card)
    assert (done.code, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


# --config, in every command


def commands() -> dict[str, click.Command]:
    modules = {verb: importlib.import_module(f"modelpipes.commands.{verb.replace('-', '_')}") for verb in VERBS}
    return {verb: module.command for verb, module in modules.items()}


def test_every_command_has_it() -> None:
    assert [verb for verb, command in commands().items() if "config" not in [one.name for one in command.params]] == []


def keyed() -> list[tuple[str, Option]]:
    params = [(verb, one) for verb, command in commands().items() for one in command.params]
    return [(verb, one) for verb, one in params if isinstance(one, Option) and one.key]


def test_every_key_of_an_option_is_one_and_has_the_options_default() -> None:
    default = Config()
    for verb, option in keyed():
        section, _, name = str(option.key).partition(".")
        value = getattr(getattr(default, section.replace("-", "_")), name)
        value = float("inf") if value == MAX_SECONDS else value
        own = option.get_default(click.Context(click.Command(verb)))
        if option.multiple or not isinstance(
            own, str | int | float
        ):  # it says itself what holds without it, in [brackets]
            continue
        wanted = None if own == "none" else option.type.convert(own, option, None)
        assert value == wanted, f"{verb} {option.name}"


def test_every_key_for_commands_is_read_by_one() -> None:
    of_the_daemon = ("use.NAME", "server", "memory", "events", "models.NAME", "scan")
    known = {
        f"{heading}.{key.name}"
        for heading, kind in SECTIONS.items()
        if heading not in of_the_daemon
        for key in keys(kind)
    }
    assert known == {str(option.key) for _, option in keyed()} | set(VARIABLES)


def test_a_file_that_is_named_must_be_there(run: Commands) -> None:
    done = run("seats", "--config", "nowhere.toml")
    assert done.code == 2
    assert f"no configuration {run.cwd}/nowhere.toml: modelpipes config example prints one" in done.stderr


def test_a_mistake_is_named_with_its_file_and_help_comes_all_the_same(run: Commands) -> None:
    path = write(run, "[ask-model]\ntimeuot = 1\n")
    done = run("seats")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == f"modelpipes seats: {path}: ask-model.timeuot is no key: did you mean timeout?\n"
    assert run("seats", "--help").code == run("seats", "--version").code == 0
    assert run("setup", "a", "--config", "/dev/null").code == 0  # no configuration at all


def test_a_value_that_a_key_may_have_and_the_option_may_not_is_refused_under_its_key(run: Commands) -> None:
    path = write(run, "[voice]\nctx_size = 64\nseed = 1\n[find-gguf]\nkv_type = 'iq4_nl'\n")
    assert run("find", str(TINY_CHAT)).code == 0
    from modelpipes.commands import find

    option = next(one for one in find.command.params if one.name == "kv_type")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELPIPES_CONFIG", str(path))
        context = find.command.make_context("find-gguf", [])
    assert origin(click.BadParameter("no", context, option)) == f"find-gguf.kv_type in {path}"
    assert origin(click.BadParameter("no", context, find.command.params[0])) == ""


# What it does


def test_an_asker_waits_as_long_as_the_configuration_says(run: Commands) -> None:
    write(run, "[ask-model]\ntimeout = '100ms'\n")
    run("setup", "bob")
    assert run("ask", "bob", "Hello").code == 124


def test_a_room_of_the_configuration_is_every_commands(run: Commands) -> None:
    path = write(run, "[room]\ndir = 'room'\n")
    del run.env["PIPE_DIR"]
    assert run("setup", "bob").lines[0].startswith(str(path.parent / "room"))
    assert "bob" in run("seats").stdout
    assert run("cleanup").code == 0
    assert not (path.parent / "room").exists()


def test_what_models_are_given_is_no_hindrance_to_programs(run: Commands) -> None:
    write(run, "[voice]\nctx_size = 1024\ntemperature = 0.5\nparallel = 2\nthreads = 1\nsystem = 'You are bob.'\n")
    run.attach("bob", "--filter", "cat")
    assert run("ask", "bob", "Hello").stdout == "Hello\n"


def test_what_is_given_to_a_program_on_the_command_line_is_refused_all_the_same(run: Commands) -> None:
    write(run, "[voice]\nctx_size = 1024\n")
    run("setup", "bob")
    done = run("attach", "bob", "--filter", "cat", "--ctx-size", "1024")
    assert (done.code, "--ctx-size is for a model" in done.stderr) == (2, True)


def test_members_and_engines_of_a_conversation_go_by_the_file_that_was_named(run: Commands, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[voice]\nctx_size = 512\nkv_type = 'q8_0'\nthreads = 1\ntemperature = 0\n"
        "system = 'You are alice.'\n"
        "engine_args = ['--alias', 'x']\n[chat-models]\nrounds = 1\n"
    )
    done = run("chat", "--model", f"alice={TINY_CHAT}", "--filter", "bob=cat", "--config", str(path), "--json")
    assert done.code == 0, done.stderr
    turns = [json.loads(line) for line in done.lines]
    assert [turn["from"] for turn in turns] == ["hub", "alice", "bob"]
    assert "alice" in turns[1]["content"]  # tiny-chat says who it is, where it was told


def test_the_cache_type_and_the_threads_reach_the_engine(run: Commands, tmp_path: Path) -> None:
    write(run, "[voice]\nkv_type = 'q8_0'\nthreads = 1\n")
    run.attach("bob", "--model", str(TINY_CHAT), *QUICK_ENGINE, "--engine-log", str(tmp_path / "log"))
    children = [line for line in engine_command_lines(run) if "--cache-type-k" in line]
    assert children and all("--cache-type-k q8_0 --cache-type-v q8_0" in line for line in children)


def test_the_batch_the_cpus_the_limit_and_the_model_that_drafts_reach_the_engine(run: Commands, tmp_path: Path) -> None:
    write(run, f"[voice]\nbatch_size = 48\ncpu_affinity = '0'\nmemory_limit = '1GB'\ndraft = '{TINY_CHAT}'\n")
    run.attach("bob", "--model", str(TINY_CHAT), *QUICK_ENGINE, "--engine-log", str(tmp_path / "log"))
    (engine,) = (line for line in engine_command_lines(run) if "--cache-type-k" in line)
    assert "--batch-size 48 --ubatch-size 48" in engine
    assert f"--model-draft {TINY_CHAT}" in engine


def engine_command_lines(run: Commands) -> list[str]:
    mark = f"XDG_RUNTIME_DIR={run.runtime}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_a_wrong_configuration_is_no_hindrance_to_those_who_have_no_use_for_it(run: Commands) -> None:
    run("setup", "bob")
    path = write(run, "x")
    for env in ({}, {"MODELPIPES_CONFIG": str(path)}):
        for words in (("man", "ask"), ("schema", "message"), ("completion", "bash"), ("config", "example")):
            done = run(*words, **env)
            assert (done.code, done.stderr) == (0, ""), words
    assert run("config", "show").code == 2
    assert run("serve", "status").code == 1  # for none runs
    cleaned = run("cleanup")  # $PIPE_DIR says which room
    assert (cleaned.code, f"{path}: it is not TOML" in cleaned.stderr) == (0, True)
    assert not Path(run.room.path).exists()


def test_which_room_is_to_be_cleaned_up_may_stand_in_a_wrong_configuration(run: Commands) -> None:
    write(run, "[room]\ndir = 'r'\nx = 1\n")
    assert run("cleanup", PIPE_DIR="").code == 2


def test_a_wrong_configuration_is_a_finding_of_check_system(run: Commands) -> None:
    def found() -> dict[str, Any]:
        (check,) = [one for one in json.loads(run("check", "--json").stdout)["checks"] if one["name"] == "config"]
        return dict(check)

    assert found()["state"] == "ok"
    write(run, "[ask-model]\ntimeuot = 1\n")
    assert (found()["state"], "did you mean timeout?" in found()["found"]) == ("warning", True)


def test_check_system_looks_at_the_port_that_is_configured(run: Commands) -> None:
    write(run, "[server]\nlisten = '127.0.0.1:1'\n")
    assert "127.0.0.1:1 " in run("check").stdout


def test_a_key_in_the_environment_beats_a_file_that_is_configured(run: Commands) -> None:
    path = write(run, "[voice]\napi_key_file = 'key'\n")
    assert shown(run)["voice.api_key_file"] == (str(path.parent / "key"), str(path))
    done = run("config", "show", OPENAI_API_KEY="s3cret")
    assert "s3cret" not in done.stdout
    assert "# api_key_file is set, and not shown" in done.stdout
    from modelpipes.commands.attach import command as attach_command
    from modelpipes.commands.cli.voices import read_options

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELPIPES_CONFIG", str(path))
        for key, wanted in (("", str(path.parent / "key")), ("s3cret", None)):
            patch.setenv("OPENAI_API_KEY", key)
            context = attach_command.make_context("attach-model", ["bob", "--server", "http://127.0.0.1:1"])
            assert read_options(context)["api_key_file"] == wanted


def test_what_is_configured_for_us_is_none_of_the_gateways_business(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "mine.gguf").symlink_to(TINY_CHAT)
    write(run, f"[find-gguf]\nsearch_path = ['{tmp_path}/empty']\n")
    path = tmp_path / "serve.toml"
    path.write_text("[find-gguf]\nsearch_path = ['theirs']\n[models.tiny]\nfile = 'mine'\nctx_size = 512\n")
    done = run("chat", "--serve", str(path), "alice=tiny", "--filter", "bob=cat", "--rounds", "1")
    assert done.code == 0, done.stderr


def test_a_key_is_nowhere_on_the_disk_after_its_leader_was_killed(run: Commands, tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(f"[server]\nkey = 's3cret'\n[models.tiny]\nfile = '{TINY_CHAT}'\nctx_size = 512\n")
    chat = run.start("chat", "--serve", str(path), "alice=tiny", "--exec", "bob=sleep 60", "--rounds", "9")
    assert chat.stdout is not None and chat.stdout.readline() == b"hub: Hello.\n"
    assert "no serve-models runs" in run("serve", "status").stderr  # it is not ours to steer
    chat.kill()
    chat.wait(LIMIT_S)
    assert run.left_processes() == []
    run("serve", "status")  # who looks for daemons removes what a killed one of a leader left
    files = [Path(name) for name in run.left_files() if Path(name).is_file()]  # of its room, pipes are left
    assert [file for file in files if b"s3cret" in file.read_bytes()] == []


def test_a_conversation_on_a_gateway_with_a_key_has_it(run: Commands, tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(f"[server]\nkey = 's3cret'\n[models.tiny]\nfile = '{TINY_CHAT}'\nctx_size = 512\n")
    done = run("chat", "--serve", str(path), "alice=tiny", "--filter", "bob=cat", "--rounds", "1")
    assert done.code == 0, done.stderr
    assert run.left_files() == []


def test_a_file_given_to_serve_models_is_its_configuration_in_every_way(run: Commands, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "foo.gguf").symlink_to(TINY_CHAT)
    (tmp_path / "serve.toml").write_text(
        "[server]\nlisten = '127.0.0.1:0'\n[find-gguf]\nsearch_path = ['models']\n[models.a]\nfile = 'foo'\n"
    )
    daemon = run.start("serve", str(tmp_path / "serve.toml"))
    assert "a" in run("serve", "status", "--wait", "10s").stdout
    os.remove(tmp_path / "serve.toml")
    os.mkfifo(tmp_path / "serve.toml")
    daemon.send_signal(signal.SIGHUP)  # which it must survive without waiting for a writer
    assert run("serve", "status").code == 0
    daemon.terminate()
    assert daemon.wait(LIMIT_S) == 143


# Use cases


def test_a_use_case_rates_each_model_as_one_of_so_many_and_advises_a_quantisation(run: Commands) -> None:
    done = run("find", str(TINY_CHAT), "--use", "three", "--config", RTX_4080, "--json")
    told = json.loads(done.stdout)
    assert told["gpu"]["total_bytes"] == 4_500_000_000
    assert (told["settings"]["ctx_size"], told["settings"]["reserve_bytes"]) == (4096, 0)
    assert told["files"][0]["advised_quantization"] == "Q5_K_M"
    flag = run("find", str(TINY_CHAT), "--use", "three", "--ctx-size", "512", "--config", RTX_4080, "--json")
    assert json.loads(flag.stdout)["settings"]["ctx_size"] == 512


def test_a_plan_for_a_use_case_has_all_of_its_memory_and_not_more_models(run: Commands) -> None:
    two = ["fit", str(TINY_CHAT), str(TINY_CHAT), "--use", "two", "--config", RTX_4080]
    assert json.loads(run(*two, "--json").stdout)["gpu"]["total_bytes"] == 14 * 10**9
    assert run(two[0], str(TINY_CHAT), *two[1:]).code == 2


def test_a_use_case_that_is_not_configured_is_named_with_those_that_are(run: Commands) -> None:
    assert "there are one, two, three" in run("find", "--use", "four", "--config", RTX_4080).stderr
    done = run("find", "--use", "two")
    assert done.code == 2 and "modelpipes config example" in done.stderr


def test_a_use_case_is_of_all_cards_together_and_no_more_than_they_have(run: Commands) -> None:
    two = ["fit", str(TINY_CHAT), str(TINY_CHAT), "--use", "two", "--config", RTX_4080, "--json"]
    assert json.loads(run(*two, "--gpu", "2x rtx3060").stdout)["gpu"]["total_bytes"] == 14 * 10**9
    done = run(*two, "--gpu", "rtx3060")
    assert (done.code, "--use: 2 x 6.5 GiB are more than 12.0 GiB of RTX 3060" in done.stderr) == (2, True)


def test_who_has_no_card_is_told_how_to_ask(run: Commands) -> None:
    done = run("find", str(TINY_CHAT), "--gpu", "cpu")
    assert (done.code, "--vram 12GB" in done.stderr) == (2, True)


def test_a_flag_beats_a_use_case(run: Commands) -> None:
    done = run("fit", str(TINY_CHAT), "--use", "two", "--ctx-size", "512", "--config", RTX_4080, "--json")
    assert json.loads(done.stdout)["settings"]["ctx_size"] == 512


def test_what_a_use_case_leaves_out_is_as_it_is_without_one(run: Commands) -> None:
    write(run, "[use.two]\nmodels = 2\nmemory = '7GB'\n[find-gguf]\nctx_size = 512\nkv_type = 'q8_0'\n")
    settings = json.loads(run("find", str(TINY_CHAT), "--use", "two", "--json").stdout)["settings"]
    assert (settings["ctx_size"], settings["kv_type"]) == (512, "q8_0")
