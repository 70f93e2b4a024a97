"""The parts that the graphs of all architectures are made of: inputs, norms, attention, feed-forward.

Follows llama.cpp b11434, src/llama-graph.cpp: each method stands for the `llm_graph_context::build_*` of
the same name, and adds the same nodes in the same order. Elementwise steps that take their argument's
memory (scales, clamps, soft caps) are left out where nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modelpipes.fit.compute import tensor as t
from modelpipes.fit.compute.schedule import Graph
from modelpipes.fit.compute.tensor import F16, F32, I32, I64, Tensor
from modelpipes.fit.context import Context
from modelpipes.fit.hparams import Hparams
from modelpipes.fit.spec import EngineSpec
from modelpipes.gguf.types import row_bytes

ROTATION = 64  # rows of the smallest Hadamard matrix (llama-kv-cache.cpp)


class Builder:
    """One graph in the making, for the largest batch that the settings allow."""

    def __init__(
        self, weights: Mapping[str, Tensor | None], hparams: Hparams, context: Context, settings: EngineSpec,
        homes: list[int],
    ) -> None:  # fmt: skip
        self.weights = weights  # None: the file has no such weight
        self.h = hparams
        self.context = context
        self.settings = settings
        self.homes = homes  # of every layer, the output last
        self.graph = Graph()
        tokens = min(context.n_ctx, context.n_ubatch)
        n_outputs = settings.n_outputs or settings.n_parallel
        self.n_outputs = min(tokens, n_outputs)
        self.n_seqs = settings.n_parallel
        self.n_tokens = -(-tokens // self.n_seqs) * self.n_seqs
        self.n_streams = context.n_streams
        self.inputs: Tensor | None = None  # what `embed` gave, with all that is in it for later layers
        self.n_embd_inp = hparams.n_embd * (1 + hparams.number("n_deepstack_layers"))
        self._caches: dict[tuple[str, int], Tensor] = {}

    # weights
    def w(self, name: str) -> Tensor | None:
        return self.weights[name + ".weight"]

    def layer(self, il: int, name: str) -> Tensor | None:
        return self.weights[f"blk.{il}.{name}.weight"]

    def bias(self, il: int, name: str) -> Tensor | None:
        return self.weights[f"blk.{il}.{name}.bias"]

    def weight(self, name: str) -> Tensor:
        found = self.weights[name]
        if found is None:
            raise MissingWeight(name)
        return found

    def needed(self, il: int, name: str) -> Tensor:
        return self.weight(f"blk.{il}.{name}.weight")

    # inputs
    def embed(self, scaled: bool = False) -> Tensor:
        """`build_inp_embd`: rows of the token table, or given embeddings, or both in one batch."""
        table = self.weights["token_embd.weight"] or self.weight("output.weight")
        tokens = t.graph_input(I32, self.n_tokens)
        given = t.graph_input(F32, self.n_embd_inp, self.n_tokens)
        more = self.n_embd_inp - self.h.n_embd
        cur = t.get_rows(table, tokens)
        cur = t.pad(cur, more) if more else cur
        self.graph.expand(cur)
        self.graph.expand(given)
        if self.h.facts.mixed_batches:
            mixed = t.graph_input(F32, self.n_embd_inp, self.n_tokens)
            slots = t.graph_input(I64, self.n_tokens)
            rows = t.get_rows(table, t.graph_input(I32, self.n_tokens))
            rows = t.pad(rows, more) if more else rows
            self.graph.expand(t.set_rows(t.cont(mixed), rows, slots))
        if more:  # of pictures, layers beyond the first get something too: `deepstack`
            self.inputs = cur
            cur = t.view(cur, (self.h.n_embd, self.n_tokens))
        if scaled:
            cur = t.mul(cur, t.graph_input(F32, 1, self.n_tokens))
        return self.graph.expand(cur)

    def positions(self) -> Tensor:
        """One number for each token, or four where pictures have rows and columns (`n_pos_per_embd`)."""
        multiple = self.h.facts.positions == "four"
        if self.h.facts.positions == "by-sections":
            sections = self.h.value("rope.dimension_sections")
            first = sections[:2] if isinstance(sections, list) else []
            multiple = len(first) == 2 and all(isinstance(part, int) and part > 0 for part in first)
        return t.graph_input(I32, self.n_tokens * (4 if multiple else 1))

    def out_ids(self) -> Tensor:
        return t.graph_input(I32, self.n_outputs)

    def attention_inputs(self, cells: int, windowed: bool | None = None) -> AttentionInputs:
        """`build_attn_inp_kv`: where keys and values go, and who may look at whom.

        `windowed` tells the caches apart where layers with a window have one of their own.
        """
        per_value = 1 if self.settings.flash_attn else self.h.n_embd_v_gqa_max
        mask_type = F16 if self.settings.flash_attn else F32
        return AttentionInputs(
            t.graph_input(I64, self.n_tokens),
            t.graph_input(I64, self.n_tokens * per_value),
            t.graph_input(mask_type, cells, self.n_tokens // self.n_streams, 1, self.n_streams),
            self._rotation(self.settings.type_k, self.h.n_embd_head_k, windowed, grows=True),
            self._rotation(self.settings.type_v, self.h.n_embd_head_v, windowed, grows=False),
        )

    def _rotation(self, type: str, heads: tuple[int, ...], windowed: bool | None, *, grows: bool) -> Tensor | None:
        """The matrix that a quantised cache is rotated with (the constructor of `llama_kv_cache`)."""
        if type in ("f32", "f16", "bf16"):
            return None
        h = self.h
        sizes = {
            head
            for il, head in enumerate(heads)
            if h.n_head_kv[il] and h.has_kv[il] and windowed in (None, h.is_swa[il])
        }
        if len(sizes) != 1 or heads[0] % ROTATION:
            return None
        head = sizes.pop()
        rows = max(ROTATION, head & -head) if grows else ROTATION  # the largest power of two that divides it
        return t.graph_input(F32, rows, rows)

    # norms
    def norm(self, cur: Tensor, weight: Tensor | None, bias: Tensor | None = None, op: str = "rms_norm") -> Tensor:
        """`build_norm`: RMS norm unless told otherwise (`norm` needs memory of its own)."""
        cur = t.Tensor(op, cur.type, cur.ne, (cur,))
        if weight is not None:
            cur = t.mul(cur, weight)
        if bias is not None:
            cur = t.add(cur, bias)
        return cur

    # attention
    def qkv(self, il: int, cur: Tensor, heads: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`build_qkv`: three products, or one whose parts are looked at."""
        h = self.h
        n_head, n_kv = (h.n_head[il] if heads is None else heads), h.n_head_kv[il]
        size_k, size_v = h.n_embd_head_k[il], h.n_embd_head_v[il]
        fused = self.layer(il, "attn_qkv")
        n = self.n_tokens
        if fused is not None:
            qkv = self.linear(cur, fused, self.bias(il, "attn_qkv"))
            stride = qkv.nb[1]
            return (
                t.view(qkv, (size_k, n_head, n), (4, 4 * size_k, stride, stride * n)),
                t.view(qkv, (size_k, n_kv, n), (4, 4 * size_k, stride, stride * n)),
                t.view(qkv, (size_v, n_kv, n), (4, 4 * size_v, stride, stride * n)),
            )
        q = self.linear(cur, self.needed(il, "attn_q"), self.bias(il, "attn_q"))
        k = self.linear(cur, self.needed(il, "attn_k"), self.bias(il, "attn_k"))
        weight_v = self.layer(il, "attn_v")
        v = k if weight_v is None else self.linear(cur, weight_v, self.bias(il, "attn_v"))
        return t.reshape(q, size_k, n_head, n), t.reshape(k, size_k, n_kv, n), t.reshape(v, size_v, n_kv, n)

    def linear(self, cur: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        cur = t.mul_mat(weight, cur)
        return cur if bias is None else t.add(cur, bias)

    def cache(self, kind: str, il: int, width: int, cells: int, type: str) -> Tensor:
        """A layer's cache of keys or values, which lies where the layer does."""
        size = row_bytes(type, width) * cells * self.n_streams
        return t.stored((width, cells, self.n_streams), size, self.homes[il], weight=False, type=type)

    def attend(
        self, inputs: AttentionInputs, cells: int, il: int, q: Tensor, k: Tensor | None, v: Tensor | None,
        *, sinks: Tensor | None = None, wo: Tensor | None = None, wo_bias: Tensor | None = None,
        bias: Tensor | None = None, shared: int | None = None,
    ) -> Tensor:  # fmt: skip
        """`build_attn` over a cache: store this batch's keys and values, attend to all of them.

        `shared` names the layer whose cache is read where a layer has none of its own.
        """
        h, settings, graph = self.h, self.settings, self.graph
        if inputs.k_rotation is not None:
            q = self.rotate(q, inputs.k_rotation)
            k = None if k is None else self.rotate(k, inputs.k_rotation)
        if inputs.v_rotation is not None and v is not None:
            v = self.rotate(v, inputs.v_rotation)
        for tensor in (q, v, k) if h.swa_type == "none" else (q, k, v):
            if tensor is not None:
                graph.expand(tensor)
        at = il if shared is None else shared
        n_kv = h.n_head_kv[at]
        size_k, size_v = h.n_embd_head_k[at], h.n_embd_head_v[at]
        transposed = not settings.flash_attn
        width_v = self.h.n_embd_v_gqa_max if transposed else size_v * n_kv
        keys = self._cached("k", at, size_k * n_kv, cells, settings.type_k)
        values = self._cached("v", at, width_v, cells, settings.type_v)
        if k is not None:
            k = t.view(k, (size_k * n_kv, self.n_tokens), (k.nb[0], k.nb[2]))
            graph.expand(t.set_rows(self._merged(keys), k, inputs.k_ids))
        if v is not None:
            graph.expand(self._store_values(values, v, size_v * n_kv, width_v, inputs.v_ids, transposed))
        row_k, row_v = row_bytes(settings.type_k, size_k), row_bytes(settings.type_v, size_v)
        streams = self.n_streams
        seen_k = t.cache_view(keys, (size_k, n_kv, cells, streams), row_k, keys.size)
        if transposed:
            unseen = row_bytes(settings.type_v, cells * (width_v - size_v * n_kv))  # by a layer that is not the widest
            seen_v = t.cache_view(values, (cells, n_kv, size_v, streams), 2 * cells, values.size - unseen)
        else:
            seen_v = t.cache_view(values, (size_v, n_kv, cells, streams), row_v, values.size)
        cur = self.mha(q, seen_k, seen_v, inputs.mask, sinks=sinks, bias=bias, v_transposed=transposed)
        if inputs.v_rotation is not None:
            cur = self.rotate(cur, inputs.v_rotation)
        return cur if wo is None else self.linear(cur, wo, wo_bias)

    def _cached(self, kind: str, il: int, width: int, cells: int, type: str) -> Tensor:
        found = self._caches.get((kind, il))
        if found is None:
            found = self._caches[kind, il] = self.cache(kind, il, width, cells, type)
        return found

    def _merged(self, cache: Tensor) -> Tensor:
        """A cache of several streams as one: the rows' numbers count through all of them."""
        if self.n_streams == 1:
            return cache
        merged = t.reshape(cache, cache.ne[0], cache.ne[1] * cache.ne[2])
        merged.size = cache.size
        return merged

    def _store_values(
        self, values: Tensor, v: Tensor, width: int, cache_width: int, ids: Tensor, transposed: bool
    ) -> Tensor:
        """`llama_kv_cache::cpy_v`: a transposed cache takes each number as a row of its own."""
        if not transposed:
            v = t.view(v, (width, self.n_tokens), (v.nb[0], v.nb[2]))
            return t.set_rows(self._merged(values), v, ids)
        v = t.reshape(v, width, self.n_tokens) if v.nb[2] == width * v.nb[0] else t.cont(v, width, self.n_tokens)
        if width < cache_width:
            v = t.pad(v, cache_width - width)
        flat = t.reshape(values, 1, values.n_elements)
        return t.set_rows(flat, t.reshape(v, 1, v.n_elements), ids)

    def mha(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, sinks: Tensor | None = None,
        bias: Tensor | None = None, v_mla: Tensor | None = None, v_transposed: bool = False,
    ) -> Tensor:  # fmt: skip
        """`build_attn_mha`: fused, or as a product with a table of every token against every cell."""
        streams = k.ne[3]
        per_stream = q.ne[2] // streams
        q = t.view(q, (q.ne[0], q.ne[1], per_stream, streams), (*q.nb[:3], q.nb[2] * per_stream))
        q, k, v = (t.permute(tensor, 0, 2, 1, 3) for tensor in (q, k, v))
        if self.settings.flash_attn and bias is None:
            if v_transposed:
                v = t.transpose(v)
            k, v = (t.cast(tensor, F16) if tensor.type == F32 else tensor for tensor in (k, v))
            cur = t.flash_attn_ext(q, k, v, mask, sinks)
            if v_mla is not None:
                cur = t.mul_mat(v_mla, t.permute(cur, 0, 2, 1, 3))
                cur = t.cont(t.permute(cur, 0, 2, 1, 3))
            cur = t.reshape(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
        else:
            kq = t.mul_mat(k, q)
            if bias is not None:
                kq = t.add(kq, bias)
            kq = t.soft_max(kq, mask, sinks)
            if not v_transposed:
                cached = v.is_cached()
                v = t.cont(t.transpose(v))
                if cached:  # in the cache's type, which may be quantised
                    v.size = row_bytes(self.settings.type_v, v.n_elements)
            cur = t.mul_mat(v, kq)
            if v_mla is not None:
                cur = t.mul_mat(v_mla, cur)
            cur = t.permute(cur, 0, 2, 1, 3)
            cur = t.cont(cur, cur.ne[0] * cur.ne[1], cur.ne[2] * cur.ne[3])
        return self.graph.expand(cur)

    def rotate(self, cur: Tensor, rotation: Tensor) -> Tensor:
        """`llama_mul_mat_hadamard`."""
        rows = rotation.ne[0]
        count = cur.n_elements // rows
        flat = t.reshape(cur, rows, count) if cur.is_contiguous() else t.cont(cur, rows, count)
        return t.reshape(t.mul_mat(rotation, flat), *cur.ne)

    # feed-forward
    def ffn(
        self, il: int, cur: Tensor, up: str = "ffn_up", gate: str = "ffn_gate", down: str = "ffn_down",
        gated: Callable[[Tensor, Tensor], Tensor] = t.glu_split,
    ) -> Tensor:  # fmt: skip
        """`build_ffn`: gated where there is a gate, halved where up and gate are one matrix."""
        weight_down = self.needed(il, down)
        weight_up, weight_gate = self.layer(il, up), self.layer(il, gate)
        inner_norm = self.layer(il, "ffn_sub_norm")
        tmp = cur if weight_up is None else self.linear(cur, weight_up, self.bias(il, up))
        if weight_gate is not None:
            cur = gated(self.linear(cur, weight_gate, self.bias(il, gate)), tmp)
        elif tmp.ne[0] == 2 * weight_down.ne[0]:
            cur = t.glu(tmp)
        else:
            cur = t.activation(tmp)
        cur = cur if inner_norm is None else self.norm(cur, inner_norm)
        return self.linear(cur, weight_down, self.bias(il, down))

    def output(self, cur: Tensor, op: str = "rms_norm", rows: Tensor | None = None) -> None:
        """The last norm, and the product that gives the logits: of all, or of the `rows` only."""
        cur = self.norm(cur, self.w("output_norm"), self.weights["output_norm.bias"], op=op)
        if rows is not None:
            cur.is_output = True  # a draft model may read it (t_h_nextn)
            cur = t.get_rows(cur, rows)
        weight = self.weights["token_embd.weight" if self.h.facts.input_as_output else "output.weight"]
        if weight is not None:
            cur = self.linear(cur, weight, self.weights["output.bias"])
        self.graph.expand(cur)


class AttentionInputs:
    """Inputs of one kind of attention cache."""

    __slots__ = ("k_ids", "k_rotation", "mask", "v_ids", "v_rotation")

    def __init__(
        self, k_ids: Tensor, v_ids: Tensor, mask: Tensor, k_rotation: Tensor | None, v_rotation: Tensor | None
    ) -> None:
        self.k_ids = k_ids
        self.v_ids = v_ids
        self.mask = mask
        self.k_rotation = k_rotation
        self.v_rotation = v_rotation


class MissingWeight(Exception):
    """A model without a weight that its architecture needs."""
