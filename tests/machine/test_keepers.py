from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpipes.machine.keepers import Keeper, model_of, name_shares
from modelpipes.machine.watch import Gpu, Share


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/opt/llama-server --model /models/Qwen3-8B-Q4_K_M.gguf --port 1", "Qwen3-8B-Q4_K_M"),
        ("llama-server -m a.gguf", "a"),
        ("llama-server --model=a.gguf --model b.GGUF", "b"),
        ("llama-server --model big-00001-of-00003.gguf", "big"),
        ("llama-server --model a.gguf --alias fast", "fast"),
        ("python -P -m modelpipes.engine.embedded --model /x/tiny-chat.gguf", "tiny-chat"),
        ("vllm serve --model meta/llama/", "llama"),
        ("python -m modelpipes.engine.embedded", None),
        ("llama-server --model", None),
        ("llama-server --model /", None),
        ("Xorg :0", None),
        ("", None),
    ],
)
def test_a_model_is_named_by_the_command_line_of_its_server(command: str, name: str | None) -> None:
    assert model_of(command.split()) == name


@given(st.lists(st.text()))
def test_no_command_line_makes_naming_fail(argv: list[str]) -> None:
    model_of(argv)


def test_a_process_below_a_keeper_is_its_and_others_are_nobodys() -> None:
    holder = [sys.executable, "-c", "input('runs\\n')", "--model", "solo.gguf"]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"runs\n"  # amid its exec, a process has no command line
        gpus = [
            Gpu(
                index=0,
                processes=(
                    Share(pid=child.pid, program="python", used_bytes=7),
                    Share(pid=os.getppid(), program=None, used_bytes=None),
                    Share(pid=2**22 + 1, program=None, used_bytes=None),  # above the kernel's greatest
                ),
            ),
            Gpu(index=1),
        ]
        first, second = name_shares(gpus, {os.getpid(): Keeper(seat="bob", room="/r")})
        child.communicate(b"\n")
    assert second.processes is None
    ours, above, ended = first.processes or ()
    assert (ours.model, ours.seat, ours.room, ours.server, ours.used_bytes) == ("solo", "bob", "/r", None, 7)
    assert (above.seat, ended.model, ended.seat) == (None, None, None)
