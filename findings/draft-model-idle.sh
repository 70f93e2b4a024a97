#!/bin/sh
# Version:   xllamacpp 2026.10.11549 (PyPI; llama.cpp's own server as a wheel), gguf 0.19.0, numpy 2.4.6
# Behaviour: a model that is named as the one that drafts is loaded, takes its memory and is never asked, without a
#            word, where nobody names a type of speculative decoding as well: answers have no count of drafted tokens.
#            With the type they have one.
# Output:    model alone: drafted nothing
#            model and type: drafted tokens
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check xllamacpp==2026.10.11549 gguf==0.19.0 numpy==2.4.6
cat >"$work/make.py" <<'PY'
"""A model of two blocks with random weights and a vocabulary of bytes."""
import sys

import gguf
import numpy as np

DIM, FF, HEADS, BLOCKS = 64, 128, 4, 2
random = np.random.default_rng(0)
tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abcdefghijklmnopqrstuvwxyz"]
types = [2, 3, 3, *[6] * 256, *[1] * 26]
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(512)
writer.add_embedding_length(DIM)
writer.add_block_count(BLOCKS)
writer.add_feed_forward_length(FF)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types(types)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)


def weights(name, *shape):
    writer.add_tensor(name, (random.standard_normal(shape) * 0.1).astype(np.float32))


weights("token_embd.weight", len(tokens), DIM)
weights("output.weight", len(tokens), DIM)
writer.add_tensor("output_norm.weight", np.ones(DIM, np.float32))
for block in range(BLOCKS):
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(DIM, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        weights(f"blk.{block}.{name}.weight", DIM, DIM)
    weights(f"blk.{block}.ffn_gate.weight", FF, DIM)
    weights(f"blk.{block}.ffn_up.weight", FF, DIM)
    weights(f"blk.{block}.ffn_down.weight", DIM, FF)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
PY
cat >"$work/ask.py" <<'PY'
import json
import sys
import urllib.request

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_ctx = 256
params.n_parallel = 1
params.speculative.draft.mparams.path = sys.argv[1]  # it drafts for itself: what it drafts is right
if len(sys.argv) > 2:
    params.speculative.types = [getattr(xllamacpp.common_speculative_type, sys.argv[2])]
server = xllamacpp.Server(params)
asked = {"prompt": "abc", "n_predict": 24, "temperature": 0, "ignore_eos": True}
request = urllib.request.Request(
    server.listening_address + "/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
)
with urllib.request.urlopen(request, timeout=60) as answer:
    timings = json.load(answer)["timings"]
print("drafted tokens" if timings.get("draft_n") else "drafted nothing", flush=True)
del server
PY
"$work/venv/bin/python" "$work/make.py" "$work/model.gguf"
{
    printf 'model alone: '
    timeout 120 "$work/venv/bin/python" "$work/ask.py" "$work/model.gguf" 2>"$work/log"
    printf 'model and type: '
    timeout 120 "$work/venv/bin/python" "$work/ask.py" "$work/model.gguf" COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE 2>>"$work/log"
} | tee "$work/seen"
printf '%s\n' 'model alone: drafted nothing' 'model and type: drafted tokens' | diff - "$work/seen"
