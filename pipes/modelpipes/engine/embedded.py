"""The embedded engine: llama.cpp's server from the xllamacpp wheel, with llama-server's own flags."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from modelpipes.gguf.types import CACHE_TYPES

if TYPE_CHECKING:
    from types import FrameType


# Those of llama.cpp's common_speculative_type that need no more than a model.
SPEC_TYPES = ("none", "draft-simple", "draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # llama-server ends with 1 where argparse would with 2.
        _say(f"error: {message}")
        raise SystemExit(1)


def make_parser() -> argparse.ArgumentParser:
    """The subset of llama-server's options that xllamacpp can follow, under the same names."""
    parser = _Parser(prog="modelpipes.engine.embedded", allow_abbrev=False, description=__doc__)
    option = parser.add_argument
    option("-m", "--model", metavar="FILE", required=True, help="model path to load")
    option("-a", "--alias", metavar="NAME", help="model name shown by the API")
    option("--host", default="127.0.0.1", help="address to listen on")
    option("--port", type=int, default=8080, metavar="N", help="port to listen on (0: a free one)")
    option("-c", "--ctx-size", type=int, default=0, metavar="N", help="context, shared by the slots")
    option("-np", "--parallel", type=int, default=1, metavar="N", help="number of slots")
    option("-n", "--predict", "--n-predict", type=int, default=-1, metavar="N", help="tokens to predict")
    option("-b", "--batch-size", type=int, default=2048, metavar="N", help="logical maximum batch size")
    option("-ub", "--ubatch-size", type=int, default=512, metavar="N", help="physical maximum batch size")
    option("-t", "--threads", type=int, default=-1, metavar="N", help="threads for generation")
    option("-tb", "--threads-batch", type=int, default=-1, metavar="N", help="threads for the prompt")
    option("-ngl", "--gpu-layers", "--n-gpu-layers", type=_gpu_layers, default=-1, metavar="N",
           help="layers on the GPU: a number, auto or all")  # fmt: skip
    option("-fit", "--fit", choices=("on", "off"), default="on", help="adjust unset arguments to free memory")
    option("-s", "--seed", type=int, metavar="N", help="seed of the sampler")
    option("--temp", "--temperature", type=float, metavar="N", help="temperature")
    option("--top-k", type=int, metavar="N", help="top-k sampling")
    option("--top-p", type=float, metavar="N", help="top-p sampling")
    option("--min-p", type=float, metavar="N", help="min-p sampling")
    option("-cram", "--cache-ram", type=int, default=8192, metavar="MIB", help="cap of the prompt cache")
    option("--sse-ping-interval", type=int, default=30, metavar="S", help="seconds between pings")
    option("--api-key", metavar="KEY", default=os.environ.get("LLAMA_API_KEY"),
           help="keys to accept, comma-separated (env: LLAMA_API_KEY)")  # fmt: skip
    option("--chat-template", metavar="TEMPLATE", help="Jinja template instead of the model's own")
    option("--chat-template-file", metavar="FILE", help="the same, from a file")
    option("--reasoning-format", choices=("none", "auto", "deepseek", "deepseek-legacy"), default="auto",
           help="where thoughts go")  # fmt: skip
    option("--slots", action=argparse.BooleanOptionalAction, default=True, help="serve /slots")
    option("--slot-save-path", metavar="PATH", help="where slots are saved")
    option("-ctk", "--cache-type-k", choices=CACHE_TYPES, default="f16", metavar="TYPE", help="type of the K cache")
    option("-ctv", "--cache-type-v", choices=CACHE_TYPES, default="f16", metavar="TYPE", help="type of the V cache")
    option("-mm", "--mmproj", metavar="FILE", help="projector, for pictures")
    option("-md", "--model-draft", "--spec-draft-model", metavar="FILE", help="model that drafts for the other")
    option("-ngld", "--gpu-layers-draft", "--n-gpu-layers-draft", "--spec-draft-ngl", type=_gpu_layers, default=-1,
           metavar="N", help="its layers on the GPU")  # fmt: skip
    option("-ctkd", "--cache-type-k-draft", "--spec-draft-type-k", choices=CACHE_TYPES, default="f16", metavar="TYPE",
           help="type of its K cache")  # fmt: skip
    option("-ctvd", "--cache-type-v-draft", "--spec-draft-type-v", choices=CACHE_TYPES, default="f16", metavar="TYPE",
           help="type of its V cache")  # fmt: skip
    option("--spec-type", choices=SPEC_TYPES, default="none", help="how it drafts")
    option("--spec-draft-n-max", type=int, default=3, metavar="N", help="tokens to draft at a time")
    option("--embedding", "--embeddings", action="store_true", help="serve embeddings only")
    option("--rerank", "--reranking", action="store_true", help="serve reranking only")
    option("--pooling", choices=("none", "mean", "cls", "last", "rank"), help="how embeddings are pooled")
    option("-lv", "--verbosity", "--log-verbosity", type=int, metavar="N", help="what is logged: 4 is all of a load")
    option("--metrics", action="store_true", help="serve /metrics")
    option("--warmup", action=argparse.BooleanOptionalAction, default=True, help="run once when loaded")
    option("--no-webui", "--no-ui", action="store_true", help="no page for browsers")
    option("--offline", action="store_true", help="no network")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code as llama-server's."""
    options, unknown = make_parser().parse_known_args(argv)
    if unknown:
        _say(f"error: invalid argument: {unknown[0]}")
        return 1

    import xllamacpp

    try:
        server = xllamacpp.Server(_server_params(options))
    except (RuntimeError, ValueError, OverflowError, OSError) as error:
        # llama.cpp says which of its reasons it was in a thread of its own, which may not come to it any more.
        if _is_taken(options.host, options.port):
            _say(f"error: couldn't bind to port {options.port}")
        _say(f"error: {str(error).strip() or 'the server cannot be started'}")
        return 1
    _say(f"listening on {server.listening_address}")
    # Only now: before it serves, the default disposition ends it at once.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _leave)
    try:
        while True:
            signal.pause()
    except SystemExit:
        del server  # its destructor ends the serving threads; without it the process dies by the signal
    return 0


def _is_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as llama.cpp binds: ended connections bar nobody
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    # A second signal must not break the orderly end; KILL follows if that takes too long.
    for again in (signal.SIGTERM, signal.SIGINT):
        signal.signal(again, signal.SIG_IGN)
    raise SystemExit(0)


def _server_params(options: argparse.Namespace) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.model_alias = set(options.alias.split(",")) if options.alias else set()
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.n_predict = options.predict
    params.n_batch = options.batch_size
    params.n_ubatch = options.ubatch_size
    params.n_gpu_layers = options.gpu_layers
    params.fit_params = options.fit == "on"
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads if options.threads_batch < 0 else options.threads_batch
    params.cache_ram_mib = options.cache_ram
    params.sse_ping_interval = options.sse_ping_interval
    params.endpoint_slots = options.slots
    params.endpoint_metrics = options.metrics
    params.cache_type_k = _cache_type(options.cache_type_k)
    params.cache_type_v = _cache_type(options.cache_type_v)
    if options.mmproj:
        params.mmproj.path = options.mmproj
    if options.model_draft:
        draft = params.speculative.draft
        draft.mparams.path = options.model_draft
        draft.n_gpu_layers = options.gpu_layers_draft
        draft.cache_type_k = _cache_type(options.cache_type_k_draft)
        draft.cache_type_v = _cache_type(options.cache_type_v_draft)
        draft.n_max = options.spec_draft_n_max
        params.speculative.types = [_spec_type(options.spec_type)]
    params.embedding = options.embedding or options.rerank
    if options.rerank or options.pooling:
        params.pooling_type = _pooling("rank" if options.rerank else options.pooling)
    if options.verbosity is not None:
        params.verbosity = options.verbosity
    if options.slot_save_path:
        params.slot_save_path = os.path.join(options.slot_save_path, "")  # names are appended to it
    params.warmup = options.warmup
    params.offline = options.offline
    params.ui = not options.no_webui
    params.api_keys = options.api_key.split(",") if options.api_key else []
    params.reasoning_format = _reasoning_format(options.reasoning_format)
    if options.chat_template_file:
        with open(options.chat_template_file, encoding="utf-8") as file:
            params.chat_template = file.read()
    elif options.chat_template:
        params.chat_template = options.chat_template
    for name in ("seed", "temp", "top_k", "top_p", "min_p"):
        value = getattr(options, name)
        if value is not None:
            setattr(params.sampling, name, value)
    return params


def _cache_type(name: str) -> Any:
    from xllamacpp import ggml_type

    return getattr(ggml_type, "GGML_TYPE_" + name.upper())


def _spec_type(name: str) -> Any:
    from xllamacpp import common_speculative_type

    return getattr(common_speculative_type, "COMMON_SPECULATIVE_TYPE_" + name.replace("-", "_").upper())


def _pooling(name: str) -> Any:
    from xllamacpp import llama_pooling_type

    return getattr(llama_pooling_type, "LLAMA_POOLING_TYPE_" + name.upper())


def _reasoning_format(name: str) -> Any:
    from xllamacpp import common_reasoning_format

    return getattr(common_reasoning_format, "COMMON_REASONING_FORMAT_" + name.replace("-", "_").upper())


def _gpu_layers(text: str) -> int:
    # As in llama.cpp's common/arg.cpp: auto is -1, all is -2.
    return {"auto": -1, "all": -2}.get(text) or int(text)


if __name__ == "__main__":
    sys.exit(main())
