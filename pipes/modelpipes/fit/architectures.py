"""What sets one model architecture apart from another for its memory: a table, after llama.cpp b11434.

An architecture that stands here has been compared with llama.cpp's loader (`models/*.cpp`). One that llama.cpp
treats like any dense decoder has an empty entry; one that does not stand here is taken for such a decoder. Its graph
is in `compute/`; nothing else asks for an architecture by its name.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

Memory = Literal["none", "kv", "recurrent", "hybrid", "hybrid-indexed", "msa", "dsa", "dsv4"]
WindowKind = Literal["none", "standard", "chunked", "symmetric"]
Recurrence = Literal["none", "all", "no-kv-heads", "no-kv-heads-nor-ff", "interval"]
# How many tokens a block condenses into one: as far as the file lists it, listed for each block, or pools of one size.
Condensing = Literal["as-listed", "every-block", "pools"]
# Which layers have an indexer of their own where the file does not say; of `flags` it says so for each block.
Indexers = Literal["none", "all", "all-or-glm-5.2", "flags"]
# How many numbers tell where a token is (`llama_model_rope_type`): four where pictures have rows and columns.
Positions = Literal["one", "four", "by-sections"]
# The width of the experts that every token passes, where the file does not say: none, or that of so many experts.
SharedWidth = Literal["none", "counted", "one-or-counted"]


class Window(Struct, frozen=True):
    """Which layers attend to a sliding window (`load_swa_pattern`), and how wide it is.

    One of `period` layers is dense: the last or (`dense_first`) the first of them; 0: every layer that attends has
    the window; None: the file lists the layers. `size` is the width where the file gives none; None: it must.
    `switchable`: a width of 0 means that there is no window. `fixed` is the width whatever the file says.
    `only_blocks`: the window is used in models of so many blocks alone. `all_with_streams`: with hyper-connections
    every layer has the window (is_dspark in models/dflash.cpp).
    """

    period: int | None = None
    dense_first: bool = False
    size: int | None = None
    switchable: bool = False
    fixed: int = 0
    only_blocks: int = 0
    all_with_streams: bool = False
    kind: WindowKind = "standard"


class Architecture(Struct, frozen=True):
    """What llama.cpp does for one architecture that it does not do for all.

    `latent`: the loader reads the sizes of multi-head latent attention. `recurrence` says which layers keep a
    state. `kv_layers` counts the first layers that keep keys and values, where the others borrow theirs.
    `ties_output`: without an output matrix a copy of the input's is made.
    `embedding_copy`: a tied output is made first, so that it is never shared with the input. `nextn_loaded`
    names what is loaded of blocks for next-token prediction, which else are skipped; they count only where the
    first of them has `nextn_probe`. `drafts`: it reads the embeddings of a target model, and uses its caches.
    The others have their meaning beside them, with the file of llama.cpp's src/ that they are from.
    """

    memory: Memory = "kv"
    window: Window | None = None
    recurrence: Recurrence = "none"
    interval: int = 0
    latent: bool = False
    causal: bool = True
    kv_layers: int | None = None
    ties_output: bool = True
    embedding_copy: bool = False
    nextn_loaded: tuple[str, ...] = ()
    nextn_probe: str = ""
    drafts: bool = False

    # Its hyper-parameters (models/*.cpp, `load_arch_hparams`).
    width_key: str = "embedding_length"
    streams_as_output: bool = False  # the output has a row for each hyper-connection
    borrows_listed: bool = False  # the file counts the last layers that keep no keys and values
    router_block: bool = False  # one more block, of one head, routes between adapters
    runs_in_loops: bool = False  # its blocks run several times, each time with a cache of their own
    one_expert_is_none: bool = False  # a model that counts one expert has none
    all_dense: bool = False  # no layer has experts
    shared_experts: int = 0  # where the file does not count them
    shared_width: SharedWidth = "none"
    no_rank_when_small: bool = False  # the lite models' queries are not compressed (is_lite)
    half_rope: bool = False  # layers without a window turn half of what the file says
    latent_values: bool = False  # values are as wide as the compressed row
    condensing: Condensing = "as-listed"
    indexers: Indexers = "none"
    ssm_groups: bool = True
    linear_heads: bool = False  # the state of linear attention has the size of a head, squared

    # Where its weights go (models/*.cpp, `load_arch_tensors`).
    input_from_output: bool = False  # one matrix for both, under the output's name
    input_as_output: bool = False  # the output is computed with the input's matrix as it lies, not with a copy
    norm_at_output: bool = False  # what is called the embeddings' norm is the output's (LLM_TENSOR_OUTPUT_NORM_LFM2)
    rope_tables: Literal["trunk", "all", "dense"] = "trunk"  # layers whose loader asks for them

    # Its caches (llama-model.cpp, `create_memory`; `llama_init_from_model`).
    flash_attention: bool = True
    nextn_recurrent: bool = False  # blocks for next-token prediction may keep a state
    nextn_attends: bool = True  # and those of a hybrid model that keep none have keys and values
    nextn_cached: bool = False  # so do they in a sparse one
    indexed_always: bool = False  # every layer has an indexer, whatever the file says
    indexer_optional: bool = False  # without a number of cells to choose there is none
    indexer_rows: int = 3  # of a cell of pools: key, gate and pooled key (`indexer_kpool_row`)

    # Its graph (models/*.cpp).
    positions: Positions = "one"
    mixed_batches: bool = True  # of tokens and embeddings (`llm_arch_supports_mixed_batch`)
    scaled_experts: bool = False  # `build_moe_ffn` is given the experts' scales (NVFP4 files have them, and Gemma 4's)
    growing: bool = False  # every block leaves something behind: the later ones need more than the first ones show
    approximate: bool = False  # it leans on another model: the general graph stands in, some hundred MiB off


LISTED_LAYERS = Window()
ENCODER = Architecture(memory="none", ties_output=False)
DIFFUSION = Architecture(memory="none", causal=False)
RECURRENT = Architecture(memory="recurrent", recurrence="all")
HYBRID = Architecture(memory="hybrid", recurrence="no-kv-heads")
LATENT_HYBRID = replace(HYBRID, latent=True)
DELTA = Architecture(memory="hybrid", recurrence="interval", interval=4, nextn_attends=False)
NEMOTRON_H = Architecture(memory="hybrid", recurrence="no-kv-heads-nor-ff", scaled_experts=True)
LATENT = Architecture(latent=True, no_rank_when_small=True)
INDEXED = Architecture(memory="dsa", latent=True)
PICTURES = Architecture(positions="four")
PICTURES_BY_SECTIONS = Architecture(positions="by-sections")
SCALED = Architecture(scaled_experts=True)

NEXTN_FFN = ("ffn_gate", "ffn_down", "ffn_up", "exp_probs_b")
NEXTN_EMBEDDINGS = ("nextn.embed_tokens", "nextn.shared_head_head", "nextn.shared_head_norm")

# Dense decoders and mixtures of experts with plain attention.
PLAIN_ARCHITECTURES = [
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm",
    "command-r", "dbrx", "deci", "deepseek", "deepseek2-ocr", "dots1", "ernie4_5", "ernie4_5-moe", "exaone",
    "falcon", "gemma", "gpt2", "gptneox", "granite", "granitemoe", "grovemoe", "hrm_text", "hunyuan-moe",
    "internlm2", "jais", "jais2", "llama-embed", "maincoder", "minicpm", "minicpm3", "minimax-m2", "mpt",
    "nemotron", "olmo", "olmoe", "openelm", "orion", "pangu-embedded", "phi2", "phi3", "phimoe", "plamo", "plm",
    "pockettts", "qwen", "qwen2", "qwen2moe", "qwen3", "refact", "seed_oss", "smollm3", "stablelm", "starcoder",
    "starcoder2", "t5", "t5encoder", "talkie", "xverse",
]  # fmt: skip

PLAIN = Architecture()

ARCHITECTURES: dict[str, Architecture] = dict.fromkeys(PLAIN_ARCHITECTURES, PLAIN) | {
    # Plain but for what their entries say.
    "codeshell": Architecture(input_from_output=True),
    "cogvlm": Architecture(mixed_batches=False),
    "glm4": PICTURES_BY_SECTIONS,
    "glm4moe": PICTURES_BY_SECTIONS,
    "graniteswitch": Architecture(router_block=True, mixed_batches=False, approximate=True),
    "grok": Architecture(flash_attention=False),
    "hunyuan-dense": Architecture(one_expert_is_none=True),
    "hunyuan_vl": Architecture(one_expert_is_none=True, positions="by-sections"),
    "llama": SCALED,
    "mistral3": SCALED,
    "nanbeige": Architecture(runs_in_loops=True),
    "paddleocr": PICTURES,
    "qwen2vl": PICTURES,
    "qwen3moe": SCALED,
    "qwen3tts": PICTURES,
    "qwen3vl": PICTURES,
    "qwen3vlmoe": PICTURES,
    # Their input is their output, or they have none.
    "bitnet": Architecture(ties_output=False, input_as_output=True),
    "eagle3": Architecture(ties_output=False, mixed_batches=False, approximate=True),
    # Encoders and diffusion models: nothing is kept between batches.
    "bert": ENCODER,
    "eurobert": ENCODER,
    "jina-bert-v2": ENCODER,
    "jina-bert-v3": ENCODER,
    "neo-bert": ENCODER,
    "nomic-bert": ENCODER,
    "nomic-bert-moe": ENCODER,
    "wavtokenizer-dec": replace(ENCODER, width_key="features_length"),
    "gemma-embedding": Architecture(memory="none", window=Window(6, kind="symmetric"), causal=False),
    "modern-bert": Architecture(
        memory="none",
        window=Window(3, dense_first=True, size=0, switchable=True, kind="symmetric"),
        ties_output=False,
    ),
    "clef": Architecture(memory="none", recurrence="interval", interval=4, positions="four"),
    "dream": DIFFUSION,
    "llada": DIFFUSION,
    "llada-moe": DIFFUSION,
    "rnd1": DIFFUSION,
    # Sliding windows.
    "afmoe": Architecture(window=Window(4, size=0, switchable=True)),
    "cohere2": Architecture(window=Window(4)),
    "cohere2moe": Architecture(window=Window(4, dense_first=True), nextn_loaded=NEXTN_EMBEDDINGS, scaled_experts=True),
    "dflash": Architecture(
        window=Window(size=0, switchable=True, all_with_streams=True), mixed_batches=False, approximate=True
    ),
    "exaone-moe": Architecture(window=Window(4)),
    "exaone4": Architecture(window=Window(4, size=4096, only_blocks=64)),
    "gemma2": Architecture(window=Window(2, size=4096)),
    "gemma3": Architecture(window=Window(6, size=0, switchable=True)),
    "gemma3n": Architecture(window=Window(5), kv_layers=20, embedding_copy=True),
    "gemma4": Architecture(
        window=LISTED_LAYERS, embedding_copy=True, borrows_listed=True, rope_tables="dense", scaled_experts=True
    ),
    "gemma4-assistant": Architecture(window=LISTED_LAYERS, drafts=True, rope_tables="dense", mixed_batches=False),
    "gpt-oss": Architecture(window=Window(2)),
    "granite_swa": Architecture(window=LISTED_LAYERS),
    "laguna": Architecture(
        window=Window(4, dense_first=True, size=0, switchable=True), shared_experts=1, shared_width="counted"
    ),
    "llama4": Architecture(window=Window(4, size=8192, switchable=True, fixed=8192, kind="chunked")),
    "maple": Architecture(window=LISTED_LAYERS),
    "mellum": Architecture(window=Window(4, size=0, switchable=True), scaled_experts=True),
    "mimo2": Architecture(window=LISTED_LAYERS),
    "muse-glimmer": Architecture(window=Window(4)),
    "olmo2": Architecture(window=Window(4, size=0, switchable=True)),
    "plamo3": Architecture(window=Window(8, size=0, switchable=True)),
    "smallthinker": Architecture(window=Window(4, dense_first=True, size=0, switchable=True, fixed=4096)),
    "spark2_5": Architecture(window=LISTED_LAYERS),
    "step35": Architecture(
        window=LISTED_LAYERS,
        nextn_loaded=("attn_q_norm", "attn_k_norm", "attn_gate", *NEXTN_FFN, *NEXTN_EMBEDDINGS),
        half_rope=True,
        rope_tables="all",
    ),
    "hy_v3": Architecture(nextn_loaded=(*NEXTN_FFN, *NEXTN_EMBEDDINGS), scaled_experts=True),
    # Latent attention.
    "deepseek2": LATENT,
    "mistral4": LATENT,
    "hy_v4": replace(INDEXED, nextn_cached=True, indexer_optional=True),
    "deepseek32": replace(
        INDEXED, nextn_loaded=("exp_probs_b",), indexers="all", indexed_always=True, scaled_experts=True
    ),
    "glm-dsa": replace(INDEXED, nextn_loaded=("exp_probs_b",), indexers="all-or-glm-5.2", scaled_experts=True),
    "dots3note": replace(INDEXED, window=LISTED_LAYERS, indexers="flags", scaled_experts=True),
    "deepseek4": Architecture(
        memory="dsv4",
        window=Window(0),
        nextn_probe="nextn.eh_proj.weight",
        streams_as_output=True,
        condensing="every-block",
        mixed_batches=False,
        growing=True,
    ),
    "minimax-m3": Architecture(memory="msa"),
    # Recurrent models, and such as mix recurrent layers with attention.
    "arwkv7": RECURRENT,
    "mamba": replace(RECURRENT, ssm_groups=False),
    "mamba2": RECURRENT,
    "rwkv6": RECURRENT,
    "rwkv6qwen2": RECURRENT,
    "rwkv7": RECURRENT,
    "falcon-h1": Architecture(memory="hybrid", recurrence="all"),
    "granitehybrid": HYBRID,
    "jamba": replace(HYBRID, ssm_groups=False),
    "lfm2": replace(HYBRID, window=Window(0, size=0, switchable=True), all_dense=True, norm_at_output=True),
    "lfm2moe": replace(HYBRID, norm_at_output=True),
    "plamo2": HYBRID,
    "minimax-01": replace(DELTA, interval=8, linear_heads=True),
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": NEMOTRON_H,
    "qwen35": replace(DELTA, positions="four"),
    "qwen35moe": replace(DELTA, positions="four", scaled_experts=True),
    "qwen3next": replace(DELTA, scaled_experts=True),
    "qwen4exp": replace(
        DELTA,
        memory="hybrid-indexed",
        streams_as_output=True,
        condensing="pools",
        indexed_always=True,
        indexer_rows=2,  # it has no gate
        positions="four",
        scaled_experts=True,
        growing=True,
    ),
    "bailingmoe3": replace(LATENT_HYBRID, shared_width="one-or-counted", positions="by-sections"),
    "kimi-linear": LATENT_HYBRID,
    "kimi-k3": replace(LATENT_HYBRID, latent_values=True, growing=True),
    "glm5-next": replace(
        LATENT_HYBRID,
        memory="hybrid-indexed",
        latent_values=True,
        indexers="all",
        nextn_recurrent=True,
        nextn_attends=False,
        growing=True,
    ),
}
