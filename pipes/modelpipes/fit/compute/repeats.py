"""Which blocks of a model to build a graph of: blocks that repeat need the same memory again and again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

LONGEST_PATTERN = 8  # blocks: the longest that a public model repeats is 8 (jamba)
KEPT = 4  # of a pattern's repeats: the first, which finds the memory fresh, two that do not, and the last


def without_repeats(labels: Sequence[Hashable]) -> list[int]:
    """The blocks' numbers, without those in the middle of a pattern of equally labelled blocks."""
    kept: list[int] = []
    start = 0
    while start < len(labels):
        period, count = max(
            ((period, _count_repeats(labels, start, period)) for period in range(1, LONGEST_PATTERN + 1)),
            key=lambda found: (found[0] * found[1] if found[1] > KEPT else 0, -found[0]),
        )
        if count <= KEPT:
            kept.append(start)
            start += 1
            continue
        end = start + period * count
        n_first = KEPT - 1 + (count - KEPT) % 2  # free memory may look different after every other repeat
        kept.extend(range(start, start + period * n_first))
        kept.extend(range(end - period, end))
        start = end
    return kept


def _count_repeats(labels: Sequence[Hashable], start: int, period: int) -> int:
    """How often the `period` labels at `start` stand there one after the other."""
    count = 1
    while labels[start : start + period] == labels[start + count * period : start + (count + 1) * period]:
        count += 1
    return count
