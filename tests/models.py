"""Tiny scripted model files for tests: real llama-architecture GGUF that answers what it is told to.

The weights are a chain, not a language: attention and feed-forward add nothing to the residual
stream, so the last token alone decides the next. Each piece of the reply has an embedding along an
axis of its own, and the output matrix maps that axis to the piece that follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from modelpipes.gguf import read_header

PLAIN_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + PLAIN_TEMPLATE
)
# Says nothing and passes over the system message: what it said is lost.
DEAF_TEMPLATE = PLAIN_TEMPLATE.replace("in messages %}", "in messages if m['role'] != 'system' %}")
ALTERNATING_TEMPLATE = (
    "{% for m in messages if m['role'] != 'system' %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% endfor %}" + PLAIN_TEMPLATE
)
# What llama.cpp recognises as a model that thinks aloud: the tags in the template's handling of history.
THINKING_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' and m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)

ROLES = ("system", "user", "assistant", "tool")
END = 2  # the id of </s>
LOUD = 40.0  # a gap between logits that no usual temperature bridges
HEAD_SIZE = 16


def scripted_model(
    path: Path,
    reply: str | Sequence[str] = "Hello there, friend.",
    *,
    endless: bool = False,
    template: str = PLAIN_TEMPLATE,
    layers: int = 2,
    context: int = 32768,
    pad_mib: int = 0,
    name: str = "scripted",
) -> Path:
    """Write a model that answers every prompt with `reply` (cut at spaces, or in the given pieces).

    `endless` repeats it for ever instead of ending. `pad_mib` adds feed-forward weights that cost
    time and memory and change nothing. The path, for convenience.
    """
    pieces = _cut(reply) if isinstance(reply, str) else list(reply)
    if len(set(pieces)) != len(pieces):
        raise ValueError("the pieces of a reply must differ: each one alone decides the next")
    tokens, types = _vocabulary(pieces)
    ids = {text: index for index, text in enumerate(tokens)}
    start = ids["<think>"] if template is THINKING_TEMPLATE else ids["<|assistant|>"]
    chain = [ids[piece] for piece in pieces]
    steps = list(zip([start, *chain], [*chain, chain[0] if endless else END], strict=True))

    width = _rounded_up(len(steps) + 1, 64)
    hidden = max(64, _rounded_up((pad_mib << 20) // (layers * 3 * width * 2), 32))
    embedding = np.zeros((len(tokens), width), np.float32)
    embedding[:, 0] = 1.0  # a constant, by which the output matrix can add a bias
    output = np.zeros((len(tokens), width), np.float32)
    output[:, 0] = -LOUD
    for axis, (here, following) in enumerate(steps, start=1):
        embedding[here, axis] = 4.0
        output[following, axis] += LOUD
    output[chain[0], 0] = -LOUD / 2  # any other last token walks into the chain

    writer = gguf.GGUFWriter(str(path), "llama")
    _write_header(writer, tokens, types, name, template, layers, context, width, hidden)
    writer.add_tensor("token_embd.weight", embedding.astype(np.float16))
    for layer in range(layers):
        _write_layer(writer, f"blk.{layer}.", width, hidden)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    writer.add_tensor("output.weight", output.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _cut(reply: str) -> list[str]:
    """Pieces of a text, cut before spaces, longer where a word comes again."""
    pieces: list[str] = []
    held = ""
    for index, word in enumerate(reply.split(" ")):
        held += word if index == 0 else " " + word
        if held not in pieces:
            pieces.append(held)
            held = ""
    if held:
        # The end repeats an earlier piece: lengthen the last one instead.
        pieces[-1] += held
    return pieces


def _vocabulary(pieces: list[str]) -> tuple[list[str], list[int]]:
    kind = gguf.TokenType
    entries = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    entries += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]  # a SentencePiece vocabulary needs them
    entries += [(f"<|{role}|>", kind.CONTROL) for role in ROLES]
    entries += [(tag, kind.USER_DEFINED) for tag in ("<think>", "</think>")]
    have = {text for text, _ in entries}
    entries += [(piece, kind.NORMAL) for piece in pieces if piece not in have]
    return [text for text, _ in entries], [int(token_type) for _, token_type in entries]


def _write_header(
    writer: gguf.GGUFWriter,
    tokens: list[str],
    types: list[int],
    name: str,
    template: str,
    layers: int,
    context: int,
    width: int,
    hidden: int,
) -> None:
    writer.add_name(name)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(width // HEAD_SIZE)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    # SentencePiece writes a space as U+2581. Low scores: prompts fall apart into bytes, one token each.
    writer.add_token_list([text.replace(" ", "\u2581").encode() for text in tokens])
    writer.add_token_scores([-1000.0 - index for index in range(len(tokens))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)


def _write_layer(writer: gguf.GGUFWriter, prefix: str, width: int, hidden: int) -> None:
    def zeros(rows: int, columns: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
        return np.zeros((rows, columns), np.float16)

    writer.add_tensor(prefix + "attn_norm.weight", np.ones(width, np.float32))
    writer.add_tensor(prefix + "attn_q.weight", zeros(width, width))
    writer.add_tensor(prefix + "attn_k.weight", zeros(HEAD_SIZE, width))
    writer.add_tensor(prefix + "attn_v.weight", zeros(HEAD_SIZE, width))
    writer.add_tensor(prefix + "attn_output.weight", zeros(width, width))
    writer.add_tensor(prefix + "ffn_norm.weight", np.ones(width, np.float32))
    writer.add_tensor(prefix + "ffn_gate.weight", zeros(hidden, width))
    writer.add_tensor(prefix + "ffn_up.weight", zeros(hidden, width))
    writer.add_tensor(prefix + "ffn_down.weight", zeros(width, hidden))


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def shuffled_model(path: Path, source: Path, seed: int) -> Path:
    """Write a model of the same size and header as `source`, to the byte, whose weights are others: the path.

    The rows of each block's values and keys are in another order, so that it says something else, and what it caches
    of a text means something else.
    """
    header = read_header(source)
    content = bytearray(source.read_bytes())
    order = np.random.default_rng(seed)
    for tensor in header.tensors:
        if tensor.name.endswith(("attn_v.weight", "attn_k.weight")):
            assert tensor.n_bytes is not None
            place = slice(header.data_offset + tensor.offset, header.data_offset + tensor.offset + tensor.n_bytes)
            rows = np.frombuffer(content[place], np.uint8).reshape(tensor.shape[1], -1)
            content[place] = order.permutation(rows).tobytes()
    path.write_bytes(content)
    return path


def adapter_model(path: Path) -> Path:
    """Write a LoRA adapter for tiny-chat, which changes what its first block says: the path."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 8.0)
    chance = np.random.default_rng(1)
    for name, shape in (("lora_a", (4, 192)), ("lora_b", (64, 4))):
        writer.add_tensor(f"blk.0.attn_v.weight.{name}", chance.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
