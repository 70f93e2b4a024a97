"""What sets one model architecture apart from another for its memory: a table, after llama.cpp b11434.

An architecture that stands here has been compared with llama.cpp's loader (`models/*.cpp`). One that llama.cpp
treats like any dense decoder has an empty entry; one that does not stand here is taken for such a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Memory = Literal["none", "kv", "recurrent", "hybrid", "hybrid-indexed", "msa", "dsa", "dsv4"]
WindowKind = Literal["none", "standard", "chunked", "symmetric"]
Recurrence = Literal["none", "all", "no-kv-heads", "no-kv-heads-nor-ff", "interval"]


@dataclass(frozen=True, slots=True)
class Window:
    """Which layers attend to a sliding window (`load_swa_pattern`), and how wide it is.

    One of `period` layers is dense: the last or (`dense_first`) the first of them; 0: every layer that attends has
    the window; None: the file lists the layers. `size` is the width where the file gives none; None: it must.
    `switchable`: a width of 0 means that there is no window. `fixed` is the width whatever the file says.
    `only_blocks`: the window is used in models of so many blocks alone.
    """

    period: int | None = None
    dense_first: bool = False
    size: int | None = None
    switchable: bool = False
    fixed: int = 0
    only_blocks: int = 0
    kind: WindowKind = "standard"


@dataclass(frozen=True, slots=True)
class Architecture:
    """What llama.cpp does for one architecture that it does not do for all.

    `latent`: the loader reads the sizes of multi-head latent attention. `recurrence` says which layers keep a
    state. `kv_layers` counts the first layers that keep keys and values, where the others borrow theirs.
    `ties_output`: without an output matrix a copy of the input's is made.
    `embedding_copy`: a tied output is made first, so that it is never shared with the input. `nextn_loaded`
    names what is loaded of blocks for next-token prediction, which else are skipped.
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


LISTED_LAYERS = Window()
UNTIED = Architecture(ties_output=False)
ENCODER = Architecture(memory="none", ties_output=False)
DIFFUSION = Architecture(memory="none", causal=False)
RECURRENT = Architecture(memory="recurrent", recurrence="all")
HYBRID = Architecture(memory="hybrid", recurrence="no-kv-heads")
DELTA = Architecture(memory="hybrid", recurrence="interval", interval=4)
NEMOTRON_H = Architecture(memory="hybrid", recurrence="no-kv-heads-nor-ff")
LATENT = Architecture(latent=True)

NEXTN_FFN = ("ffn_gate", "ffn_down", "ffn_up", "exp_probs_b")
NEXTN_EMBEDDINGS = ("nextn.embed_tokens", "nextn.shared_head_head", "nextn.shared_head_norm")

# Dense decoders and mixtures of experts with plain attention.
PLAIN_ARCHITECTURES = [
    "apertus", "arcee", "arctic", "baichuan", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm",
    "codeshell", "cogvlm", "command-r", "dbrx", "deci", "deepseek", "deepseek2-ocr", "dots1", "ernie4_5",
    "ernie4_5-moe", "exaone", "falcon", "gemma", "glm4", "glm4moe", "gpt2", "gptneox", "granite", "granitemoe",
    "graniteswitch", "grok", "grovemoe", "hrm_text", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl", "internlm2",
    "jais", "jais2", "llama", "llama-embed", "maincoder", "minicpm", "minicpm3", "minimax-m2", "mistral3",
    "mpt", "nanbeige", "nemotron", "olmo", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded", "phi2",
    "phi3", "phimoe", "plamo", "plm", "pockettts", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3", "qwen3moe",
    "qwen3tts", "qwen3vl", "qwen3vlmoe", "refact", "seed_oss", "smollm3", "stablelm", "starcoder", "starcoder2",
    "t5", "t5encoder", "talkie", "xverse",
]  # fmt: skip

PLAIN = Architecture()

ARCHITECTURES: dict[str, Architecture] = dict.fromkeys(PLAIN_ARCHITECTURES, PLAIN) | {
    # Their input is their output, or they have none.
    "bitnet": UNTIED,
    "eagle3": UNTIED,
    # Encoders and diffusion models: nothing is kept between batches.
    "bert": ENCODER,
    "eurobert": ENCODER,
    "jina-bert-v2": ENCODER,
    "jina-bert-v3": ENCODER,
    "neo-bert": ENCODER,
    "nomic-bert": ENCODER,
    "nomic-bert-moe": ENCODER,
    "wavtokenizer-dec": ENCODER,
    "gemma-embedding": Architecture(memory="none", window=Window(6, kind="symmetric"), causal=False),
    "modern-bert": Architecture(
        memory="none",
        window=Window(3, dense_first=True, size=0, switchable=True, kind="symmetric"),
        ties_output=False,
    ),
    "clef": Architecture(memory="none", recurrence="interval", interval=4),
    "dream": DIFFUSION,
    "llada": DIFFUSION,
    "llada-moe": DIFFUSION,
    "rnd1": DIFFUSION,
    # Sliding windows.
    "afmoe": Architecture(window=Window(4, size=0, switchable=True)),
    "cohere2": Architecture(window=Window(4)),
    "cohere2moe": Architecture(window=Window(4, dense_first=True), nextn_loaded=NEXTN_EMBEDDINGS),
    "dflash": Architecture(window=Window(size=0, switchable=True)),
    "exaone-moe": Architecture(window=Window(4)),
    "exaone4": Architecture(window=Window(4, size=4096, only_blocks=64)),
    "gemma2": Architecture(window=Window(2, size=4096)),
    "gemma3": Architecture(window=Window(6, size=0, switchable=True)),
    "gemma3n": Architecture(window=Window(5), kv_layers=20, embedding_copy=True),
    "gemma4": Architecture(window=LISTED_LAYERS, embedding_copy=True),
    "gemma4-assistant": Architecture(window=LISTED_LAYERS),
    "gpt-oss": Architecture(window=Window(2)),
    "granite_swa": Architecture(window=LISTED_LAYERS),
    "laguna": Architecture(window=Window(4, dense_first=True, size=0, switchable=True)),
    "llama4": Architecture(window=Window(4, size=8192, switchable=True, fixed=8192, kind="chunked")),
    "maple": Architecture(window=LISTED_LAYERS),
    "mellum": Architecture(window=Window(4, size=0, switchable=True)),
    "mimo2": Architecture(window=LISTED_LAYERS),
    "muse-glimmer": Architecture(window=Window(4)),
    "olmo2": Architecture(window=Window(4, size=0, switchable=True)),
    "plamo3": Architecture(window=Window(8, size=0, switchable=True)),
    "smallthinker": Architecture(window=Window(4, dense_first=True, size=0, switchable=True, fixed=4096)),
    "spark2_5": Architecture(window=LISTED_LAYERS),
    "step35": Architecture(
        window=LISTED_LAYERS,
        nextn_loaded=("attn_q_norm", "attn_k_norm", "attn_gate", *NEXTN_FFN, *NEXTN_EMBEDDINGS),
    ),
    "hy_v3": Architecture(nextn_loaded=(*NEXTN_FFN, *NEXTN_EMBEDDINGS)),
    # Latent attention.
    "deepseek2": LATENT,
    "mistral4": LATENT,
    "hy_v4": Architecture(memory="dsa", latent=True),
    "deepseek32": Architecture(memory="dsa", latent=True, nextn_loaded=("exp_probs_b",)),
    "glm-dsa": Architecture(memory="dsa", latent=True, nextn_loaded=("exp_probs_b",)),
    "dots3note": Architecture(memory="dsa", latent=True, window=LISTED_LAYERS),
    "deepseek4": Architecture(memory="dsv4", window=Window(0)),
    "minimax-m3": Architecture(memory="msa"),
    # Recurrent models, and such as mix recurrent layers with attention.
    "arwkv7": RECURRENT,
    "mamba": RECURRENT,
    "mamba2": RECURRENT,
    "rwkv6": RECURRENT,
    "rwkv6qwen2": RECURRENT,
    "rwkv7": RECURRENT,
    "falcon-h1": Architecture(memory="hybrid", recurrence="all"),
    "granitehybrid": HYBRID,
    "jamba": HYBRID,
    "lfm2": Architecture(memory="hybrid", recurrence="no-kv-heads", window=Window(0, size=0, switchable=True)),
    "lfm2moe": HYBRID,
    "plamo2": HYBRID,
    "minimax-01": Architecture(memory="hybrid", recurrence="interval", interval=8),
    "nemotron_h": NEMOTRON_H,
    "nemotron_h_moe": NEMOTRON_H,
    "qwen35": DELTA,
    "qwen35moe": DELTA,
    "qwen3next": DELTA,
    "qwen4exp": Architecture(memory="hybrid-indexed", recurrence="interval", interval=4),
    "bailingmoe3": Architecture(memory="hybrid", recurrence="no-kv-heads", latent=True),
    "kimi-linear": Architecture(memory="hybrid", recurrence="no-kv-heads", latent=True),
    "kimi-k3": Architecture(memory="hybrid", recurrence="no-kv-heads", latent=True),
    "glm5-next": Architecture(memory="hybrid-indexed", recurrence="no-kv-heads", latent=True),
}
