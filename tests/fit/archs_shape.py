"""Model headers written down briefly: a model's sizes, and a few lines of tensors for each kind of block.

A tensor is a name and its dimensions; dimensions are letters (see `SIZES`), numbers, or sums and products of them.
Names stand for a block's weights; `.b` is a bias, `.s` a scale, `.x` and `.y` are an adapter; `!` has no suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.fit.shapes import Metadata, Mix, Model, Quantizer, Spec, TensorType

# Letters, and the hyper-parameters that they set.
SIZES = {
    "E": "embedding_length",
    "N": "attention.head_count",
    "G": "attention.head_count_kv",
    "F": "feed_forward_length",
    "T": "vocab_size",
    "C": "context_length",
    "X": "expert_count",
    "U": "expert_used_count",
    "M": "expert_feed_forward_length",
}

SUFFIXES = {".b": ".bias", ".s": ".scale", ".x": ".lora_a", ".y": ".lora_b"}

# What RWKV's files never quantise, by llama-quantize.
UNQUANTISED = ("time_mix_first", "time_mix_w", "time_mix_decay_w", "time_mix_lerp", "channel_mix_lerp", "time_mix_r_k")

Block = str | Callable[[int], str]


@dataclass(frozen=True)
class Shape:
    """One model: its blocks as text (for each layer, where they differ), and what is beside them."""

    arch: str
    n_layer: int
    sizes: Mapping[str, int]
    block: Block
    trunk: str = "token_embd E T; output_norm E; output E T;"
    extra: Metadata = field(default_factory=dict)
    mix: Mix = Mix.Q4_K_M
    prefix: str = "blk"
    after: Block = ""  # further tensors of each layer, with their whole name

    def build(self) -> Model:
        sizes = self.all_sizes()
        specs = list(parse(self.trunk, sizes, ""))
        for layer in range(self.n_layer):
            here = sizes | {letter: value[layer] for letter, value in self.lists().items()}
            here |= {letter: here[count] * here["H"] for letter, count in (("Q", "N"), ("K", "G")) if count in here}
            here |= {"V": here.get("G", 0) * here["B"], "O": here.get("N", 0) * here["B"]}
            here |= {key: value for key, value in self.sizes.items() if key in "QKVO"}
            specs += parse(at(self.block, layer), here, f"{self.prefix}.{layer}.")
            specs += parse(at(self.after, layer), here, "")
        return Model(self.metadata(), Typed(self.mix, specs, self.n_layer).tensors())

    def all_sizes(self) -> dict[str, int]:
        sizes = dict(self.sizes)
        sizes.setdefault("G", sizes.get("N", 0))
        if "H" not in sizes:
            sizes["H"] = sizes["E"] // sizes["N"] if sizes.get("N") else 0
        sizes.setdefault("B", sizes["H"])
        return sizes

    def lists(self) -> dict[str, list[int]]:
        """Sizes that differ between layers: lists among the hyper-parameters."""
        found: dict[str, list[int]] = {}
        for letter, key in SIZES.items():
            value = self.extra.get(key)
            if isinstance(value, list):
                found[letter] = [int(item) for item in value]
        return found

    def metadata(self) -> Metadata:
        arch, sizes = self.arch, self.all_sizes()
        hparams: Metadata = {key: sizes[letter] for letter, key in SIZES.items() if letter in sizes}
        if "H" in self.sizes:
            hparams |= {"attention.key_length": sizes["H"], "attention.value_length": sizes["B"]}
        hparams |= {"attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5}
        hparams |= self.extra
        metadata: Metadata = {
            "general.architecture": arch,
            "general.type": "model",
            "general.file_type": self.mix.file_type,
            "tokenizer.ggml.model": "no_vocab",
            f"{arch}.block_count": self.n_layer,
        }
        for key, value in hparams.items():
            metadata[key if key.startswith(("tokenizer.", "xielu.")) else f"{arch}.{key}"] = value
        return metadata


class Typed(Quantizer):
    """Types as llama-quantize gives them, also to what only other architectures have."""

    def type_of(self, name: str, dims: tuple[int, ...]) -> TensorType:
        if any(part in name for part in UNQUANTISED) or "conv" in name:
            return TensorType.F32
        return super().type_of(name, dims)


def at(block: Block, layer: int) -> str:
    return block if isinstance(block, str) else block(layer)


def parse(text: str, sizes: Mapping[str, int], prefix: str) -> Iterator[Spec]:
    """Tensors from `name dimension ...; ...`."""
    for entry in filter(None, (part.split() for part in text.split(";"))):
        name, *dims = entry
        if name.endswith("!"):
            name = name[:-1]
        else:
            name = name[:-2] + SUFFIXES[name[-2:]] if name[-2:] in SUFFIXES else name + ".weight"
        yield prefix + name, tuple(evaluate(dim, sizes) for dim in dims)


def evaluate(text: str, sizes: Mapping[str, int]) -> int:
    """A dimension: sums of products of letters and numbers; `I/J` is a quotient."""
    total = 0
    for term in text.split("+"):
        product = 1
        for factor in term.split("*"):
            top, _, bottom = factor.partition("/")
            product *= number(top, sizes) // (number(bottom, sizes) if bottom else 1)
        total += product
    return total


def number(text: str, sizes: Mapping[str, int]) -> int:
    return int(text) if text.isdecimal() else sizes[text]
