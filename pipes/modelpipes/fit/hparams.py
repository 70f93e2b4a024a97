"""A model's hyper-parameters as llama.cpp's loaders read them from a GGUF header (b11434).

The names are those of `llama_hparams`; what differs between architectures stands in `architectures.py`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import Struct

from modelpipes.errors import ModelFileError
from modelpipes.fit.architectures import ARCHITECTURES, PLAIN, Architecture, Window, WindowKind
from modelpipes.fit.keys import Counts, Flags, Keys
from modelpipes.gguf.header import Header, Value

Kind = Literal["model", "projector", "adapter", "imatrix", "vocabulary", "unknown"]

MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS

# GLM 5.2 files that do not list the layers with an indexer of their own: the first two, then one of four
# (`GLM_5_2_DEFAULT_INDEXER_TYPES` in models/glm-dsa.cpp). Files of GLM 5 have shorter contexts, and all layers.
GLM_5_2_CONTEXT = 1048576
GLM_5_2_INDEXERS = (True, True) + (True, False, False, False) * 19

_KINDS: dict[Value | None, Kind] = {
    "mmproj": "projector",
    "adapter": "adapter",
    "imatrix": "imatrix",
    "vocab": "vocabulary",
}


class Hparams(Struct, frozen=True, eq=False):
    """Hyper-parameters of one model; tuples have an entry for each block.

    `n_layer` counts all blocks that llama.cpp plans for, also the last `n_layer_nextn` ones for next-token
    prediction (llama.cpp's `n_layer_all`); `n_layer_trunk` is without them (its `n_layer()`). Lengths are in
    elements. `known` is False where the architecture is not ported and the rule for dense decoders was used.
    What is not here can be had from the file with `value`.
    """

    arch: str
    known: bool
    facts: Architecture
    n_layer: int
    n_layer_nextn: int
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_embd_inp: int
    n_embd_out: int
    n_head: Counts
    n_head_kv: Counts
    n_ff: Counts
    n_embd_head_k: Counts
    n_embd_head_v: Counts
    n_rot: Counts
    causal_attn: bool

    n_expert: int
    n_expert_used: int  # of the first block, as its graphs take it; `_arr` is of each
    n_expert_used_arr: Counts
    n_ff_exp: int
    n_ff_exp_arr: Counts
    n_ff_shexp: int
    n_expert_shared: int
    n_expert_groups: int
    n_group_used: int
    n_layer_dense_lead: int
    n_moe_layer_step: int

    n_swa: int
    swa_type: WindowKind
    is_swa: Flags
    is_recr: Flags
    has_kv: Flags
    router_layer: int  # granite-switch's block without weights; -1: none

    n_lora_q: int
    n_lora_kv: int
    n_embd_head_k_mla: int
    n_embd_head_v_mla: int

    indexer_n_head: int
    indexer_head_size: int
    indexer_top_k: int
    indexer_kpool: int
    is_indexer_full: Flags
    dsv4_hc_mult: int
    dsv4_compress_ratios: Counts

    ssm_d_conv: int
    ssm_d_inner: int
    ssm_d_state: int
    ssm_dt_rank: int
    ssm_n_group: int
    n_embd_head_kda: int
    n_embd_head_la: int
    wkv_head_size: int
    token_shift_count: int
    n_shortconv_l_cache: int
    is_ple: Flags
    ple_conv_state: int

    header: Header

    @property
    def n_layer_trunk(self) -> int:
        """Blocks without those for next-token prediction."""
        return self.n_layer - self.n_layer_nextn

    @property
    def is_mla(self) -> bool:
        """Whether the cache holds one compressed row for a token, and no values."""
        return self.n_embd_head_k_mla != 0 and self.n_embd_head_v_mla != 0

    def value(self, key: str, default: Value | None = None) -> Value | None:
        """What the file says under the architecture's `key`, such as `expert_gating_func`."""
        return self.header.metadata.get(f"{self.arch}.{key}", default)

    def number(self, key: str, default: int = 0) -> int:
        """A number under the architecture's `key`; the default where there is none."""
        value = self.value(key, default)
        return value if isinstance(value, int) else default

    def n_embd_k_gqa(self, layer: int) -> int:
        """Elements of the keys that one layer keeps for a token."""
        return self.n_embd_head_k[layer] * self.n_head_kv[layer]

    def n_embd_v_gqa(self, layer: int) -> int:
        """Elements of the values that one layer keeps for a token."""
        return self.n_embd_head_v[layer] * self.n_head_kv[layer]

    @property
    def n_embd_v_gqa_max(self) -> int:
        """Elements of the values of the widest layer."""
        return max(map(self.n_embd_v_gqa, range(self.n_layer)))

    @property
    def n_embd_r(self) -> int:
        """Elements of a layer's rolling state (`llama_hparams::n_embd_r`)."""
        if self.wkv_head_size:
            return self.token_shift_count * self.n_embd
        if self.n_shortconv_l_cache:
            return self.n_embd * (self.n_shortconv_l_cache - 1)
        if self.n_embd_head_kda:
            return 3 * (self.ssm_d_conv - 1 if self.ssm_d_conv else 3) * self.n_head[0] * self.n_embd_head_kda
        return max(self.ssm_d_conv - 1, 0) * (self.ssm_d_inner + 2 * self.ssm_n_group * self.ssm_d_state)

    @property
    def n_embd_s(self) -> int:
        """Elements of a layer's recurrent state (`llama_hparams::n_embd_s`)."""
        if self.wkv_head_size:
            return self.n_embd * self.wkv_head_size
        if self.n_embd_head_kda:
            return self.n_embd_head_kda**2 * self.n_head[0]
        if self.n_embd_head_la:
            return self.n_embd_head_la**2 * self.n_head[0]
        return self.ssm_d_state * self.ssm_d_inner


def classify(header: Header) -> Kind:
    """What a GGUF file is for; only a `model` can be planned for.

    From `general.type` (gguf-py's `GGUFType`), and from the keys by which older files are known.
    """
    metadata = header.metadata
    arch = header.architecture
    named = _KINDS.get(str(metadata.get("general.type")))
    if arch == "clip" or named == "projector":
        return "projector"
    if named == "adapter" or "adapter.type" in metadata or arch == "controlvector":
        return "adapter"
    if named == "imatrix" or "imatrix.chunk_count" in metadata:
        return "imatrix"
    if arch is None or f"{arch}.block_count" not in metadata:
        return "vocabulary" if named == "vocabulary" or "tokenizer.ggml.model" in metadata else "unknown"
    # The first of several files may hold no tensors (`gguf-split --no-tensor-first-split`).
    return "model" if header.tensors or header.shard is not None else "vocabulary"


def read_hparams(header: Header) -> Hparams:
    """Hyper-parameters of the model that a header describes.

    A model in shards is given as the first one's header with the tensors of all. Raises ModelFileError where
    llama.cpp would refuse the file: a key is missing, or is no number, or a list is not as long as there are
    blocks.
    """
    arch = header.architecture
    if not arch:
        raise ModelFileError(header.path, "general.architecture is missing: no language model")
    keys = Keys(header, arch)
    facts = ARCHITECTURES.get(arch, PLAIN)
    blocks = _read_blocks(keys, facts, header)
    n_layer, n_layer_trunk = len(blocks.n_head), len(blocks.n_head) - blocks.n_nextn
    n_ctx_train = keys.required("context_length")
    n_embd = keys.required(facts.width_key)
    hc_mult = keys.number("hyper_connection.count")
    n_embd_out = keys.number("embedding_length_out") or n_embd
    if facts.streams_as_output:
        n_embd_out = hc_mult * n_embd
    heads = _read_heads(keys, facts, n_embd, blocks)
    n_vocab = _count_vocabulary(keys, header)
    ratios = _read_ratios(keys, facts, n_layer)
    kv_layers = n_layer if facts.kv_layers is None else facts.kv_layers
    if facts.borrows_listed:
        kv_layers = max(n_layer - keys.number("attention.shared_kv_layers"), 0)
    ple_layers = keys.listed("ple.layers") or ()
    ple_rows = max(keys.number("ple.conv_kernel") - 1, 0) * keys.number("ple.ngram_size")
    return Hparams(
        arch=arch,
        known=arch in ARCHITECTURES,
        facts=facts,
        n_layer=n_layer,
        n_layer_nextn=blocks.n_nextn,
        n_vocab=n_vocab,
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_embd_inp=n_embd_out if facts.drafts else n_embd * (1 + _deepstack_layers(keys)),
        n_embd_out=n_embd_out,
        n_head=blocks.n_head,
        n_head_kv=blocks.n_head_kv,
        n_ff=blocks.n_ff,
        n_embd_head_k=heads.k,
        n_embd_head_v=heads.v,
        n_rot=heads.rot,
        causal_attn=facts.causal and keys.get("attention.causal") is not False,
        n_expert=blocks.n_expert,
        n_expert_used=blocks.n_expert_used[0],
        n_expert_used_arr=blocks.n_expert_used,
        n_ff_exp=blocks.n_ff_exp[0],
        n_ff_exp_arr=blocks.n_ff_exp,
        n_ff_shexp=_shared_width(keys, facts, blocks.n_ff_exp),
        n_expert_shared=keys.number("expert_shared_count", facts.shared_experts),
        n_expert_groups=keys.number("expert_group_count"),
        n_group_used=keys.number("expert_group_used_count"),
        n_layer_dense_lead=n_layer if facts.all_dense else keys.number("leading_dense_block_count"),
        n_moe_layer_step=keys.number("interleave_moe_layer_step"),
        n_swa=blocks.n_swa,
        swa_type=blocks.swa_type,
        is_swa=blocks.is_swa,
        is_recr=blocks.is_recr,
        has_kv=tuple(layer < kv_layers for layer in range(n_layer)),
        router_layer=blocks.router_layer,
        n_lora_q=0 if _is_lite(facts, n_layer_trunk, n_vocab) else keys.number("attention.q_lora_rank"),
        n_lora_kv=keys.number("attention.kv_lora_rank"),
        n_embd_head_k_mla=keys.number("attention.key_length_mla") if facts.latent else 0,
        n_embd_head_v_mla=keys.number("attention.value_length_mla") if facts.latent else 0,
        indexer_n_head=keys.number("attention.indexer.head_count"),
        indexer_head_size=keys.number("attention.indexer.key_length"),
        indexer_top_k=keys.number("attention.indexer.top_k"),
        indexer_kpool=max(ratios) if facts.condensing == "pools" else keys.number("attention.indexer.kpool"),
        is_indexer_full=_indexed_layers(keys, facts, n_layer, n_layer_trunk, n_ctx_train),
        dsv4_hc_mult=hc_mult,
        dsv4_compress_ratios=ratios,
        ssm_d_conv=keys.number("ssm.conv_kernel"),
        ssm_d_inner=keys.number("ssm.inner_size"),
        ssm_d_state=keys.number("ssm.state_size"),
        ssm_dt_rank=keys.number("ssm.time_step_rank"),
        ssm_n_group=keys.number("ssm.group_count") if facts.ssm_groups else 0,
        n_embd_head_kda=keys.number("kda.head_dim"),
        n_embd_head_la=heads.k[0] if facts.linear_heads else 0,
        wkv_head_size=keys.number("wkv.head_size"),
        token_shift_count=keys.number("token_shift_count", 2),
        n_shortconv_l_cache=keys.number("shortconv.l_cache"),
        is_ple=tuple(layer in ple_layers for layer in range(n_layer)),
        ple_conv_state=ple_rows * hc_mult * n_embd,
        header=header,
    )


class _Blocks(NamedTuple):
    """What differs between blocks."""

    n_nextn: int
    n_head: Counts
    n_head_kv: Counts
    n_ff: Counts
    n_ff_exp: Counts
    n_expert: int
    n_expert_used: Counts
    is_recr: Flags
    n_swa: int
    swa_type: WindowKind
    is_swa: Flags
    router_layer: int = -1

    def with_router(self) -> _Blocks:
        """With one more block, of one head, that routes between adapters (models/granite-switch.cpp)."""
        return self._replace(
            n_nextn=1,
            n_head=(*self.n_head, 1),
            n_head_kv=(*self.n_head_kv, 1),
            n_ff=(*self.n_ff, 0),
            n_ff_exp=(*self.n_ff_exp, 0),
            n_expert_used=(*self.n_expert_used, 0),
            is_recr=(*self.is_recr, False),
            is_swa=(*self.is_swa, False),
            router_layer=len(self.n_head),
        )

    def repeated(self, times: int) -> _Blocks:
        """All of them several times, each time with a cache of its own (models/nanbeige.cpp)."""
        return self._replace(
            n_head=self.n_head * times,
            n_head_kv=self.n_head_kv * times,
            n_ff=self.n_ff * times,
            n_ff_exp=self.n_ff_exp * times,
            n_expert_used=self.n_expert_used * times,
            is_recr=self.is_recr * times,
            is_swa=self.is_swa * times,
        )


class _Heads(NamedTuple):
    """Sizes of one head in each block."""

    k: Counts
    v: Counts
    rot: Counts


def _read_blocks(keys: Keys, facts: Architecture, header: Header) -> _Blocks:
    n = _check_blocks(keys, "block_count", keys.required("block_count"))
    n_nextn = keys.number("nextn_predict_layers")
    if n_nextn > n:
        raise keys.refuse("nextn_predict_layers", f"is {n_nextn}, more than there are blocks")
    if facts.nextn_probe and n_nextn:
        probe = f"blk.{n - n_nextn}.{facts.nextn_probe}"
        n_nextn = n_nextn if any(tensor.name == probe for tensor in header.tensors) else 0
    zeros = (0,) * n
    n_expert, n_expert_used = _read_experts(keys, facts, n)
    n_head = keys.each("attention.head_count", n, zeros)
    n_head_kv = keys.each("attention.head_count_kv", n, n_head)
    n_ff = keys.each("feed_forward_length", n, zeros)
    is_recr = _recurrent_layers(keys, facts, n_nextn, n_head_kv, n_ff)
    n_swa, swa_type, is_swa = _read_window(keys, facts, n_nextn, is_recr)
    n_ff_exp = keys.each("expert_feed_forward_length", n, zeros)
    blocks = _Blocks(
        n_nextn, n_head, n_head_kv, n_ff, n_ff_exp, n_expert, n_expert_used, is_recr, n_swa, swa_type, is_swa
    )
    if facts.router_block:
        return blocks.with_router()
    if facts.runs_in_loops:
        loops = keys.number("num_loops", 1)
        _check_blocks(keys, "num_loops", n * loops)
        return blocks.repeated(loops)
    return blocks


def _check_blocks(keys: Keys, key: str, count: int) -> int:
    if 0 < count <= MAX_BLOCKS:
        return count
    raise keys.refuse(key, f"makes {count} blocks; llama.cpp takes 1 to {MAX_BLOCKS}")


def _read_experts(keys: Keys, facts: Architecture, n: int) -> tuple[int, Counts]:
    """How many experts there are, and how many a token uses in each block (`load_hparams`)."""
    n_expert = keys.number("expert_count")
    used = keys.each("expert_used_count", n, (0,) * n)
    if facts.one_expert_is_none and n_expert <= 1:
        return 0, (0,) * n
    if n_expert > MAX_EXPERTS:
        raise keys.refuse("expert_count", f"is {n_expert}; llama.cpp takes up to {MAX_EXPERTS}")
    if max(used) > n_expert or (n_expert and not max(used)):
        raise keys.refuse("expert_used_count", f"is {max(used)} of {n_expert} experts")
    return n_expert, used


def _recurrent_layers(keys: Keys, facts: Architecture, n_nextn: int, n_head_kv: Counts, n_ff: Counts) -> Flags:
    """Which blocks keep a recurrent state (`is_recr_impl`)."""
    n = len(n_head_kv)
    n_trunk = n - n_nextn
    if facts.recurrence == "all":
        return (True,) * n
    if facts.recurrence == "no-kv-heads":
        last = n if facts.nextn_recurrent else n_trunk
        return tuple(layer < last and n_head_kv[layer] == 0 for layer in range(n))
    if facts.recurrence == "no-kv-heads-nor-ff":
        return tuple(layer < n_trunk and n_head_kv[layer] == n_ff[layer] == 0 for layer in range(n))
    if facts.recurrence == "interval":
        if keys.get("attention.recurrent_layers") is not None:
            return tuple(item != 0 for item in keys.each("attention.recurrent_layers", n, ()))
        interval = keys.number("full_attention_interval", facts.interval)
        if not interval:
            raise keys.refuse("full_attention_interval", "is 0")
        return tuple(layer < n_trunk and (layer + 1) % interval != 0 for layer in range(n))
    return (False,) * n


def _read_window(keys: Keys, facts: Architecture, n_nextn: int, is_recr: Flags) -> tuple[int, WindowKind, Flags]:
    """The width of the sliding window, its kind, and the blocks that have it."""
    window, none = facts.window, (False,) * len(is_recr)
    if window is None or (window.only_blocks and window.only_blocks != len(is_recr) - n_nextn):
        return 0, "none", none
    key = "attention.sliding_window"
    n_swa = keys.required(key) if window.size is None else keys.number(key, window.size)
    if window.switchable and not n_swa:
        return 0, "none", none
    return window.fixed or n_swa, window.kind, _windowed_layers(keys, window, n_nextn, is_recr)


def _windowed_layers(keys: Keys, window: Window, n_nextn: int, is_recr: Flags) -> Flags:
    """The blocks with a sliding window (`load_swa_pattern`, `llama_hparams::set_swa_pattern`)."""
    n = len(is_recr)
    has_streams = window.all_with_streams and keys.number("hyper_connection.count") > 0
    if window.period == 0 or has_streams:
        return tuple(not recurrent for recurrent in is_recr)
    key = "attention.sliding_window_pattern"
    listed = keys.flags(key, n)
    if listed is not None:
        return listed
    if window.period is None:
        raise keys.refuse(key, "is missing, or no list")
    period = keys.number(key, window.period)
    if period == 0:
        return (True,) * (n - n_nextn) + (False,) * n_nextn
    dense = 0 if window.dense_first else period - 1
    return tuple(layer < n - n_nextn and layer % period != dense for layer in range(n))


def _read_heads(keys: Keys, facts: Architecture, n_embd: int, blocks: _Blocks) -> _Heads:
    """The sizes of heads: one for all blocks, and one for those with a window (`load_hparams`)."""
    k = v = rot = 0
    if blocks.n_head[0]:
        k = keys.number("attention.key_length", n_embd // blocks.n_head[0])
        v = keys.number("attention.value_length", n_embd // blocks.n_head[0])
        rot = keys.number("rope.dimension_count", k)
    k_swa = keys.number("attention.key_length_swa", k)
    v_swa = keys.number("attention.value_length_swa", v)
    rot_swa = keys.number("rope.dimension_count_swa", rot)
    if facts.half_rope:
        rot //= 2
    if facts.latent_values:
        v = keys.number("attention.kv_lora_rank")
    return _Heads(
        tuple(k_swa if swa else k for swa in blocks.is_swa),
        tuple(v_swa if swa else v for swa in blocks.is_swa),
        tuple(rot_swa if swa else rot for swa in blocks.is_swa),
    )


def _read_ratios(keys: Keys, facts: Architecture, n_layer: int) -> Counts:
    """How many tokens each block condenses into one (`dsv4_compress_ratios`); 0: it does not."""
    key = "attention.compress_ratios"
    if facts.condensing == "pools":
        return keys.each(key, n_layer, (0,) * n_layer)
    listed = (keys.listed(key) or ())[:n_layer]
    if facts.condensing == "every-block" and len(listed) < n_layer:
        raise keys.refuse(key, f"has {len(listed)} entries for {n_layer} blocks")
    return listed + (0,) * (n_layer - len(listed))


def _indexed_layers(keys: Keys, facts: Architecture, n_layer: int, n_layer_trunk: int, n_ctx_train: int) -> Flags:
    """The layers with an indexer of their own, where others use the last one's choice (`is_indexer_full_impl`)."""
    types = "attention.indexer.types"
    if facts.indexers == "flags":
        return keys.flags(types, n_layer) or (False,) * n_layer
    if keys.get(types) is not None:
        listed = keys.each(types, n_layer_trunk, ())
        return tuple(item != 0 for item in listed) + (False,) * (n_layer - n_layer_trunk)
    if facts.indexers == "all-or-glm-5.2" and n_ctx_train >= GLM_5_2_CONTEXT:
        return (GLM_5_2_INDEXERS + (False,) * n_layer)[:n_layer]
    return (facts.indexers != "none",) * n_layer


def _count_vocabulary(keys: Keys, header: Header) -> int:
    """The number of tokens: what `token_embd.weight` has rows for, or else what the metadata says."""
    for tensor in header.tensors:
        if tensor.name == "token_embd.weight" and len(tensor.shape) > 1:
            return tensor.shape[1]
    return keys.number("vocab_size")


def _shared_width(keys: Keys, facts: Architecture, n_ff_exp: Counts) -> int:
    """The width of the experts that every token passes (`n_ff_shexp`)."""
    width = keys.number("expert_shared_feed_forward_length")
    if width or facts.shared_width == "none":
        return width
    count = keys.number("expert_shared_count", facts.shared_experts)
    return n_ff_exp[0] * (max(count, 1) if facts.shared_width == "one-or-counted" else count)


def _deepstack_layers(keys: Keys) -> int:
    """How many embeddings of an image's details come beside those of a token (`n_deepstack_layers`)."""
    mapping = keys.get("deepstack_mapping")  # of each block, -1: none
    if isinstance(mapping, list):
        return len({item for item in mapping if isinstance(item, int) and item >= 0})
    return keys.number("n_deepstack_layers")


def _is_lite(facts: Architecture, n_layer_trunk: int, n_vocab: int) -> bool:
    """Whether DeepSeek-V2's loader leaves out the rank of queries (`is_lite` in models/deepseek2.cpp)."""
    if not facts.no_rank_when_small:
        return False
    return n_layer_trunk in (26, 27) or (n_layer_trunk == 48 and n_vocab == 128256)
