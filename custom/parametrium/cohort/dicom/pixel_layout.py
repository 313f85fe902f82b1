"""How a file says that its frames are stored, and whether it holds as much as it says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from parametrium.cohort.dicom.elements import Elements
from parametrium.cohort.dicom.part10 import Pixels, opened
from parametrium.cohort.dicom.quiet import quiet
from parametrium.cohort.header import MAXIMUM_VOXELS

LAYOUT_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""Elements that ``layout_of`` and the decoding of frames look at."""

_ITEM, _LAST_ITEM = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


class UndecodableError(Exception):
    """Pixel data that are not what the header says."""


@dataclass(frozen=True)
class Layout:
    """How a file's frames are stored (PS3.5 8.1)."""

    rows: int
    columns: int
    frames: int
    allocated: int
    bits: int
    high: int
    signed: bool
    photometric: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a stored value, in this machine's order of bytes."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.rows * self.columns * self.allocated // 8


def layout_of(elements: Elements) -> Layout:
    """The layout of single numbers a voxel.

    Raises:
        UndecodableError: it is none, of colour, or none that makes sense.
    """

    def integer(tag: str, default: int | None = None) -> int:
        value = elements.integer(tag)
        if value is None and default is None:
            raise UndecodableError
        return default if value is None else value  # type: ignore[return-value]  # one of them is there

    allocated = integer("BitsAllocated")
    bits = integer("BitsStored", allocated)
    layout = Layout(
        rows=integer("Rows"),
        columns=integer("Columns"),
        frames=integer("NumberOfFrames", 1),
        allocated=allocated,
        bits=bits,
        high=integer("HighBit", bits - 1),
        signed=integer("PixelRepresentation", 0) == 1,
        photometric=elements.word("PhotometricInterpretation"),
    )
    sound = (
        allocated in (8, 16, 32)
        and 0 < bits <= allocated
        and bits - 1 <= layout.high < allocated
        and integer("SamplesPerPixel", 1) == 1
        and layout.photometric in ("MONOCHROME1", "MONOCHROME2")
        and layout.frames > 0
        and 0 < layout.rows * layout.columns <= MAXIMUM_VOXELS
    )
    if not sound:
        raise UndecodableError
    return layout


def holds_all_pixels(path: Path) -> bool:
    """Whether a file's pixel data are as long as its header says, or end as compressed ones must; decodes nothing."""
    try:
        with quiet(), opened(path, LAYOUT_TAGS) as file:
            if file.pixels is None:
                return False
            if file.pixels.encapsulated:
                return _ends_well(file.stream, file.pixels)
            layout = layout_of(file.elements)
            return file.pixels.length >= layout.frames * layout.frame_bytes
    except Exception:  # what is wrong with the file is said when it is decoded
        return False


def _ends_well(stream: BinaryIO, pixels: Pixels) -> bool:
    """Whether fragment follows fragment as far as the Sequence Delimitation Item (PS3.5 A.4)."""
    place, end = pixels.offset, pixels.offset + pixels.length
    while place + 8 <= end:
        stream.seek(place)
        tag, length = stream.read(4), int.from_bytes(stream.read(4), "little")
        if tag != _ITEM:
            return tag == _LAST_ITEM
        place += 8 + length
    return False
