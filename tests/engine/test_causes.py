"""Why an engine ended: what llama-server and the embedded engine wrote, as they wrote it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from modelpipes.engine.causes import cause_of, essence, explain
from modelpipes.engine.embedded import flaw_of
from modelpipes.engine.locate import find_model
from modelpipes.errors import Cause

BEGIN = ["0.00.003.109 W srv  llama_server: security: no API key is set and CORS allows all origins"]

BROKEN = [
    "0.00.008.956 E llama_model_load: error loading model: tensor 'token_embd.weight' data is not within …",
    "0.00.008.991 E llama_model_load_from_file_impl: failed to load model",
    "0.00.009.033 E common_fit_params: encountered an error while trying to fit params to free device memory: failed …",
    "0.00.009.286 E cmn  common_init_: failed to load model 'broken.gguf'",
    "0.00.009.301 E srv    load_model: failed to load model, 'broken.gguf'",
    "0.00.009.317 I srv    operator(): operator(): cleaning up before exit...",
    "0.00.009.862 E srv  llama_server: exiting due to model loading error",
]
MISSING = [
    "0.00.006.531 E gguf_init_from_file: failed to open GGUF file '/nope.gguf' (No such file or directory)",
    "0.00.006.674 E llama_model_load: error loading model: llama_model_loader: failed to load model from /nope.gguf",
    "0.00.007.174 E srv  llama_server: exiting due to model loading error",
]
NO_HOST_MEMORY = [
    "0.00.007.371 W llama_context: n_ctx_seq (8000000) > n_ctx_train (1024) -- possible training context overflow",
    "0.00.193.479 E ggml_aligned_malloc: insufficient memory (attempted to allocate 7812.50 MB)",
    "0.00.193.538 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 8192000000",
    "0.00.227.457 E llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache",
    "0.00.227.536 E cmn  common_init_: failed to create context with model 'm.gguf'",
    "0.00.228.077 E srv  llama_server: exiting due to model loading error",
]
# ggml/src/ggml-cuda/ggml-cuda.cu and ggml/src/ggml-alloc.c; no card was there to record it.
NO_CARD_MEMORY = [
    "0.01.101.004 E alloc_buffer: allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory",
    "0.01.101.034 E llama_model_load: error loading model: unable to allocate CUDA0 buffer",
    "0.01.101.100 E srv    load_model: failed to load model, 'm.gguf'",
]
CUDA_ABORT = ["ggml/src/ggml-cuda/ggml-cuda.cu:98: CUDA error: out of memory", "  current device: 0"]
TAKEN = [
    "0.00.004.000 E srv         start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8999",
    "0.00.004.001 I srv    operator(): operator(): cleaning up before exit...",
    "0.00.005.732 E srv  llama_server: exiting due to HTTP server error",
]
LISTENING = ["0.00.222.354 I srv  llama_server: listening on http://127.0.0.1:8998"]
OF_THE_WRAPPER = ["error: Failed to init server, please check the input params."]

RECORDED = {
    "a damaged file": (1, BEGIN + BROKEN, Cause.FILE),
    "a damaged file, embedded": (1, BEGIN + BROKEN + OF_THE_WRAPPER, Cause.FILE),
    "no file": (1, BEGIN + MISSING, Cause.FILE),
    "no such flag": (1, ["error: invalid argument: --nosuch"], Cause.FLAG),
    "a value that is no number": (
        1,
        ['error while handling argument "--ctx-size": stoi', "", "usage:", "", "to show complete usage, run with -h"],
        Cause.FLAG,
    ),
    "a value that is not known": (
        1,
        ['error while handling argument "--cache-type-k": Unsupported cache type: q9', "", "usage:"],
        Cause.FLAG,
    ),
    "a value that is no number, embedded": (
        1,
        ["error: argument -c/--ctx-size: invalid int value: 'abc'"],
        Cause.FLAG,
    ),
    "a context that this model cannot have": (
        1,
        ["0.00.1 E llama_init_from_model: failed to initialize the context: quantized V cache was requested"],
        Cause.FLAG,
    ),
    "no host memory": (1, BEGIN + NO_HOST_MEMORY, Cause.MEMORY),
    "no host memory, embedded": (1, BEGIN + NO_HOST_MEMORY + OF_THE_WRAPPER, Cause.MEMORY),
    "no memory on the card": (1, BEGIN + NO_CARD_MEMORY, Cause.MEMORY),
    "the card's memory gone amid an answer": (-signal.SIGABRT, LISTENING + CUDA_ABORT, Cause.MEMORY),
    "a busy port": (1, BEGIN + TAKEN, Cause.PORT),
    "a busy port, embedded": (1, BEGIN + TAKEN + OF_THE_WRAPPER, Cause.PORT),
    "killed": (-signal.SIGKILL, BEGIN + LISTENING, Cause.KILLED),
    "ended by somebody's TERM": (-signal.SIGTERM, LISTENING, Cause.KILLED),
    "ended by somebody's TERM, in order": (0, LISTENING, Cause.ENDED),
    "a fault": (-signal.SIGSEGV, LISTENING, Cause.CRASHED),
    "another exit code": (3, LISTENING, Cause.CRASHED),
    "not a word": (1, [], Cause.CRASHED),
}


@pytest.mark.parametrize(("exit_code", "lines", "cause"), RECORDED.values(), ids=RECORDED.keys())
def test_the_cause_is_told_from_the_exit_code_and_the_last_words(
    exit_code: int, lines: list[str], cause: Cause
) -> None:
    assert cause_of(exit_code, lines) is cause
    assert cause_of(exit_code, lines, stopped_by_us=True) is Cause.STOPPED


def test_a_kill_for_want_of_memory_is_told_by_the_kernels_count() -> None:
    assert cause_of(-signal.SIGKILL, LISTENING, is_oom_killed=True) is Cause.MEMORY
    assert cause_of(-signal.SIGTERM, LISTENING, is_oom_killed=True) is Cause.KILLED


def test_only_what_would_fail_again_lasts() -> None:
    assert {cause for cause in Cause if cause.is_lasting} == {Cause.FILE, Cause.FLAG, Cause.LIMIT}


@pytest.mark.parametrize("said", [NO_HOST_MEMORY, ["  what():  Resource temporarily unavailable"], ["MemoryError"]])
def test_memory_that_the_limit_of_an_engine_refuses_is_told_apart(said: list[str]) -> None:
    assert cause_of(-signal.SIGABRT, [*LISTENING, *said], has_data_limit=True) is Cause.LIMIT
    line = explain("bob", Cause.LIMIT, -6, said, pid=7, port=80, limit="2.0 GiB")
    assert line.startswith("engine bob (pid 7) ended at its memory_limit of 2.0 GiB (")
    assert line.endswith(": raise it, or lower ctx_size")


def test_what_the_kernel_killed_for_its_group_was_over_its_limit_whatever_it_said() -> None:
    assert cause_of(-signal.SIGKILL, LISTENING, is_oom_killed=True, is_over_limit=True) is Cause.LIMIT
    assert explain("bob", Cause.LIMIT, -9, LISTENING, pid=7, port=80, limit="2.0 GiB") == (
        "engine bob (pid 7) ended at its memory_limit of 2.0 GiB: raise it, or lower ctx_size"
    )


def test_no_limit_of_the_process_is_blamed_for_what_the_card_lacks_nor_for_a_kill() -> None:
    assert cause_of(1, BEGIN + NO_CARD_MEMORY, has_data_limit=True) is Cause.MEMORY
    assert cause_of(-signal.SIGKILL, LISTENING, is_oom_killed=True, has_data_limit=True) is Cause.MEMORY
    assert cause_of(-signal.SIGSEGV, LISTENING, has_data_limit=True) is Cause.CRASHED


def test_the_line_names_the_engine_the_end_and_the_cause() -> None:
    assert explain("bob", Cause.MEMORY, 1, NO_HOST_MEMORY, pid=7, port=80) == (
        "engine bob ended with exit code 1: ggml_aligned_malloc: insufficient memory (attempted to allocate 7812.50 MB)"
        " (out of memory)"
    )
    assert explain("bob", Cause.PORT, 1, TAKEN, pid=7, port=80).startswith("engine bob: port 80 is taken: ")
    assert explain("bob", Cause.KILLED, -9, [], pid=7, port=80) == "engine bob (pid 7) was killed by SIGKILL"
    assert explain("bob", Cause.MEMORY, -9, [], pid=7, port=80).endswith("by SIGKILL (out of memory)")
    assert explain("bob", Cause.KILLED, -99, [], pid=7, port=80).endswith("by signal 99")


def test_the_first_error_of_a_log_is_its_essence() -> None:
    log = ["0.00.001 I srv  starting", "0.00.002 E llama:   no  such tensor", "0.00.003 E srv  exiting"]
    assert essence(log) == "llama: no such tensor"
    assert essence(["usage: x", "error: invalid argument: --x"]) == "invalid argument: --x"
    assert essence(["one", "two"]) == "two"
    assert essence([]) == ""


def test_memory_comes_before_what_was_an_error_earlier() -> None:
    log = ["0.00.001 E srv  a refused request", "0.00.002 E ggml: unable to allocate CUDA0 buffer"]
    assert essence(log) == "ggml: unable to allocate CUDA0 buffer"


def test_a_broken_file_is_known_where_the_embedded_engine_s_log_is_lost(tmp_path: Path) -> None:
    """llama.cpp logs in a thread of its own, which may not come to it before the process ends."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(find_model("tiny-chat")).read_bytes()[:100_000])
    line = f"error: error loading model: it is corrupted or incomplete: {flaw_of(str(broken))}"
    lines = [line, "error: Failed to init server, please check the input params."]
    assert cause_of(1, lines) is Cause.FILE
    assert "corrupted or incomplete" in explain("bob", Cause.FILE, 1, lines, pid=7, port=80)
    assert flaw_of(find_model("tiny-chat")) == ""
