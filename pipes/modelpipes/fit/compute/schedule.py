"""How ggml places a graph on devices and lays its tensors out: the size of every compute buffer.

What llama.cpp reckons, that is: it forgets there that the norms of a layer stay on the layer's device, so
that the second of two devices needs one copy of a layer's input less in the end.

Follows llama.cpp b11434: `ggml_backend_sched_split_graph` (ggml/src/ggml-backend.cpp) decides where each
node runs and what is copied between devices; `ggml_gallocr_alloc_graph_impl` and `ggml_dyn_tallocr_alloc`
(ggml/src/ggml-alloc.c) give each tensor the best-fitting free block and take it back after its last use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from modelpipes.fit.compute.tensor import VIEW_OPS, Tensor

PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES: of the inputs, where devices work as a pipeline
ENDLESS = 1 << 62
IN_PLACE = frozenset(
    {"fill", "scale", "add", "add_id", "add1", "sub", "mul", "div", "sqr", "sqrt", "log", "unary", "rope",
     "rms_norm", "clamp", "soft_max"}
)  # fmt: skip
# Operations whose small tables say nothing about where to run.
PLACED_ELSEWHERE = frozenset({"rope", "flash_attn_ext"})


class Graph:
    """The nodes in the order in which they are computed, as `ggml_build_forward_expand` adds them."""

    def __init__(self) -> None:
        self.nodes: list[Tensor] = []
        self.leafs: list[Tensor] = []

    def expand(self, tensor: Tensor) -> Tensor:
        """Add a tensor after everything that it needs."""
        if not tensor.visited:
            self._visit(tensor)
        return tensor

    def _visit(self, tensor: Tensor) -> None:
        tensor.visited = True
        for source in tensor.src:
            if not source.visited:
                self._visit(source)
        (self.leafs if tensor.op == "none" else self.nodes).append(tensor)


class Device(Struct, frozen=True):
    """What a device's driver adds to the plain rules.

    `alignment` of every allocation in bytes; `alloc_size` of a tensor, where it is more than its data;
    `offloads` says whether the device runs an operation whose weights lie on the host.
    """

    alignment: int = 32
    alloc_size: Callable[[Tensor], int] | None = None
    offloads: Callable[[Tensor], bool] | None = None


def buffer_sizes(graph: Graph, devices: Sequence[Device], host: Device, *, pipelined: bool) -> list[int]:
    """Bytes of the compute buffer of each device, and of the host last."""
    kinds = [*devices, host]
    last = len(devices)
    _assign(graph, kinds, last)
    nodes, leafs = _with_copies(graph, last, PIPELINE_COPIES if pipelined else 1)
    return _allocate(nodes, leafs, kinds)


def _assign(graph: Graph, kinds: Sequence[Device], last: int) -> None:
    """Give every tensor its place: the first four passes of `ggml_backend_sched_split_graph`."""
    for tensor in graph.leafs:
        tensor.place = tensor.home if tensor.home is not None else last if tensor.is_input else None
    working = []
    for node in graph.nodes:
        node.place = _known_place(node, kinds, last)
        if node.op not in VIEW_OPS:
            working.append(node)
    # Devices spread to their neighbours first; then the host takes what is left between.
    for order, host_spreads in ((working, False), (working[::-1], False), (working, True), (working[::-1], True)):
        current: int | None = None
        for node in order:
            if node.place is None:
                node.place = current
            else:
                current = node.place if host_spreads or node.place != last else None
    for node in working:
        if node.place is None:
            node.place = 0
    for node in graph.nodes:
        if node.place is None and node.view_src is not None:
            node.place = node.view_src.place
        for source in node.src:
            if source.place is None:
                source.place = source.view_src.place if source.view_src is not None else node.place
        if node.place is None:
            node.place = 0


def _known_place(node: Tensor, kinds: Sequence[Device], last: int) -> int | None:
    """Where a node must run for what it reads or writes: `ggml_backend_sched_backend_id_from_cur`."""
    if node.view_src is not None and node.view_src.home is not None:
        return node.view_src.home
    if node.is_input:
        return last
    if node.op not in PLACED_ELSEWHERE:
        for source in node.src:
            if source.is_weight:
                if source.home == last:
                    for place in range(last):
                        offloads = kinds[place].offloads
                        if offloads is not None and offloads(node):
                            return place
                return source.home
    return None


def _with_copies(graph: Graph, last: int, n_copies: int) -> tuple[list[Tensor], list[Tensor]]:
    """The graph with a copy of everything that a place reads from another: passes five and six.

    A copy is made at the start of the stretch of nodes on one place (a split) that first needs it.
    """
    nodes: list[Tensor] = []
    copies: dict[tuple[Tensor, int], list[Tensor]] = {}
    stretch: list[Tensor] = []
    inputs: list[Tensor] = []
    current: int | None = None

    def here(source: Tensor) -> Tensor:
        """The tensor, or its copy on the current place."""
        assert current is not None
        if source.place == current:
            return source
        if (source, current) not in copies:
            copies[source, current] = [_copy(source, current, n_copies > 1) for _ in range(n_copies)]
            inputs.append(source)
        return copies[source, current][0]

    def close() -> None:
        assert current is not None
        for source in inputs:
            after = Tensor("none", source.type, source.ne, (source,), source.nb, source)  # frees it after the copy
            after.place = source.place
            nodes.append(after)
            nodes.append(copies[source, current][0])
        nodes.extend(stretch)

    for node in graph.nodes:
        if node.op in VIEW_OPS:
            stretch.append(node)
            continue
        place = node.place
        if current is None:
            current = place
        elif place != current:
            close()
            stretch, inputs, current = [], [], place
        for source in node.src:
            if source.place != place:
                if inputs and _reads_weight_elsewhere(node):
                    close()
                    stretch, inputs = [], []
                node.src = tuple([here(each) for each in node.src])
                break
        stretch.append(node)
    if current is not None:
        close()
    leafs: list[Tensor] = []
    if n_copies > 1:
        for tensor in graph.leafs:
            if tensor.is_input:
                tensor.is_output = True
                assert tensor.place is not None
                leafs.append(tensor)
                leafs.extend(_copy(tensor, tensor.place, True) for _ in range(n_copies - 1))
        for made in copies.values():
            leafs.extend(made)
    leafs.extend(graph.leafs)
    return nodes, leafs


def _reads_weight_elsewhere(node: Tensor) -> bool:
    return any(source.is_weight and source.home != node.place for source in node.src)


def _copy(source: Tensor, place: int, lasting: bool) -> Tensor:
    """A tensor of the same layout elsewhere; a lasting one is never overwritten."""
    copy = Tensor("none", source.type, source.ne, (), source.nb)
    copy.size = source.size
    copy.place = place
    copy.is_input = copy.is_output = lasting
    return copy


class _Buffer:
    """Free blocks of one buffer that may grow: `ggml_dyn_tallocr`."""

    __slots__ = ("alignment", "alloc_size", "free", "peak")

    def __init__(self, device: Device) -> None:
        self.alignment = device.alignment
        self.alloc_size = device.alloc_size
        self.free: list[list[int]] = [[0, ENDLESS]]  # offset, size; by offset; the last one has no end
        self.peak = 0

    def size_of(self, tensor: Tensor) -> int:
        size = tensor.size if self.alloc_size is None else self.alloc_size(tensor)
        return -(-size // self.alignment) * self.alignment

    def take(self, size: int) -> int:
        """The offset of a block of `size`: the smallest that is large enough, the last one only if none is."""
        best, best_size = -1, ENDLESS
        free = self.free
        for index in range(len(free) - 1):
            if size <= free[index][1] <= best_size:
                best, best_size = index, free[index][1]
        block = free[best]
        offset = block[0]
        block[0] += size
        block[1] -= size
        if block[1] == 0:
            del free[best]
        if offset + size > self.peak:
            self.peak = offset + size
        return offset

    def give_back(self, offset: int, size: int) -> None:
        free = self.free
        end = offset + size
        for index, block in enumerate(free):
            if block[0] + block[1] == offset:
                block[1] += size
                if index + 1 < len(free) and free[index + 1][0] == end:
                    block[1] += free[index + 1][1]
                    del free[index + 1]
                return
            if block[0] == end:
                block[0] = offset
                block[1] += size
                return
            if block[0] > end:
                free.insert(index, [offset, size])
                return


def _allocate(nodes: list[Tensor], leafs: list[Tensor], kinds: Sequence[Device]) -> list[int]:
    """The peak of every place's buffer: `ggml_gallocr_alloc_graph_impl`."""
    buffers = [_Buffer(device) for device in kinds]
    for tensor in leafs:
        _place_tensor(tensor, buffers)
    for node in nodes:
        if node.view_src is not None and node.op != "none":
            node.view_src.views += 1
        if node.is_input:
            _place_tensor(node, buffers)
        for source in node.src:
            source.children += 1
            if source.is_input:
                _place_tensor(source, buffers)
    for node in nodes:
        for source in node.src:
            if not source.owned and source.home is None and source.view_src is None:
                _place_tensor(source, buffers)
        if not node.owned and node.view_src is None:
            _place_tensor(node, buffers)
        for source in node.src:
            source.children -= 1
            if source.children or source.views:
                continue
            whole = source.view_src
            if whole is not None:
                whole.views -= 1
                if not whole.views and not whole.children and whole.owned:
                    _free(whole, buffers)
            elif source.owned:
                _free(source, buffers)
    return [buffer.peak for buffer in buffers]


def _place_tensor(tensor: Tensor, buffers: list[_Buffer]) -> None:
    """Take memory, or a parent's that is used no more: `ggml_gallocr_allocate_node`."""
    if tensor.owned or tensor.home is not None or tensor.view_src is not None:
        return
    tensor.owned = True
    if tensor.op in IN_PLACE:
        for parent in tensor.src:  # never a view: only what has memory of its own is "owned"
            if not parent.owned or parent.is_output or parent.children != 1 or parent.views:
                continue
            if parent.type != tensor.type or parent.ne != tensor.ne or parent.nb != tensor.nb:
                continue
            assert parent.place is not None
            buffer = buffers[parent.place]
            tensor.place = parent.place
            tensor.offset = parent.offset
            tensor.taken = buffer.size_of(tensor)
            parent.owned = False
            if parent.taken > tensor.taken:
                buffer.give_back(parent.offset + tensor.taken, parent.taken - tensor.taken)
            return
    assert tensor.place is not None
    buffer = buffers[tensor.place]
    tensor.taken = buffer.size_of(tensor)
    tensor.offset = buffer.take(tensor.taken)


def _free(tensor: Tensor, buffers: list[_Buffer]) -> None:
    if not tensor.is_output:
        assert tensor.place is not None
        buffers[tensor.place].give_back(tensor.offset, tensor.taken)
        tensor.owned = False
