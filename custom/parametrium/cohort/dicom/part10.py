"""A DICOM file (PS3.10) opened to read little of it, and never more than a bound.

pydicom parses; this module decides how much it may read. A damaged or hostile header can ask for memory a thousand
times its own size (nested empty items, a deflated stream), so reads are counted and inflation is bounded.
"""

import io
import os
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import VR

from parametrium.cohort.dicom.elements import Budget, Elements, Tag, tag_number

MAXIMUM_INFLATED = 2**30
"""Bytes of a deflated file; more is no image of one series but a bomb."""

_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_VR_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UC", b"UN", b"UR", b"UT", b"SQ", b"SV", b"UV")
_VR_KNOWN = frozenset(vr.value for vr in VR)


class NotDicomError(Exception):
    """The file does not begin as a DICOM file."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where the pixel data lie in ``stream``.

    Attributes:
        tag: Pixel Data, Float Pixel Data or Double Float Pixel Data.
        offset: of the value's first byte.
        length: bytes of the value that the file really holds; for an encapsulated value, to the end of the file.
        encapsulated: frames in fragments, each with its own length.
        words: the value is of 16-bit words (VR OW), also where a voxel has 8 bits.
    """

    tag: int
    offset: int
    length: int
    encapsulated: bool
    words: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """A file whose header was read.

    Attributes:
        elements: what was asked for of the header.
        syntax: transfer syntax.
        stream: the file, or its inflated data.
        pixels: None where there are none.
    """

    elements: Elements
    syntax: UID
    stream: BinaryIO
    pixels: Pixels | None


@contextmanager
def opened(path: Path, tags: Collection[Tag], *, content: bool = False) -> Iterator[Opened]:
    """Reads the elements ``tags`` of a file's header, up to its pixel data.

    Args:
        path: any file.
        tags: what is wanted.
        content: whether the header itself is what the object holds, as in structure sets and segmentations: then it may
            be as large as the file, and the budget grows with the file's size, up to a bound.

    Raises:
        NotDicomError: neither a preamble nor a plausible first element.
        OSError: the file cannot be read.
        Exception: whatever pydicom raises for a damaged header, or ``BudgetSpentError`` for one that asks for too much.
    """
    with path.open("rb") as file:
        budget = Budget(os.fstat(file.fileno()).st_size if content else 0)
        syntax, stream = _dataset_stream(file, budget)
        little, implicit = syntax.is_little_endian, syntax.is_implicit_VR
        wanted = _numbers(frozenset(tags))
        metered = budget.metered(stream)
        try:
            dataset = read_dataset(metered, implicit, little, stop_when=_at_pixels, specific_tags=wanted)
        except Exception:
            budget.require()
            raise
        yield Opened(Elements(dataset, budget), syntax, stream, _pixels(stream, implicit, little))


@cache
def _numbers(tags: frozenset[Tag]) -> list[int]:
    return [tag_number(tag) for tag in tags]


def _at_pixels(tag: int, _vr: str | None, _length: int) -> bool:
    return tag in _PIXELS


def _dataset_stream(file: BinaryIO, budget: Budget) -> tuple[UID, BinaryIO]:
    """Transfer syntax, and a stream positioned at the first element after the file meta information."""
    start = file.read(134)
    if start[128:132] == b"DICM":
        file.seek(132)
    elif len(start) > 8 and start[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08") and _first_element_plausible(start):
        file.seek(0)  # written without a preamble, as old archives do
    else:
        raise NotDicomError
    meta = read_dataset(budget.metered(file), False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    named = UID(Elements(meta, budget).text("TransferSyntaxUID"))
    if not named:
        return _guessed(file), file
    if not named.is_transfer_syntax:
        return ExplicitVRLittleEndian, file  # a vendor's own: all but a few are written so
    if named != DeflatedExplicitVRLittleEndian:
        return named, file
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(file.read(), MAXIMUM_INFLATED)
    if inflater.unconsumed_tail:
        budget.refuse()
    return named, io.BytesIO(inflated)


def _first_element_plausible(start: bytes) -> bool:
    """Whether the first element, of group 2 or 8, has a length that fits a header, in any encoding."""
    if start[4:6].decode("latin-1") in _VR_KNOWN:
        return True
    return start[:2] != b"\x00\x08" and struct.unpack("<L", start[4:8])[0] < 128


def _guessed(file: BinaryIO) -> UID:
    """Transfer syntax of a data set whose meta information does not name it."""
    place = file.tell()
    start = file.read(6)
    file.seek(place)
    if start[4:6].decode("latin-1") not in _VR_KNOWN:
        return ImplicitVRLittleEndian
    return ExplicitVRBigEndian if start[:1] == b"\x00" else ExplicitVRLittleEndian


def _pixels(stream: BinaryIO, implicit: bool, little: bool) -> Pixels | None:
    """The pixel data element that the stream stands before."""
    start = stream.read(12)
    if len(start) < 8:
        return None
    order = "<" if little else ">"
    group, element = struct.unpack(f"{order}HH", start[:4])
    tag = group << 16 | element
    if tag not in _PIXELS:
        return None
    if implicit:
        length, offset = struct.unpack(f"{order}L", start[4:8])[0], stream.tell() - len(start) + 8
    elif start[4:6] in _VR_LONG and len(start) == 12:
        length, offset = struct.unpack(f"{order}L", start[8:12])[0], stream.tell()
    else:
        return None
    held = stream.seek(0, io.SEEK_END) - offset
    undefined = length == 0xFFFFFFFF
    words = implicit or start[4:6] == b"OW"
    return Pixels(tag, offset, held if undefined else min(length, held), undefined, words)
