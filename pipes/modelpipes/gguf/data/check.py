"""Read all data of a model, and tell which tensors hold what no model should."""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections.abc import Callable, Iterator
from operator import attrgetter

import msgspec
import numpy as np

from modelpipes.errors import ModelFileError
from modelpipes.gguf.data.pieces import PIECE_BYTES, Piece, cut, lay_out
from modelpipes.gguf.data.rule import Laid, is_cut, is_unwritten
from modelpipes.gguf.data.values import Bytes, find_nonfinite
from modelpipes.gguf.data.zeros import Run, ZeroRuns
from modelpipes.gguf.findings import DataCheck, DataFinding, Kind, Severity, Verdict
from modelpipes.gguf.header import Header, read_header
from modelpipes.gguf.identity import N_NUMBERS, SIZE, are_others, numbers_of
from modelpipes.gguf.layout import ByteOrder
from modelpipes.gguf.modelfile import ModelFile, printable
from modelpipes.gguf.types import TENSOR_TYPES
from modelpipes.values.units import format_bytes

_VERDICTS: dict[Severity, Verdict] = {"error": "damaged", "suspect": "suspect", "unchecked": "unchecked"}
# What a piece is shifted by in the buffer, so that numbers lie there as they are aligned in the file.
_ALIGNMENT = 64


def check_data(
    file: ModelFile, progress: Callable[[str], None] = lambda line: None, *, strict: bool = False
) -> DataCheck:
    """Look for NaN, infinity and lost blocks in the tensors of a model, of all its shards; `strict` walks headers.

    `progress` is told how far it is. Takes some 3 MiB, and the time of reading. Raises ModelFileError where a file
    cannot be read to its end, or is not the one that was found any more.
    """
    findings = _Findings()
    buffer = np.empty(_ALIGNMENT + PIECE_BYTES, np.uint8)
    n_before = 0
    for number, path in enumerate(file.paths):
        stamp = file.stamp[N_NUMBERS * number : N_NUMBERS * (number + 1)]

        def tell(pos: int, n_before: int = n_before) -> None:
            percent = 100 * (n_before + pos) // max(file.size_bytes, 1)
            progress(f"{file.name}: {percent} % of {format_bytes(file.size_bytes)} checked")

        _check_file(path, stamp, read_header(path, strict), buffer, findings, tell)
        n_before += stamp[SIZE]
    return findings.report()


class _Findings:
    """What was found so far: of each sort the first, and which tensors have the same."""

    def __init__(self) -> None:
        self._first: dict[tuple[Severity, bool], DataFinding] = {}
        self._tensors: dict[tuple[Severity, bool], set[str]] = {}
        self.checked_bytes = 0

    def add(
        self, kind: Kind, severity: Severity, path: str, laid: Laid, offset: int, size_bytes: int, reason: str
    ) -> None:
        """Note that a tensor has this, at a byte of its file."""
        sort = severity, kind == "zeros"
        self._tensors.setdefault(sort, set()).add(laid.tensor.name)
        if sort in self._first:
            return
        row, inside = divmod(offset - laid.start, laid.row_bytes) if laid.row_bytes else (0, 0)
        known = TENSOR_TYPES.get(laid.tensor.type)
        block = inside // known.block_bytes if known else 0
        self._first[sort] = DataFinding(
            kind, severity, printable(path), printable(laid.tensor.name), laid.tensor.type_name, row, block, offset,
            size_bytes, 1, reason,
        )  # fmt: skip

    def report(self) -> DataCheck:
        """All of it."""
        order: list[tuple[Severity, bool]] = [
            ("error", False), ("error", True), ("suspect", True), ("unchecked", False),
        ]  # fmt: skip
        found = [
            msgspec.structs.replace(self._first[sort], n_tensors=len(self._tensors[sort]))
            for sort in order
            if sort in self._first
        ]
        return DataCheck(_VERDICTS[found[0].severity] if found else "sound", self.checked_bytes, found)


def _check_file(
    path: str, stamp: tuple[int, ...], header: Header, buffer: Bytes, findings: _Findings, tell: Callable[[int], None]
) -> None:
    """Check one file; `stamp` has its numbers in `ModelFile.stamp`."""
    known, unknown = lay_out(header)
    for laid in unknown:
        findings.add("unchecked", "unchecked", path, laid, laid.start, 0, "data of a type that is not known")
    descriptor = -1
    pos = header.data_offset
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        _insist_on(path, stamp, descriptor)
        look = _Look(path, descriptor, header.byte_order, known, findings)
        for piece in cut(known, header.alignment):
            pos = piece.start
            look.at(piece, _read(path, descriptor, piece, buffer))
            tell(piece.end)
        look.end()
        _insist_on(path, stamp, descriptor)
    except OSError as error:
        raise ModelFileError(path, f"cannot be read: {error.strerror}", pos if descriptor >= 0 else None) from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _insist_on(path: str, stamp: tuple[int, ...], descriptor: int) -> None:
    """Raise ModelFileError if the open file is not, or no longer, the one that was found."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or are_others((stamp,), (numbers_of(status),)):
        raise ModelFileError(path, "changed while it was read: check it again when nobody writes it")
    if not status.st_nlink:
        raise ModelFileError(path, "removed while it was read")


def _read(path: str, descriptor: int, piece: Piece, buffer: Bytes) -> Bytes:
    """The bytes of a piece. Not a memory map: a file that shrinks while it is mapped kills its reader with SIGBUS."""
    shift = piece.start % _ALIGNMENT
    data = buffer[shift : shift + piece.end - piece.start]
    if _is_hole(descriptor, piece):
        data[:] = 0
        return data
    got = 0
    while got < len(data):
        n_read = os.preadv(descriptor, [data[got:].data], piece.start + got)
        if not n_read:
            raise ModelFileError(path, "cut short while it was read", piece.start + got)
        got += n_read
    return data


def _is_hole(descriptor: int, piece: Piece) -> bool:
    """Whether nothing was written there: the kernel would fill its cache with zeros, at a fifth of the speed."""
    try:
        return os.lseek(descriptor, piece.start, os.SEEK_DATA) >= piece.end
    except OSError as error:
        return error.errno == errno.ENXIO  # up to the file's end; of a file that was cut, which is seen in the end


class _Look:
    """One pass over the data of a file, piece by piece."""

    def __init__(
        self, path: str, descriptor: int, byte_order: ByteOrder, tensors: list[Laid], findings: _Findings
    ) -> None:
        self._path = path
        self._descriptor = descriptor
        self._byte_order: ByteOrder = byte_order
        self._tensors = tensors
        self._findings = findings
        self._zeros = ZeroRuns()
        self._has_nonfinite: Laid | None = None  # the last tensor that has: one finding of it will do

    def at(self, piece: Piece, data: Bytes) -> None:
        """Look at the next piece."""
        for laid, start, end in piece.parts:
            if laid is not self._has_nonfinite:
                self._look_for_nonfinite(laid, start, data[start - piece.start : end - piece.start])
        self._judge(self._zeros.feed(data, piece.start))
        self._findings.checked_bytes += sum(part.end - part.start for part in piece.parts)

    def end(self) -> None:
        """There are no more pieces."""
        self._judge(self._zeros.flush())

    def _look_for_nonfinite(self, laid: Laid, start: int, data: Bytes) -> None:
        found = find_nonfinite(laid.tensor.type, data, self._byte_order)
        if found is None:
            return
        self._has_nonfinite = laid
        offset = start + found.block * TENSOR_TYPES[laid.tensor.type].block_bytes + found.offset
        kind: Kind = "nan" if found.is_nan else "infinity"
        what = "NaN" if found.is_nan else "infinity"
        self._findings.add(kind, "error", self._path, laid, offset, found.n_bytes, what)

    def _judge(self, runs: Iterator[Run]) -> None:
        for run in runs:
            touched = [laid for laid in self._touched(run) if laid.has(run)]
            torn = [laid for laid in touched if is_cut(run, laid)]
            severity: Severity = "error"
            if torn:
                reason = "zeros that begin or end inside a row"
            elif touched and is_unwritten(self._descriptor, run):
                reason = "zeros that were never written (a hole of the file)"
            else:
                severity, reason = "suspect", "zeros, all of whole rows,"
            for laid in torn or touched:
                start = laid.part(run).start
                self._findings.add("zeros", severity, self._path, laid, start, run.size_bytes, reason)

    def _touched(self, run: Run) -> list[Laid]:
        """The tensors that a run reaches into."""
        first = bisect.bisect_right(self._tensors, run.start, key=attrgetter("end"))
        last = bisect.bisect_left(self._tensors, run.end, key=attrgetter("start"))
        return self._tensors[first:last]
