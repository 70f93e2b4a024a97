from __future__ import annotations

import inspect
import re
import shutil
import subprocess

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpipes.commands import VERBS, load
from modelpipes.commands.cli import completion, manpage, share
from modelpipes.commands.cli.manpage import ENVIRONMENT, escape, page, pages
from tests.commands.conftest import LIMIT_S, Commands
from tests.shell import CHECKOUT

needs_groff = pytest.mark.skipif(not shutil.which("groff"), reason="groff is not on this machine")
needs_mandoc = pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not on this machine")
NAMES = ["modelpipes", *map(manpage.page_name, VERBS)]
# What groff itself sets wrong is left out: letters that Unicode composes of several, in rarer scripts.
PRINTED = st.characters(max_codepoint=0x17F, exclude_categories=["C", "Z"]) | st.sampled_from("…–—“”→█▒漢🙂")
# No line is so long that the page has to be broken there, and nothing is underlined or struck twice.
GROFF = ["groff", "-man", "-Tutf8", "-ww", "-rLL=500n", "-P-cbou"]


def filtered(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rendered(text: str) -> str:
    return filtered(GROFF, text)


def words(text: str) -> list[str]:
    return text.replace("\b", "").split()


@needs_groff
@pytest.mark.parametrize("name", NAMES)
def test_groff_has_nothing_to_complain_of(name: str) -> None:
    assert rendered(pages()[name])


@needs_mandoc
@pytest.mark.parametrize("name", NAMES)
def test_mandoc_has_nothing_to_complain_of(name: str) -> None:
    assert filtered(["mandoc", "-Tlint", "-W", "warning"], pages()[name]) == ""


@needs_groff
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_that_the_command_says_is_lost(verb: str) -> None:
    text = rendered(page(verb))
    command = load(verb)
    description, _, examples = inspect.cleandoc(command.help or "").partition("Examples:\n")
    said = " ".join(words(text))
    for paragraph in description.split("\n\n"):
        assert " ".join(words(paragraph)) in said
    lines = [line.strip() for line in text.splitlines()]
    assert examples
    for example in examples.splitlines():
        assert example.strip() in lines
    for option in (each for each in command.params if isinstance(each, click.Option) and not each.hidden):
        assert any(set(option.opts) <= set(re.split(r"[ ,]+", line)) for line in lines), option.opts
        assert " ".join(words(option.help or "")) in said


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_the_same_wherever_it_is_made(run: Commands, name: str) -> None:
    told = run("man", name.removeprefix("modelpipes-"), COLUMNS="40", LC_ALL="C", PIPE_TIMEOUT="7s", TZ="Asia/Tokyo")
    assert (told.code, told.stderr) == (0, "")
    assert told.stdout == pages()[name]
    assert told.stdout.isascii()


def test_what_is_no_command_is_wrong_usage(run: Commands) -> None:
    told = run("man", "ls")
    assert (told.code, told.stdout) == (2, "")
    assert told.stderr.startswith("modelpipes man: no command 'ls'; there are setup-pipes, setup, ")


@pytest.mark.parametrize("name", NAMES)
def test_a_dash_is_one_that_a_shell_knows(name: str) -> None:
    for line in pages()[name].splitlines():
        if not line.startswith(".TH "):  # its date
            assert not re.search(r"(?<!\\)-", line)


@needs_groff
@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(PRINTED, min_size=1, max_size=40), min_size=1))
def test_any_text_is_printed_as_it_is(lines: list[str]) -> None:
    body = "\n".join(["0", *map(escape, lines), "1"])
    shown = rendered(f'.TH X 1 2000-01-01 "" ""\n.SH X\n.EX\n{body}\n.EE\n')
    assert [line.strip() for line in shown.splitlines() if line.strip()][2:-1] == ["0", *lines, "1"]


@given(st.text(st.characters(blacklist_categories=["Cc", "Cs"])))
def test_no_text_is_taken_for_a_request(text: str) -> None:
    escaped = escape(text)
    assert escaped.isascii()
    assert not escaped.startswith((".", "'"))
    assert not re.search(r"\\(?![-&(\[])", escaped)


@pytest.mark.parametrize("text", [".TH", "'br", r"\fB\n(.x", '"', "-", "`'^~", "…", "\\"])
def test_what_roff_would_take_for_its_own_is_escaped(text: str) -> None:
    assert not escape(text).startswith((".", "'"))


def test_the_environment_is_that_of_the_readme_and_of_the_options() -> None:
    table = (CHECKOUT / "docs" / "reference.md").read_text("utf-8").partition("## Environment")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([A-Z_]+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert {name.replace("BOB", "SEAT") for name in told} <= set(ENVIRONMENT)
    for verb in VERBS:
        for param in load(verb).params:
            assert param.envvar is None or param.envvar in ENVIRONMENT


@pytest.mark.parametrize(
    ("verb", "there", "absent"),
    [
        ("ask", ["PIPE_DIR", "PIPE_TIMEOUT", "PIPE_TO_SEAT", "MODELPIPES_CONFIG"], ["LLAMA_SERVER", "SHELL"]),
        ("find", ["SEARCH_PATH"], ["PIPE_DIR", "OPENAI_API_KEY"]),
        ("attach", ["OPENAI_API_KEY", "LLAMA_SERVER", "PIPE_DIR"], ["PIPE_PREFIX"]),
        ("setup", ["PIPE_PREFIX", "TMPDIR"], ["SEARCH_PATH"]),
        ("completion", ["SHELL"], ["PIPE_DIR"]),
    ],
)
def test_a_page_tells_the_variables_that_concern_its_command(verb: str, there: list[str], absent: list[str]) -> None:
    environment = page(verb).partition(".SH ENVIRONMENT\n")[2].partition(".SH ")[0]
    named = re.findall(r"^\\fB(\w+)\\fR$", environment, re.MULTILINE)
    assert set(there) <= set(named)
    assert not set(absent) & set(named)


def test_a_package_has_a_page_and_a_completion_for_each_command() -> None:
    files = share.files()
    for command in ["modelpipes", *(command for command, _ in VERBS.values() if command)]:
        assert {f"man/man1/{command}.1", f"bash-completion/completions/{command}"} <= set(files)
        assert f"fish/vendor_completions.d/{command}.fish" in files
        assert command in files["zsh/site-functions/_modelpipes"].splitlines()[0].split()
    assert "man/man1/modelpipes-show.1" in files
    assert files["bash-completion/completions/ask-model"] == completion.script("bash")
