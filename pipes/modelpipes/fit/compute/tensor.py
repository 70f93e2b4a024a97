"""The tensors of a compute graph: shapes, sizes and where they come from; no values.

Each function makes the tensor that ggml's function of the same name makes (ggml/src/ggml.c), so that a
graph written with them has the same nodes, in the same order, with the same sizes. Shapes are in ggml's
order: the contiguous dimension first, always four.
"""

from __future__ import annotations

from collections.abc import Sequence

Shape = tuple[int, int, int, int]

F32, F16, I32, I64 = "f32", "f16", "i32", "i64"
ELEMENT_BYTES = {F32: 4, F16: 2, "bf16": 2, I32: 4, I64: 8}  # quantised ones lie in caches: sizes are given there


class Tensor:
    """One node or leaf. `home` is where it lies before the graph runs, for weights and caches: a device, or the host,
    whose number follows theirs.
    """

    __slots__ = (
        "children", "home", "is_input", "is_output", "is_weight", "nb", "ne", "offset", "op", "owned", "place", "size",
        "src", "taken", "type", "view_src", "views", "visited",
    )  # fmt: skip
    view_src: Tensor | None
    offset: int
    taken: int

    def __init__(
        self, op: str, type: str, ne: Shape, src: tuple[Tensor, ...] = (), nb: Shape | None = None,
        view_src: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.op = op
        self.type = type
        self.ne = ne
        if nb is None:
            element = ELEMENT_BYTES.get(type, 1)
            row = ne[0] * element
            plane = row * ne[1]
            cube = plane * ne[2]
            self.nb = (element, row, plane, cube)
            self.size = cube * ne[3]
        else:
            self.nb = nb
            self.size = _strided_bytes(ne, nb)
        self.src = src
        # A view of a view is one of the whole.
        self.view_src = view_src if view_src is None or view_src.view_src is None else view_src.view_src
        self.home: int | None = None
        self.is_weight = False
        self.is_input = False
        self.is_output = False
        self.visited = False
        # what schedule and allocate write down
        self.place: int | None = None
        self.children = 0
        self.views = 0
        self.owned = False  # it has memory of its own: `taken` bytes at `offset`

    def is_contiguous(self) -> bool:
        ne, nb = self.ne, self.nb
        return nb[1] == ne[0] * nb[0] and nb[2] == nb[1] * ne[1] and nb[3] == nb[2] * ne[2]

    def is_cached(self) -> bool:
        """Whether it lies in memory that was there before the graph."""
        return self.view_src is not None and self.view_src.home is not None

    @property
    def n_elements(self) -> int:
        ne = self.ne
        return ne[0] * ne[1] * ne[2] * ne[3]


def _strided_bytes(ne: Shape, nb: Shape) -> int:
    """As `ggml_nbytes`: from the first to behind the last element."""
    if 0 in ne:
        return 0
    return nb[0] + (ne[0] - 1) * nb[0] + (ne[1] - 1) * nb[1] + (ne[2] - 1) * nb[2] + (ne[3] - 1) * nb[3]


VIEW_OPS = frozenset({"view", "reshape", "permute", "transpose"})


def leaf(type: str, ne0: int, ne1: int = 1, ne2: int = 1, ne3: int = 1) -> Tensor:
    return Tensor("none", type, (ne0, ne1, ne2, ne3))


def graph_input(type: str, ne0: int, ne1: int = 1, ne2: int = 1, ne3: int = 1) -> Tensor:
    tensor = leaf(type, ne0, ne1, ne2, ne3)
    tensor.is_input = True
    return tensor


def stored(ne: Sequence[int], size: int, home: int, *, weight: bool, type: str = F32) -> Tensor:
    """A weight or a cache of `size` bytes that lies at `home` already."""
    shape = (*ne, 1, 1, 1)[:4]
    tensor = Tensor("none", F32, shape)  # type: ignore[arg-type]
    tensor.type = type
    tensor.size = size
    tensor.home = tensor.place = home
    tensor.is_weight = weight
    tensor.visited = True  # what lies somewhere is no part of a graph: one tensor serves many of them
    return tensor


# Elementwise: the result has the first argument's shape, and may take its place.
def unary(op: str, a: Tensor, *others: Tensor) -> Tensor:
    return Tensor(op, a.type, a.ne, (a, *others))


def add(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("add", a.type, a.ne, (a, b))


def mul(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("mul", a.type, a.ne, (a, b))


def scale(a: Tensor) -> Tensor:
    return Tensor("scale", a.type, a.ne, (a,))


def activation(a: Tensor) -> Tensor:
    return Tensor("unary", a.type, a.ne, (a,))


def glu_split(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("glu", a.type, a.ne, (a, b))


def glu(a: Tensor) -> Tensor:
    return Tensor("glu", a.type, (a.ne[0] // 2, *a.ne[1:]), (a,))


def rope(a: Tensor, positions: Tensor, factors: Tensor | None = None) -> Tensor:
    return Tensor("rope", a.type, a.ne, (a, positions) if factors is None else (a, positions, factors))


# Products
def mul_mat(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("mul_mat", F32, (a.ne[1], b.ne[1], b.ne[2], b.ne[3]), (a, b))


def mul_mat_id(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    return Tensor("mul_mat_id", F32, (a.ne[1], ids.ne[0], b.ne[2], 1), (a, b, ids))


def flash_attn_ext(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None = None) -> Tensor:
    sources = tuple(tensor for tensor in (q, k, v, mask, sinks) if tensor is not None)
    return Tensor("flash_attn_ext", F32, (v.ne[0], q.ne[2], q.ne[1], q.ne[3]), sources)


def soft_max(a: Tensor, mask: Tensor | None = None, sinks: Tensor | None = None) -> Tensor:
    return Tensor("soft_max", a.type, a.ne, tuple(tensor for tensor in (a, mask, sinks) if tensor is not None))


# Rows
def get_rows(a: Tensor, ids: Tensor) -> Tensor:
    return Tensor("get_rows", I32 if a.type == I32 else F32, (a.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]), (a, ids))


def set_rows(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    return Tensor("set_rows", a.type, a.ne, (b, ids, a), a.nb, a)


def argsort(a: Tensor) -> Tensor:
    return Tensor("argsort", I32, a.ne, (a,))


def argsort_top_k(a: Tensor, k: int) -> Tensor:
    order = argsort(a)
    return view(order, (k, *a.ne[1:]), order.nb)


def top_k(a: Tensor, k: int) -> Tensor:
    return Tensor("top_k", I32, (k, *a.ne[1:]), (a,))


def sum_rows(a: Tensor) -> Tensor:
    return Tensor("sum_rows", a.type, (1, *a.ne[1:]), (a,))


# Copies
def cont(a: Tensor, *ne: int) -> Tensor:
    return Tensor("cont", a.type, (*ne, 1, 1, 1)[:4] if ne else a.ne, (a,))  # type: ignore[arg-type]


def cast(a: Tensor, type: str) -> Tensor:
    tensor = Tensor("cpy", type, a.ne)
    tensor.src = (a, tensor)
    return tensor


def cpy(a: Tensor, b: Tensor) -> Tensor:
    return Tensor("cpy", b.type, b.ne, (a, b), b.nb, b)


def concat(a: Tensor, b: Tensor, dim: int) -> Tensor:
    ne = list(a.ne)
    ne[dim] += b.ne[dim]
    return Tensor("concat", a.type, (ne[0], ne[1], ne[2], ne[3]), (a, b))


def pad(a: Tensor, more: int) -> Tensor:
    return Tensor("pad", a.type, (a.ne[0] + more, *a.ne[1:]), (a,))


def repeat(a: Tensor, *ne: int) -> Tensor:
    return Tensor("repeat", a.type, (*ne, 1, 1, 1)[:4], (a,))  # type: ignore[arg-type]


def made(op: str, type: str, ne: Sequence[int], *src: Tensor) -> Tensor:
    """The result of an operation that always takes memory of its own."""
    return Tensor(op, type, (*ne, 1, 1, 1)[:4], src)  # type: ignore[arg-type]


# Views
def view(a: Tensor, ne: Sequence[int], nb: Sequence[int] | None = None) -> Tensor:
    """A part of `a`; without strides, those of a contiguous tensor with `a`'s rows."""
    shape: Shape = (*ne, 1, 1, 1)[:4]  # type: ignore[assignment]
    if nb is None:
        row = a.nb[1] if len(ne) > 1 else shape[0] * a.nb[0]
        strides: Shape = (a.nb[0], row, row * shape[1], row * shape[1] * shape[2])
    else:
        filled = list(nb)
        while len(filled) < 4:
            filled.append(filled[-1] * shape[len(filled) - 1])
        strides = (filled[0], filled[1], filled[2], filled[3])
    return Tensor("view", a.type, shape, (a,), strides, a)


def cache_view(cache: Tensor, ne: Shape, row_bytes: int, size: int) -> Tensor:
    """The cells of a cache, `size` bytes in rows of `row_bytes` for each head."""
    row = row_bytes * ne[1]
    tensor = Tensor("view", cache.type, ne, (cache,), (1, row_bytes, row, row * ne[2]), cache)
    tensor.size = size
    return tensor


def _same_bytes(a: Tensor, tensor: Tensor) -> Tensor:
    tensor.size = a.size
    return tensor


def reshape(a: Tensor, *ne: int) -> Tensor:
    tensor = Tensor("reshape", a.type, (*ne, 1, 1, 1)[:4], (a,))  # type: ignore[arg-type]
    tensor.view_src = a.view_src or a
    return tensor


def permute(a: Tensor, *axes: int) -> Tensor:
    ne, nb = [0] * 4, [0] * 4
    for old, new in enumerate(axes):
        ne[new], nb[new] = a.ne[old], a.nb[old]
    return _same_bytes(
        a, Tensor("permute", a.type, (ne[0], ne[1], ne[2], ne[3]), (a,), (nb[0], nb[1], nb[2], nb[3]), a)
    )


def transpose(a: Tensor) -> Tensor:
    ne, nb = a.ne, a.nb
    return _same_bytes(
        a, Tensor("transpose", a.type, (ne[1], ne[0], ne[2], ne[3]), (a,), (nb[1], nb[0], nb[2], nb[3]), a)
    )
