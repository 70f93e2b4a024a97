"""Header-only model files of many architectures, with the hyper-parameters of public models.

    python -m tests.fit.archs OUTDIR [NAME...]

Like `shapes.py`, whose technique this is: a complete header, and a hole for the weights.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.fit.archs_shape import Block, Shape
from tests.fit.shapes import Metadata, Mix, write_model

NORMS = "attn_norm E; ffn_norm E;"
BIASED_NORMS = "attn_norm E; attn_norm.b E; ffn_norm E; ffn_norm.b E;"
ATTENTION = "attn_q E Q; attn_k E K; attn_v E V; attn_output O E;"
QKV_BIAS = "attn_q.b Q; attn_k.b K; attn_v.b V;"
HEAD_NORMS = "attn_q_norm H; attn_k_norm H;"
FUSED = "attn_qkv E Q+K+V; attn_output O E;"
FFN = "ffn_gate E F; ffn_up E F; ffn_down F E;"
UP_DOWN = "ffn_up E F; ffn_down F E;"
UP_DOWN_BIAS = "ffn_up.b F; ffn_down.b E;"
EXPERTS = "ffn_gate_inp E X; ffn_gate_exps E M X; ffn_up_exps E M X; ffn_down_exps M E X;"
SHARED = "ffn_gate_shexp E S; ffn_up_shexp E S; ffn_down_shexp S E;"
EXPERT_BIAS = "exp_probs_b.b X;"
LATENT = "attn_kv_a_mqa E L+R; attn_kv_a_norm L; attn_k_b Y L N; attn_v_b L W N; attn_output N*W E;"
EXPANDED = "attn_kv_a_mqa E L+R; attn_kv_a_norm L; attn_kv_b L N*128+N*128; attn_output O E;"
LATENT_Q = "attn_q_a E A; attn_q_a_norm A; attn_q_b A N*Y+N*R;"
MAMBA = (
    "ssm_in E 2*I; ssm_conv1d D I; ssm_conv1d.b I; ssm_x I P+2*Z; ssm_dt P I; ssm_dt.b I; ssm_a! Z I; ssm_d! I;"
    "ssm_out I E;"
)
MAMBA2 = (
    "ssm_in E 2*I+2*J*Z+P; ssm_conv1d D I+2*J*Z; ssm_conv1d.b I+2*J*Z; ssm_dt.b P; ssm_a! 1 P; ssm_d! 1 P;"
    "ssm_norm I/J J; ssm_out I E;"
)
GATED_DELTA = "attn_qkv E 2*J*Z+I; attn_gate E I; ssm_conv1d D 2*J*Z+I; ssm_dt.b P; ssm_a! P; ssm_norm Z; ssm_out I E;"
GATED_ATTENTION = "attn_q E 2*Q; attn_k E K; attn_v E V; attn_output O E;" + HEAD_NORMS
NEXTN = "nextn.eh_proj 2*E E; nextn.enorm E; nextn.hnorm E; nextn.shared_head_norm E;"
GEMMA_NORMS = NORMS + "post_attention_norm E; post_ffw_norm E;"
BERT = (
    ATTENTION
    + "attn_output.b E;"
    + QKV_BIAS
    + ("attn_output_norm E; attn_output_norm.b E; layer_output_norm E; layer_output_norm.b E;")
)

TRUNK = "token_embd E T; output_norm E; output E T;"
TIED = "token_embd E T; output_norm E;"
BIASED_TRUNK = "token_embd E T; output_norm E; output_norm.b E; output E T;"
BIASED_TIED = "token_embd E T; output_norm E; output_norm.b E;"
BERT_TRUNK = "token_embd E T; token_types E 2; token_embd_norm E; token_embd_norm.b E;"


def every(n: int, count: int, *, last: bool = True) -> list[bool]:
    """A list of `count` flags: False for one of `n`, the last or the first."""
    dense = n - 1 if last else 0
    return [layer % n != dense for layer in range(count)]


def in_layers(count: int, layers: set[int], value: int, other: int = 0) -> list[int]:
    return [value if layer in layers else other for layer in range(count)]


def sized(text: str) -> dict[str, int]:
    """Sizes from `E=4096 N=32 ...`."""
    return {letter: int(value) for letter, value in (pair.split("=") for pair in text.split())}


def mixture(dense: int, attention: str, experts: str, first: str = FFN) -> Callable[[int], str]:
    """Blocks with experts after so many dense ones."""
    return lambda layer: attention + (first if layer < dense else experts)


def ssm(inner: int, state: int, rank: int, groups: int = 0, conv: int = 4) -> Metadata:
    keys: Metadata = {
        "ssm.conv_kernel": conv,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
    }
    return keys | ({"ssm.group_count": groups} if groups else {})


GRANITE_SCALES: Metadata = {
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
    "attention.scale": 0.015625,
    "logit_scale": 8.0,
}
NO_CAUSE: Metadata = {"attention.causal": False, "pooling_type": 1}
MROPE: Metadata = {"rope.dimension_sections": [24, 20, 20, 0]}
JAMBA_KV = in_layers(32, {4, 12, 20, 28}, 8)
GRANITE_KV = in_layers(40, {5, 15, 25, 35}, 4)
LFM2_KV = in_layers(16, {2, 5, 8, 10, 12, 14}, 8)
LFM2_MOE_KV = in_layers(24, {2, 6, 10, 14, 18, 21}, 8)
LFM2_CONV = "shortconv.conv 3 E; shortconv.in_proj E 3*E; shortconv.out_proj E E;"
# Nemotron Nano 9B v2: M is a Mamba layer, - a feed-forward one, * attention.
NEMOTRON_PATTERN = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
NEMOTRON_MOE_PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
KIMI_KV = in_layers(27, {3, 7, 11, 15, 19, 23, 26}, 1)
DECI_KV = [0 if layer in (11, 25, 31, 40) else 8 for layer in range(80)]
DECI_FF = [0 if layer == 42 else 28672 if layer < 60 else 14336 for layer in range(80)]
OPENELM_HEADS = [12, 12, 12, 12, 12, 16, 16, 16, 16, 16, 16, 16, 20, 20, 20, 20]
GEMMA4_PATTERN = [layer % 5 != 4 for layer in range(35)]
GEMMA4_MOE_PATTERN = [layer % 6 != 5 for layer in range(30)]
GEMMA4_DENSE_PATTERN = [layer % 6 != 5 for layer in range(60)]
STEP_PATTERN = [layer % 4 != 0 for layer in range(45)] + [True] * 3


def nemotron_block(layer: int) -> str:
    kind = NEMOTRON_PATTERN[layer]
    return "attn_norm E;" + {"M": MAMBA2, "-": UP_DOWN, "*": ATTENTION}[kind]


def nemotron_moe_block(layer: int) -> str:
    experts = (
        "ffn_gate_inp E X; exp_probs_b.b X; ffn_up_exps E M X; ffn_down_exps M E X; ffn_up_shexp E S;"
        "ffn_down_shexp S E;"
    )
    return "attn_norm E;" + {"M": MAMBA2, "E": experts, "*": ATTENTION}[NEMOTRON_MOE_PATTERN[layer]]


def delta_block(interval: int, beta: str, ffn: str) -> Callable[[int], str]:
    norms = "attn_norm E; post_attention_norm E;"
    return lambda layer: norms + (GATED_DELTA + beta if (layer + 1) % interval else GATED_ATTENTION) + ffn


def gemma3n_block(layer: int) -> str:
    return (
        GEMMA_NORMS
        + ATTENTION
        + HEAD_NORMS
        + FFN
        + (
            "inp_gate E 256; proj 256 E; post_norm E; altup_correct_coef 4 4; altup_correct_scale E;"
            "altup_predict_coef 4 16; altup_router E 4; altup_router_norm E; laurel_l E 64; laurel_r 64 E;"
            "laurel_post_norm E;"
        )
    )


def gemma4_block(
    pattern: list[bool], wide_from: int, kv: tuple[int, int], per_layer: int, moe: bool, heads: int
) -> Block:
    """Attention of 256 with a window, of 512 without; keys and values only where they are not borrowed."""

    def block(layer: int) -> str:
        head, n_kv = (256, kv[0]) if pattern[layer] else (512, kv[1])
        text = GEMMA_NORMS + f"attn_q E {heads * head}; attn_output {heads * head} E; attn_q_norm {head};"
        if layer < wide_from:
            text += f"attn_k E {n_kv * head}; attn_k_norm {head};"
            text += f"attn_v E {n_kv * head};" if pattern[layer] or not moe else ""
        text += FFN + "layer_output_scale 1;"
        if per_layer:
            text += f"inp_gate E {per_layer}; proj {per_layer} E; post_norm E;"
        if moe:
            text += EXPERTS + "ffn_gate_inp.s E; pre_ffw_norm_2 E; post_ffw_norm_1 E; post_ffw_norm_2 E;"
        return text

    return block


RWKV6 = (
    "attn_norm E; attn_norm.b E; attn_norm_2 E; attn_norm_2.b E; time_mix_w1 E 5*A; time_mix_w2 A E 5;"
    "time_mix_lerp_x E 1 1; time_mix_lerp_fused E 1 1 5; time_mix_first 64 E/64; time_mix_decay E;"
    "time_mix_decay_w1 E Y; time_mix_decay_w2 Y E; time_mix_key E E; time_mix_value E E; time_mix_receptance E E;"
    "time_mix_gate E E; time_mix_ln E; time_mix_ln.b E; time_mix_output E E; channel_mix_lerp_k E 1 1;"
    "channel_mix_lerp_r E 1 1; channel_mix_key E F; channel_mix_value F E; channel_mix_receptance E E;"
)
RWKV6_QWEN2 = (
    "attn_norm E; time_mix_w1 E 5*A; time_mix_w2 A E 5; time_mix_lerp_x E 1 1; time_mix_lerp_fused E 1 1 5;"
    "time_mix_decay E; time_mix_decay_w1 E Y; time_mix_decay_w2 Y E; time_mix_key E K; time_mix_value E K;"
    "time_mix_receptance E E; time_mix_gate E E; time_mix_key.b K; time_mix_value.b K; time_mix_receptance.b E;"
    "time_mix_output E E; ffn_norm E;" + FFN
)


def rwkv7_block(layer: int) -> str:
    mix = "A" if layer == 0 else "W"
    return (
        "attn_norm E; attn_norm.b E; attn_norm_2 E; attn_norm_2.b E;" + rwkv7_mix(mix) + "time_mix_lerp_fused E 1 1 6;"
        "time_mix_g1 E Y; time_mix_g2 Y E; time_mix_ln E; time_mix_ln.b E; channel_mix_lerp_k E 1 1;"
        "channel_mix_key E F; channel_mix_value F E;"
    )


def rwkv7_mix(mix: str) -> str:
    return (
        "time_mix_w0 E; time_mix_w1 E L; time_mix_w2 L E; time_mix_a0 E; time_mix_a1 E A; time_mix_a2 A E;"
        f"time_mix_v0 E; time_mix_v1 E {mix}; time_mix_v2 {mix} E; time_mix_k_k E; time_mix_k_a E; time_mix_r_k E;"
        "time_mix_key E E; time_mix_value E E; time_mix_receptance E E; time_mix_output E E;"
    )


def arwkv7_block(layer: int) -> str:
    gate = "time_mix_lerp_fused E 1 1 6; time_mix_g1 E Y; time_mix_g2 Y E;"
    return NORMS + rwkv7_mix("A" if layer == 0 else "W") + gate + FFN


def t5_block(layer: int, *, decoder: bool) -> str:
    own = "attn_norm E; attn_q E Q; attn_k E K; attn_v E V; attn_o O E; ffn_norm E;" + FFN
    cross = "cross_attn_norm E; cross_attn_q E Q; cross_attn_k E K; cross_attn_v E V; cross_attn_o O E;"
    bias = "attn_rel_b N 32;" if layer == 0 else ""
    if not decoder:
        return "; ".join(f"enc.blk.{layer}.{entry.strip()}" for entry in (own + bias).split(";") if entry.strip())
    return "; ".join(f"dec.blk.{layer}.{entry.strip()}" for entry in (own + cross + bias).split(";") if entry.strip())


def t5_layer(layer: int) -> str:
    return t5_block(layer, decoder=False) + "; " + t5_block(layer, decoder=True)


def t5_encoder_layer(layer: int) -> str:
    return t5_block(layer, decoder=False)


def kimi_block(layer: int) -> str:
    delta = (
        "ssm_conv1d_q D 1 N*Z; ssm_conv1d_k D 1 N*Z; ssm_conv1d_v D 1 N*Z; attn_q E N*Z; attn_k E N*Z; attn_v E N*Z;"
        "ssm_f_a E Z; ssm_f_b Z N*Z; ssm_beta E N; ssm_a! 1 N; ssm_dt.b N*Z; ssm_g_a E Z; ssm_g_b Z N*Z; ssm_norm Z;"
        "attn_output N*Z E;"
    )
    latent = "attn_q E N*Y+N*R;" + LATENT
    ffn = FFN if layer == 0 else EXPERTS + SHARED + EXPERT_BIAS
    return NORMS + (latent if KIMI_KV[layer] else delta) + ffn


def deepseek_block(n_trunk: int, dense: int, queries: str, latent: str, bias: str) -> Callable[[int], str]:
    def block(layer: int) -> str:
        ffn = FFN if layer < dense else EXPERTS + SHARED + bias
        return NORMS + queries + latent + ffn + (NEXTN if layer >= n_trunk else "")

    return block


def deci_block(layer: int) -> str:
    attention = ATTENTION if DECI_KV[layer] else "attn_output E E;"
    return "attn_norm E;" + attention + ("ffn_norm E;" + FFN if DECI_FF[layer] else "")


def posnet_layer(layer: int) -> str:
    """WavTokenizer's blocks beside those of its convolutions: the third attends, the sixth is a norm."""
    if layer > 5:
        return ""
    if layer in (2, 5):
        names = ["attn_norm 1 p"] + [f"attn_{name} 1 p p" for name in ("q", "k", "v", "output") if layer == 2]
    else:
        names = ["norm1 1 p", "conv1 3 p p", "norm2 1 p", "conv2 3 p p"]
    weights = [f"posnet.{layer}.{name}" for name in names]
    return "; ".join(weights + [f"{weight.split()[0]}.b 1 p" for weight in weights])


def step_block(layer: int) -> str:
    heads = 96 if STEP_PATTERN[layer] else 64
    attention = f"attn_q E {heads * 128}; attn_k E K; attn_v E V; attn_output {heads * 128} E; attn_gate E {heads};"
    dense = layer < 3 or layer >= 45
    return (
        NORMS
        + attention
        + HEAD_NORMS
        + (FFN if dense else EXPERTS + SHARED + EXPERT_BIAS)
        + (NEXTN if layer >= 45 else "")
    )


def mla(nope: int = 128, rope: int = 64, value: int = 128, rank: int = 512, queries: int = 0) -> Metadata:
    keys: Metadata = {
        "attention.kv_lora_rank": rank,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "rope.dimension_count": rope,
    }
    return keys | ({"attention.q_lora_rank": queries} if queries else {})


DEEPSEEK3 = (
    "E=7168 N=128 G=1 H=576 B=512 F=18432 T=129280 C=163840 X=256 U=8 M=2048 S=2048 A=1536 L=512 R=64 Y=128 W=128"
)
MODELS: dict[str, Shape] = {
    # Encoders.
    "bge-base-en": Shape(
        "bert",
        12,
        sized("E=768 N=12 F=3072 T=30522 C=512"),
        BERT + UP_DOWN + UP_DOWN_BIAS,
        BERT_TRUNK + "position_embd E C;",
        NO_CAUSE | {"tokenizer.ggml.token_type_count": 2},
        Mix.F16,
    ),
    "nomic-embed-1.5": Shape(
        "nomic-bert",
        12,
        sized("E=768 N=12 F=3072 T=30528 C=2048"),
        "attn_qkv E Q+K+V; attn_output O E; attn_output_norm E; attn_output_norm.b E; layer_output_norm E;"
        "layer_output_norm.b E;" + FFN,
        BERT_TRUNK,
        NO_CAUSE | {"tokenizer.ggml.token_type_count": 2},
        Mix.Q8_0,
    ),
    "nomic-embed-2-moe": Shape(
        "nomic-bert-moe",
        12,
        sized("E=768 N=12 F=3072 T=250048 C=512 X=8 U=2"),
        lambda layer: (
            BERT
            + ("ffn_gate_inp E X; ffn_up_exps E F X; ffn_down_exps F E X;" if layer % 2 else UP_DOWN + UP_DOWN_BIAS)
        ),
        BERT_TRUNK.replace("E 2", "E 1"),
        NO_CAUSE | {"tokenizer.ggml.token_type_count": 1, "moe_every_n_layers": 2},
        Mix.F16,
    ),
    "modernbert-base": Shape(
        "modern-bert",
        22,
        sized("E=768 N=12 F=1152 T=50368 C=8192"),
        lambda layer: ("attn_norm E;" if layer else "") + "ffn_norm E; ffn_up E 2*F; ffn_down F E;" + FUSED,
        "token_embd E T; token_embd_norm E; output_norm E;",
        NO_CAUSE | {"attention.sliding_window": 128, "rope.freq_base_swa": 10000.0},
        Mix.F16,
    ),
    "jina-base-2": Shape(
        "jina-bert-v2",
        12,
        sized("E=768 N=12 F=3072 T=30528 C=8192"),
        BERT + FFN + "ffn_down.b E;",
        BERT_TRUNK,
        NO_CAUSE | {"tokenizer.ggml.token_type_count": 2},
        Mix.F16,
    ),
    "jina-3": Shape(
        "jina-bert-v3",
        24,
        sized("E=1024 N=16 F=4096 T=250002 C=8192"),
        BERT + UP_DOWN + UP_DOWN_BIAS,
        BERT_TRUNK.replace("E 2", "E 1"),
        NO_CAUSE | {"tokenizer.ggml.token_type_count": 1},
        Mix.Q8_0,
    ),
    "neobert": Shape(
        "neo-bert",
        28,
        sized("E=768 N=12 F=2048 T=30522 C=4096"),
        NORMS + FUSED + "ffn_up E 2*F; ffn_down F E;",
        "token_embd E T; enc.output_norm E;",
        NO_CAUSE,
        Mix.F16,
    ),
    "eurobert-210m": Shape(
        "eurobert",
        12,
        sized("E=768 N=12 F=3072 T=128256 C=8192"),
        NORMS + ATTENTION + FFN,
        "token_embd E T; output_norm E;",
        NO_CAUSE,
        Mix.Q8_0,
    ),
    "embeddinggemma-300m": Shape(
        "gemma-embedding",
        24,
        sized("E=768 N=3 G=1 H=256 F=1152 T=262144 C=2048"),
        GEMMA_NORMS + ATTENTION + HEAD_NORMS + FFN,
        TIED + "dense_2 E 3072; dense_3 3072 E;",
        NO_CAUSE
        | {
            "attention.sliding_window": 512,
            "dense_2_feat_in": 768,
            "dense_2_feat_out": 3072,
            "dense_3_feat_in": 3072,
            "dense_3_feat_out": 768,
        },
        Mix.Q8_0,
    ),
    "qwen3-embedding-0.6b": Shape(
        "qwen3",
        28,
        sized("E=1024 N=16 G=8 H=128 F=3072 T=151669 C=32768"),
        NORMS + ATTENTION + HEAD_NORMS + FFN,
        TIED,
        {"pooling_type": 3},
        Mix.Q8_0,
    ),
    # Encoder and decoder.
    "flan-t5-base": Shape(
        "t5",
        12,
        sized("E=768 N=12 H=64 F=2048 T=32128 C=512"),
        "",
        "token_embd E T; enc.output_norm E; dec.output_norm E; output E T;",
        {"attention.relative_buckets_count": 32, "decoder_start_token_id": 0},
        Mix.F16,
        after=t5_layer,
    ),
    "t5-large-encoder": Shape(
        "t5encoder",
        24,
        sized("E=1024 N=16 H=64 F=2816 T=32128 C=512"),
        "",
        "token_embd E T; enc.output_norm E;",
        {"attention.relative_buckets_count": 32},
        Mix.F16,
        after=t5_encoder_layer,
    ),
    # Dense decoders.
    "gpt2": Shape(
        "gpt2",
        12,
        sized("E=768 N=12 F=3072 T=50257 C=1024"),
        BIASED_NORMS + FUSED + "attn_qkv.b Q+K+V; attn_output.b E;" + UP_DOWN + UP_DOWN_BIAS,
        BIASED_TRUNK + "position_embd E C;",
        {},
        Mix.F16,
    ),
    "pythia-1.4b": Shape(
        "gptneox",
        24,
        sized("E=2048 N=16 F=8192 T=50304 C=2048"),
        BIASED_NORMS + FUSED + "attn_qkv.b Q+K+V; attn_output.b E;" + UP_DOWN + UP_DOWN_BIAS,
        BIASED_TRUNK,
        {"use_parallel_residual": True, "rope.dimension_count": 32},
    ),
    "bloom-1b7": Shape(
        "bloom",
        24,
        sized("E=2048 N=16 F=8192 T=250880 C=2048"),
        BIASED_NORMS + FUSED + "attn_qkv.b Q+K+V; attn_output.b E;" + UP_DOWN + UP_DOWN_BIAS,
        BIASED_TIED + "token_embd_norm E; token_embd_norm.b E;",
    ),
    "mpt-7b": Shape(
        "mpt",
        32,
        sized("E=4096 N=32 F=16384 T=50432 C=2048"),
        NORMS + FUSED + UP_DOWN,
        TIED,
        {"attention.max_alibi_bias": 8.0},
    ),
    "falcon-7b": Shape(
        "falcon",
        32,
        sized("E=4544 N=71 G=1 F=18176 T=65024 C=2048"),
        "attn_norm E; attn_norm.b E;" + FUSED + UP_DOWN,
        BIASED_TRUNK,
        {},
        Mix.F16,
    ),
    "starcoder2-3b": Shape(
        "starcoder2",
        30,
        sized("E=3072 N=24 G=2 F=12288 T=49152 C=16384"),
        BIASED_NORMS + ATTENTION + QKV_BIAS + "attn_output.b E;" + UP_DOWN + UP_DOWN_BIAS,
        BIASED_TIED,
    ),
    "stablelm-3b": Shape(
        "stablelm",
        32,
        sized("E=2560 N=32 F=6912 T=50304 C=4096"),
        BIASED_NORMS + ATTENTION + FFN,
        BIASED_TRUNK,
        {"rope.dimension_count": 20, "use_parallel_residual": False},
    ),
    "phi-2": Shape(
        "phi2",
        32,
        sized("E=2560 N=32 F=10240 T=51200 C=2048"),
        "attn_norm E; attn_norm.b E;" + ATTENTION + QKV_BIAS + "attn_output.b E;" + UP_DOWN + UP_DOWN_BIAS,
        BIASED_TRUNK + "output.b T;",
        {"rope.dimension_count": 32},
    ),
    "phi-4": Shape(
        "phi3",
        40,
        sized("E=5120 N=40 G=10 F=17920 T=100352 C=16384"),
        NORMS + FUSED + "ffn_up E 2*F; ffn_down F E;",
        TRUNK,
        {"attention.sliding_window": 0, "rope.dimension_count": 128},
    ),
    "phi-3.5-moe": Shape(
        "phimoe",
        32,
        sized("E=4096 N=32 G=8 F=6400 T=32064 C=131072 X=16 U=2"),
        BIASED_NORMS + ATTENTION + QKV_BIAS + "attn_output.b E;" + EXPERTS.replace("M", "F"),
        BIASED_TRUNK + "output.b T; rope_factors_long 64; rope_factors_short 64;",
        {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.19},
    ),
    "olmo-2-7b": Shape(
        "olmo2",
        32,
        sized("E=4096 N=32 F=11008 T=100352 C=4096"),
        "post_attention_norm E; post_ffw_norm E; attn_q_norm Q; attn_k_norm K;" + ATTENTION + FFN,
    ),
    "olmo-3-7b": Shape(
        "olmo2",
        32,
        sized("E=4096 N=32 F=11008 T=100278 C=65536"),
        "post_attention_norm E; post_ffw_norm E; attn_q_norm Q; attn_k_norm K;" + ATTENTION + FFN,
        TRUNK,
        {"attention.sliding_window": 4096, "attention.sliding_window_pattern": every(4, 32)},
    ),
    "exaone-3.5-2.4b": Shape(
        "exaone",
        30,
        sized("E=2560 N=32 G=8 H=80 F=7168 T=102400 C=32768"),
        NORMS + ATTENTION + FFN,
        TIED + "rope_freqs 40;",
        {"rope.dimension_count": 80},
    ),
    "exaone-4-32b": Shape(
        "exaone4",
        64,
        sized("E=5120 N=40 G=8 H=128 F=27392 T=102400 C=131072"),
        "post_attention_norm E; post_ffw_norm E;" + HEAD_NORMS + ATTENTION + FFN,
        TRUNK + "rope_freqs 64;",
        {"attention.sliding_window": 4096, "attention.sliding_window_pattern": 4},
    ),
    "internlm2.5-7b": Shape(
        "internlm2",
        32,
        sized("E=4096 N=32 G=8 F=14336 T=92544 C=32768"),
        NORMS + ATTENTION + FFN,
    ),
    "glm-4-9b-chat": Shape(
        "chatglm",
        40,
        sized("E=4096 N=32 G=2 F=13696 T=151552 C=131072"),
        NORMS + FUSED + "attn_qkv.b Q+K+V; ffn_up E 2*F; ffn_down F E;",
        TRUNK,
        {"rope.dimension_count": 64},
    ),
    "glm-4-9b-0414": Shape(
        "glm4",
        40,
        sized("E=4096 N=32 G=2 F=13696 T=151552 C=32768"),
        GEMMA_NORMS + ATTENTION + QKV_BIAS + "ffn_up E 2*F; ffn_down F E;",
        TRUNK,
        {"rope.dimension_count": 64},
    ),
    "granite-3.3-8b": Shape(
        "granite",
        40,
        sized("E=4096 N=32 G=8 F=12800 T=49159 C=131072"),
        NORMS + ATTENTION + FFN,
        TIED,
        GRANITE_SCALES,
    ),
    "command-r-35b": Shape(
        "command-r",
        40,
        sized("E=8192 N=64 F=22528 T=256000 C=131072"),
        "attn_norm E;" + ATTENTION + FFN,
        TIED,
        {"logit_scale": 0.0625},
    ),
    "command-r7b": Shape(
        "cohere2",
        32,
        sized("E=4096 N=32 G=8 F=14336 T=256000 C=8192"),
        "attn_norm E;" + ATTENTION + FFN,
        TIED,
        {"logit_scale": 0.25, "attention.sliding_window": 4096},
    ),
    "minicpm-2b": Shape(
        "minicpm",
        40,
        sized("E=2304 N=36 F=5760 T=122753 C=4096"),
        NORMS + ATTENTION + FFN,
        TIED,
        {},
        Mix.Q8_0,
    ),
    "minicpm3-4b": Shape(
        "minicpm3",
        62,
        sized("E=2560 N=40 H=96 B=64 F=6400 T=73448 C=32768 A=768 L=256 R=32"),
        NORMS + "attn_q_a E A; attn_q_a_norm A; attn_q_b A Q; attn_kv_a_mqa E L+R; attn_kv_a_norm L;"
        "attn_kv_b L N*64+N*64; attn_output O E;" + FFN,
        TIED + "rope_factors_long 16; rope_factors_short 16;",
        {"attention.q_lora_rank": 768, "attention.kv_lora_rank": 256, "rope.dimension_count": 32},
    ),
    "plm-1.8b": Shape(
        "plm",
        32,
        sized("E=2048 N=16 H=192 B=128 F=8192 T=151936 C=4096 L=512 R=64"),
        NORMS + "attn_q E Q;" + EXPANDED + UP_DOWN,
        TIED,
        {"attention.kv_lora_rank": 512, "rope.dimension_count": 64},
    ),
    "nemotron-mini-4b": Shape(
        "nemotron",
        32,
        sized("E=3072 N=24 G=8 F=9216 T=256000 C=4096"),
        BIASED_NORMS + ATTENTION + UP_DOWN,
        BIASED_TRUNK,
        {"rope.dimension_count": 64},
    ),
    "nemotron-super-49b": Shape(
        "deci",
        80,
        sized("E=8192 N=64 G=8 H=128 F=28672 T=128256 C=131072"),
        deci_block,
        TRUNK + "rope_freqs 64;",
        {"attention.head_count_kv": DECI_KV, "feed_forward_length": DECI_FF, "rope.dimension_count": 128},
    ),
    "openelm-270m": Shape(
        "openelm",
        16,
        sized("E=1280 N=12 G=3 H=64 F=768 T=32000 C=2048"),
        NORMS + FUSED + HEAD_NORMS + FFN,
        TIED,
        {
            "attention.head_count": OPENELM_HEADS,
            "attention.head_count_kv": [heads // 4 for heads in OPENELM_HEADS],
            "feed_forward_length": [768 + 256 * layer for layer in range(16)],
        },
        Mix.F16,
    ),
    "bitnet-2b": Shape(
        "bitnet",
        30,
        sized("E=2560 N=20 G=5 F=6912 T=128256 C=4096"),
        NORMS + "attn_sub_norm E; ffn_sub_norm F;" + ATTENTION + FFN,
        TIED,
        {},
        Mix.F16,
    ),
    "apertus-8b": Shape(
        "apertus",
        32,
        sized("E=4096 N=32 G=8 H=128 F=21504 T=131072 C=65536"),
        NORMS + ATTENTION + HEAD_NORMS + UP_DOWN,
        TRUNK + "rope_freqs 64;",
        {f"xielu.{key}": 0.5 for key in ("alpha_n", "alpha_p", "beta", "eps")},
    ),
    "chameleon-7b": Shape(
        "chameleon",
        32,
        sized("E=4096 N=32 F=11008 T=65536 C=4096"),
        NORMS + "attn_q_norm H N; attn_k_norm H N; attn_q_norm.b H N; attn_k_norm.b H N;" + ATTENTION + FFN,
    ),
    "smollm3-3b": Shape(
        "smollm3",
        36,
        sized("E=2048 N=16 G=4 F=11008 T=128256 C=65536"),
        NORMS + ATTENTION + FFN,
        TIED,
    ),
    "seed-oss-36b": Shape(
        "seed_oss",
        64,
        sized("E=5120 N=80 G=8 H=128 F=27648 T=155136 C=524288"),
        "attn_norm E; post_attention_norm E;" + ATTENTION + QKV_BIAS + FFN,
    ),
    "ernie-4.5-0.3b": Shape(
        "ernie4_5",
        18,
        sized("E=1024 N=16 G=2 H=128 F=3072 T=103424 C=131072"),
        NORMS + ATTENTION + FFN,
        TIED,
        {},
        Mix.Q8_0,
    ),
    "mistral-small-24b": Shape(
        "llama",
        40,
        sized("E=5120 N=32 G=8 H=128 F=32768 T=131072 C=32768"),
        NORMS + ATTENTION + FFN,
        TRUNK,
        {"rope.dimension_count": 128},
    ),
    "llama-3.3-70b": Shape(
        "llama",
        80,
        sized("E=8192 N=64 G=8 F=28672 T=128256 C=131072"),
        NORMS + ATTENTION + FFN,
        TRUNK + "rope_freqs 64;",
        {"rope.dimension_count": 128},
    ),
    "qwen2.5-0.5b": Shape(
        "qwen2",
        24,
        sized("E=896 N=14 G=2 F=4864 T=151936 C=32768"),
        NORMS + ATTENTION + QKV_BIAS + FFN,
        TIED,
    ),
    "qwen3-14b": Shape(
        "qwen3",
        40,
        sized("E=5120 N=40 G=8 H=128 F=17408 T=151936 C=40960"),
        NORMS + ATTENTION + HEAD_NORMS + FFN,
    ),
    "qwen2-vl-7b": Shape(
        "qwen2vl",
        28,
        sized("E=3584 N=28 G=4 F=18944 T=152064 C=32768"),
        NORMS + ATTENTION + QKV_BIAS + FFN,
        TRUNK,
        {"rope.dimension_sections": [16, 24, 24, 0]},
    ),
    "qwen3-vl-4b": Shape(
        "qwen3vl",
        36,
        sized("E=2560 N=32 G=8 H=128 F=9728 T=151936 C=262144"),
        NORMS + ATTENTION + HEAD_NORMS + FFN,
        TIED,
        MROPE | {"n_deepstack_layers": 3},
    ),
    "gemma-2b": Shape(
        "gemma",
        18,
        sized("E=2048 N=8 G=1 H=256 F=16384 T=256000 C=8192"),
        NORMS + ATTENTION + FFN,
        TIED,
    ),
    "gemma-3-1b": Shape(
        "gemma3",
        26,
        sized("E=1152 N=4 G=1 H=256 F=6912 T=262144 C=32768"),
        GEMMA_NORMS + ATTENTION + HEAD_NORMS + FFN,
        TIED,
        {"attention.sliding_window": 512},
    ),
    "gemma-3n-e4b": Shape(
        "gemma3n",
        35,
        sized("E=2048 N=8 G=2 H=256 F=16384 T=262144 C=32768"),
        gemma3n_block,
        TIED + "altup_proj E E 3; altup_unembd_proj E E 3; per_layer_token_embd 8960 T; per_layer_model_proj E 8960;"
        "per_layer_proj_norm 256;",
        {"attention.sliding_window": 512, "attention.shared_kv_layers": 15, "embedding_length_per_layer_input": 256},
    ),
    "gemma-4-e2b": Shape(
        "gemma4",
        35,
        sized("E=1536 N=8 G=1 H=512 F=6144 T=262144 C=131072"),
        gemma4_block(GEMMA4_PATTERN, 15, (1, 1), 256, False, 8),
        TIED + "rope_freqs 256; per_layer_token_embd 8960 T; per_layer_model_proj E 8960; per_layer_proj_norm 256;",
        {
            "attention.sliding_window": 512,
            "attention.sliding_window_pattern": GEMMA4_PATTERN,
            "attention.shared_kv_layers": 20,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "embedding_length_per_layer_input": 256,
            "feed_forward_length": [6144] * 15 + [12288] * 20,
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
        },
    ),
    "gemma-4-26b-a4b": Shape(
        "gemma4",
        30,
        sized("E=2816 N=16 G=8 H=512 F=2112 T=262144 C=262144 X=128 U=8 M=704"),
        gemma4_block(GEMMA4_MOE_PATTERN, 30, (8, 2), 0, True, 16),
        TIED + "rope_freqs 256;",
        {
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": GEMMA4_MOE_PATTERN,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "embedding_length_per_layer_input": 0,
            "attention.head_count_kv": [8 if swa else 2 for swa in GEMMA4_MOE_PATTERN],
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
        },
    ),
    "gemma-4-31b": Shape(
        "gemma4",
        60,
        sized("E=5376 N=32 G=16 H=512 F=21504 T=262144 C=262144"),
        gemma4_block(GEMMA4_DENSE_PATTERN, 60, (16, 4), 0, False, 32),
        TIED + "rope_freqs 256;",
        {
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": GEMMA4_DENSE_PATTERN,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "embedding_length_per_layer_input": 0,
            "attention.head_count_kv": [16 if swa else 4 for swa in GEMMA4_DENSE_PATTERN],
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
        },
    ),
    # Diffusion models.
    "dream-7b": Shape(
        "dream",
        28,
        sized("E=3584 N=28 G=4 F=18944 T=152064 C=131072"),
        NORMS + ATTENTION + QKV_BIAS + FFN,
    ),
    "llada-8b": Shape("llada", 32, sized("E=4096 N=32 F=12288 T=126464 C=4096"), NORMS + ATTENTION + FFN),
    "rnd1-30b-a3b": Shape(
        "rnd1",
        48,
        sized("E=2048 N=32 G=4 H=128 F=6144 T=151936 C=40960 X=128 U=8 M=768"),
        NORMS + ATTENTION + HEAD_NORMS + EXPERTS,
    ),
    # Mixtures of experts.
    "mixtral-8x7b": Shape(
        "llama",
        32,
        sized("E=4096 N=32 G=8 F=14336 T=32000 C=32768 X=8 U=2"),
        NORMS + ATTENTION + EXPERTS.replace("M", "F"),
        TRUNK,
        {"rope.dimension_count": 128},
    ),
    "qwen2-57b-a14b": Shape(
        "qwen2moe",
        28,
        sized("E=3584 N=28 G=4 F=18944 T=151936 C=32768 X=64 U=8 M=2560 S=20480"),
        NORMS + ATTENTION + QKV_BIAS + EXPERTS + SHARED + "ffn_gate_inp_shexp E;",
        TRUNK,
        {"expert_shared_feed_forward_length": 20480},
    ),
    "qwen3-vl-30b-a3b": Shape(
        "qwen3vlmoe",
        48,
        sized("E=2048 N=32 G=4 H=128 F=6144 T=151936 C=262144 X=128 U=8 M=768"),
        NORMS + ATTENTION + HEAD_NORMS + EXPERTS,
        TRUNK,
        MROPE | {"n_deepstack_layers": 3},
    ),
    "gpt-oss-120b": Shape(
        "gpt-oss",
        36,
        sized("E=2880 N=64 G=8 H=64 F=2880 T=201088 C=131072 X=128 U=4 M=2880"),
        "attn_norm E; post_attention_norm E; attn_sinks N; attn_output.b E;"
        + ATTENTION
        + QKV_BIAS
        + EXPERTS
        + "ffn_gate_inp.b X; ffn_gate_exps.b M X; ffn_up_exps.b M X; ffn_down_exps.b E X;",
        TRUNK,
        {"attention.sliding_window": 128},
        Mix.MXFP4_MOE,
    ),
    "llama-4-scout": Shape(
        "llama4",
        48,
        sized("E=5120 N=40 G=8 F=16384 T=202048 C=10485760 X=16 U=1 M=8192 S=8192"),
        NORMS + ATTENTION + EXPERTS + SHARED,
        TRUNK + "rope_freqs 64;",
        {
            "interleave_moe_layer_step": 1,
            "rope.dimension_count": 128,
            "attention.key_length": 128,
            "attention.value_length": 128,
        },
    ),
    "deepseek-v2-lite-old": Shape(
        "deepseek2",
        27,
        sized("E=2048 N=16 H=192 B=128 F=10944 T=102400 C=163840 X=64 U=6 M=1408 S=2816 L=512 R=64"),
        deepseek_block(27, 1, "attn_q E Q;", EXPANDED, ""),
        TRUNK,
        {
            "attention.kv_lora_rank": 512,
            "rope.dimension_count": 64,
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_weights_scale": 1.0,
            "rope.scaling.yarn_log_multiplier": 0.0707,
        },
    ),
    "deepseek-v3": Shape(
        "deepseek2",
        61,
        sized(DEEPSEEK3),
        deepseek_block(61, 3, LATENT_Q, LATENT, EXPERT_BIAS),
        TRUNK,
        mla(queries=1536)
        | {
            "leading_dense_block_count": 3,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "expert_group_count": 8,
            "expert_group_used_count": 4,
            "rope.scaling.yarn_log_multiplier": 0.1,
        },
    ),
    "deepseek-v3-mtp": Shape(
        "deepseek2",
        62,
        sized(DEEPSEEK3),
        deepseek_block(61, 3, LATENT_Q, LATENT, EXPERT_BIAS),
        TRUNK,
        mla(queries=1536)
        | {
            "leading_dense_block_count": 3,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
            "nextn_predict_layers": 1,
        },
    ),
    "deepseek-v3-old": Shape(
        "deepseek2",
        61,
        sized(DEEPSEEK3.replace("G=1 H=576 B=512", "H=192 B=128")),
        deepseek_block(61, 3, LATENT_Q, EXPANDED, EXPERT_BIAS),
        TRUNK,
        {
            "attention.kv_lora_rank": 512,
            "attention.q_lora_rank": 1536,
            "rope.dimension_count": 64,
            "leading_dense_block_count": 3,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.5,
            "expert_gating_func": 2,
        },
    ),
    "deepseek-ocr": Shape(
        "deepseek2-ocr",
        12,
        sized("E=1280 N=10 F=6848 T=129280 C=8192 X=64 U=6 M=896 S=1792"),
        mixture(1, NORMS + ATTENTION, EXPERTS + SHARED),
        TRUNK,
        {"leading_dense_block_count": 1, "expert_shared_count": 2, "expert_weights_scale": 1.0},
        Mix.F16,
    ),
    "glm-4.5-air": Shape(
        "glm4moe",
        47,
        sized("E=4096 N=96 G=8 H=128 F=10944 T=151552 C=131072 X=128 U=8 M=1408 S=1408"),
        lambda layer: (
            "attn_norm E; post_attention_norm E;"
            + ATTENTION
            + QKV_BIAS
            + (FFN if layer < 1 else EXPERTS + SHARED + EXPERT_BIAS)
            + (NEXTN + "nextn.embed_tokens E T; nextn.shared_head_head E T;" if layer == 46 else "")
        ),
        TRUNK,
        {
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 1.0,
            "nextn_predict_layers": 1,
            "rope.dimension_count": 64,
        },
    ),
    "ernie-4.5-21b-a3b": Shape(
        "ernie4_5-moe",
        28,
        sized("E=2560 N=20 G=4 H=128 F=12288 T=103424 C=131072 X=64 U=6 M=1536 S=3072"),
        mixture(1, NORMS + ATTENTION, EXPERTS + SHARED + EXPERT_BIAS),
        TIED,
        {"interleave_moe_layer_step": 1, "leading_dense_block_count": 1, "expert_shared_feed_forward_length": 3072},
    ),
    "hunyuan-a13b": Shape(
        "hunyuan-moe",
        32,
        sized("E=4096 N=32 G=8 H=128 F=3072 T=128167 C=262144 X=64 U=8 M=3072 S=3072"),
        NORMS + ATTENTION + HEAD_NORMS + EXPERTS + SHARED,
        TIED,
        {"expert_shared_feed_forward_length": 3072},
    ),
    "ling-mini-2": Shape(
        "bailingmoe2",
        20,
        sized("E=2048 N=16 G=4 H=128 F=5120 T=157184 C=32768 X=256 U=8 M=512 S=512"),
        mixture(1, NORMS + FUSED + HEAD_NORMS, EXPERTS + SHARED + EXPERT_BIAS),
        TRUNK,
        {
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_shared_feed_forward_length": 512,
            "expert_gating_func": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "rope.dimension_count": 64,
        },
    ),
    "dots-llm1": Shape(
        "dots1",
        62,
        sized("E=4096 N=32 H=128 F=10944 T=152064 C=32768 X=128 U=6 M=1408 S=2816"),
        mixture(1, NORMS + ATTENTION + HEAD_NORMS, EXPERTS + SHARED + EXPERT_BIAS),
        TRUNK,
        {
            "leading_dense_block_count": 1,
            "expert_shared_count": 2,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
        },
    ),
    "trinity-mini": Shape(
        "afmoe",
        32,
        sized("E=2048 N=32 G=4 H=128 F=6144 T=200192 C=131072 X=128 U=8 M=1024 S=1024"),
        mixture(2, GEMMA_NORMS + ATTENTION + HEAD_NORMS + "attn_gate E Q;", EXPERTS + SHARED + EXPERT_BIAS),
        TRUNK,
        {
            "leading_dense_block_count": 2,
            "expert_shared_count": 1,
            "attention.sliding_window": 2048,
            "expert_gating_func": 2,
        },
    ),
    "minimax-m2": Shape(
        "minimax-m2",
        62,
        sized("E=3072 N=48 G=8 H=128 F=1536 T=200064 C=196608 X=256 U=8 M=1536"),
        NORMS + ATTENTION + "attn_q_norm Q; attn_k_norm K;" + EXPERTS + EXPERT_BIAS,
        TRUNK,
        {"rope.dimension_count": 64, "expert_gating_func": 2},
    ),
    "step-3.5-flash": Shape(
        "step35",
        48,
        sized("E=4096 N=64 G=8 H=128 F=11264 T=128896 C=262144 X=288 U=8 M=1280 S=1280"),
        step_block,
        TRUNK + "rope_freqs 64;",
        {
            "attention.head_count": [96 if swa else 64 for swa in STEP_PATTERN],
            "attention.sliding_window": 512,
            "attention.sliding_window_pattern": STEP_PATTERN,
            "leading_dense_block_count": 3,
            "expert_gating_func": 2,
            "expert_shared_feed_forward_length": 1280,
            "nextn_predict_layers": 3,
            "rope.dimension_count": 128,
            "rope.dimension_count_swa": 128,
            "expert_weights_scale": 3.0,
        },
    ),
    "smallthinker-21b-a3b": Shape(
        "smallthinker",
        52,
        sized("E=2560 N=28 G=4 H=128 F=768 T=151936 C=16384 X=64 U=6 M=768"),
        NORMS + ATTENTION + EXPERTS,
        TIED,
        {"attention.sliding_window": 4096, "expert_gating_func": 2},
    ),
    "granite-3.1-3b-a800m": Shape(
        "granitemoe",
        32,
        sized("E=1536 N=24 G=8 F=512 T=49155 C=131072 X=40 U=8"),
        NORMS + ATTENTION + EXPERTS.replace("M", "F"),
        TIED,
        GRANITE_SCALES,
    ),
    "grok-2": Shape(
        "grok",
        64,
        sized("E=8192 N=64 G=8 H=128 F=32768 T=131072 C=131072 X=8 U=2 M=16384"),
        NORMS + "attn_output_norm E; post_ffw_norm E;" + ATTENTION + FFN + EXPERTS,
        TRUNK,
        {"rope.dimension_count": 128},
    ),
    "dbrx": Shape(
        "dbrx",
        40,
        sized("E=6144 N=48 G=8 F=10752 T=100352 C=32768 X=16 U=4"),
        "attn_norm E; attn_output_norm E;" + FUSED + EXPERTS.replace("M", "F"),
        TRUNK,
        {"attention.clamp_kqv": 8.0},
    ),
    "arctic": Shape(
        "arctic",
        35,
        sized("E=7168 N=56 G=8 F=4864 T=32000 C=4096 X=128 U=2"),
        NORMS + "ffn_norm_exps E; ffn_gate E E; ffn_up E E; ffn_down E E;" + ATTENTION + EXPERTS.replace("M", "F"),
    ),
    # Models that go with another, and curiosities.
    "eagle3-llama-3.1-8b": Shape(
        "eagle3",
        1,
        sized("E=4096 N=32 G=8 H=128 F=14336 T=128256 C=2048"),
        NORMS + "attn_norm_2 E; attn_q 2*E Q; attn_k 2*E K; attn_v 2*E V; attn_output Q E;" + FFN,
        TRUNK + "fc 3*E E; rope_freqs 64;",
        {"target_layers": [2, 16, 29], "target_hidden_size": 4096},
        Mix.F16,
    ),
    "dflash-qwen3-8b": Shape(
        "dflash",
        5,
        sized("E=4096 N=32 G=8 H=128 F=12288 T=151936 C=40960"),
        NORMS + ATTENTION + HEAD_NORMS + FFN,
        TRUNK + "fc 5*E E; enc.output_norm E;",
        {
            "target_layers": [1, 9, 17, 25, 33],
            "block_size": 16,
            "attention.sliding_window": 2048,
            "attention.sliding_window_pattern": [True, True, True, True, False],
        },
        Mix.F16,
    ),
    "granite-switch-3b": Shape(
        "graniteswitch",
        40,
        sized("E=2560 N=40 G=8 H=64 F=8192 T=100352 C=131072 a=3 r=32"),
        NORMS + FUSED + FFN + "attn_q.x E r a; attn_q.y r Q a; attn_k.x E r a; attn_k.y r K a; attn_v.x E r a;"
        "attn_v.y r V a;"
        "attn_output.x Q r a; attn_output.y r E a; ffn_gate.x E r a; ffn_gate.y r F a; ffn_up.x E r a; ffn_up.y r F a;"
        "ffn_down.x F r a; ffn_down.y r E a;",
        TIED,
        GRANITE_SCALES
        | {
            "adapters.count": 2,
            "adapters.lora_rank": 32,
            "adapters.token_ids_activate": [11, 12],
            "adapters.token_ids_substitute": [13, 14],
        },
    ),
    "wavtokenizer-large": Shape(
        "wavtokenizer-dec",
        12,
        sized("E=1282 F=2304 T=4096 C=8192 f=512 p=768"),
        "dw 7 1 p; dw.b 1 p; norm p; norm.b p; pw1 p F; pw1.b F; pw2 F p; pw2.b p; gamma p;",
        "token_embd f T; conv1d 7 f p; conv1d.b 1 p; token_embd_norm p; token_embd_norm.b p; output_norm p;"
        "output_norm.b p;"
        "output p E; output.b E;",
        {
            "features_length": 512,
            "posnet.embedding_length": 768,
            "posnet.block_count": 6,
            "convnext.embedding_length": 768,
            "convnext.block_count": 12,
            "attention.group_norm_epsilon": 1e-6,
            "attention.group_norm_groups": 32,
            "attention.causal": False,
        },
        Mix.F16,
        "convnext",
        posnet_layer,
    ),
    "codeshell-7b": Shape(
        "codeshell",
        42,
        sized("E=4096 N=32 G=8 F=16384 T=70144 C=8192"),
        BIASED_NORMS + FUSED + "attn_qkv.b Q+K+V; attn_output.b E;" + UP_DOWN + UP_DOWN_BIAS,
        "output_norm E; output_norm.b E; output E T;",
    ),
    # Recurrent models.
    "mamba-codestral-7b": Shape(
        "mamba2",
        64,
        sized("E=4096 N=0 F=0 T=32768 C=262144 I=8192 Z=128 P=128 J=8 D=4"),
        "attn_norm E;" + MAMBA2,
        TRUNK,
        ssm(8192, 128, 128, 8),
    ),
    "mamba2-370m": Shape(
        "mamba2",
        48,
        sized("E=1024 N=0 F=0 T=50288 C=1048576 I=2048 Z=128 P=32 J=1 D=4"),
        "attn_norm E;" + MAMBA2,
        TIED,
        ssm(2048, 128, 32, 1),
        Mix.Q8_0,
    ),
    "rwkv-6-1.6b": Shape(
        "rwkv6",
        24,
        sized("E=2048 N=0 F=7168 T=65536 C=1048576 A=32 Y=64"),
        RWKV6,
        BIASED_TRUNK + "token_embd_norm E; token_embd_norm.b E;",
        {"wkv.head_size": 64, "time_mix_extra_dim": 32, "time_decay_extra_dim": 64, "rescale_every_n_layers": 6},
    ),
    "qrwkv6-32b": Shape(
        "rwkv6qwen2",
        64,
        sized("E=5120 N=0 G=8 F=27648 T=152064 C=1048576 A=64 Y=128 K=1024"),
        RWKV6_QWEN2,
        TRUNK,
        {"wkv.head_size": 128, "time_mix_extra_dim": 64, "time_decay_extra_dim": 128, "token_shift_count": 1},
    ),
    "rwkv-7-1.5b": Shape(
        "rwkv7",
        24,
        sized("E=2048 N=0 F=8192 T=65536 C=1048576 L=96 A=96 W=64 Y=256"),
        rwkv7_block,
        BIASED_TRUNK + "token_embd_norm E; token_embd_norm.b E;",
        {
            "wkv.head_size": 64,
            "attention.decay_lora_rank": 96,
            "attention.iclr_lora_rank": 96,
            "attention.value_residual_mix_lora_rank": 64,
            "attention.gate_lora_rank": 256,
        },
    ),
    "arwkv-7b": Shape(
        "arwkv7",
        28,
        sized("E=3584 N=0 F=18944 T=152064 C=1048576 L=128 A=128 W=96 Y=480"),
        arwkv7_block,
        TRUNK,
        {
            "wkv.head_size": 64,
            "attention.decay_lora_rank": 128,
            "attention.iclr_lora_rank": 128,
            "attention.value_residual_mix_lora_rank": 96,
            "attention.gate_lora_rank": 480,
            "token_shift_count": 1,
        },
    ),
    # Hybrids.
    "jamba-v0.1": Shape(
        "jamba",
        32,
        sized("E=4096 N=32 G=8 F=14336 T=65536 C=262144 X=16 U=2 I=8192 Z=16 P=256 D=4"),
        lambda layer: (
            NORMS
            + (ATTENTION if JAMBA_KV[layer] else MAMBA + "ssm_dt_norm P; ssm_b_norm Z; ssm_c_norm Z;")
            + (EXPERTS.replace("M", "F") if layer % 2 else FFN)
        ),
        TRUNK,
        ssm(8192, 16, 256) | {"attention.head_count_kv": JAMBA_KV},
    ),
    "falcon-h1-1.5b": Shape(
        "falcon-h1",
        24,
        sized("E=2048 N=8 G=2 H=128 F=4096 T=65537 C=131072 I=3072 Z=256 P=48 J=1 D=4"),
        "attn_norm E; ffn_norm! E;" + MAMBA2.replace("ssm_norm I/J J;", "") + ATTENTION + FFN,
        TRUNK,
        ssm(3072, 256, 48, 1),
    ),
    "granite-4-tiny": Shape(
        "granitehybrid",
        40,
        sized("E=1536 N=12 G=4 F=512 T=100352 C=131072 X=64 U=6 S=1024 I=3072 Z=128 P=48 J=1 D=4"),
        lambda layer: NORMS + (ATTENTION if GRANITE_KV[layer] else MAMBA2) + EXPERTS.replace("M", "F") + SHARED,
        TIED,
        ssm(3072, 128, 48, 1)
        | GRANITE_SCALES
        | {
            "attention.head_count_kv": GRANITE_KV,
            "expert_shared_feed_forward_length": 1024,
            "rope.scaling.finetuned": False,
        },
    ),
    "lfm2-1.2b": Shape(
        "lfm2",
        16,
        sized("E=2048 N=32 G=8 F=8192 T=65536 C=128000"),
        lambda layer: NORMS + (ATTENTION + HEAD_NORMS if LFM2_KV[layer] else LFM2_CONV) + FFN,
        "token_embd E T; token_embd_norm E;",
        {"shortconv.l_cache": 3, "attention.head_count_kv": LFM2_KV},
    ),
    "lfm2-8b-a1b": Shape(
        "lfm2moe",
        24,
        sized("E=2048 N=32 G=8 F=7168 T=65536 C=128000 X=32 U=4 M=1792"),
        lambda layer: (
            NORMS
            + (ATTENTION + HEAD_NORMS if LFM2_MOE_KV[layer] else LFM2_CONV)
            + (FFN if layer < 2 else EXPERTS + EXPERT_BIAS)
        ),
        "token_embd E T; token_embd_norm E;",
        {
            "shortconv.l_cache": 3,
            "attention.head_count_kv": LFM2_MOE_KV,
            "leading_dense_block_count": 2,
            "expert_gating_func": 2,
        },
    ),
    "nemotron-nano-9b-v2": Shape(
        "nemotron_h",
        56,
        sized("E=4480 N=40 G=8 H=128 F=15680 T=131072 C=131072 I=10240 Z=128 P=128 J=8 D=4"),
        nemotron_block,
        TRUNK,
        ssm(10240, 128, 128, 8)
        | {
            "attention.head_count_kv": [8 * (kind == "*") for kind in NEMOTRON_PATTERN],
            "feed_forward_length": [15680 * (kind == "-") for kind in NEMOTRON_PATTERN],
        },
    ),
    "nemotron-3-nano-30b-a3b": Shape(
        "nemotron_h_moe",
        52,
        sized("E=2688 N=32 G=2 H=128 F=1856 T=131072 C=1048576 X=128 U=6 M=1856 S=3712 I=4096 Z=128 P=64 J=8 D=4"),
        nemotron_moe_block,
        TRUNK,
        ssm(4096, 128, 64, 8)
        | {
            "attention.head_count_kv": [2 * (kind == "*") for kind in NEMOTRON_MOE_PATTERN],
            "feed_forward_length": [1856 * (kind == "E") for kind in NEMOTRON_MOE_PATTERN],
            "expert_shared_feed_forward_length": 3712,
            "expert_shared_count": 1,
            "expert_weights_norm": True,
            "expert_weights_scale": 2.5,
        },
    ),
    "qwen3-next-80b-a3b": Shape(
        "qwen3next",
        48,
        sized("E=2048 N=16 G=2 H=256 F=5120 T=151936 C=262144 X=512 U=10 M=512 S=512 I=4096 Z=128 P=32 J=16 D=4"),
        delta_block(4, "ssm_ba E 2*P;", EXPERTS + SHARED + "ffn_gate_inp_shexp E;"),
        TRUNK,
        ssm(4096, 128, 32, 16) | {"expert_shared_feed_forward_length": 512, "rope.dimension_count": 64},
    ),
    "qwen3.5-9b": Shape(
        "qwen35",
        32,
        sized("E=4096 N=16 G=4 H=256 F=12288 T=248320 C=262144 I=4096 Z=128 P=32 J=16 D=4"),
        delta_block(4, "ssm_alpha E P; ssm_beta E P;", FFN),
        TRUNK,
        ssm(4096, 128, 32, 16)
        | {"rope.dimension_sections": [11, 11, 10, 0], "rope.dimension_count": 64, "full_attention_interval": 4},
    ),
    "qwen3.5-35b-a3b": Shape(
        "qwen35moe",
        40,
        sized("E=2048 N=16 G=2 H=256 F=512 T=248320 C=262144 X=256 U=8 M=512 S=512 I=4096 Z=128 P=32 J=16 D=4"),
        delta_block(4, "ssm_alpha E P; ssm_beta E P;", EXPERTS + SHARED + "ffn_gate_inp_shexp E;"),
        TRUNK,
        ssm(4096, 128, 32, 16)
        | {
            "rope.dimension_sections": [11, 11, 10, 0],
            "rope.dimension_count": 64,
            "expert_shared_feed_forward_length": 512,
        },
    ),
    "kimi-linear-48b-a3b": Shape(
        "kimi-linear",
        27,
        sized(
            "E=2304 N=32 G=1 H=576 B=512 F=9216 T=163840 C=1048576 X=256 U=8 M=1024 S=1024 L=512 R=64 Y=128 W=128"
            " Z=128 D=4"
        ),
        kimi_block,
        TRUNK,
        mla()
        | {
            "attention.head_count_kv": KIMI_KV,
            "ssm.conv_kernel": 4,
            "kda.head_dim": 128,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_gating_func": 2,
            "expert_weights_scale": 2.446,
            "expert_weights_norm": True,
        },
    ),
}


def main(outdir: str, *names: str) -> None:
    folder = Path(outdir)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or MODELS:
        write_model(folder / f"{name}.gguf", MODELS[name].build())


if __name__ == "__main__":
    main(*sys.argv[1:])
