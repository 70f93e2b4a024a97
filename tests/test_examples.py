"""Every example, run as it stands."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.shell import BIN, CHECKOUT, TINY_CHAT, Ended, Home

EXAMPLES = sorted((CHECKOUT / "examples").glob("*.sh"))
# What its output must have, line by line; "…" is anything.
EXPECTED = {
    "basic.sh": ["It is 7.", '{"from":"bob","to":"hub",…', "alice  ready …", "bob    ready …"],
    "multi-round.sh": ["alice, round 1: …", "bob, round 2: …", "hub: …", "alice: …", "bob: …"],
    "critic.sh": ["hub: …", "alice: …", "bob: …", "critic: …", "verdict: …"],
    "debate.sh": ["turn 1, alice", "hub: …", "alice: …", "bob: …", "carol: …", "chosen by the moderator: 6 of 6"],
    "pipeline.sh": ["alice: …", "bob: …", "What is 5 and 6?\tIt is 11."],
    "non-model-member.sh": ["That makes 19", "5 words", "Dear friend, … Yours truly.", "counter: … words"],
    "find_gpu_models.sh": ["name …path", "tiny-chat …/tiny-chat.gguf", "largest that fits: tiny-chat", "It is 7."],
    "native-member.sh": [
        "This is answer 2.",
        "nalp a ,nam a",
        "counter: This is answer 4.",
        "reverse: .4 rewsna si sihT",
    ],
    "plain.sh": ["The word is lantern…", "1 and 2: It is 3.", "5 and 6: It is 11.", "The word is garden…"],
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def run(script: Path, home: Home, **env: str) -> Ended:
    """Run an example with no command of ours on PATH: it finds those of its checkout."""
    path = ":".join(folder for folder in home.env["PATH"].split(":") if not Path(folder, "ask-model").exists())
    return home.run([script], env={"PATH": path, **env})


def test_there_is_an_example_of_each_kind() -> None:
    assert {script.name for script in EXAMPLES} == set(EXPECTED)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
class TestExample:
    def test_runs_says_what_it_should_and_leaves_nothing(self, script: Path, home: Home) -> None:
        ended = run(script, home)
        assert (ended.code, home.left_processes(), home.left_files()) == (0, [], []), ended.stderr
        assert "Traceback" not in ended.stderr
        for expected in EXPECTED[script.name]:
            before, _, after = expected.partition("…")
            is_open = "…" in expected
            assert any(
                line.startswith(before) and line.endswith(after) and (is_open or line == before) for line in ended.lines
            ), f"{expected}\n{ended.stdout}"

    def test_stands_in_the_index(self, script: Path, home: Home) -> None:
        index = (CHECKOUT / "examples" / "README.md").read_text("utf-8")
        assert f"| [`{script.name}`]({script.name}) |" in index

    def test_says_what_it_shows_and_waits_without_sleep(self, script: Path, home: Home) -> None:
        lines = script.read_text("utf-8").splitlines()
        assert lines[0] == "#!/bin/sh"
        assert lines[1].startswith("# ")
        assert not any(line.split()[:1] == ["sleep"] for line in lines)


def test_an_example_takes_the_models_it_is_given(home: Home) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(TINY_CHAT, home.cwd / name)
    ended = run(CHECKOUT / "examples" / "basic.sh", home, MODEL_A="a.gguf", MODEL_B=str(home.cwd / "b.gguf"))
    assert ended.code == 0, ended.stderr
    assert [line.split()[-2:] for line in ended.lines[-3:-1]] == [["model", "a.gguf"], ["model", "b.gguf"]]


def test_an_example_that_fails_leaves_nothing(home: Home) -> None:
    (home.cwd / "broken.gguf").write_bytes(b"GGUF, and then nothing that a model has")
    ended = run(CHECKOUT / "examples" / "basic.sh", home, MODEL_B="broken.gguf")
    assert (ended.code, home.left_processes(), home.left_files()) == (1, [], []), ended.stderr
    assert "broken.gguf: " in ended.stderr


def test_the_commands_on_the_path_come_first(home: Home, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "modelpipes").symlink_to(BIN / "modelpipes")
    for name in ("ask-model", "attach-model", "list-seats", "cleanup-pipes"):
        (mine / name).symlink_to(BIN / name)
    (mine / "setup-pipes").write_text("#!/bin/sh\necho mine >&2\nexit 3\n")
    (mine / "setup-pipes").chmod(0o755)
    ended = home.run([CHECKOUT / "examples" / "basic.sh"], env={"PATH": f"{mine}:{home.env['PATH']}"})
    assert (ended.code, ended.stderr) == (3, "mine\n")


def test_the_client_in_python_answers_with_times_and_leaves_nothing(home: Home) -> None:
    ended = home.run([sys.executable, "-P", CHECKOUT / "examples" / "client.py"])
    assert (ended.code, ended.stderr, home.left_processes(), home.left_files()) == (0, "", [], [])
    chat, took, streamed, why = ended.lines
    assert chat == "chat: It is 7."
    assert re.fullmatch(r"took \d+ ms, first word after \d+ ms, \d+ \+ \d+ tokens", took)
    assert len(streamed) > len("stream: ") and why == "ended by stop"
    assert "| [`client.py`](client.py) |" in (CHECKOUT / "examples" / "README.md").read_text("utf-8")


def test_the_client_in_python_says_in_one_line_that_nobody_answers(home: Home) -> None:
    ended = home.run([sys.executable, "-P", CHECKOUT / "examples" / "client.py", "http://127.0.0.1:9"])
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr == "client.py: no server answers at http://127.0.0.1:9: is it running?\n"
