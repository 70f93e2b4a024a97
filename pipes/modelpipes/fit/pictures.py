"""What a projector computes with: the buffer for one picture, from its header.

llama.cpp has a graph of its own for each of some sixty kinds (tools/mtmd/clip.cpp, b11434), and makes the buffer with
the engine. What all towers have in common is their feed-forward network, at which most is held at once: the row that
it widens, what comes in, what is added to it, and the wide row itself, for every patch. That is all of the buffer of
the kinds gemma3 and idefics3, to the byte; with a class embedding, as in llava's, the picture itself stays as well.
"""

from __future__ import annotations

from modelpipes.gguf.header import Header

FLOAT_BYTES = 4
NARROW_ROWS = 3  # at the feed-forward network
COLOURS = 3


def picture_size(projector: Header) -> int:
    """The side of a picture as the tower takes it, in pixels; 0 where it takes none, or does not say."""
    return _number(projector, "image_size")


def picture_bytes(projector: Header) -> int:
    """Bytes of the buffer for a picture of the tower's own size; 0 where the header does not say enough."""
    side, patch = picture_size(projector), _number(projector, "patch_size")
    width, wide = _number(projector, "embedding_length"), _number(projector, "feed_forward_length")
    if not (side and patch and width and wide):
        return 0
    n_rows = (side // patch) ** 2
    if not any(tensor.name == "v.class_embd" for tensor in projector.tensors):
        return FLOAT_BYTES * n_rows * (wide + NARROW_ROWS * width)
    n_rows += 1
    return FLOAT_BYTES * (n_rows * (wide + (NARROW_ROWS + 1) * width) + COLOURS * side * side)


def _number(projector: Header, key: str) -> int:
    value = projector.metadata.get(f"clip.vision.{key}")
    return value if isinstance(value, int) and value > 0 else 0
